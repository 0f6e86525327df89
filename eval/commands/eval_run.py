"""`zoo eval RUN`: the score of a checkpoint on the held-out data of its run."""

import dataclasses
import sys
from typing import Any

import jax

from eval.tasks.held_out.scorers import scorer
from train import objectives
from train.checkpoints.manifest import manifest_differences
from train.config import run_config
from train.engine import device_mesh
from train.inputs import run_inputs
from train.run import metric_definitions
from train.run.progress_display import ProgressBar
from train.run.run_dir import RunDir, plugin_notices, read_config
from train.weights.load import restore_params
from zoo import models
from zoo.errors import BadInput, printable, require
from zoo.precision import DTYPES
from zoo.runtime import caches


def run_eval(path: str, *, step: int | None, batch: int, stride: int, mesh: run_config.Mesh) -> int:
    """Run `zoo eval RUN`: score a checkpoint on the run's held-out data and print the result.

    Args:
        step: the checkpoint; None = the best one if the run keeps one, else the newest intact one; `NEWEST` = always the latter.
        stride: new tokens a row; 0 = half a row.

    Raises:
        BadInput: no run, no checkpoint, other data than the run's, or a model that the mesh does not divide.
    """
    cfg = dataclasses.replace(read_config(path), mesh=mesh)
    folder, devices = RunDir(path), device_mesh.make_mesh(mesh)
    require(batch >= 1, "batch", batch, "choose 1 or more rows")
    # Batches are padded to a size that the mesh divides, so only the model can fail to divide.
    cfg = dataclasses.replace(cfg, accumulate=1, engine="jit")
    rows = device_mesh.round_up_rows(devices, 1) * cfg.repeat
    device_mesh.check_mesh(dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, batch=rows, ramp=())), devices)
    require(0 <= stride <= cfg.data.length, "stride", stride, f"choose 1 to {cfg.data.length} tokens, or 0 for half a row")
    model, data = models.model(cfg.model), run_inputs.read_inputs(cfg, folder, caches.cache_dir() / "text")
    quiet, cache = jax.process_index() != 0, caches.cache_dir() / "reference"
    with ProgressBar("computing the reference", "batches", before="compiling", late=True, quiet=quiet) as progress:
        # A reward model that judges responses computes batches of this size.
        scored = dataclasses.replace(cfg.data, batch=device_mesh.round_up_rows(devices, batch), ramp=())
        of_batch = dataclasses.replace(cfg, data=scored)
        data = objectives.objective(cfg.objective).extend_scored_inputs(of_batch, devices, data, cache, progress=progress)
    with ProgressBar(f"loading {folder.path}", quiet=quiet):
        params, _, meta = restore_params(folder.path, cfg, devices, step, scores=True)
    saved = {name: meta[name] for name in data.fingerprints() if name in meta}
    # Checkpoints of earlier versions have no digest of the text, which held_out depends on.
    if changed := manifest_differences(saved, data.fingerprints(), ignored=("held_out_text",)):
        raise BadInput(f"{folder.path} was trained on other data: {'; '.join(changed)}; restore its files")
    rows = data.scored_rows(cfg, stride or max(1, cfg.data.length // 2))
    build = run_inputs.builder(cfg, data)
    with ProgressBar("scoring", "batches", before="compiling", quiet=quiet) as progress:
        options: dict[str, Any] = {"batch": batch, "dtype": DTYPES[cfg.precision], "progress": progress}
        measured = scorer(cfg, model, devices, data, rows, build, **options)(params)
    if jax.process_index() == 0:
        for line in [*plugin_notices(path), *metric_definitions.score_notices(measured.record())]:
            print(f"! {printable(line)}", file=sys.stderr)
        record = measured.record()
        for name in sorted(record, key=lambda name: name != cfg.selection.metric):
            value = record[name]
            print(f"{name:14} {value:,}" if isinstance(value, int) else f"{name:14} {value:.6f}")
    return 0
