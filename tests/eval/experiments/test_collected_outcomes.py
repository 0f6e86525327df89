"""The record of evaluations in an experiment: the outcomes of their items, and what they were scored on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.experiments import collect_results
from eval.experiments.collected_outcomes import FILE, read_collected_outcomes, write_collected_outcomes
from eval.experiments.preregistration import register_grid
from tests.support.processes import ROOT
from tests.support.small_experiment import small_grid, with_claim
from train.run.item_outcomes import Outcomes, write_outcomes
from train.run.run_dir import RunDir
from zoo.errors import BadInput
from zoo.sha256_and_fsync import sha256


def outcomes_of(seed: int, items: int = 50, name: str = "test.tsv") -> Outcomes:
    rng = np.random.default_rng(seed)
    right = (rng.random(items) < 0.7).astype(np.float64)
    return Outcomes.of((f"{name}:{line}" for line in range(items)), right, rng.exponential(1.0, items))


def write_evaluations(folder: Path, **changes: dict[str, Any]) -> None:
    """Write finished evaluations of all rows; `changes` are to the entries of rows."""
    for row in ("a", "b", "none"):
        run = RunDir(folder / f"runs/{row}-pretrain-0")
        run.path.mkdir(parents=True, exist_ok=True)
        fingerprint = {"files": "f" * 64, "settings": {}, "items": {"length": 8}}
        entry = {"step": 4, "metrics": {"perplexity": 2.0}, "examples": 5, "fingerprint": fingerprint, "tokenizer": "t"}
        run.evaluations.write_text(json.dumps({"perplexity": entry | changes.get(row, {})}))


def test_the_outcomes_of_all_cells_are_collected_in_one_file(tmp_path: Path) -> None:
    grid = small_grid()
    assert write_collected_outcomes(grid, tmp_path) is None
    written = {"a-score-0": outcomes_of(0), "b-score-0": outcomes_of(1), "none-score-0": outcomes_of(2, name="other.tsv")}
    for name, outcomes in written.items():
        run = RunDir(tmp_path / "runs" / name.replace("score", "pretrain"))
        run.path.mkdir(parents=True)
        write_outcomes(run, "perplexity", outcomes)
    digest = write_collected_outcomes(grid, tmp_path)
    assert digest == write_collected_outcomes(grid, tmp_path) == sha256(tmp_path / FILE)
    collected = read_collected_outcomes(tmp_path / FILE)
    assert collected.keys() == written.keys()
    for name, outcomes in written.items():
        assert collected[name].id == outcomes.id
        np.testing.assert_array_equal(collected[name].right, outcomes.right)
        np.testing.assert_allclose(collected[name].nats, outcomes.nats, rtol=1e-7)
    assert collect_results.collect_results(grid, register_grid(grid, tmp_path), tmp_path)["outcomes"] == digest
    # Names of items are stored once for the cells that share them: 15.8 KB for two cells of 1,821 items.
    for name, seed in (("a", 0), ("b", 1)):
        write_outcomes(RunDir(tmp_path / f"runs/{name}-pretrain-0"), "perplexity", outcomes_of(seed, 1821))
    write_collected_outcomes(grid, tmp_path)
    assert (tmp_path / FILE).stat().st_size < 20_000


@pytest.mark.planted(3)
def test_a_damaged_file_of_outcomes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(b"PK")
    with pytest.raises(BadInput, match="is not a file of arrays"):
        read_collected_outcomes(path)
    np.savez(path, **{"score/id": np.array(["x", "y"]), "score/cells": np.array(["a-score-0"]), "score/right": np.zeros(3)})
    with pytest.raises(BadInput, match="the arrays of score have different lengths; restore the file"):
        read_collected_outcomes(path)
    np.savez(path, **{"score/id": np.array(["x", "y"]), "score/cells": np.array(["a-score-0"]), "score/right": np.zeros(2)})
    with pytest.raises(BadInput, match="there is no score/nats; restore the file"):
        read_collected_outcomes(path)


@pytest.mark.planted(3)
def test_evaluations_on_other_files_items_or_tokenizers_are_not_compared(tmp_path: Path) -> None:
    grid = small_grid(**with_claim(metric="score/perplexity"))
    registered = register_grid(grid, tmp_path)
    write_evaluations(tmp_path)
    result = collect_results.collect_results(grid, registered, tmp_path)
    cells = [cell for cell in result["cells"] if cell["stage"] == "score"]
    assert {json.dumps(cell["fingerprints"], sort_keys=True) for cell in cells} == {
        json.dumps({"files": "f" * 64, "items": {"length": 8}, "settings": {}, "tokenizer": "t"})
    }
    assert "unequal" not in result["claims"][0]["reason"]
    fingerprint = {"files": "f" * 64, "settings": {}, "items": {"length": 8}}
    for change, words in (
        ({"fingerprint": fingerprint | {"files": "e" * 64}}, "files"),
        ({"fingerprint": fingerprint | {"items": {"length": 9}}}, "items"),
        ({"tokenizer": "u"}, "tokenizers"),
    ):
        write_evaluations(tmp_path, b=change)
        claim = collect_results.collect_results(grid, registered, tmp_path)["claims"][0]
        assert claim["verdict"] == "not testable"
        assert claim["reason"] == f"unequal {words}: runs/a-pretrain-0 and runs/b-pretrain-0 were scored on different ones"


def test_the_outcomes_of_committed_results_are_those_of_their_verdicts() -> None:
    for path in sorted((ROOT / "eval/experiments/results").glob("*/experiment.json")):
        digest = json.loads(path.read_text()).get("outcomes")
        assert digest == (sha256(path.with_name(FILE)) if digest else None), path
