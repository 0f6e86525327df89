"""Time by instruction: a JAX profile read as the seconds that the machine worked on each instruction of a program.

On a CPU, instructions run side by side on several threads, and hand work on to other threads. So each thread is followed: at any
instant it works on the innermost instruction that it has begun, or on the instruction that handed its work on. Each instant of
the step is divided evenly among the threads that work at that time; an instant without any is idle. The shares of all
instructions and the idle time add up to the time of the steps. On a GPU or TPU, the device reports the instruction itself.
"""

import dataclasses
import glob
import heapq
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData, ProfileOptions

STREAMS = ("Stream", "XLA Ops")
"""Prefixes of a device's lines, on a GPU and a TPU, that contain instructions."""
BEGINS, ENDS, HANDS_ON = "ThreadpoolListener::StartRegion", "ThreadpoolListener::StopRegion", "ThreadpoolListener::Record"


@dataclasses.dataclass(frozen=True)
class Spent:
    """Average time of an instruction in a step."""

    seconds: float
    """Its share of the step's time."""
    busy: float
    """Seconds of all threads, or device streams, that worked on it."""
    times: float
    """How often it ran; an instruction in a loop runs often."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """Breakdown of the time of a step by instruction."""

    seconds: float
    """Time of a step under the profiler, which slows it down: compare it with a step without the profiler."""
    spent: Mapping[str, Spent]
    """Instruction -> its time."""
    idle: float
    """Seconds of a step in which no thread worked: the step was being launched, or waited for."""
    clock: str
    """Clocks that were used: "threads" of the host, or "device"."""


def profile(program: Callable[[], object], steps: int = 3) -> Profile:
    """Run a compiled program under the profiler; the program must return only when its work is done."""
    options = ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder, profiler_options=options)
        try:
            began = time.perf_counter()
            for _ in range(steps):
                program()
            seconds = time.perf_counter() - began
        finally:
            jax.profiler.stop_trace()
        (file,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        return read(Path(file), steps, seconds)


def read(file: Path, steps: int, seconds: float) -> Profile:
    """Return the profile of `steps` steps that took `seconds` together.

    Raises:
        ValueError: the file has no instruction of a program.
    """
    planes = list(ProfileData.from_file(str(file)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    streams = [line for plane in devices for line in plane.lines if line.name.startswith(STREAMS)]
    if threads := [intervals for line in streams if (intervals := _stream(line))]:
        clock = "device"
    else:
        hosts = [line for plane in planes if plane.name == "/host:CPU" for line in plane.lines]
        threads, clock = _threads(hosts), "threads"
    shares, busy, times = _shared(threads)
    if not shares:
        raise ValueError(f"{file} has no instruction of a program")
    spent = {name: Spent(shares[name] / steps, busy[name] / steps, times[name] / steps) for name in shares}
    step_seconds = seconds / steps
    return Profile(step_seconds, spent, max(0.0, step_seconds - sum(one.seconds for one in spent.values())), clock)


@dataclasses.dataclass(frozen=True, order=True)
class Interval:
    """A part of a thread's time on one instruction, in seconds; `first` marks the first interval of a run of the instruction."""

    begin: float
    end: float
    name: str
    first: bool


def _threads(lines: Iterable[Any]) -> list[list[Interval]]:
    """Return the intervals of each thread of the host, in order and without overlaps."""
    events = [[_event(event) for event in line.events] for line in lines]
    # Work that is handed on belongs to the current instruction of the thread that hands it on.
    owners: dict[int, str] = {}
    for thread in events:
        _intervals(thread, owners, hand_on=True)
    # Work that was handed on may hand on more work: the second pass finds owners that the first pass met too late.
    for thread in events:
        _intervals(thread, owners, hand_on=True)
    return [_intervals(thread, owners, hand_on=False) for thread in events]


def _event(event: Any) -> tuple[float, float, str, str, int]:
    """Return (begin, end, name, instruction, handle of the work that is handed on)."""
    stats = dict(event.stats)
    handle = stats.get("_p" if event.name == HANDS_ON else "_c", 0)
    begin = event.start_ns * 1e-9
    return begin, begin + event.duration_ns * 1e-9, event.name, str(stats.get("hlo_op", "")), int(handle)


def _intervals(events: list[tuple[float, float, str, str, int]], owners: dict[int, str], *, hand_on: bool) -> list[Interval]:
    """Return a thread's time by the innermost instruction; with `hand_on`, record in `owners` which work it hands on."""
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
            if hand_on and inside and inside[-1][1]:
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


def _shared(threads: Iterable[list[Interval]]) -> tuple[dict[str, float], dict[str, float], dict[str, int]]:
    """Return by instruction: seconds, with each instant divided among the running ones; seconds of all threads; runs."""
    shares, busy, times = defaultdict(float), defaultdict(float), defaultdict(int)
    # Sweep over the ends of intervals; only a few intervals contain the current instant.
    running: list[tuple[float, str]] = []
    at = 0.0

    def advance(until: float) -> None:
        nonlocal at
        while running and running[0][0] <= until:
            step_to(running[0][0])
            heapq.heappop(running)
        step_to(until)

    def step_to(until: float) -> None:
        nonlocal at
        if until > at:
            for _, name in running:
                shares[name] += (until - at) / len(running)
            at = until

    for interval in heapq.merge(*threads):
        advance(interval.begin)
        heapq.heappush(running, (interval.end, interval.name))
        busy[interval.name] += interval.end - interval.begin
        times[interval.name] += interval.first
    advance(float("inf") if not running else max(end for end, _ in running))
    return shares, busy, times
