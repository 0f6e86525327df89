"""The record of what a process is doing, and the watch that finds a process which is stuck.

A run records each step, and each phase that may take any time: compiling, sampling, validating, saving, scoring, writing results.
Between two steps it may take `allowance` seconds + `MEDIANS` medians of the times of its steps, outside of phases. The record is
read by a thread of the same process, or by the launcher, which shares its memory with each of the processes that it has started.

All processes of a run record the same steps and phases in the same order. So the process with the fewest records is the one that
the others wait for, and only its time counts.
"""

import collections
import contextlib
import dataclasses
import mmap
import statistics
import struct
import time
from collections.abc import Callable, Iterator, Sequence

HANG = 75
"""Exit code of a run that is stuck: EX_TEMPFAIL of sysexits.h, after which the same command may succeed."""
ALLOWANCE = 30.0
"""Default of the seconds that the time between two steps may exceed `MEDIANS` medians."""
MEDIANS = 10
STEPS = 101
"""Number of steps whose times make the median."""
LAYOUT = struct.Struct("<qqdq128s")
TICK = 0.2
"""Seconds between two looks at the records."""
LONGEST_TICK = 1.0
"""Longest time in seconds that counts between two looks: an observer that was suspended has seen nothing of the time."""


@dataclasses.dataclass(frozen=True)
class Record:
    """The step or phase of a process."""

    count: int = 0
    """Number of steps and of beginnings and ends of phases so far."""
    step: int = 0
    """Number of steps taken."""
    limit: float = 0.0
    """Seconds that it may do this; 0 = any time."""
    waiting: bool = False
    """True while it waits for the devices or for other processes: one that does not is more likely to be the cause."""
    activity: str = "starting"


class Progress:
    """The record of this process, which its main thread writes."""

    def __init__(self) -> None:
        """Begin with a phase, in memory that no other process shares."""
        self.allowance = 0.0
        """Seconds that the time between two steps may exceed `MEDIANS` medians; 0 = there is no limit."""
        self.is_shared = False
        """True if the launcher reads the record."""
        self._memory: bytearray | mmap.mmap = bytearray(LAYOUT.size)
        self._record = Record()
        self._times: collections.deque[float] = collections.deque(maxlen=STEPS)
        self._began = time.monotonic()
        self._is_timed = False
        self._write(self._record)

    def start(self, allowance: float) -> None:
        """Forget the steps of another run of this process; `allowance` is that of the new one."""
        self.allowance = allowance
        self._times.clear()
        self._record = dataclasses.replace(self._record, step=0)
        self.begin("starting")

    def share(self, file: int) -> None:
        """Write into a file that the launcher reads, from now on."""
        self._memory, self.is_shared = mmap.mmap(file, LAYOUT.size), True
        self._write(self._record)

    def read(self) -> Record:
        """Return the record that this process wrote last."""
        return read_record(self._memory)

    def begin(self, activity: str) -> None:
        """Begin a phase that ends with the next call of this method or of `step`."""
        self._advance(limit=0.0, activity=activity)
        self._began, self._is_timed = time.monotonic(), False

    def step(self, number: int) -> None:
        """Record that the run has taken `number` steps. The first one includes its compilation."""
        now = time.monotonic()
        if self._is_timed:
            self._times.append(now - self._began)
        # The first step, which was compiled, took longer than the second one will.
        typical = statistics.median(self._times) if self._times else now - self._began
        self._began, self._is_timed = now, True
        limit = self.allowance + MEDIANS * typical if self.allowance else 0.0
        self._advance(limit=limit, step=number, activity="preparing the next step")

    @contextlib.contextmanager
    def phase(self, activity: str) -> Iterator[None]:
        """Record the block as a phase. The time between the two steps around it is not a step's time."""
        before = self._record
        self._advance(limit=0.0, activity=activity)
        yield
        self._is_timed = False
        self._advance(limit=before.limit, activity=before.activity)

    @contextlib.contextmanager
    def stage(self, activity: str, *, waiting: bool = False) -> Iterator[None]:
        """Record the activity of the block, whose time counts as that of the step or the phase around it."""
        before = self._record
        self._write(dataclasses.replace(before, activity=activity, waiting=waiting))
        yield
        self._write(dataclasses.replace(self._record, activity=before.activity, waiting=before.waiting))

    def _advance(self, *, limit: float, activity: str, step: int | None = None) -> None:
        step = self._record.step if step is None else step
        self._write(Record(self._record.count + 1, step, limit, activity=activity))

    def _write(self, record: Record) -> None:
        self._record = record
        text = record.activity.encode()[:128]
        self._memory[:] = LAYOUT.pack(record.count, record.step, record.limit, record.waiting, text)


this_process = Progress()
"""The record of the process that imports this."""


def read_record(memory: bytearray | mmap.mmap) -> Record:
    """Return the record that a process has written into memory, the first one if it has written none."""
    count, step, limit, waiting, text = LAYOUT.unpack(memory[:])
    return Record(count, step, limit, bool(waiting), text.rstrip(b"\0").decode(errors="replace") or "starting")


@dataclasses.dataclass(frozen=True)
class Stuck:
    """Processes that are stuck, and why they are considered so."""

    processes: tuple[int, ...]
    reason: str
    """The activity in which they are stuck, and its duration."""


class Watch:
    """Finds the processes that are stuck; `look` is called every `TICK` seconds."""

    def __init__(
        self,
        read: Sequence[Callable[[], Record]],
        *,
        allowance: float = 0.0,
        is_stopped: Callable[[int], bool] = lambda process: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to watch processes.

        Args:
            read: for each process a function that returns its record.
            allowance: seconds for which a process may be stopped by a signal, in any phase; 0 = any time.
            is_stopped: returns whether a process, by its number, is stopped by a signal.
            clock: returns the time in seconds.
        """
        self._read, self._allowance, self._is_stopped, self._clock = read, allowance, is_stopped, clock
        self._seen = [Record(-1)] * len(read)
        self._unchanged, self._stopped = [0.0] * len(read), [0.0] * len(read)
        self._last = clock()

    def look(self) -> Stuck | None:
        """Return the processes that are stuck now."""
        now = self._clock()
        passed, self._last = min(now - self._last, LONGEST_TICK), now
        before, self._seen = self._seen, [read() for read in self._read]
        fewest = min(record.count for record in self._seen)
        for process, record in enumerate(self._seen):
            # The time in which a process waits for one that is behind does not count.
            is_late = record.count == before[process].count == fewest
            self._unchanged[process] = self._unchanged[process] + passed if is_late else 0.0
            self._stopped[process] = self._stopped[process] + passed if self._is_stopped(process) else 0.0
        return self._stuck_by_signal() or self._stuck_in_step()

    def _stuck_by_signal(self) -> Stuck | None:
        stopped = tuple(process for process, seconds in enumerate(self._stopped) if 0 < self._allowance < seconds)
        return self._stopped_for_long(stopped) if stopped else None

    def _stuck_in_step(self) -> Stuck | None:
        order = [(record.count, record.waiting) for record in self._seen]
        behind = tuple(process for process, key in enumerate(order) if key == min(order))
        late = next((process for process in behind if 0 < self._seen[process].limit < self._unchanged[process]), None)
        if late is None:
            return None
        if stopped := tuple(process for process, seconds in enumerate(self._stopped) if seconds):
            return self._stopped_for_long(stopped)
        seen, seconds = self._seen[late], self._unchanged[late]
        where = f"after step {seen.step}, while {seen.activity}"
        return Stuck(behind, f"no step for {seconds:.0f} s (limit {seen.limit:.0f} s) {where}")

    def _stopped_for_long(self, processes: tuple[int, ...]) -> Stuck:
        seen, seconds = self._seen[processes[0]], self._stopped[processes[0]]
        where = f"after step {seen.step}, while {seen.activity}"
        return Stuck(processes, f"stopped by a signal (SIGSTOP) for {seconds:.0f} s {where}")
