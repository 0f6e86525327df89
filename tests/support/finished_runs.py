"""Folders of finished runs, with the files that a comparison reads, written without training."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from tests.support import tiny
from train.checkpoints.manifest import Manifest, folder_name
from train.config.run_config import Run
from train.run import metrics_file
from train.run.run_dir import RunDir, write_json

RUN, MASKED = tiny.run(), tiny.run("masked")
META: dict[str, Any] = {"tokenizer": "t", "data": "d", "held_out": "h", "targets": {}}


def make(
    path: Path,
    run: Run = RUN,
    *,
    scores: Any = None,
    flops: float | None = None,
    meta: Any = META,
    ended: int | None = None,
    **changes: Any,
) -> str:
    """Write the files of a finished run that a comparison reads; it `ended` at its last step or before."""
    run = dataclasses.replace(run, **changes)
    files, step = RunDir(path), ended or run.steps
    checkpoint = files.checkpoints / folder_name(step)
    checkpoint.mkdir(parents=True)
    Manifest(step=step, meta=meta, leaves={}).write(checkpoint)
    files.write_config(run)
    write_json(files.scores, {"loss": 2.0, "tokens": 100, "stride": 16} if scores is None else scores)
    metrics_file.record_start(files, 0, {}, flops or 0.0, 0.0)
    if flops is None:
        # Older runs did not record this number.
        (start,) = metrics_file.read_rows(files.starts)
        files.starts.write_text(json.dumps({key: value for key, value in start.items() if key != "flops"}) + "\n")
    rows = metrics_file.Metrics(files.metrics)
    row = step - step % 4
    numbers = dict(loss=2.0, grad_norm=1.0, lr=0.1, skipped=0, seconds=1.0, tokens_per_s=1.0, mfu=None)
    rows.write(metrics_file.train_row(step=row, tokens=row * run.data.batch * run.data.length, **numbers))
    rows.write(metrics_file.valid_row(step=step, loss=2.0, bits_per_byte=1.0, seconds=1.0))
    rows.close()
    return str(path)


def several(where: Path, name: str, values: dict[int, float], **changes: Any) -> list[str]:
    """Write a run for each seed -> loss."""
    return [
        make(where / f"{name}-{seed}", scores={"loss": loss, "tokens": 100}, seed=seed, **changes)
        for seed, loss in values.items()
    ]
