"""Encoder-decoders from the command line: pretrained, trained on pairs, scored, on every kind of mesh, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.support.commands import assert_evaluates_alike, assert_refused, assert_same_losses, call, in_folder, trained, words
from train.load import load
from train.marker import by_path

SIZE = "--model.vocab 384 --model.layers 2 --model.width 32 --model.heads 4 --model.ffn 64 --tokenizer.vocab 300"
RUN = "--data.length 32 --data.batch 8 --data.valid-fraction 0.2 --steps 4 --optim.warmup 1 --log.every 1 --log.validate-every 0"
T5 = f"t5-nano {SIZE} --model.decoder-layers 2 --model.head 8 --data.paths text.jsonl"
PAIRS = "--pairs.source train.en --pairs.target train.de"
MODELS = {
    "t5": T5,
    "alone": f"{T5} --model.architecture decoder",
    "finetuned": f"finetune-text-to-text --init runs/t5 {PAIRS}",
    "transformer": f"transformer-nano {SIZE} --data.target-length 40 {PAIRS}",
}
"""Run -> its recipe and options."""


def arguments(name: str, flags: str = "") -> tuple[str, ...]:
    recipe, _, own = MODELS[name].partition(" ")
    return words(f"{recipe} {RUN} {own} {flags}")


def run(name: str) -> Path:
    if name == "finetuned":
        run("t5")
    return trained(name, arguments(name))


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with a text of many documents, and parallel files."""
    folder = tmp_path_factory.mktemp("place")
    sentences = [f"the {n}th whale of {n % 7} is seen{'!' if n % 2 else '.'}" for n in range(200)]
    text = [" ".join(sentences[n : n + 5]) for n in range(0, 200, 5)]
    files = {
        "text.jsonl": "".join(json.dumps({"text": document}) + "\n" for document in text),
        "train.en": "".join(f"{sentence}\n" for sentence in sentences),
        "train.de": "".join(f"der wal {n} von {n % 7}\n" for n in range(200)),
        "short.de": "der wal\n" * 199,
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    with in_folder(folder):
        yield folder


@pytest.mark.parametrize(
    "name", ["t5", *(pytest.param(name, marks=pytest.mark.full) for name in ("alone", "finetuned", "transformer"))]
)
def test_a_run_is_scored_and_evaluated_alike(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    scores = assert_evaluates_alike(capsys, run(name))
    assert scores["tokens"] > 100 and 1 < scores["perplexity"] < 400
    assert "bits_per_byte" not in scores


@pytest.mark.full
def test_finetuning_begins_with_the_pretrained_model_and_its_tokenizer() -> None:
    finetuned, pretrained = load(run("finetuned")), load(run("t5"))
    assert finetuned.tokenizer.fingerprint == pretrained.tokenizer.fingerprint
    # Four steps have changed little: fresh parameters would be far away.
    after, before = (loaded.params["embed"]["tokens"]["embedding"] for loaded in (finetuned, pretrained))
    assert float(abs(after - before).mean()) < 0.05 * float(abs(before).mean())


@pytest.mark.full
def test_losses_are_the_same_on_a_mesh() -> None:
    """Against eight devices of data parallelism, which is what a run takes by itself."""
    assert_same_losses(trained("tensor", arguments("t5", "--mesh.tensor 2")), run("t5"))


@pytest.mark.slow
def test_losses_are_the_same_with_accumulated_gradients() -> None:
    whole, parts = (trained(f"t5{n}", arguments("t5", f"--data.batch 16 --accumulate {n}")) for n in (1, 2))
    assert_same_losses(parts, whole)


REFUSED = {
    "transformer --pairs.target short.de": "train.en has 200 lines and short.de 199; a pair is the same line of both, so",
    "transformer --pairs.target train.de train.de": "--pairs.target train.de train.de: there are 1 files of --pairs.source",
    "transformer --objective denoising": "--objective denoising: a transformer is trained by text_to_text; choose the recipe of",
    "transformer --optim.freeze-layers 1": "--optim.layer-decay, .*: they mean one stack of layers, and",
    "t5 --denoising.density 0": "--denoising.density 0.0: choose a share above 0",
    "t5 --model.vocab 120": r"--model.vocab 120: the tokenizer has \d+ entries",
}


@pytest.mark.full
def test_what_cannot_be_trained_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {line: line.partition(" ") for line in REFUSED}
    cases = {line: (("train", *arguments(name, f"{own} --name no")), REFUSED[line]) for line, (name, _, own) in lines.items()}
    assert_refused(capsys, place, cases)


@pytest.mark.full
def test_the_last_checkpoints_are_averaged(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained("kept", arguments("transformer", "--checkpoint.every 1"))
    ended = call(capsys, *words("export runs/kept out/mean --last 3"))
    assert ended.code == 0, ended.stderr
    assert ended.stdout.rstrip().endswith("step 4 and 2 before it, averaged")
    steps = [by_path(jax.device_get(load("runs/kept", step=step).params)) for step in (2, 3, 4)]
    averaged = by_path(jax.device_get(load("out/mean").params))
    assert averaged.keys() == steps[0].keys()
    for path, leaf in averaged.items():
        mean = np.mean([params[path].astype(np.float64) for params in steps], axis=0)
        # Two additions and a division in float32.
        np.testing.assert_allclose(leaf, mean, rtol=4 * 2**-24, atol=4 * 2**-24 * np.abs(mean).max())
    assert max(float(np.abs(averaged[path] - steps[2][path]).max()) for path in averaged) > 1e-4
    refused = {
        "runs/kept out/other --last 9": "--last 9: runs/kept has 4 intact checkpoints; choose 1 to that, or train with",
        "runs/kept out/other --last 2 --step 3": "--last 2: it takes the newest checkpoints; leave out --step",
        "out/mean out/other --last 2": "--last 2: out/mean is no run",
    }
    assert_refused(capsys, place, {line: (("export", *words(line)), message) for line, message in refused.items()})
