"""Memory that a compiled program needs, and that this process may still allocate."""

import math
import re
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh

from zoo.runtime import hardware


def planned_memory(compiled: Any) -> dict[str, int]:
    """Return the bytes that one run of a compiled program needs on each device, as XLA planned them, as columns of a cell.

    "memory" is arguments + outputs + temporaries - reused, those of the outputs that are written into the memory of donated
    arguments; "memory_arguments" and so on are its parts.
    """
    stats = compiled.memory_analysis()
    arguments, outputs = stats.argument_size_in_bytes, stats.output_size_in_bytes
    temporaries, reused = stats.temp_size_in_bytes, stats.alias_size_in_bytes
    sizes = {"arguments": arguments, "outputs": outputs, "temporaries": temporaries, "reused": reused}
    return {"memory": arguments + outputs + temporaries - reused, **{f"memory_{name}": size for name, size in sizes.items()}}


def bytes_per_device(tree: Any) -> int:
    """Return the bytes of a tree of shapes with shardings on one device, without arrays in the memory of its host."""
    return sum(_shard_bytes(leaf) for leaf in jax.tree.leaves(tree) if not _is_on_host(leaf))


def host_bytes_per_device(tree: Any) -> int:
    """Return the bytes of a tree of shapes with shardings in the memory of the host, for one device."""
    return sum(_shard_bytes(leaf) for leaf in jax.tree.leaves(tree) if _is_on_host(leaf))


def _shard_bytes(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _is_on_host(leaf: Any) -> bool:
    """Return whether an array is in another memory than its device's; a CPU has one memory."""
    sharding = leaf.sharding
    if sharding.memory_kind != "pinned_host":
        return False
    return isinstance(sharding.mesh, AbstractMesh) or sharding.mesh.devices.flat[0].platform != "cpu"


def free_bytes() -> int:
    """Return the bytes that this process may still allocate: on its device, or on a CPU within the host and its control group."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        # Not Linux: all of the memory, because each system reports its use in another way.
        return hardware.host_memory()
    available = int(re.findall(r"MemAvailable: +(\d+) kB", meminfo.read_text())[0]) * 1024
    limit, used, stat = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current", "memory.stat"))
    if limit.exists() and (limit_text := limit.read_text().strip()) != "max":
        # The kernel counts cached file pages, which it may drop, as used.
        dropped = int(re.findall(r"^inactive_file (\d+)", stat.read_text(), re.MULTILINE)[0])
        available = min(available, int(limit_text) - int(used.read_text()) + dropped)
    return available
