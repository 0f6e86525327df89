"""The best checkpoint of a run: which one it is, that it is the one that is scored, and when a run ends for want of a better."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import chex
import pytest

from eval import scores
from tests.support import states, tiny
from tests.support.runs import snapshot, text
from train import config, loop
from train.checkpoint import Checkpoints
from train.config_objectives import Selection
from train.folder import Folder
from train.load import load
from train.metrics import read
from train.selection import Choice
from zoo.errors import BadInput

META = {"tokenizer": "t", "data": "d", "held_out": "h"}
NAN = math.nan


@dataclasses.dataclass(frozen=True)
class Found:
    """What a validation found."""

    numbers: dict[str, float]

    def record(self) -> dict[str, float]:
        return self.numbers


def a_run(folder: Path, *, measure: str = "", patience: int = 0, **changes: Any) -> config.Run:
    return tiny.run(out=str(folder), selection=Selection(best=True, measure=measure, patience=patience), **changes)


def note(folder: Path, found: Sequence[dict[str, float]], first: int = 1, **options: Any) -> tuple[int, int | None]:
    """Validate steps 10, 20, ... or from the `first` of these on; returns the step that is chosen, and where the run ended."""
    run = a_run(folder, **options)
    with Choice(run, Folder.of(run), notify=pytest.fail) as choice:
        for number, numbers in enumerate(found, 1):
            if number >= first:
                choice.note(states.make(10 * number), Found(numbers), META)
                if choice.exhausted(10 * number):
                    return kept(run), 10 * number
        last = states.make(10 * len(found))
        params, step = choice.params(last, states.abstract(last))
        assert step == (kept(run) or int(last.step))
        chex.assert_trees_all_equal(params, states.make(step).params)
    return kept(run), None


def kept(run: config.Run) -> int:
    return Checkpoints(Folder.of(run).best, 1, notify=pytest.fail).latest() or 0


def accuracies(*values: float) -> list[dict[str, float]]:
    return [{"loss": 1.0, "accuracy": value} for value in values]


@pytest.mark.parametrize(
    ("found", "measure", "chosen"),
    [
        ([{"loss": loss} for loss in (3.0, 2.0, 2.5)], "", 20),
        ([{"loss": loss, "perplexity": 9 - loss} for loss in (1.0, 2.0, 3.0)], "", 30),
        ([{"loss": loss, "perplexity": 9 - loss} for loss in (1.0, 2.0, 3.0)], "loss", 10),
        (accuracies(0.5, 0.75, 0.25), "", 20),
        (accuracies(0.5, 0.75, 0.25), "accuracy", 20),
        (accuracies(0.5, 0.75, 0.75, 0.5), "", 20),
        (accuracies(NAN, 0.25, NAN), "", 20),
        (accuracies(NAN, NAN), "", 0),
        ([{"accuracy": 0.5, "mean_squared_error": value} for value in (4.0, 3.0, 5.0)], "mean_squared_error", 20),
    ],
)
def test_the_best_is_kept_and_of_equal_ones_the_first(
    found: list[dict[str, float]], measure: str, chosen: int, tmp_path: Path
) -> None:
    assert note(tmp_path, found, measure=measure) == (chosen, None)


@pytest.mark.parametrize(
    ("values", "patience", "chosen", "ended"),
    [
        ((0.5, 0.6, 0.4, 0.7, 0.3, 0.3), 2, 40, 60),
        ((0.5, 0.6, 0.4, 0.7, 0.3, 0.3), 1, 20, 30),
        ((0.5, 0.5, 0.5, 0.5), 3, 10, 40),
        ((0.1, 0.2, 0.3, 0.4), 1, 40, None),
        ((0.5, 0.4, 0.3, 0.2), 0, 10, None),
        ((NAN, NAN, NAN), 1, 0, None),
    ],
)
def test_patience_is_validations_without_a_better_one(
    values: tuple[float, ...], patience: int, chosen: int, ended: int | None, tmp_path: Path
) -> None:
    assert note(tmp_path, accuracies(*values), patience=patience) == (chosen, ended)


@pytest.mark.parametrize("killed", range(1, 7))
def test_a_resumed_run_ends_with_the_same_choice(killed: int, tmp_path: Path) -> None:
    """Killed after any validation, and resumed at the one before it or from the start."""
    values = accuracies(0.5, 0.6, 0.4, 0.7, 0.3, 0.3, 0.9)
    expected = note(tmp_path / "whole", values, patience=2)
    for resumed in {1, killed}:
        where = tmp_path / f"from {resumed}"
        note(where, values[:killed], patience=2)
        assert note(where, values, first=resumed, patience=2) == expected == (40, 60)


def test_a_validation_that_was_judged_before_is_not_judged_by_its_last_digits(tmp_path: Path) -> None:
    """As where a run goes on with other devices: the step of the best cannot be followed by one before it."""
    note(tmp_path, accuracies(0.5, 0.6, 0.7))
    assert note(tmp_path, accuracies(0.8, 0.9, 0.7, 0.6), first=2) == (30, None)


@pytest.mark.parametrize(
    ("measure", "line"),
    [
        ("acuracy", "--selection.measure acuracy: not measured here; the nearest is accuracy"),
        ("unigram_loss", "--selection.measure unigram_loss: not measured here; the nearest is"),
        ("f1", "--selection.measure f1: not measured here; the nearest is loss (all: loss, accuracy)"),
    ],
)
def test_a_measure_that_decides_nothing_gets_one_line(measure: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=re.escape(line)) as refused:
        note(tmp_path, accuracies(0.5), measure=measure)
    assert "\n" not in str(refused.value)


def test_without_a_choice_nothing_is_kept_and_the_last_step_is_the_run_s(tmp_path: Path) -> None:
    run = tiny.run(out=str(tmp_path))
    with Choice(run, Folder.of(run), notify=pytest.fail) as choice:
        choice.note(states.make(10), Found({}), META)
        assert not choice.exhausted(10)
        assert choice.params(states.make(20), None)[1] == 20
    assert not Folder.of(run).path.exists()


# --- in a run -------------------------------------------------------------------------------------------------------------------

VALUES = {2: 5.0, 4: 3.0, 6: 4.0, 8: 3.0}
"""What the validations of a run find, by step; it has no patience for a third after the best."""


class Killed(Exception):
    """As far as the run's folder is concerned."""


def train(run: config.Run, first: int = 0, killed: int | None = None) -> int:
    """Start a run from its `first` step; its validations find `VALUES`, its score at the end is a real one.

    It ends by a kill at the validation of a step, or while it is scored, which is here step 0.
    """
    step = iter(range(first + 2, 100, 2))

    def validate(params: Any) -> Found:
        at = next(step)
        if at == killed:
            raise Killed
        return Found({"bits_per_byte": VALUES[at]})

    def score(real: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def scored(params: Any) -> Any:
            if killed == 0:
                raise Killed
            return real(params)

        return scored

    kinds = iter((lambda _: validate, score))
    return loop.run(run, evaluate=lambda *given, **named: next(kinds)(scores.scorer(*given, **named)), on_end=lambda _: None)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> config.Run:
    """A run of twenty steps that ended after its eighth."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(text())
    # Without dropout, which takes long to compile.
    plain = dataclasses.replace(tiny.run().model, dropout=0.0, attention_dropout=0.0, embedding_dropout=0.0)
    run = a_run(
        folder,
        patience=2,
        model=plain,
        data=config.Data(paths=(str(folder / "text.txt"),), length=32, batch=8),
        mesh=config.Mesh(data=1, fsdp=8),
        checkpoint=config.Checkpoint(every=4),
        log=config.Log(every=2, validate_every=2, validate_rows=4, samples=0),
    )
    assert train(run) == 0
    return run


def test_a_run_without_a_better_validation_ends_and_is_finished(ended: config.Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder.of(ended)
    assert [row["step"] for row in read(folder.metrics) if row["kind"] == "valid"] == [2, 4, 6, 8]
    capsys.readouterr()
    before = snapshot(folder.path)
    assert train(ended) == 0
    assert f"{folder.path} is finished: held-out " in capsys.readouterr().out
    assert snapshot(folder.path) == before


def test_what_is_scored_and_loaded_is_the_best(ended: config.Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder.of(ended)
    told = json.loads(folder.scores.read_text())
    assert told["step"] == load(folder.path).step == 4
    printed = {step: evaluated(folder, step, capsys) for step in (None, 4, 8)}
    assert printed[None] == printed[4] == pytest.approx(told["loss"], abs=2e-6)
    assert abs(printed[8] - printed[4]) > 1e-3
    with pytest.raises(BadInput, match=r"steps that can be read: 8, 4"):
        scores.main(str(folder.path), step=6, batch=8, stride=0, mesh=config.Mesh())


def evaluated(folder: Folder, step: int | None, capsys: pytest.CaptureFixture[str]) -> float:
    """The loss that `zoo eval` prints."""
    capsys.readouterr()
    assert scores.main(str(folder.path), step=step, batch=8, stride=0, mesh=config.Mesh()) == 0
    return float(re.findall(r"^loss +(\S+)$", capsys.readouterr().out, re.MULTILINE)[0])


def test_killed_while_it_validates_and_while_it_is_scored_it_ends_with_the_same_bits(
    ended: config.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run = dataclasses.replace(ended, name="killed")
    theirs, ours = Folder.of(ended), Folder.of(run)
    for first, killed in ((0, 6), (4, 0)):
        with pytest.raises(Killed):
            train(run, first, killed)
    assert not ours.scores.exists()
    capsys.readouterr()
    # All it has left to do is to be scored.
    assert train(run, 8) == 0
    assert "ended at step 8 of 20: 2 validations without a better one" in capsys.readouterr().out
    assert [row["step"] for row in read(ours.starts)] == [0, 4, 8]
    assert ours.scores.read_text() == theirs.scores.read_text()
    for step in (None, 8):
        one, other = load(ours.path, step=step), load(theirs.path, step=step)
        assert one.step == other.step
        chex.assert_trees_all_equal(one.params, other.params)
