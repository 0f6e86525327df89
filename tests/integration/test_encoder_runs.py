"""Encoders from the command line: pretrained, taught, scored, exported, on every kind of mesh, and what is refused."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.support.commands import call, snapshot, words
from tests.support.encoders import tokenizer
from tests.support.processes import Ended
from tests.support.small import jit, random_params, small
from train import config, metrics, tokenizer_files
from train import mesh as meshes
from train.folder import read_config
from train.load import load
from train.marker import by_path
from train.objectives import distilled
from zoo import cli, pretrained

SIZE = (
    "--model.vocab 300 --model.context 32 --model.layers 2 --model.width 32 --model.heads 4 --model.ffn 64 "
    "--tokenizer.vocab 300 --data.length 32 --data.batch 8 --data.paths text.jsonl "
    "--steps 4 --optim.warmup 1 --log.every 1 --log.validate-every 0"
)
MODELS = {
    "bert": "bert-nano",
    "roberta": "roberta-nano",
    "distilbert": "distilbert-nano --distillation.teacher runs/bert --model.layers 1",
}
"""Run -> its recipe, and what it learns from."""


def command(name: str, flags: str = "") -> list[str]:
    recipe, _, own = MODELS[name].partition(" ")
    return ["train", recipe, *words(SIZE), *words(own), "--name", name, *words(flags)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder, the current one, with a text of many documents, one of a single one, the runs of `MODELS`, and a GPT."""
    folder = tmp_path_factory.mktemp("place")
    sentences = (f"The {n}th whale of {n % 7} is seen{'!' if n % 2 else '.'} {n * n} more swim." for n in range(200))
    text = [" ".join(itertools.islice(sentences, 5)) for _ in range(40)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in text))
    (folder / "one.txt").write_text(" ".join(text))
    gpt = small("gpt", vocab=tokenizer("gpt").vocab_size)
    (folder / "gpt").mkdir()
    pretrained.save(folder / "gpt", gpt.config, random_params(gpt))
    tokenizer_files.write(folder / "gpt", tokenizer("gpt"), longest=32)
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
    assert scores["predictions"] > 10
    assert ("pairs" in scores) == (name == "bert")
    before = snapshot(place)
    ended = call(capsys, "eval", f"runs/{name}", "--batch", "5")
    assert (ended.code, ended.stderr) == (0, "")
    told = {key: float(value.replace(",", "")) for key, value in map(str.split, ended.stdout.splitlines())}
    assert told == pytest.approx({key: scores[key] for key in scores.keys() - {"stride", "step"}}, rel=1e-6, abs=1e-6)
    assert snapshot(place) == before


@pytest.mark.parametrize("name", MODELS)
def test_weights_come_back_from_an_export(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (f"export runs/{name} out/{name}", f"import out/{name}"):
        ended = call(capsys, *words(line))
        assert ended.code == 0, ended.stderr
    run, back = load(f"runs/{name}"), load(f"models/{name}")
    assert (back.net.family, back.net.task) == (run.net.family, run.net.task)
    assert back.tokenizer.encode("the 7th whale").tolist() == run.tokenizer.encode("the 7th whale").tolist()
    ours, theirs = (by_path(jax.device_get(each.params)) for each in (run, back))
    assert ours.keys() == theirs.keys()
    assert not [path for path in ours if ours[path].tobytes() != theirs[path].tobytes()]


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        pytest.param("bert", "--mesh.fsdp 4", marks=pytest.mark.slow),
        ("distilbert", "--mesh.tensor 2"),
        pytest.param("bert", "--mesh.tensor 2", marks=pytest.mark.slow),
        pytest.param("distilbert", "--mesh.fsdp 4", marks=pytest.mark.slow),
    ],
)
def test_losses_are_the_same_on_every_mesh(name: str, mesh: str, place: Path) -> None:
    """Against eight devices of data parallelism, which is what a run takes by itself."""
    expected = losses(place / "runs" / name)
    assert len(set(expected.tolist())) == 4
    other = f"{name}{mesh.replace(' ', '-')}"
    assert cli.main(command(name, f"{mesh} --name {other}")) == 0
    np.testing.assert_allclose(losses(place / "runs" / other), expected, rtol=1e-5)


def test_a_teacher_lies_over_the_mesh_as_its_student_does(place: Path) -> None:
    mesh = meshes.make(config.Mesh(fsdp=4))
    frozen = distilled.bind(read_config(place / "runs" / "distilbert"), mesh).frozen
    kernel = frozen["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size


TERMS = {"bert": {"masked", "next"}, "roberta": set(), "distilbert": {"masked", "soft", "cosine"}}


@pytest.mark.parametrize("name", MODELS)
def test_the_terms_of_a_loss_are_in_its_metrics(name: str, place: Path) -> None:
    for row in metrics.read(place / "runs" / name / "metrics.jsonl"):
        if row["kind"] == "train":
            assert row.get("terms", {}).keys() == TERMS[name]
            assert sum(row.get("terms", {"all": row["loss"]}).values()) == pytest.approx(row["loss"], rel=1e-5)


def test_a_student_is_scored_without_its_teacher(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = place / "runs" / "bert"
    teacher.rename(place / "elsewhere")
    try:
        assert call(capsys, "eval", "runs/distilbert").code == 0
    finally:
        (place / "elsewhere").rename(teacher)


REFUSED = {
    "bert --data.paths one.txt": r"--data\.rows segment_pairs: the training text is one document, and random pairs take .*jsonl",
    "bert --data.rows full_sentences": r"--data\.rows full_sentences: the model also learns which sentence is next, from pairs",
    "bert --init runs/roberta": r"--init runs/roberta: roberta, and the recipe trains bert$",
    "bert --tokenizer.path gpt --model.vocab 400": r"--data\.rows segment_pairs: rows of an encoder need a tokenizer with marks",
    "distilbert --distillation.teacher=": r"--distillation\.teacher : name the run or the weights to learn from$",
    "distilbert --distillation.teacher runs/gone": r".*runs/gone.*",
    "distilbert --distillation.teacher gpt": r"--distillation\.teacher gpt: it has no head for masked words",
    "distilbert --model.width 64": r"--model\.width 64: its teacher has 32; choose the same$",
    "distilbert --model.layers 3": r"--model\.layers 3: its teacher has 2; choose at most as many$",
    "distilbert --tokenizer.path runs/roberta/tokenizer": r"--distillation\.teacher runs/bert: it has another tokenizer",
}


def assert_one_line(ended: Ended, said: str) -> None:
    assert (ended.code, ended.stdout) == (2, ""), ended
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert re.match(f"zoo: {said}", ended.stderr.rstrip("\n")), ended.stderr


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_trained_is_refused_in_one_line(line: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is written."""
    name, _, flags = line.partition(" ")
    before = snapshot(place)
    assert_one_line(call(capsys, *command(name, f"{flags} --name refused")), REFUSED[line])
    assert snapshot(place) == before
