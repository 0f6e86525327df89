"""`zoo eval --task labelled`: what it reads for which head, what it measures, and what it refuses."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from eval.metrics import metric_functions
from eval.tasks import labelled as task
from eval.tasks.held_out import labelled_scores
from eval.tasks.task import Result, Settings
from tests.support import encoders, finetuned
from tests.support.commands import call
from tests.support.finetuned import LABELS, examples, run
from tests.support.labelled_files import put
from train.config.option_groups import Labelled
from train.data.example_types import Text
from train.weights.load import Loaded
from zoo.errors import BadInput


def expected(goal: str, length: int) -> dict[str, Any]:
    """What `eval.tasks.held_out.labelled_scores` makes of the logits of all rows."""
    cfg = run(goal, length=length)
    rows = finetuned.rows(cfg, examples(goal, 27))
    batch = finetuned.batch(cfg, rows)
    logits = finetuned.logits(cfg, batch)
    if goal == "span":
        logits = np.where(np.asarray(batch.segments)[:, None] > 0, np.moveaxis(logits, 2, 1), -np.inf)
    tell = labelled_scores.METRICS[goal]
    return tell(rows, logits, cfg.model.labels).numbers


def score(subject: Loaded, *files: Path, argument: str = "", **options: Any) -> Result:
    seen: list[tuple[int, int]] = []
    settings = Settings(dtype=jnp.float32, argument=argument, length=options.pop("length", 0), labelled=Labelled(**options))
    names = task.TASK.read(tuple(map(str, files)), settings)
    result = task.TASK.score(subject, names, settings, lambda done, count: seen.append((done, count)))
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    return result


def loaded(goal: str) -> Loaded:
    return encoders.loaded("bert", finetuned.TASKS[goal])


@pytest.mark.full
@pytest.mark.parametrize(
    "goal", [pytest.param(goal, marks=[] if goal == "span" else pytest.mark.full) for goal in finetuned.TASKS]
)
def test_published_weights_are_scored_by_their_head(goal: str, tmp_path: Path) -> None:
    """Windows of a context fill the model's positions; other rows are as long as the longest needs."""
    found = score(loaded(goal), finetuned.write(tmp_path, goal), **({"stride": 5} if goal == "span" else {}))
    length = 40 if goal == "span" else 32
    numbers = expected(goal, length)
    assert found.examples == numbers.pop("examples") == 27
    assert found.details["length"] == length
    assert {name: found.metrics[name] for name in numbers} == pytest.approx(numbers, rel=1e-4)
    more = {"accuracy_stderr"} if goal in ("classification", "choice") else set()
    assert found.metrics.keys() - numbers.keys() == more
    if more:
        outcomes = np.arange(27) < round(numbers["accuracy"] * 27)
        assert found.metrics["accuracy_stderr"] == pytest.approx(outcomes.std(ddof=1) / np.sqrt(27))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    encoders.folder(folder / "classes", "bert", "sequence")
    encoders.folder(folder / "masked", "bert", "masked")
    finetuned.write(folder, "classification")
    put(folder / "other.tsv", "text\tlabel\nthe whale\tmaybe\n")
    return folder


def test_the_command_prints_a_measure_of_glue_and_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(place / "classification.jsonl")
    before = sorted((place / "classes").iterdir())
    ended = call(capsys, "eval", str(place / "classes"), "--task", "labelled:mnli", "--files", file, "--json")
    assert ended.code == 0
    printed = json.loads(ended.stdout)
    assert (printed["model"], printed["step"]) == ("classes", None) and sorted((place / "classes").iterdir()) == before
    assert printed["metrics"].keys() == {"accuracy", "accuracy_stderr", "majority_share", "predicted_share"}
    assert (printed["examples"], printed["details"]["files"]) == (27, [file])
    cfg = run("classification")
    rows = finetuned.rows(cfg, examples("classification", 27))
    predicted = finetuned.logits(cfg, finetuned.batch(cfg, rows)).argmax(-1)
    truth = np.array([LABELS.index(each.label) for each in rows.examples if isinstance(each, Text)])
    counts = metric_functions.confusion(truth, predicted, 3)
    table = {name: dict(zip(LABELS, row, strict=True)) for name, row in zip(LABELS, counts.tolist(), strict=True)}
    assert printed["details"]["confusion"] == table
    assert printed["metrics"]["accuracy"] == pytest.approx((truth == predicted).mean())


def test_a_run_reads_files_with_its_own_options_by_default(tmp_path: Path) -> None:
    file = put(tmp_path / "a.tsv", "said\tso\nthe whale\tyes\nthe men\tno\n")
    own = run("classification", text="said", label="so", class_weights="balanced", length=16)
    subject = dataclasses.replace(loaded("classification"), run=own)
    found = score(subject, file)
    assert (found.examples, found.details["length"]) == (2, 16)
    assert score(subject, file, truncate=True).metrics == found.metrics
    other, columns = put(tmp_path / "b.tsv", "the whale\tyes\nthe men\tno\n"), {"text": "1", "label": "2"}
    assert score(subject, other, header=False, length=20, **columns).metrics == pytest.approx(found.metrics, rel=1e-5)
    with pytest.raises(BadInput, match=r'b\.tsv:1: no column "said"; it has "1", "2": choose one with --labelled\.text, or'):
        score(subject, other, header=False)


def test_limited_and_bad_examples_are_counted(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = put(tmp_path / "a.tsv", "text\tlabel\nthe whale\tyes\n\tno\n" + "the men\tno\n" * 3 + "the ship " * 40 + "\tno\n")
    base = ("eval", str(place / "classes"), "--task", "labelled", "--files", str(file), "--labelled.skip-bad")
    ended = call(capsys, *base, "--json")
    assert (ended.code, json.loads(ended.stdout)["examples"]) == (0, 4)
    assert f"! left out: 1 bad example; the first: {file}:3: the text is empty" in ended.stderr
    assert f"! too long: 1 example, left out; the longest has 82 tokens, {file}:7" in ended.stderr
    few = json.loads(call(capsys, *base, "--limit", "2", "--json").stdout)
    assert (few["examples"], few["limit"], few["metrics"]["majority_share"]) == (2, 2, 0.5)


@pytest.mark.full
def test_numbers_are_read_for_a_regression_head(tmp_path: Path) -> None:
    subject = encoders.regression()
    file = put(tmp_path / "a.tsv", "text\tlabel\nthe whale\t0.5\nthe men\t2\nthe ship\t-1\n")
    assert score(subject, file, argument="stsb").metrics.keys() == {"pearson", "spearman"}


@pytest.mark.full
def test_metrics_that_do_not_fit_the_head_are_refused(place: Path, tmp_path: Path) -> None:
    file = place / "classification.jsonl"
    with pytest.raises(BadInput, match=r"^--task labelled:stsb: .* and the model is of 3 classes$"):
        score(loaded("classification"), file, argument="stsb")
    with pytest.raises(BadInput, match=r"^--task labelled:cola: .* and the model is of choice, not classes"):
        score(loaded("choice"), finetuned.write(tmp_path, "choice"), argument="cola")
    assert score(loaded("classification"), file, argument="cola").metrics.keys() == {"matthews"}


CLASSES = "classes --task labelled --files classification.jsonl"
WRONG = {
    "classes --task labelled:mlni --files other.tsv": "mlni: no task of GLUE has this name; the nearest is mnli",
    "classes --task labelled: --files other.tsv": "--task labelled:: needs an argument, as --task labelled:NAME",
    "classes --task labelled --files other.tsv": r"other.tsv:2: label maybe is none of the 3 that the model learns \(no, perhaps",
    f"{CLASSES} --length 41": "--length 41: choose 1 to the model's 40 positions",
    f"{CLASSES} --length 5": r"classification.jsonl:\d+: \d+ .* \(the longest of 27 that .*; choose a longer --length, leave",
    f"{CLASSES} --labelled.class-weights balanced": "--labelled.class-weights balanced: they apply to the training loss only",
    f"{CLASSES} --labelled.stride 3": "--labelled.stride 3: it has no effect on classification; remove it",
    f"{CLASSES} --labelled.regression": "--labelled.regression True: the model gives no number",
    "classes --task blimp --files other.tsv --labelled.text a": "--labelled.text a: has no effect on --task blimp; remove",
    "classes --labelled.truncate": "--labelled options: they need --task labelled",
    "masked --task labelled --files other.tsv": "--task labelled: the task of masked is masked, without labels; fine-tune",
}


def test_wrong_input_is_refused(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for line, message in WRONG.items():
        ended = call(capsys, "eval", *line.split())
        assert (ended.code, ended.stdout) == (2, ""), line
        assert re.match(f"zoo: {message}", ended.stderr.splitlines()[-1]), ended
