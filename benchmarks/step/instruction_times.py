"""Time by instruction of a compiled program: the seconds of a step that each one takes, from a profile of JAX.

On a CPU, several threads run instructions concurrently and hand parts of them to other threads. A thread's time belongs to the
innermost instruction that it has begun, or to the instruction that handed it the work. Each instant of a step is divided evenly
among the threads that work then; an instant in which none works is idle. So the times of all instructions and the idle time add
up to the time of a step. On a GPU or TPU, the profile names the instruction of each piece of work itself.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.core import device_time

STREAMS = ("Stream", "XLA Ops")
"""Prefixes of a device's lines, on a GPU and a TPU, that contain instructions."""
BEGINS, ENDS, HANDS_ON = "ThreadpoolListener::StartRegion", "ThreadpoolListener::StopRegion", "ThreadpoolListener::Record"


@dataclasses.dataclass(frozen=True)
class InstructionTime:
    """Average time of an instruction in a step."""

    seconds: float
    """Share of the step's time that the instruction takes."""
    busy: float
    """Seconds of all threads, or device streams, that worked on it."""
    times: float
    """How often it ran; an instruction in a loop runs often."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """Breakdown of the time of a step by instruction."""

    seconds: float
    """Time of a step under the profiler, which slows it down: compare it with a step without the profiler."""
    spent: Mapping[str, InstructionTime]
    """Instruction -> its time."""
    idle: float
    """Seconds of a step in which no thread worked: the step was being launched, or waited for."""
    clock: str
    """Clocks that were used: "threads" of the host, or "device"."""


def profile_program(program: Callable[[], object], steps: int = 3) -> Profile:
    """Run a compiled program under the profiler; the program must return only when its work is done.

    Raises:
        ValueError: the profile has no instruction of a program.
    """
    recorded, seconds = device_time.record_profile(program, steps)
    planes = list(recorded.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    streams = [line for plane in devices for line in plane.lines if line.name.startswith(STREAMS)]
    if threads := [intervals for line in streams if (intervals := _stream(line))]:
        clock = "device"
    else:
        hosts = [line for plane in planes if plane.name == "/host:CPU" for line in plane.lines]
        threads, clock = _threads(hosts), "threads"
    shares, busy, times = _shared(threads)
    if not shares:
        raise ValueError("the profile has no instruction of a program")
    spent = {name: InstructionTime(shares[name] / steps, busy[name] / steps, times[name] / steps) for name in shares}
    step_seconds = seconds / steps
    return Profile(step_seconds, spent, max(0.0, step_seconds - sum(one.seconds for one in spent.values())), clock)


class Interval(NamedTuple):
    """A time span, in seconds, in which one thread executes one instruction.

    An execution that was interrupted has several spans; `first` marks the first span.
    """

    begin: float
    end: float
    name: str
    first: bool


def _threads(lines: Iterable[Any]) -> list[list[Interval]]:
    """Return the intervals of each thread of the host, in order and without overlaps."""
    events = [[_event(event) for event in line.events] for line in lines]
    owners: dict[int, str] = {}
    threads: list[list[Interval]] = []
    # Work that is handed on may hand on more work: the second pass finds owners that the first pass met too late, and the third
    # uses all of them.
    for _ in range(3):
        threads = [_intervals(thread, owners) for thread in events]
    return threads


def _event(event: Any) -> tuple[float, float, str, str, int]:
    """Return (begin, end, name, instruction, handle of the work that is handed on)."""
    stats = dict(event.stats)
    handle = stats.get("_p" if event.name == HANDS_ON else "_c", 0)
    begin = event.start_ns * 1e-9
    return begin, begin + event.duration_ns * 1e-9, event.name, str(stats.get("hlo_op", "")), int(handle)


def _intervals(events: list[tuple[float, float, str, str, int]], owners: dict[int, str]) -> list[Interval]:
    """Return a thread's time by innermost instruction, and record in `owners` to which one work for other threads belongs."""
    intervals: list[Interval] = []
    # Stack of the thread: (end, instruction). A region has no end here: an event of its own ends it.
    inside: list[tuple[float, str]] = []
    at, fresh = 0.0, False

    def close(until: float) -> None:
        nonlocal at, fresh
        if inside and inside[-1][1] and until > at:
            intervals.append(Interval(at, until, inside[-1][1], fresh))
            fresh = False
        at = max(at, until)

    for begin, end, name, op, number in sorted(events, key=lambda event: (event[0], -event[1])):
        while inside and inside[-1][0] <= begin:
            close(inside[-1][0])
            inside.pop()
        if name == HANDS_ON:
            if inside and inside[-1][1]:
                owners[number] = inside[-1][1]
        elif name == BEGINS:
            close(begin)
            inside.append((float("inf"), owners.get(number, "")))
        elif name == ENDS:
            close(begin)
            while inside and inside.pop()[0] != float("inf"):
                pass
        elif op:
            close(begin)
            inside.append((end, op))
            fresh = True
    while inside:
        if inside[-1][0] != float("inf"):
            close(inside[-1][0])
        inside.pop()
    return intervals


def _stream(line: Any) -> list[Interval]:
    """Return the intervals of a line of a device."""
    intervals = []
    for event in line.events:
        begin, end, _, op, _ = _event(event)
        if op and end > begin:
            intervals.append(Interval(begin, end, op, True))
    return sorted(intervals)


def _shared(threads: Iterable[list[Interval]]) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Return by instruction: seconds, with each instant divided among the running ones; seconds of all threads; runs."""
    shares, busy, times = defaultdict[str, float](float), defaultdict[str, float](float), defaultdict[str, float](float)
    intervals = [interval for thread in threads for interval in thread]
    begins, ends = (np.array([interval[place] for interval in intervals], float) for place in (0, 1))
    instants = np.unique([begins, ends])
    running = [np.searchsorted(np.sort(side), instants[:-1], "right") for side in (begins, ends)]
    # The integral of 1 / (number of running intervals) up to each instant.
    shared = np.concatenate([[0.0], np.cumsum(np.diff(instants) / np.maximum(running[0] - running[1], 1))])
    own = shared[np.searchsorted(instants, ends)] - shared[np.searchsorted(instants, begins)]
    for interval, share in zip(intervals, own, strict=True):
        shares[interval.name] += float(share)
        busy[interval.name] += interval.end - interval.begin
        times[interval.name] += interval.first
    return shares, busy, times
