"""The device mesh: making it, checking that a run divides over it, and laying rows onto its devices."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train.config import mesh_sizes, run_config
from zoo import models
from zoo.errors import BadInput, require
from zoo.mesh_axes import HEADS, POSITIONS, divides_heads
from zoo.runtime import hardware
from zoo.sharding import BATCH, shardings


def make_mesh(shape: run_config.Mesh, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh of a run's options, over all devices of all processes.

    On a TPU an axis takes whole dimensions of the torus if the sizes allow it, as fsdp 16 of 16 x 16, and otherwise parts of
    them, as fsdp 64 and expert 4. Of several slices each is laid out in this way, and holds a block of the mesh: slices are the
    outermost part of data, or of data and fsdp (`mesh_sizes.slice_sizes`). `mesh_utils.create_hybrid_device_mesh` does the same
    for slices that devices report, and knows no others.

    Raises:
        BadInput: see `train.config.mesh_sizes.axis_sizes`, `divide_into_slices` and `train.config.mesh_sizes.slice_sizes`.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes.axis_sizes(shape, len(devices))
    slices = divide_into_slices(shape, devices)
    outer = mesh_sizes.slice_sizes(shape, sizes, len(slices))
    inner = {axis: size // outer[axis] for axis, size in sizes.items()}
    blocks = np.stack([_arrange_slice(inner, members) for members in slices]).reshape(*outer.values(), *inner.values())
    order = [axis + part for axis in range(len(sizes)) for part in (0, len(sizes))]
    mesh = blocks.transpose(order).reshape(*sizes.values())
    return Mesh(mesh, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def _arrange_slice(sizes: Mapping[str, int], devices: Sequence[Any]) -> np.ndarray:
    """Return the devices of a slice as an array with these sizes of the axes."""
    shapes = tuple(sizes.values())
    if devices[0].platform != "tpu":  # `jax.make_mesh` refuses hosts, which devices of other platforms report as slices
        return mesh_utils.create_device_mesh(shapes, devices)
    try:
        return jax.make_mesh(shapes, tuple(sizes), devices=devices).devices
    except NotImplementedError:  # JAX found no assignment of whole dimensions of the torus
        return mesh_utils.create_device_mesh(shapes, devices, allow_split_physical_axes=True)


def divide_into_slices(shape: run_config.Mesh, devices: Sequence[Any]) -> list[list[Any]]:
    """Return the devices of each slice.

    Devices that report a slice are in that one, in the order of the slices' numbers. Others are in one slice, or in as many as
    the options of a run have: the first devices are the first slice.

    Raises:
        BadInput: the options have another number of slices than the devices report; slices of different sizes; or a number of
            slices that does not divide the devices.
    """
    reported = {
        number: [device for device in devices if hardware.slice_number(device) == number]
        for number in map(hardware.slice_number, devices)
    }
    count = shape.slices or len(reported)
    if None in reported:
        mesh_sizes.check_slices(count, len(devices))
        size = len(devices) // count
        return [list(devices[first : first + size]) for first in range(0, len(devices), size)]
    fix = f"the devices are in {len(reported)} slice{'s' * (len(reported) > 1)}; choose {len(reported)}, or 0"
    require(count == len(reported), "mesh.slices", count, fix)
    sizes = [len(members) for _, members in sorted(reported.items())]
    fix = f"the slices have {', '.join(map(str, sizes))} devices; start the run on slices of one size"
    require(len(set(sizes)) == 1, "mesh.slices", count, fix)
    return [members for _, members in sorted(reported.items())]


def check_mesh(run: run_config.Run, mesh: Mesh) -> None:
    """Refuse a batch, responses to a prompt, heads or model leaves that the mesh does not divide.

    Raises:
        BadInput: the rows of a micro-batch, their positions, the heads or a leaf of the model do not divide; names which;
            also see `check_host_memory`.
    """
    require(
        run.engine == "jit" or mesh.shape["data"] == mesh.size,
        "engine",
        run.engine,
        "pmap divides rows only: the other axes of the mesh need a partitioned program; choose 1 for them, or --engine jit",
    )
    if run.engine != "jit" and run.optim.offload:
        raise BadInput("--optim.offload: pmap keeps all arrays on its devices; leave it out, or choose --engine jit")
    check_host_memory(run, mesh.devices.flat[0])
    mesh_sizes.check_rows(run, mesh.shape)
    mesh_sizes.check_positions(run, mesh.shape)
    mesh_sizes.check_responses(run, mesh.shape)
    check_heads(run.model, mesh)
    experts, expert_devices = getattr(run.model, "experts", 0), mesh.shape["expert"]
    if expert_devices > 1:
        divisors = ", ".join(map(str, mesh_sizes.divisors(experts)))
        fix = f"it does not divide the {experts} experts; choose one of {divisors}"
        require(experts % expert_devices == 0, "mesh.expert", expert_devices, fix)
    model = models.model(run.model)
    shardings(mesh, jax.eval_shape(lambda: model.init(jax.random.key(0))), model.definition.sharding)


def check_host_memory(run: run_config.Run, device: Any) -> None:
    """Refuse to keep activations or moments on the host if a device's platform has no arrays in its memory.

    Raises:
        BadInput: an option needs memory of the kind `pinned_host`, which the device does not have.
    """
    options = {
        ("--model.compute.remat offload", "choose save_dots"): run.model.compute.remat == "offload",
        ("--optim.offload", "leave it out"): run.optim.offload,
    }
    for (option, fix), chosen in options.items():
        kinds = memory_kinds(device) if chosen else ["pinned_host"]
        if "pinned_host" not in kinds:
            reason = f"the platform {device.platform} has no memory of the kind pinned_host, only {', '.join(kinds)}"
            raise BadInput(f"{option}: {reason}; {fix}")


def memory_kinds(device: Any) -> list[str]:
    """Return the kinds of memory that arrays on a device can be in, sorted; the description of an absent GPU lists none."""
    kinds = [memory.kind for memory in device.addressable_memories()]
    return sorted(kinds) or ["device", "pinned_host"]


def check_heads(model: Any, mesh: Mesh) -> None:
    """Refuse the heads of a model's configuration if the mesh does not divide them, over `sequence` if its form needs that.

    Raises:
        BadInput: names the numbers of devices that divide them.
    """
    tensor, devices = mesh.shape[HEADS], mesh.shape[POSITIONS]
    fix = f"it does not divide the {model.heads} heads; choose one of {', '.join(map(str, mesh_sizes.divisors(model.heads)))}"
    require(model.heads % tensor == 0, "mesh.tensor", tensor, fix)
    if model.compute.sequence != "all_to_all":
        return
    heads, groups = model.heads // tensor, max(1, getattr(model, "kv_heads", model.heads) // tensor)
    valid = [number for number in mesh_sizes.divisors(heads) if divides_heads(number, heads, groups)]
    local = f" that each device has by --mesh.tensor {tensor}" if tensor > 1 else ""
    grouped = f" and {groups} key/value heads" if groups < heads else ""
    fix = f"choose one of {', '.join(map(str, valid))}, or --model.compute.sequence ring"
    fix = f"it does not divide the {heads} heads{grouped}{local}; {fix}"
    require(devices in valid, "mesh.sequence", devices, fix)


def round_up_rows(mesh: Mesh, rows: int) -> int:
    """Return the smallest number of rows, at least `rows`, that divides over the mesh."""
    shards = mesh_sizes.row_devices(mesh.shape)
    return -(-rows // shards) * shards


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of every leaf of a batch: its first axis over data, fsdp and expert."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def local_rows(mesh: Mesh, batch: int) -> np.ndarray:
    """Return the offsets within the global batch of the rows on this process's devices, ascending, int64[local]."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    return np.unique(np.concatenate([np.arange(batch)[index] for index in slices]))


def owned_rows(mesh: Mesh, batch: int) -> tuple[int, np.ndarray]:
    """Return the number of `local_rows`, and the places in them of those that no process of a lower number has, int64[owned].

    The places ascend. Over all processes these are all rows of the global batch, each once.
    """
    owner = np.full(batch, jax.process_count())
    for device, index in batch_sharding(mesh).devices_indices_map((batch,)).items():
        owner[index] = np.minimum(owner[index], device.process_index)
    own = owner[local_rows(mesh, batch)]
    return len(own), np.flatnonzero(own == jax.process_index())


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
