"""The device mesh: making it, laying rows onto its devices, and making a state in place, never on one device first."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train.config import run_config
from train.engine.state import State
from zoo import models
from zoo.errors import BadInput, require
from zoo.models import Model
from zoo.sharding import AXES, BATCH, path_of, shardings


def make_mesh(shape: run_config.Mesh, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh of a run's options, over all devices of all processes.

    Raises:
        BadInput: the axes do not multiply to the number of devices; the message lists shapes that do.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    others = shape.fsdp * shape.tensor * shape.sequence
    data = count // others if shape.data == -1 else shape.data
    if data * others != count or data < 1:
        valid = [f"data={count // (f * t)},fsdp={f},tensor={t}" for f in _divisors(count) for t in _divisors(count // f)]
        mesh_text = f"data={shape.data} fsdp={shape.fsdp} tensor={shape.tensor}"
        raise BadInput(f"--mesh {mesh_text}: does not multiply to the {count} devices; valid: {'; '.join(valid[:12])}")
    return jax.make_mesh((data, shape.fsdp, shape.tensor, shape.sequence), AXES, axis_types=(AxisType.Auto,) * 4, devices=devices)


def check(run: run_config.Run, mesh: Mesh) -> None:
    """Refuse a batch, heads or model leaves that the mesh does not divide.

    Raises:
        BadInput: the rows of a micro-batch, the heads or a leaf of the model do not divide; names which.
    """
    rows = math.prod(mesh.shape[axis] for axis in BATCH)
    micro = run.data.batch // run.accumulate
    require(
        micro % rows == 0,
        "data.batch",
        run.data.batch,
        f"{micro} rows (of each of {run.accumulate} micro-batches) do not divide over data x fsdp = {rows} devices; "
        f"choose a multiple of {rows * run.accumulate}",
    )
    heads = run.model.heads
    require(heads % mesh.shape["tensor"] == 0, "mesh.tensor", mesh.shape["tensor"], f"it does not divide the {heads} heads")
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
    """Return the sharding of every leaf of a batch: its first axis over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def local_rows(mesh: Mesh, batch: int) -> np.ndarray:
    """Return the offsets within the global batch of the rows on this process's devices, ascending, int64[local]."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    return np.unique(np.concatenate([np.arange(batch)[index] for index in slices]))


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


def abstract_state(
    run: run_config.Run,
    model: Model,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    init: Callable[[jax.Array], Any] | None = None,
) -> State:
    """Return the shapes, dtypes and shardings of the state; nothing is allocated.

    `init`: function from a random key to the parameters that are trained; None: those of the model.
    """
    shapes = jax.eval_shape(_init(run, model, tx, init))
    params = shardings(mesh, shapes.params, model.module.SHARDING)
    by_path = {
        path_of(keys): (leaf.shape, sharding)
        for (keys, leaf), sharding in zip(_leaves(shapes.params), jax.tree.leaves(params), strict=True)
    }
    replicated = NamedSharding(mesh, PartitionSpec())

    def optimizer_sharding(keys: Any, leaf: Any) -> NamedSharding:
        # An optimizer's moments are sharded like their parameter; counters and factored moments are small and replicated.
        path = path_of(keys)
        match = max((p for p in by_path if path.endswith("/" + p)), key=len, default=None)
        return by_path[match][1] if match is not None and by_path[match][0] == leaf.shape else replicated

    state_shardings = State(
        step=replicated,
        params=params,
        opt_state=jax.tree_util.tree_map_with_path(optimizer_sharding, shapes.opt_state),
        carry=jax.tree.map(lambda _: batch_sharding(mesh), shapes.carry),
        key=replicated,
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, state_shardings
    )


def init_state(
    run: run_config.Run,
    model: Model,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    params: Any = None,
    init: Callable[[jax.Array], Any] | None = None,
) -> State:
    """Make the state before the first step, each leaf on the devices it lives on; the same numbers on every mesh.

    `params`: parameters to begin from, on the mesh, whose buffers are donated; None: newly initialized ones. `init` as in
    `abstract_state`.
    """
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(run, model, tx, mesh, init))
    with jax.set_mesh(mesh):
        return jax.jit(_init(run, model, tx, init), out_shardings=state_shardings, donate_argnums=0)(params)


def _init(
    run: run_config.Run,
    model: Model,
    tx: optax.GradientTransformation,
    init_params: Callable[[jax.Array], Any] | None,
) -> Callable[..., State]:
    def init(params: Any = None) -> State:
        params = (init_params or model.init)(jax.random.key(run.seed)) if params is None else params
        return State(
            step=jnp.int32(0),
            params=params,
            opt_state=tx.init(params),
            carry=model.init_carry(run.data.batch),
            key=jnp.array([run.seed, 0x5EED], jnp.uint32),
        )

    return init


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
