"""Memory that this process may still allocate."""

import os
import re
from pathlib import Path

import jax


def free() -> int:
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
