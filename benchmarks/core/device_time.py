"""How long a device works for a program, by its profiler; wall time holds the host's part too."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from benchmarks.core.timing import Program

CALLS = 5
LINES = {"/device:GPU": "Stream", "/device:TPU": "XLA Modules"}
"""Planes of a profile that are a device's, and its lines on which each event is a piece of work: of a GPU those of its streams,
of a TPU whole programs."""


def measured(programs: Mapping[str, Program]) -> dict[str, float]:
    """Seconds of the device a call, of warm programs; of those that its profiler has seen. On a CPU of none: it has no device
    apart from the host."""
    if jax.default_backend() == "cpu":
        return {}
    busy_seconds = {}
    for name, program in programs.items():
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                for _ in range(CALLS):
                    program()
            files = sorted(Path(folder).rglob("*.xplane.pb"))
            busy = seconds(ProfileData.from_file(str(files[-1]))) if files else 0.0
        if busy > 0:
            busy_seconds[name] = busy / CALLS
    return busy_seconds


def seconds(profile: Any) -> float:
    """Seconds in which the first device was at work: the union of its events, for streams overlap."""
    for plane in profile.planes:
        prefix = next((line for name, line in LINES.items() if plane.name.startswith(name)), None)
        if prefix is not None:
            events = [event for line in plane.lines if line.name.startswith(prefix) for event in line.events]
            return _union((event.start_ns, event.start_ns + event.duration_ns) for event in events) / 1e9
    return 0.0


def _union(spans: Iterable[tuple[float, float]]) -> float:
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
