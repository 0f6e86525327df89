"""Devices into a mesh, rows onto its devices, and a state made in place: nothing is built on one device and moved."""

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


def make(shape: run_config.Mesh, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh a run asks for, over all devices of all processes.

    Raises:
        BadInput: the axes do not multiply to the number of devices; the message lists shapes that do.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    others = shape.fsdp * shape.tensor * shape.sequence
    data = count // others if shape.data == -1 else shape.data
    if data * others != count or data < 1:
        valid = [f"data={count // (f * t)},fsdp={f},tensor={t}" for f in _divisors(count) for t in _divisors(count // f)]
        asked = f"data={shape.data} fsdp={shape.fsdp} tensor={shape.tensor}"
        raise BadInput(f"--mesh {asked}: does not multiply to the {count} devices; valid: {'; '.join(valid[:12])}")
    return jax.make_mesh((data, shape.fsdp, shape.tensor, shape.sequence), AXES, axis_types=(AxisType.Auto,) * 4, devices=devices)


def check(run: run_config.Run, mesh: Mesh) -> None:
    """Refuse what the mesh does not divide.

    Raises:
        BadInput: rows of a micro-batch, heads, or a leaf of the model.
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
    net = models.model(run.model)
    shardings(mesh, jax.eval_shape(lambda: net.init(jax.random.key(0))), net.module.SHARDING)


def fitting(mesh: Mesh, rows: int) -> int:
    """The smallest number of rows from `rows` on that divides over the mesh."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH)
    return -(-rows // shards) * shards


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How every leaf of a batch lies: its first axis over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def local_rows(mesh: Mesh, batch: int) -> np.ndarray:
    """Offsets within the global batch of the rows that this process's devices hold, ascending, int64[local]."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    return np.unique(np.concatenate([np.arange(batch)[index] for index in slices]))


def place(batch: Any, mesh: Mesh, rows: int) -> Any:
    """This process's rows of a global batch of `rows` (a `Batch`, or any pytree of them), laid onto its devices."""
    mine, sharding = local_rows(mesh, rows), batch_sharding(mesh)

    def put(local: Any) -> jax.Array:
        shape = (rows, *local.shape[1:])
        where = sharding.addressable_devices_indices_map(shape)
        rows_of = {device: np.arange(rows)[index[0]] for device, index in where.items() if index is not None}
        pieces = [jax.device_put(local[np.searchsorted(mine, numbers)], device) for device, numbers in rows_of.items()]
        return jax.make_array_from_single_device_arrays(shape, sharding, pieces)

    return jax.tree.map(put, batch)


def abstract_state(run: run_config.Run, model: Model, tx: optax.GradientTransformation, mesh: Mesh) -> State:
    """Shapes, dtypes and shardings of the state; nothing is allocated."""
    shapes = jax.eval_shape(_init(run, model, tx))
    params = shardings(mesh, shapes.params, model.module.SHARDING)
    by_path = {
        path_of(keys): (leaf.shape, place)
        for (keys, leaf), place in zip(_leaves(shapes.params), jax.tree.leaves(params), strict=True)
    }
    everywhere = NamedSharding(mesh, PartitionSpec())

    def of_optimizer(keys: Any, leaf: Any) -> NamedSharding:
        # An optimizer's moments lie where their parameter lies; counters and factored moments are small and everywhere.
        path = path_of(keys)
        match = max((p for p in by_path if path.endswith("/" + p)), key=len, default=None)
        return by_path[match][1] if match is not None and by_path[match][0] == leaf.shape else everywhere

    places = State(
        step=everywhere,
        params=params,
        opt_state=jax.tree_util.tree_map_with_path(of_optimizer, shapes.opt_state),
        carry=jax.tree.map(lambda _: batch_sharding(mesh), shapes.carry),
        key=everywhere,
    )
    return jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, places)


def init_state(run: run_config.Run, model: Model, tx: optax.GradientTransformation, mesh: Mesh, params: Any = None) -> State:
    """The state before the first step, each leaf made on the devices it lives on; the same numbers on every mesh.

    `params` are parameters to begin from, on the mesh and given up; None: fresh ones.
    """
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(run, model, tx, mesh))
    with jax.set_mesh(mesh):
        return jax.jit(_init(run, model, tx), out_shardings=places, donate_argnums=0)(params)


def _init(run: run_config.Run, model: Model, tx: optax.GradientTransformation) -> Callable[..., State]:
    def init(params: Any = None) -> State:
        params = model.init(jax.random.key(run.seed)) if params is None else params
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
