"""A process that takes no step is found, and none that is busy: by a clock that only the test moves."""

import mmap
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from zoo.runtime import progress
from zoo.runtime.progress import Progress, Watch, read_record

ALLOWANCE = 30.0


class Group:
    """Processes, whose records are in shared memory, and the watch over them."""

    def __init__(self, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.stopped: set[int] = set()
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.processes, memory = [Progress() for _ in range(processes)], []
        for process in self.processes:
            with tempfile.TemporaryFile() as file:
                file.truncate(progress.LAYOUT.size)
                memory.append(mmap.mmap(file.fileno(), progress.LAYOUT.size))
                process.share(file.fileno())
            process.start(ALLOWANCE)
        read = [lambda shared=shared: read_record(shared) for shared in memory]
        stopped = self.stopped.__contains__
        self.watch = Watch(read, allowance=ALLOWANCE, is_stopped=stopped, clock=lambda: self.now)

    def all(self, act: Callable[[Progress], Any]) -> None:
        for process in self.processes:
            act(process)

    def take_steps(self, seconds: float, *numbers: int) -> None:
        for number in numbers:
            assert self.stuck_after(seconds) is None
            self.all(lambda process, number=number: process.step(number))

    def stuck_after(self, seconds: float) -> tuple[float, progress.Stuck] | None:
        """Look once a second, for some seconds, and return what is found first, and after how many seconds."""
        end, began = self.now + seconds, self.now
        while self.now < end:
            self.now = min(self.now + 1.0, end)
            if stuck := self.watch.look():
                return self.now - began, stuck
        return None


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    group = Group(2, monkeypatch)
    group.all(lambda process: process.begin("compiling the step"))
    # The first step, with its compilation, takes a hundred seconds, the others one or three.
    group.take_steps(100.0, 1)
    group.take_steps(1.0, 2, 3, 4)
    group.take_steps(3.0, 5)
    return group


@pytest.mark.planted(2)
@pytest.mark.parametrize("stuck", [0, 1])
def test_the_process_that_the_others_wait_for_is_stuck_after_the_allowance_and_ten_medians(group: Group, stuck: int) -> None:
    other = group.processes[1 - stuck]
    group.now += 0.5
    other.step(6)
    with other.stage("waiting for the devices", waiting=True):
        result = group.stuck_after(100.0)
    assert result is not None and ALLOWANCE + 10 * 1.0 <= result[0] <= ALLOWANCE + 10 * 1.0 + 2
    reason = "no step for 41 s (limit 40 s) after step 5, while preparing the next step"
    assert result[1] == progress.Stuck((stuck,), reason)


@pytest.mark.planted
@pytest.mark.parametrize("waiting", [0, 1])
def test_of_processes_in_the_same_step_the_one_that_waits_for_the_devices_is_not_the_cause(group: Group, waiting: int) -> None:
    with group.processes[waiting].stage("waiting for the devices", waiting=True):
        result = group.stuck_after(100.0)
    assert result is not None and result[1].processes == (1 - waiting,)


def test_processes_that_wait_for_each_other_are_both_found(group: Group) -> None:
    result = group.stuck_after(100.0)
    assert result is not None and result[1].processes == (0, 1)


def test_phases_may_take_any_time_and_are_no_step_times(group: Group) -> None:
    first, second = group.processes
    with first.phase("validating"):
        with second.phase("validating"):
            assert group.stuck_after(1000.0) is None
        assert group.stuck_after(1000.0) is None, "it waits for the other one"
    group.take_steps(1.0, 6)
    result = group.stuck_after(100.0)
    assert result is not None and result[0] <= ALLOWANCE + 10 * 1.0 + 2


def test_a_process_that_gets_stuck_before_a_phase_of_the_others_is_found(group: Group) -> None:
    with group.processes[1].phase("validating"):
        result = group.stuck_after(100.0)
    assert result is not None and result[1].processes == (0,)


@pytest.mark.planted
def test_a_stopped_process_is_found_in_any_phase(group: Group) -> None:
    group.all(lambda process: process.begin("scoring"))
    assert group.stuck_after(100.0) is None
    group.stopped.add(1)
    assert group.stuck_after(ALLOWANCE - 1) is None
    group.stopped.clear()
    assert group.stuck_after(100.0) is None
    group.stopped.add(1)
    result = group.stuck_after(100.0)
    assert result is not None and result[1].processes == (1,)
    assert result[1].reason == "stopped by a signal (SIGSTOP) for 31 s after step 5, while scoring"


def test_the_time_of_a_suspended_observer_does_not_count(group: Group) -> None:
    group.now += 10_000.0
    assert group.watch.look() is None
    assert group.stuck_after(20.0) is None


def test_without_an_allowance_nothing_is_found(group: Group) -> None:
    group.all(lambda process: setattr(process, "allowance", 0.0))
    group.take_steps(1.0, 6)
    assert group.stuck_after(1000.0) is None


def test_the_steps_of_another_run_do_not_count(group: Group) -> None:
    group.all(lambda process: process.start(ALLOWANCE))
    group.all(lambda process: process.begin("compiling the step"))
    group.take_steps(50.0, 1)
    assert group.stuck_after(ALLOWANCE + 500.0 - 1) is None, "its first step took fifty seconds"
    assert group.stuck_after(10.0) is not None


def test_a_phase_and_a_stage_in_each_other_restore_the_activity(group: Group) -> None:
    process = group.processes[0]
    with process.stage("reading the batch"):
        with process.phase("sampling a rollout"):
            assert (process.read().activity, process.read().limit) == ("sampling a rollout", 0.0)
        assert process.read().activity == "reading the batch" and process.read().limit > 0
    record = process.read()
    assert (record.activity, record.step, record.waiting) == ("preparing the next step", 5, False)
