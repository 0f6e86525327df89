"""XLNet from the command line: pretrained with a memory, scored with it, fine-tuned, asked for words and texts; and refusals."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import assert_evaluates_alike, assert_refused, call, in_folder, trained, words
from train.load import load
from train.marker import by_path

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
    "finetuned": f"finetune-classification --init runs/memory {RUN} --data.paths labels.tsv",
}
"""Run -> its recipe and options."""


def run(name: str) -> Path:
    if name == "finetuned":
        run("memory")
    return trained(name, words(MODELS[name]))


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with a text and labelled sentences."""
    folder = tmp_path_factory.mktemp("place")
    sentences = [f"the {n}th whale of {n % 7} is {'seen' if n % 2 else 'lost'}." for n in range(200)]
    (folder / "text.txt").write_text(" ".join(sentences))
    rows = "".join(f"{sentence}\t{'good' if n % 2 else 'bad'}\n" for n, sentence in enumerate(sentences))
    (folder / "labels.tsv").write_text(f"text\tlabel\n{rows}")
    (folder / "short.txt").write_text("the whale is seen.")
    with in_folder(folder):
        yield folder


@pytest.mark.parametrize(
    "name",
    [
        "memory",
        pytest.param("finetuned", marks=pytest.mark.full),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("both-ways", "denoising")),
    ],
)
def test_a_run_is_scored_and_evaluated_alike(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that continue each other are scored as many at once as they were planned for, at any batch size."""
    assert_evaluates_alike(capsys, run(name))


@pytest.mark.full
def test_finetuning_begins_with_the_pretrained_body() -> None:
    assert load(run("finetuned")).net.init_carry(8) == {}
    after, before = by_path(load(run("finetuned")).params), by_path(load(run("memory")).params)
    name = "embed/tokens/embedding"
    assert float(np.abs(after[name] - before[name]).mean()) < 0.05 * float(np.abs(before[name]).mean())
    assert "unembed/bias" not in after and "classifier/kernel" in after


@pytest.mark.full
@pytest.mark.parametrize(
    ("line", "output"),
    [
        ("generate runs/memory --prompt the --limit 4", "the"),
        ("eval runs/memory --task permutation_likelihood --files text.txt --orders 2", "loss_stderr"),
        ("eval runs/memory --task pseudo_perplexity --files short.txt", "pseudo_perplexity"),
        ("embed runs/memory --text whale --out vectors.npy", ""),
        ("fill-mask runs/memory --text <mask>whale", "whale"),
    ],
)
def test_a_pretrained_model_answers(line: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("memory")
    ended = call(capsys, *words(line))
    assert ended.code == 0, ended.stderr
    assert output in ended.stdout


REFUSED = {
    "--data.rows packed": "--data.rows packed: rows of this objective are windows of one stream; choose windows",
    "--model.task sequence": "--model.task sequence: the text of permutation has no labels; choose a recipe of finetune",
    "--model.task body": "--model.task body: it has no words to predict; choose permutation, or pretraining for next",
    "--objective masked": "--objective masked: a xlnet is trained by permutation, classification",
}


@pytest.mark.full
def test_what_cannot_be_trained_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {line: (("train", *words(f"{PRETRAIN} {line} --name no")), message) for line, message in REFUSED.items()}
    assert_refused(capsys, place, cases)
