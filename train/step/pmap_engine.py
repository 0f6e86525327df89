"""The launch of a step by `jax.pmap`, for code that still uses it."""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.engine.device_mesh import batch_sharding
from train.engine.state import State
from train.step.jit_engine import Engine
from train.step.training_step import Metrics, Step
from zoo.batch import Batch


def pmap_engine(step: Step, mesh: Mesh, state_shardings: State, rows: int) -> Engine:
    """Return the same step with one replica of the state per device and `psum` between them; arrays have a leading device axis.

    It is the data-parallel alternative to `jit_engine`, with the same results.
    """
    devices = list(mesh.devices.flat)
    local = [device for device in devices if device.process_index == jax.process_index()]
    by_device = NamedSharding(Mesh(np.array(devices), ("device",)), PartitionSpec("device"))
    mapped = jax.pmap(
        functools.partial(step, reduce=functools.partial(jax.lax.psum, axis_name="device")),
        axis_name="device",
        donate_argnums=0,
        devices=devices,
    )

    def stack(shards: list[Any]) -> jax.Array:
        """Return local devices' values, in order, as one array over all devices."""
        chunks = [jax.device_put(shard[None], device) for shard, device in zip(shards, local, strict=True)]
        return jax.make_array_from_single_device_arrays((len(devices), *chunks[0].shape[1:]), by_device, chunks)

    def in_order(x: jax.Array) -> list[np.ndarray]:
        shards = {shard.device: shard.data for shard in x.addressable_shards}
        return [jax.device_get(shards[device]) for device in local]

    def stack_shards(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: stack(in_order(leaf)), tree)

    def get(state: State) -> State:
        def global_array(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
            # The carry is split over the devices; everything else is the same on each device.
            is_split = sharding.spec == batch_sharding(mesh).spec
            shape = (len(devices) * leaf.shape[1], *leaf.shape[2:]) if is_split else leaf.shape[1:]
            chunks = [jax.device_put(shard[0], device) for shard, device in zip(in_order(leaf), local, strict=True)]
            return jax.make_array_from_single_device_arrays(shape, sharding, chunks)

        return jax.tree.map(global_array, state, state_shardings)

    def split(batch: Batch) -> Batch:
        return jax.tree.map(lambda leaf: stack(np.split(leaf, len(local))), batch)

    def run(state: State, batch: Batch, frozen: Any = {}, base: Any = {}) -> tuple[State, Metrics]:  # noqa: B006
        return mapped(state, batch, frozen, base)

    return Engine(step=run, shard=stack_shards, get=get, shard_batch=split, replicate=stack_shards)
