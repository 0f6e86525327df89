"""Profiles of programs, and the device time in them; wall time includes the host's part too."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.profiler import ProfileData, ProfileOptions

from benchmarks.core.timing import Program

CALLS = 5
LINES = {"/device:GPU": "Stream", "/device:TPU": "XLA Modules"}
"""Prefix of a device's plane in a profile -> prefix of the lines whose events are its work: streams on a GPU, whole programs on a
TPU."""


def record_profile(program: Program, calls: int) -> tuple[Any, float]:
    """Return the profile of calls of a program, which must return only when its work is done, and their seconds together."""
    options = ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            began = time.perf_counter()
            for _ in range(calls):
                program()
            spent = time.perf_counter() - began
        (file,) = Path(folder).rglob("*.xplane.pb")
        return ProfileData.from_file(str(file)), spent


def device_seconds(programs: Mapping[str, Program]) -> dict[str, float]:
    """Return the device seconds of one call of each warm program that the profiler recorded.

    The result is empty on a CPU, which has no device apart from the host.
    """
    if jax.default_backend() == "cpu":
        return {}
    busy_seconds = {name: device_busy_seconds(record_profile(program, CALLS)[0]) / CALLS for name, program in programs.items()}
    return {name: busy for name, busy in busy_seconds.items() if busy > 0}


def device_busy_seconds(profile: Any) -> float:
    """Return the seconds in which the first device was busy: the union of its events, because streams overlap."""
    for plane in profile.planes:
        prefix = next((line for name, line in LINES.items() if plane.name.startswith(name)), None)
        if prefix is not None:
            events = [event for line in plane.lines if line.name.startswith(prefix) for event in line.events]
            if not events:
                return 0.0
            starts, ends = np.array(sorted((event.start_ns, event.start_ns + event.duration_ns) for event in events)).T
            reached = np.maximum.accumulate(np.concatenate([starts[:1], ends[:-1]]))
            return float(np.maximum(0, ends - np.maximum(starts, reached)).sum()) / 1e9
    return 0.0
