"""The reference of `dpo` and `kto`: the log-probabilities of both answers of every row under the parameters of `--init`.

They are computed once, before the first step, by a forward program over all rows, and cached on disk. A resumed run reads the
same values. The digest of the parameters is one of the fingerprints in a checkpoint, so another reference is refused.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32

from train.checkpoints import manifest
from train.config import run_config
from train.engine import device_mesh
from train.engine.log_probs import sequence_log_probs
from train.rows import batches
from train.rows.batches import Build
from train.rows.mixture import Mixture
from train.rows.row_source import RowSource, digest_of
from train.run.run_dir import is_run, no_checkpoint, read_config
from train.weights import lineage, reference_cache, warm_start
from train.weights.load import load_model, open_checkpoints
from train.weights.resolve_model_name import resolve_model_name
from zoo.errors import BadInput
from zoo.precision import cast_params

Progress = Callable[[int, int], None]
"""Function that is called with (batches done, total batches)."""


def add_reference(run: run_config.Run, mesh: Mesh, inputs: Any, build: Build, cache: Path, *, progress: Progress) -> Any:
    """Return inputs whose rows, for training and held out, have the log-probabilities of their answers under `run.init`.

    Every process calls this.

    Args:
        inputs: inputs of preferences, `train.inputs.example_inputs.ExampleInputs`.
        build: function that makes the arrays of a row.
        cache: folder of the files of `reference_cache`.

    Raises:
        BadInput: nothing to load in `run.init`, another model than the run's, or a log-probability that is not finite.
    """
    parameters, loaded = digest_of_parameters(run.init), None
    sides = []
    for rows in (inputs.training, inputs.held_out):
        depends_on = [parameters, rows.fingerprint, inputs.tokenizer.fingerprint, rows.length, len(rows), run.precision]
        key = digest_of(json.dumps(depends_on), ())
        values = reference_cache.read_log_probs(cache, key, len(rows))
        if not every_process_has(values):
            if loaded is None:
                warm_start.check_init(run)
                loaded = load_model(run.init, mesh)
            values = _compute(run, loaded, mesh, rows, build, progress)
            reference_cache.write_log_probs(cache, key, values)
        assert values is not None
        sides.append(with_reference(rows, values))
    training, held_out = sides
    return dataclasses.replace(inputs.with_training(training), held_out=held_out, reference=parameters)


def with_reference(rows: Any, values: Float32[np.ndarray, "rows 2"]) -> Any:
    """Return a `train.inputs.preference_inputs.PreferenceRows` whose rows have `reference`."""
    pairs = zip(rows.rows, values, strict=True)
    return dataclasses.replace(rows, rows=tuple(row._replace(reference=both) for row, both in pairs))


def digest_of_parameters(init: str) -> str:
    """Return a digest that changes with the parameters of a run's checkpoint, a published folder or a hub id.

    Raises:
        BadInput: `init` does not exist, or is a run without a checkpoint.
    """
    folder = resolve_model_name(init)
    if not is_run(folder):
        return lineage.digest_of_weights(folder)
    run = read_config(folder)
    source = open_checkpoints(folder, run)
    if (step := source.latest()) is None:
        raise no_checkpoint(folder)
    files = manifest.Manifest.read(Path(source.folder) / manifest.folder_name(step), step).files
    return digest_of(json.dumps([step, files], sort_keys=True), ())


def _compute(
    run: run_config.Run, loaded: Any, mesh: Mesh, rows: Any, build: Build, progress: Progress
) -> Float32[np.ndarray, "rows 2"]:
    def log_probs(params: Any, batch: Any) -> jax.Array:
        return sequence_log_probs(loaded.model, params, batch, chunk=run.loss_chunk)[0]

    params = cast_params(loaded.params, run.precision)
    values = np.concatenate([*numbers_of_rows(run, mesh, rows, build, log_probs, params, progress)])
    if not np.isfinite(values).all():
        origin = rows.examples[rows.rows[int(np.flatnonzero(~np.isfinite(values).all(1))[0])].example].origin
        raise BadInput(f"--init {run.init}: the log-probability of a text at {origin} is not finite; choose another reference")
    return values


def numbers_of_rows(
    run: run_config.Run,
    mesh: Mesh,
    rows: RowSource | Mixture,
    build: Build,
    numbers: Callable[[Any, Any], jax.Array],
    params: Any,
    progress: Progress,
) -> Iterator[Float32[np.ndarray, "B ..."]]:
    """Yield the numbers of all rows in order, a batch at a time. Every process iterates over all of them.

    Args:
        build: function that makes the arrays of a row.
        numbers: function from parameters and a batch to an array [B, ...].
        params: its first argument.
    """
    batch = device_mesh.round_up_rows(mesh, min(run.data.batch, len(rows)))
    replicated, local = NamedSharding(mesh, PartitionSpec()), device_mesh.local_rows(mesh, batch)
    program, count = jax.jit(numbers, out_shardings=replicated), -(-len(rows) // batch)
    progress(0, count)
    for number, host in enumerate(batches.in_order(rows, build, batch, local)):
        with jax.set_mesh(mesh):
            values = program(params, device_mesh.shard_batch(host, mesh, batch))
        yield np.asarray(jax.device_get(values), np.float32)[: len(rows) - number * batch]
        progress(number + 1, count)


def every_process_has(values: Any) -> bool:
    """Return whether every process has values, after all of them have called this.

    If one has none, all compute, since the program runs on the devices of all.
    """
    has = np.array(values is not None)
    return bool(has) if jax.process_count() == 1 else bool(multihost_utils.process_allgather(has).all())
