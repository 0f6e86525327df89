"""Encoder-decoders from the command line: pretrained, taught on pairs, scored, on every kind of mesh, and what is refused."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.support.commands import call, snapshot, words
from tests.support.small import jit
from train import metrics
from train.load import load
from train.marker import by_path
from zoo import cli

SIZE = (
    "--model.vocab 384 --model.layers 2 --model.width 32 --model.heads 4 --model.ffn 64 --tokenizer.vocab 300 --data.length 32 "
    "--data.batch 8 --data.valid-fraction 0.2 --steps 4 --optim.warmup 1 --log.every 1 --log.validate-every 0"
)
T5 = "--model.decoder-layers 2 --model.head 8"
PAIRS = "--pairs.source train.en --pairs.target train.de"
MODELS = {
    "t5": f"t5-nano {T5} --data.paths text.jsonl",
    "alone": f"t5-nano {T5} --data.paths text.jsonl --model.architecture decoder",
    "taught": f"finetune-text-to-text --init runs/t5 {PAIRS}",
    "transformer": f"transformer-nano --data.target-length 40 {PAIRS}",
}
"""Run -> its recipe and options, in an order in which each has what it begins from."""


def command(name: str, flags: str = "") -> list[str]:
    recipe, _, own = MODELS[name].partition(" ")
    size = SIZE if "--init" not in own else SIZE[SIZE.index("--data.length") :]
    return ["train", recipe, *words(size), *words(own), "--name", name, *words(flags)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder, the current one, with a text of many documents, parallel files, and the runs of `MODELS`."""
    folder = tmp_path_factory.mktemp("place")
    said = [f"the {n}th whale of {n % 7} is seen{'!' if n % 2 else '.'}" for n in range(200)]
    text = [" ".join(said[n : n + 5]) for n in range(0, 200, 5)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in text))
    (folder / "train.en").write_text("".join(f"{each}\n" for each in said))
    (folder / "train.de").write_text("".join(f"der wal {n} von {n % 7}\n" for n in range(200)))
    (folder / "short.de").write_text("der wal\n" * 199)
    (folder / "empty.de").write_text("der wal\n" * 120 + "\n" * 80)
    (folder / "long.de").write_text("der wal\n" * 120 + "der wal " * 40 + "\n" + "der wal\n" * 79)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(jax, "jit", jit)
        for name in MODELS:
            assert cli.main(command(name)) == 0
        yield folder


def losses(run: Path) -> np.ndarray:
    """The loss of each step."""
    rows = [row for row in metrics.read(run / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    return np.array([row["loss"] for row in rows])


@pytest.mark.parametrize("name", MODELS)
def test_a_run_is_scored_and_evaluated_alike(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = json.loads((place / "runs" / name / "scores.json").read_text())
    assert scores["tokens"] > 100 and 1 < scores["perplexity"] < 400
    assert "bits_per_byte" not in scores
    before = snapshot(place)
    ended = call(capsys, "eval", f"runs/{name}", "--batch", "5")
    assert (ended.code, ended.stderr) == (0, "")
    told = {key: float(value.replace(",", "")) for key, value in map(str.split, ended.stdout.splitlines())}
    assert told == pytest.approx({key: scores[key] for key in scores.keys() - {"stride", "step"}}, rel=1e-6, abs=1e-6)
    assert snapshot(place) == before


def test_what_is_taught_begins_with_the_pretrained_model_and_its_tokenizer(place: Path) -> None:
    taught, pretrained = load("runs/taught"), load("runs/t5")
    assert taught.tokenizer.fingerprint == pretrained.tokenizer.fingerprint
    # Another run, so that four steps have begun from somewhere near: far nearer than fresh parameters would be.
    ours, theirs = taught.params["embed"]["tokens"]["embedding"], pretrained.params["embed"]["tokens"]["embedding"]
    assert float(abs(ours - theirs).mean()) < 0.05 * float(abs(theirs).mean())


ACCUMULATED = "--data.batch 16 --accumulate 2"


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("t5", "--mesh.tensor 2"),
        ("t5", "--mesh.fsdp 8"),
        pytest.param("t5", ACCUMULATED, marks=pytest.mark.slow),
        pytest.param("alone", "--mesh.tensor 2", marks=pytest.mark.slow),
        pytest.param("transformer", "--mesh.tensor 2", marks=pytest.mark.slow),
        pytest.param("transformer", "--mesh.fsdp 8", marks=pytest.mark.slow),
        pytest.param("transformer", ACCUMULATED, marks=pytest.mark.slow),
    ],
)
def test_losses_are_the_same_on_every_mesh(name: str, mesh: str, place: Path) -> None:
    """Against eight devices of data parallelism, which is what a run takes by itself."""
    other = f"{name}{re.sub('[ .]', '-', mesh)}"
    assert cli.main(command(name, f"{mesh} --name {other}")) == 0
    expected = losses(place / "runs" / name)
    if mesh == ACCUMULATED:
        assert cli.main(command(name, f"--data.batch 16 --name whole-{name}")) == 0
        expected = losses(place / "runs" / f"whole-{name}")
    assert len(set(expected.tolist())) == 4
    np.testing.assert_allclose(losses(place / "runs" / other), expected, rtol=1e-5)


REFUSED = {
    "transformer --pairs.target short.de": "train.en has 200 lines and short.de 199; a pair is the same line of both, so",
    "transformer --pairs.target empty.de": r"empty.de:121: the target is empty; write one, or leave the pair out$",
    "transformer --pairs.source empty.de": r"empty.de:121: the source is empty",
    "transformer --pairs.target long.de": r"train.en:121: a target of \d+ tokens, and a row has 40; choose a longer",
    "transformer --pairs.target train.de train.de": "--pairs.target train.de train.de: there are 1 files of --pairs.source",
    "transformer --pairs.source gone --pairs.target train.de": r"gone: cannot be read \(No such file",
    "transformer --data.paths text.jsonl": "--data.paths text.jsonl: pairs are read from --pairs.source; leave it out$",
    "transformer --objective denoising": "--objective denoising: a transformer is trained by text_to_text; choose the recipe of",
    "transformer --init runs/t5": "--init runs/t5: t5, and the recipe trains transformer$",
    "transformer --tokenizer.kind wordpiece": "--tokenizer.kind wordpiece: this tokenizer has no marks for text to text; choose",
    "transformer --optim.freeze-layers 1": "--optim.layer-decay, .*: they mean one stack of layers, and",
    "t5 --tokenizer.kind gpt": "--tokenizer.kind gpt: this tokenizer has no sentinels and no padding; choose sentencepiece",
    "t5 --denoising.kind lm": "--denoising.kind lm: an encoder has nothing to read; choose prefix, or",
    "t5 --denoising.density 0": "--denoising.density 0.0: choose a share above 0",
    "t5 --data.rows packed": "--data.rows packed: denoising takes windows",
    "t5 --data.length 8000": r"--data.length 8000: a row may take \d+ sentinels, and the tokenizer has 100; choose a",
    "t5 --model.vocab 120": r"--model.vocab 120: the tokenizer has \d+ entries",
    "t5 --tokenizer.vocab 257 --data.paths train.en": "train.en: only .txt",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_trained_is_refused_in_one_line(line: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is written."""
    name, _, flags = line.partition(" ")
    before = snapshot(place)
    ended = call(capsys, *command(name, f"{flags} --name refused"))
    assert (ended.code, ended.stdout) == (2, ""), ended
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert re.match(f"zoo: {REFUSED[line]}", ended.stderr.rstrip("\n")), ended.stderr
    assert snapshot(place) == before


def test_the_last_checkpoints_are_averaged(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command("transformer", "--name kept --checkpoint.every 1")) == 0
    ended = call(capsys, *words("export runs/kept out/mean --last 3"))
    assert ended.code == 0, ended.stderr
    assert ended.stdout.rstrip().endswith("step 4 and 2 before it, averaged")
    each = [by_path(jax.device_get(load("runs/kept", step=step).params)) for step in (2, 3, 4)]
    found = by_path(jax.device_get(load("out/mean").params))
    assert found.keys() == each[0].keys()
    for path, leaf in found.items():
        mean = np.mean([one[path].astype(np.float64) for one in each], axis=0)
        # Two additions and a division in float32.
        np.testing.assert_allclose(leaf, mean, rtol=4 * 2**-24, atol=4 * 2**-24 * np.abs(mean).max())
    assert max(float(np.abs(found[path] - each[2][path]).max()) for path in found) > 1e-4
    for line, told in (
        ("export runs/kept out/other --last 9", "--last 9: runs/kept has 4 intact checkpoints; choose 1 to that, or train with"),
        ("export runs/kept out/other --last 2 --step 3", "--last 2: it takes the newest checkpoints; leave out --step"),
        ("export out/mean out/other --last 2", "--last 2: out/mean is no run"),
    ):
        ended = call(capsys, *words(line))
        assert ended.code == 2 and ended.stderr.startswith(f"zoo: {told}"), ended
        assert not (place / "out" / "other").exists()
