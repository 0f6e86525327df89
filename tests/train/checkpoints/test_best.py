"""The best checkpoint of a run: which one it is, and when a run ends because no validation is better."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chex
import pytest

from tests.support import finetuned, states
from tests.support.finetuned import LABELS
from train.checkpoints.best_checkpoint import BestCheckpoint, check_metric
from train.checkpoints.checkpoints import Checkpoints
from train.config import run_config
from train.config.option_groups import Selection
from train.config.run_config import Log
from train.run.run_dir import RunDir
from train.run.run_identity import run_identity
from zoo.errors import BadInput

META = {"tokenizer": "t", "data": "d", "held_out": "h"}
NAN = math.nan


def a_run(folder: Path, *, metric: str = "", patience: int = 0, **changes: Any) -> run_config.Run:
    labels = ("score",) if metric == "mean_squared_error" else LABELS
    chosen = {"selection": Selection(best=True, metric=metric, patience=patience), "log": Log(validate_every=10)}
    return finetuned.run("classification", labels=labels, out=str(folder), **chosen, **changes)


def run_validations(folder: Path, found: Sequence[dict[str, float]], first: int = 1, **options: Any) -> tuple[int, int | None]:
    """Validate steps 10, 20, ... or from the `first` of these on; returns the step that is chosen, and where the run ended."""
    run = a_run(folder, **options)
    with BestCheckpoint(run, RunDir.of(run), notify=pytest.fail) as choice:
        for number, numbers in enumerate(found, 1):
            if number >= first:
                choice.save_if_best(states.make(10 * number), SimpleNamespace(record=lambda numbers=numbers: numbers), META)
                if choice.exhausted(10 * number):
                    return kept(run), 10 * number
        last = states.make(10 * len(found))
        params, step = choice.params(last, states.abstract(last))
        assert step == (kept(run) or int(last.step))
        chex.assert_trees_all_equal(params, states.make(step).params)
    return kept(run), None


def kept(run: run_config.Run) -> int:
    return Checkpoints(RunDir.of(run).best, 1, notify=pytest.fail).latest() or 0


def accuracies(*values: float) -> list[dict[str, float]]:
    return [{"loss": 1.0, "accuracy": value} for value in values]


@pytest.mark.parametrize(
    ("found", "options", "result"),
    [
        ([{"loss": loss} for loss in (3.0, 2.0, 2.5)], {}, (20, None)),
        ([{"loss": loss, "perplexity": 9 - loss} for loss in (1.0, 2.0, 3.0)], {}, (30, None)),
        (accuracies(0.5, 0.75, 0.25), {"metric": "accuracy"}, (20, None)),
        (accuracies(0.5, 0.75, 0.75, 0.5), {}, (20, None)),
        (accuracies(NAN, 0.25, NAN), {}, (20, None)),
        ([{"pearson": 0.5, "mean_squared_error": n} for n in (4.0, 3.0, 5.0)], {"metric": "mean_squared_error"}, (20, None)),
        (accuracies(0.5, 0.6, 0.4, 0.7, 0.3, 0.3), {"patience": 2}, (40, 60)),
        (accuracies(0.5, 0.6, 0.4, 0.7, 0.3, 0.3), {"patience": 1}, (20, 30)),
        (accuracies(0.5, 0.5, 0.5, 0.5), {"patience": 3}, (10, 40)),
        (accuracies(NAN, NAN, NAN), {"patience": 1}, (0, None)),
    ],
)
def test_the_first_of_the_best_is_kept(found: Any, options: Any, result: Any, tmp_path: Path) -> None:
    """Patience is a number of validations without a better one."""
    assert run_validations(tmp_path, found, **options) == result


@pytest.mark.parametrize("killed", [2, 5])
def test_a_resumed_run_ends_with_the_same_choice(killed: int, tmp_path: Path) -> None:
    """Killed after any validation, and resumed at the one before it or from the start."""
    values = accuracies(0.5, 0.6, 0.4, 0.7, 0.3, 0.3, 0.9)
    expected = run_validations(tmp_path / "whole", values, patience=2)
    for resumed in {1, killed}:
        where = tmp_path / f"from {resumed}"
        run_validations(where, values[:killed], patience=2)
        assert run_validations(where, values, first=resumed, patience=2) == expected == (40, 60)


def test_a_repeated_validation_does_not_change_the_best_checkpoint(tmp_path: Path) -> None:
    """As where a run goes on with other devices: the step of the best cannot be followed by one before it."""
    run_validations(tmp_path, accuracies(0.5, 0.6, 0.7))
    assert run_validations(tmp_path, accuracies(0.8, 0.9, 0.7, 0.6), first=2) == (30, None)


@pytest.mark.parametrize("metric", ["unigram_loss", "f1", "entity_f1", "accurracy"])
def test_a_metric_that_validations_do_not_measure_is_refused_before_the_first(metric: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"--selection.metric {metric}: not measured here; the nearest is .*f1_macro") as refused:
        check_metric(a_run(tmp_path, metric=metric))
    assert "\n" not in str(refused.value)


@pytest.mark.planted
def test_the_best_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    run, other, last = a_run(tmp_path), a_run(tmp_path, seed=1), states.make(20)
    score = SimpleNamespace(record=lambda: {"loss": 1.0})
    with BestCheckpoint(run, RunDir.of(run), notify=pytest.fail) as choice:
        choice.save_if_best(states.make(10), score, META | {"config": run_identity(run)})
    with BestCheckpoint(other, RunDir.of(other), notify=pytest.fail) as choice:
        for use in (lambda: choice.params(last, states.abstract(last)), lambda: choice.save_if_best(last, score, META)):
            with pytest.raises(BadInput, match=r"best: .* another configuration: seed: 0 in the checkpoint, 1 now"):
                use()
