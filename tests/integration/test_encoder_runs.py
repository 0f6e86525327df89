"""Encoders from the command line: pretrained, distilled, scored, exported, on every kind of mesh, and what is refused."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from tests.support.commands import (
    assert_evaluates_alike,
    assert_refused,
    assert_same_losses,
    call,
    in_folder,
    trained,
    words,
)
from tests.support.encoders import tokenizer
from tests.support.small import random_params, small
from train import config, metrics, tokenizer_files
from train import mesh as meshes
from train.folder import read_config
from train.load import load
from train.marker import by_path
from train.objectives import distilled
from zoo import pretrained

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
TERMS = {"bert": {"masked", "next"}, "roberta": set(), "distilbert": {"masked", "soft", "cosine"}}
each_run = pytest.mark.parametrize(
    "name", ["bert", *(pytest.param(name, marks=pytest.mark.full) for name in ("roberta", "distilbert"))]
)


def arguments(name: str, flags: str = "") -> tuple[str, ...]:
    recipe, _, own = MODELS[name].partition(" ")
    return words(f"{recipe} {SIZE} {own} {flags}")


def run(name: str) -> Path:
    if name == "distilbert":
        run("bert")
    return trained(name, arguments(name))


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with a text of many documents and the same as one."""
    folder = tmp_path_factory.mktemp("place")
    sentences = (f"The {n}th whale of {n % 7} is seen{'!' if n % 2 else '.'} {n * n} more swim." for n in range(200))
    text = [" ".join(itertools.islice(sentences, 5)) for _ in range(40)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in text))
    (folder / "one.txt").write_text(" ".join(text))
    with in_folder(folder):
        yield folder


@each_run
def test_a_run_is_scored_and_evaluated_alike(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And the terms of its loss are in its metrics."""
    scores = assert_evaluates_alike(capsys, run(name))
    assert scores["predictions"] > 10
    assert ("pairs" in scores) == (name == "bert")
    for row in metrics.read(run(name) / "metrics.jsonl"):
        if row["kind"] == "train":
            assert row.get("terms", {}).keys() == TERMS[name]
            assert sum(row.get("terms", {"all": row["loss"]}).values()) == pytest.approx(row["loss"], rel=1e-5)


@each_run
def test_weights_come_back_from_an_export(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(name)
    for line in (f"export runs/{name} out/{name}", f"import out/{name}"):
        ended = call(capsys, *words(line))
        assert ended.code == 0, ended.stderr
    before, after = load(f"runs/{name}"), load(f"models/{name}")
    assert (after.net.family, after.net.task) == (before.net.family, before.net.task)
    assert after.tokenizer.encode("the 7th whale").tolist() == before.tokenizer.encode("the 7th whale").tolist()
    weights, imported = (by_path(jax.device_get(loaded.params)) for loaded in (before, after))
    assert weights.keys() == imported.keys()
    assert not [path for path in weights if weights[path].tobytes() != imported[path].tobytes()]


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        pytest.param("distilbert", "--mesh.tensor 2", marks=pytest.mark.full),
        pytest.param("bert", "--mesh.fsdp 4", marks=pytest.mark.slow),
    ],
)
def test_losses_are_the_same_on_every_mesh(name: str, mesh: str) -> None:
    """Against eight devices of data parallelism, which is what a run takes by itself."""
    plain = run(name)
    assert_same_losses(trained(f"{name}{mesh.replace(' ', '-')}", arguments(name, mesh)), plain)


@pytest.mark.full
def test_a_teacher_is_sharded_for_training_and_not_needed_for_scoring(capsys: pytest.CaptureFixture[str]) -> None:
    student = run("distilbert")
    frozen = distilled.bind(read_config(student), meshes.make(config.Mesh(fsdp=4))).frozen
    kernel = frozen["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size
    teacher, elsewhere = run("bert"), Path("elsewhere")
    teacher.rename(elsewhere)
    try:
        assert call(capsys, "eval", "runs/distilbert").code == 0
    finally:
        elsewhere.rename(teacher)


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


@pytest.mark.full
def test_what_cannot_be_trained_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpt = small("gpt", vocab=tokenizer("gpt").vocab_size)
    Path("gpt").mkdir()
    pretrained.save(Path("gpt"), gpt.config, random_params(gpt))
    tokenizer_files.write(Path("gpt"), tokenizer("gpt"), longest=32)
    for name in ("bert", "roberta"):
        run(name)
    lines = {line: line.partition(" ") for line in REFUSED}
    cases = {line: (("train", *arguments(name, f"{own} --name no")), REFUSED[line]) for line, (name, _, own) in lines.items()}
    assert_refused(capsys, place, cases)
