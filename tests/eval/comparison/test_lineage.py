"""`zoo compare` of runs that start from other runs: a parent counts as its row, and its budget as part of the child's."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from eval.comparison import comparison_table
from eval.comparison.seed_statistics import Estimate, compare_runs
from tests.support.finished_runs import META, RUN, make
from train.config.run_config import Run
from train.weights import lineage
from zoo.errors import BadInput


def child(where: Path, name: str, parent: str, run: Run = RUN, **changes: Any) -> str:
    """Write a finished run that starts from another one, whose record it has."""
    parents = lineage.read_parents(dataclasses.replace(run, init=parent, out=str(where), name=name))
    return make(where / name, run, meta=META | {"parents": parents}, init=parent, **changes)


def pretrained(where: Path, name: str, **changes: Any) -> str:
    return make(where / name, flops=1e9, **changes)


@pytest.mark.planted(2)
def test_fine_tunes_of_one_pretraining_over_seeds_are_one_row(tmp_path: Path) -> None:
    bases = [pretrained(tmp_path, f"base-{seed}", seed=seed) for seed in range(3)]
    other = pretrained(tmp_path, "other", steps=24)
    scores = [2.0, 3.0, 4.0]
    runs = [
        child(tmp_path, f"tuned-{seed}", base, seed=seed, scores={"loss": loss}, flops=1e9)
        for seed, (base, loss) in enumerate(zip(bases, scores, strict=True))
    ]
    late = child(tmp_path, "tuned-other", other, flops=1e9)
    result = compare_runs([*runs, late], unequal=True)
    assert [[run.path.name for run in row.runs] for row in result.rows] == [["tuned-0", "tuned-1", "tuned-2"], ["tuned-other"]]
    assert result.rows[0].seeds == [0, 1, 2] and result.differing == {"init": [bases[0], other]}
    # The budget is that of the chain: twenty steps of the parent and twenty of its own.
    per_step = RUN.data.batch * RUN.data.length
    assert result.rows[0].tokens == 40 * per_step and result.rows[1].tokens == 44 * per_step
    assert (result.rows[0].flops, result.rows[0].mean_cost("flops", own=True)) == (40e9, 20e9)
    with pytest.raises(BadInput, match=r"unequal budgets: .*, with the runs that they start from; make them"):
        compare_runs([*runs, late])
    # One seed of each: what differs is the parent's seed alone. A copy of the same child is the same run.
    again = child(tmp_path, "again", bases[1], seed=0)
    assert compare_runs([runs[0], again]).rows[0].seeds == [0, "1/0"]
    with pytest.raises(BadInput, match="are the same run"):
        compare_runs([runs[0], child(tmp_path, "copy", bases[0], seed=0, scores={"loss": 1.0})])


def test_a_parent_that_is_gone_or_was_trained_again_counts_as_it_was(tmp_path: Path) -> None:
    base, second = (pretrained(tmp_path, f"base-{seed}", seed=seed) for seed in (0, 1))
    runs = [child(tmp_path, f"tuned-{seed}", path, seed=seed) for seed, path in enumerate((base, second))]
    grand = child(tmp_path, "grand", runs[0], seed=0)
    shutil.rmtree(base)
    shutil.rmtree(second)
    pretrained(tmp_path, "base-1", steps=400, seed=1)
    result = compare_runs(runs)
    assert len(result.rows) == 1 and result.rows[0].tokens == 40 * RUN.data.batch * RUN.data.length
    (line,) = comparison_table.comparison_notices(result.rows)
    assert line.startswith(f"{runs[0]}: --init {base} is no longer there; it counts as")
    # Both are still there if their common folder has moved, and seen from any working directory.
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    assert comparison_table.comparison_notices(compare_runs([str(moved / "grand")]).rows) == []
    moved.rename(tmp_path)
    assert compare_runs([grand]).rows[0].tokens == 60 * RUN.data.batch * RUN.data.length
    with pytest.raises(BadInput, match=r"COMMIT\.json: no 'parents', so it is unknown what .*/old started from; train it again"):
        compare_runs([make(tmp_path / "old", init=base)])


def test_an_ancestor_counts_once_and_the_runs_of_one_parent_are_averaged_first(tmp_path: Path) -> None:
    costs: dict[str, float | int | None] = {"tokens": 5, "flops": None}
    shared = {"row": "a", "seeds": [0], "path": "a", "costs": costs}
    parents = [{"path": name, "row": name, "seeds": [0], "ancestors": [shared]} for name in ("b", "c")]
    assert lineage.total_costs({"tokens": 2, "flops": 1.0}, parents) == {"tokens": 7, "flops": None}
    bases = [pretrained(tmp_path, f"base-{seed}", seed=seed) for seed in (0, 1)]
    values = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 4.0, (1, 1): 8.0}
    runs = [
        child(tmp_path, f"tuned-{base}-{seed}", bases[base], seed=seed, scores={"loss": loss})
        for (base, seed), loss in values.items()
    ]
    (row,) = compare_runs(runs).rows
    assert row.scores["loss"] == Estimate.of([2.0, 6.0])
