"""The device mesh: making it, checking that a run divides over it, and laying rows onto its devices."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train.config import run_config
from zoo import models
from zoo.errors import BadInput, require
from zoo.sharding import AXES, BATCH, shardings


def make_mesh(shape: run_config.Mesh, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh of a run's options, over all devices of all processes.

    Raises:
        BadInput: the axes do not multiply to the number of devices; the message lists shapes that do.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    others = shape.fsdp * shape.tensor * shape.sequence * shape.expert
    data = count // others if shape.data == -1 else shape.data
    if data * others != count or data < 1:
        valid = [f"data={count // (f * t)},fsdp={f},tensor={t}" for f in _divisors(count) for t in _divisors(count // f)]
        raise BadInput(f"--mesh {describe(shape)}: does not multiply to the {count} devices; valid: {'; '.join(valid[:12])}")
    sizes = (data, shape.fsdp, shape.tensor, shape.sequence, shape.expert)
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def describe(shape: run_config.Mesh) -> str:
    """Return the axes of a run's options for a message; that of experts only if it has several devices."""
    experts = f" expert={shape.expert}" if shape.expert > 1 else ""
    return f"data={shape.data} fsdp={shape.fsdp} tensor={shape.tensor}{experts}"


def check(run: run_config.Run, mesh: Mesh) -> None:
    """Refuse a batch, heads or model leaves that the mesh does not divide.

    Raises:
        BadInput: the rows of a micro-batch, the heads or a leaf of the model do not divide; names which.
    """
    rows = math.prod(mesh.shape[axis] for axis in BATCH)
    axes = " x ".join(axis for axis in BATCH if axis != "expert" or mesh.shape[axis] > 1)
    micro = run.data.batch // run.accumulate
    require(
        micro % rows == 0,
        "data.batch",
        run.data.batch,
        f"{micro} rows (of each of {run.accumulate} micro-batches) do not divide over {axes} = {rows} devices; "
        f"choose a multiple of {rows * run.accumulate}",
    )
    heads = run.model.heads
    require(heads % mesh.shape["tensor"] == 0, "mesh.tensor", mesh.shape["tensor"], f"it does not divide the {heads} heads")
    experts, expert_devices = getattr(run.model, "experts", 0), mesh.shape["expert"]
    if expert_devices > 1:
        divisors = ", ".join(map(str, _divisors(experts)))
        fix = f"it does not divide the {experts} experts; choose one of {divisors}"
        require(experts % expert_devices == 0, "mesh.expert", expert_devices, fix)
    require(
        run.engine == "jit" or mesh.shape["data"] == mesh.size,
        "engine",
        run.engine,
        "pmap is data parallel only; choose --mesh.fsdp 1 --mesh.tensor 1, or --engine jit",
    )
    model = models.model(run.model)
    shardings(mesh, jax.eval_shape(lambda: model.init(jax.random.key(0))), model.module.SHARDING)


def round_up_rows(mesh: Mesh, rows: int) -> int:
    """Return the smallest number of rows, at least `rows`, that divides over the mesh."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH)
    return -(-rows // shards) * shards


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of every leaf of a batch: its first axis over data, fsdp and expert."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def local_rows(mesh: Mesh, batch: int) -> np.ndarray:
    """Return the offsets within the global batch of the rows on this process's devices, ascending, int64[local]."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    return np.unique(np.concatenate([np.arange(batch)[index] for index in slices]))


def owned_rows(mesh: Mesh, batch: int) -> np.ndarray:
    """Return the places in `local_rows` of the rows that no process of a lower number has, ascending, int64[owned].

    Over all processes these are all rows of the global batch, each once.
    """
    owner = np.full(batch, jax.process_count())
    for device, index in batch_sharding(mesh).devices_indices_map((batch,)).items():
        owner[index] = np.minimum(owner[index], device.process_index)
    return np.flatnonzero(owner[local_rows(mesh, batch)] == jax.process_index())


def shard_batch(batch: Any, mesh: Mesh, rows: int) -> Any:
    """Lay this process's rows of a global batch of `rows` rows (a `Batch`, or any pytree of arrays) onto its devices."""
    local_offsets, sharding = local_rows(mesh, rows), batch_sharding(mesh)

    def shard(local: Any) -> jax.Array:
        shape = (rows, *local.shape[1:])
        device_slices = sharding.addressable_devices_indices_map(shape)
        offsets_of = {device: np.arange(rows)[index[0]] for device, index in device_slices.items() if index is not None}
        chunks = [
            jax.device_put(local[np.searchsorted(local_offsets, offsets)], device) for device, offsets in offsets_of.items()
        ]
        return jax.make_array_from_single_device_arrays(shape, sharding, chunks)

    return jax.tree.map(shard, batch)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
