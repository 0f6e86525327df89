"""Device time of a program, from the profiler; wall time includes the host's part too."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from benchmarks.core.timing import Program

CALLS = 5
LINES = {"/device:GPU": "Stream", "/device:TPU": "XLA Modules"}
"""Prefix of a device's plane in a profile -> prefix of the lines whose events are its work: streams on a GPU, whole programs on a
TPU."""


def measured(programs: Mapping[str, Program]) -> dict[str, float]:
    """Return the device seconds of one call of each warm program that the profiler recorded.

    The result is empty on a CPU, which has no device apart from the host.
    """
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
    """Return the seconds in which the first device was busy: the union of its events, because streams overlap."""
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
