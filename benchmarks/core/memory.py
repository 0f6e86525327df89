"""Memory that a compiled program needs, and that this process may still allocate."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax


@dataclass(frozen=True)
class Memory:
    """Bytes that one run of a program needs on each device, as XLA planned them."""

    arguments: int
    outputs: int
    temporaries: int
    reused: int
    """Bytes of the outputs that are written into the memory of donated arguments."""

    @property
    def peak(self) -> int:
        return self.arguments + self.outputs + self.temporaries - self.reused


def planned_memory(compiled: Any) -> Memory | None:
    """Return the memory of a compiled program; None if the backend does not report it."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        reused=stats.alias_size_in_bytes,
    )


def bytes_per_device(tree: Any) -> int:
    """Return the bytes of a tree of shapes with shardings on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def free_bytes() -> int:
    """Return the bytes that this process may still allocate: on its device, or on a CPU within the host and its control group."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        # Not Linux: all of the memory, because each system reports its use in another way.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = int(re.findall(r"MemAvailable: +(\d+) kB", meminfo.read_text())[0]) * 1024
    limit, used, stat = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current", "memory.stat"))
    if limit.exists() and (limit_text := limit.read_text().strip()) != "max":
        # The kernel counts cached file pages, which it may drop, as used.
        dropped = int(re.findall(r"^inactive_file (\d+)", stat.read_text(), re.MULTILINE)[0])
        available = min(available, int(limit_text) - int(used.read_text()) + dropped)
    return available
