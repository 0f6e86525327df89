"""XLNet from the command line: pretrained with a memory, scored with it, fine-tuned, asked for words and texts; and refusals."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.support.commands import call, snapshot, words
from tests.support.small import jit
from train.load import load
from train.marker import by_path
from zoo import cli

RUN = (
    "--data.length 32 --data.batch 8 --data.valid-fraction 0.3 --steps 4 --optim.warmup 1 --log.every 1 --log.validate-every 2"
    " --log.validate-rows 16"
)
SIZE = "--model.vocab 384 --model.layers 2 --model.width 32 --model.heads 4 --model.ffn 64 --tokenizer.vocab 300"
PRETRAIN = f"xlnet-nano {SIZE} {RUN} --data.paths text.txt --model.memory 16 --model.reuse 12"
MODELS = {
    "memory": PRETRAIN,
    "both-ways": f"{PRETRAIN} --permutation.bidirectional --permutation.window 4 --model.reuse 16",
    "denoising": f"{PRETRAIN} --permutation.kind denoising --model.task pretraining",
    "taught": f"finetune-classification --init runs/memory {RUN} --data.paths labels.tsv",
}
"""Run -> its recipe and options."""


def command(name: str, flags: str = "") -> list[str]:
    return ["train", *words(MODELS[name]), "--name", name, *words(flags)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder, the current one, with a text, labelled sentences, and the runs of `MODELS`."""
    folder = tmp_path_factory.mktemp("place")
    said = [f"the {n}th whale of {n % 7} is {'seen' if n % 2 else 'lost'}." for n in range(200)]
    (folder / "text.txt").write_text(" ".join(said))
    (folder / "more.txt").write_text(" ".join(reversed(said)))
    rows = "".join(f"{text}\t{'good' if n % 2 else 'bad'}\n" for n, text in enumerate(said))
    (folder / "labels.tsv").write_text(f"text\tlabel\n{rows}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(jax, "jit", jit)
        for name in ("memory", "taught"):
            assert cli.main(command(name)) == 0
        yield folder


@pytest.mark.parametrize(
    "name",
    ["memory", "taught", *(pytest.param(name, marks=pytest.mark.slow) for name in ("both-ways", "denoising"))],
)
def test_a_run_is_scored_and_evaluated_alike(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the batch: rows that continue each other are scored as many at once as they were planned for."""
    if not (place / "runs" / name).exists():
        assert cli.main(command(name)) == 0
    scores = json.loads((place / "runs" / name / "scores.json").read_text())
    ended = call(capsys, "eval", f"runs/{name}", "--batch", "5")
    assert (ended.code, ended.stderr) == (0, "")
    told = {key: float(value.replace(",", "")) for key, value in map(str.split, ended.stdout.splitlines())}
    assert told == pytest.approx({key: scores[key] for key in scores.keys() - {"stride", "step"}}, rel=1e-6, abs=1e-6)


def test_what_is_taught_begins_with_the_pretrained_body(place: Path) -> None:
    ours, theirs = by_path(load("runs/taught").params), by_path(load("runs/memory").params)
    assert load("runs/taught").net.init_carry(8) == {}
    name = "embed/tokens/embedding"
    assert float(np.abs(ours[name] - theirs[name]).mean()) < 0.05 * float(np.abs(theirs[name]).mean())
    assert "unembed/bias" not in ours and "classifier/kernel" in ours


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("generate runs/memory --prompt the --limit 4", "the"),
        ("eval runs/memory --task permutation_likelihood --files text.txt --orders 2", "loss_stderr"),
        ("eval runs/memory --task pseudo_perplexity --files labels.txt", "pseudo_perplexity"),
        ("embed runs/memory --text whale --out vectors.npy", ""),
    ],
)
def test_a_pretrained_model_answers(line: str, told: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "labels.txt").write_text("the whale is seen.")
    ended = call(capsys, *words(line))
    assert ended.code == 0, ended.stderr
    assert told in ended.stdout


def test_a_mask_is_filled(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = call(capsys, "fill-mask", "runs/memory", "--text", "the <mask> is seen.")
    assert ended.code == 0, ended.stderr
    assert "is seen." in ended.stdout


REFUSED = {
    "memory --permutation.predictions 99": "--permutation.predictions 99: a row of 32 has 12 reused tokens and 17 others",
    "memory --permutation.window 7": "--permutation.window 7: it does not divide the parts of a row, 12 reused tokens and 20",
    "memory --model.reuse 40": "--model.reuse 40: a row of 32 has 5 tokens for two texts and their marks besides; choose at most",
    "memory --data.batch 512": "--data.paths: the training text has .* tokens, .* for each of 512 streams, fewer than a row",
    "memory --data.paths text.txt more.txt --data.weights 1 2": ".*--data.weights 1.0 2.0: rows of a model with a memory",
    "memory --data.rows packed": "--data.rows packed: rows of this objective are windows of one stream; choose windows",
    "memory --tokenizer.kind roberta": "--tokenizer.kind roberta: its <cls> does not end a text; choose xlnet, or a",
    "memory --model.task sequence": "--model.task sequence: the text of permutation has no labels; choose a recipe of finetune",
    "memory --model.task body": "--model.task body: it has no words to predict; choose permutation, or pretraining for next",
    "memory --init runs/taught --objective masked": "--objective masked: a xlnet is trained by permutation, classification",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_trained_is_refused_in_one_line(line: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is written."""
    name, _, flags = line.partition(" ")
    before = snapshot(place)
    ended = call(capsys, *command(name, f"{flags} --name refused"))
    assert (ended.code, ended.stdout) == (2, ""), ended
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert re.match(f"zoo: ({REFUSED[line]})", ended.stderr.rstrip("\n")), ended.stderr
    assert snapshot(place) == before
