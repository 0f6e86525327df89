"""With --contrastive.one-source every batch is of one path, and each row is used as often as any other."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import encoders, tiny
from tests.support.labelled_files import put
from tests.support.small import small
from train.config.data_options import LabelledData
from train.config.embedding_options import Contrastive
from train.inputs import data_notices, run_inputs
from train.inputs.source_batches import by_source
from train.rows.batches import Batches
from train.run.run_dir import RunDir
from zoo.errors import BadInput

COUNTS = {"a.jsonl": 30, "b.parquet": 50, "folder": 20}
BATCH = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    (folder / "folder").mkdir()
    for name, count in COUNTS.items():
        rows = [{"query": f"whale {name} {n}", "positive": f"ship {name} {n}"} for n in range(count)]
        put(folder / (name if "." in name else f"{name}/c.jsonl"), rows)
    put(folder / "held.jsonl", [{"query": f"men {n}", "positive": f"old men {n}"} for n in range(4)])
    encoders.folder(folder / "model", "bert")
    return folder


def run_of(folder: Path, *, one_source: bool = True, **changes: Any) -> Any:
    paths = tuple(str(folder / name) for name in COUNTS)
    data = LabelledData(**{"length": 24, "batch": BATCH, "paths": paths, "valid_paths": (str(folder / "held.jsonl"),), **changes})
    net = small("bert", task="body", vocab=encoders.tokenizer("wordpiece").vocab_size + 5, context=40)
    return tiny.run(
        "contrastive", model=net.config, data=data, init=str(folder / "model"), contrastive=Contrastive(one_source=one_source)
    )


def inputs_of(run: Any, tmp_path: Path) -> Any:
    return run_inputs.read_inputs(run_inputs.resolve_config(run), RunDir(tmp_path), tmp_path)


def sources_of(run: Any, inputs: Any, steps: int) -> tuple[list[set[str]], list[int]]:
    """Return the paths of the rows of each step, and all row numbers."""
    batches = Batches(inputs.rows, lambda rng, row, length: {}, 3, BATCH, np.arange(BATCH))
    numbers = [batches.rows_of(step).tolist() for step in range(steps)]
    origins = [[inputs.training.examples[inputs.rows.row(number).example].origin for number in step] for step in numbers]
    paths = [{next(path for path in run.data.paths if origin.startswith(path)) for origin in step} for step in origins]
    return paths, [number for step in numbers for number in step]


def test_each_batch_is_of_one_path(folder: Path, tmp_path: Path) -> None:
    run = run_of(folder)
    inputs = inputs_of(run, tmp_path)
    paths, numbers = sources_of(run, inputs, 50)
    assert all(len(step) == 1 for step in paths)
    counts = {path: sum(path in step for step in paths) for path in run.data.paths}
    assert [*counts.values()] == [15, 25, 10]
    # Two epochs: each row twice.
    assert np.bincount(numbers).tolist() == [2] * 100
    assert len(inputs.training) == 100 and inputs.describe(run)["data"].startswith(f"{', '.join(run.data.paths)}: 100 examples")
    mixed = inputs_of(run_of(folder, one_source=False), tmp_path)
    assert any(len(step) > 1 for step in sources_of(run, mixed, 10)[0])
    assert len(notices := data_notices.notices(run, mixed)) == 2 and data_notices.notices(run, inputs) == notices
    assert mixed.fingerprints()["held_out"] == inputs.fingerprints()["held_out"]
    assert mixed.fingerprints()["data"] != inputs.fingerprints()["data"]


@pytest.mark.planted
def test_a_path_with_fewer_rows_than_a_batch_is_refused(folder: Path, tmp_path: Path) -> None:
    run = run_of(folder, batch=32)
    with pytest.raises(BadInput, match=r"--data.paths .*a\.jsonl: 30 training rows, and a batch has 32 of one path; add some"):
        inputs_of(run, tmp_path)
    mixed = inputs_of(run_of(folder, one_source=False), tmp_path)
    assert len(by_source(mixed.rows, dataclasses.replace(run, data=run_of(folder).data)).components) == 3


@pytest.mark.planted
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paths": ("a.jsonl",)}, "--contrastive.one-source True: it divides batches by --data.paths; name two or more"),
        ({"ramp": ("2@96",)}, "--data.ramp 2@96: with --contrastive.one-source all batches have one size; remove it"),
    ],
)
def test_runs_without_batches_of_one_size_from_several_paths_are_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    run = run_of(folder, **changes)
    with pytest.raises(BadInput, match=message):
        run.options.check_run(run)
