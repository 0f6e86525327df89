"""Which instruction of a program the machine worked on, and for how long: a JAX profile read as seconds by instruction.

On a CPU, instructions run side by side on several threads, and their work is handed on to others. So each thread is followed: at
any instant it works on the innermost instruction it has begun, and where it does what another handed on, on that one's. An
instant of the step is shared evenly by the threads that work then; one in which none does is nobody's. The shares of all
instructions and of nobody sum up to the time of the steps. On a GPU or TPU an instruction is what its device says it runs.
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
"""Lines of a device, a GPU's and a TPU's, on which it says what it runs."""
BEGINS, ENDS, HANDS_ON = "ThreadpoolListener::StartRegion", "ThreadpoolListener::StopRegion", "ThreadpoolListener::Record"


@dataclasses.dataclass(frozen=True)
class Spent:
    """What an instruction took of a step, on average."""

    seconds: float
    """Its share of the step's time."""
    busy: float
    """Seconds of all threads, or device streams, that worked on it."""
    times: float
    """How often it ran; an instruction in a loop runs often."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where the time of a step went."""

    seconds: float
    """A step while the profiler listened, which costs something: compare it with one that is not listened to."""
    spent: Mapping[str, Spent]
    """By instruction."""
    idle: float
    """Seconds of a step in which nothing was worked on: it was being launched, or waited for."""
    clock: str
    """Whose: "threads" of the host, or "device"."""


def profile(program: Callable[[], object], steps: int = 3) -> Profile:
    """Run a compiled program, which returns when its work is done, under the profiler."""
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
    """The profile of `steps` steps that took `seconds` together.

    Raises:
        ValueError: nothing in it is an instruction of a program.
    """
    planes = list(ProfileData.from_file(str(file)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    streams = [line for plane in devices for line in plane.lines if line.name.startswith(STREAMS)]
    if threads := [pieces for line in streams if (pieces := _stream(line))]:
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
class Piece:
    """A stretch of a thread's time on one instruction, in seconds; `first` of the run of the instruction it belongs to."""

    begin: float
    end: float
    name: str
    first: bool


def _threads(lines: Iterable[Any]) -> list[list[Piece]]:
    """What each thread of the host worked on, in order, without overlaps."""
    events = [[_event(event) for event in line.events] for line in lines]
    # What is handed on belongs to what the thread that hands it on is in.
    owners: dict[int, str] = {}
    for thread in events:
        _pieces(thread, owners, hand_on=True)
    # Work that was handed on may hand on in its turn: by now the owner of that is known too, where it was met too late.
    for thread in events:
        _pieces(thread, owners, hand_on=True)
    return [_pieces(thread, owners, hand_on=False) for thread in events]


def _event(event: Any) -> tuple[float, float, str, str, int]:
    """(begin, end, name, instruction, number of what is handed on)."""
    stats = dict(event.stats)
    handle = stats.get("_p" if event.name == HANDS_ON else "_c", 0)
    begin = event.start_ns * 1e-9
    return begin, begin + event.duration_ns * 1e-9, event.name, str(stats.get("hlo_op", "")), int(handle)


def _pieces(events: list[tuple[float, float, str, str, int]], owners: dict[int, str], *, hand_on: bool) -> list[Piece]:
    """A thread's time by the innermost instruction; with `hand_on`, notes what it hands on in `owners`."""
    pieces: list[Piece] = []
    # What the thread is in: (end, instruction). A region ends with its own event.
    inside: list[tuple[float, str]] = []
    at, fresh = 0.0, False

    def close(until: float) -> None:
        nonlocal at, fresh
        if inside and inside[-1][1] and until > at:
            pieces.append(Piece(at, until, inside[-1][1], fresh))
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
    return pieces


def _stream(line: Any) -> list[Piece]:
    """What a line of a device ran."""
    pieces = []
    for event in line.events:
        begin, end, _, op, _ = _event(event)
        if op and end > begin:
            pieces.append(Piece(begin, end, op, True))
    return sorted(pieces)


def _shared(threads: Iterable[list[Piece]]) -> tuple[dict[str, float], dict[str, float], dict[str, int]]:
    """By instruction: seconds, an instant being shared evenly by those who work then; seconds of all threads; runs."""
    shares, busy, times = defaultdict(float), defaultdict(float), defaultdict(int)
    # Sweep over the ends of pieces; the pieces that contain the present instant are few.
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

    for piece in heapq.merge(*threads):
        advance(piece.begin)
        heapq.heappush(running, (piece.end, piece.name))
        busy[piece.name] += piece.end - piece.begin
        times[piece.name] += piece.first
    advance(float("inf") if not running else max(end for end, _ in running))
    return shares, busy, times
