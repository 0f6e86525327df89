"""Signals end a run where no step is lost, and each is acknowledged at once."""

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.support.processes import Ended, run_python
from train.run import stop_signals
from train.run.stop_signals import StopSignals

Event = tuple[str, int]


class Recorded(list[Event]):
    """What a run says and does: ("SIGTERM", 0) is an acknowledgement, ("exit", code) the end of the process."""

    def __init__(self) -> None:
        self._one_more = threading.Semaphore(0)

    def add(self, what: str, code: int = 0) -> None:
        self.append((what, code))
        self._one_more.release()

    def notice(self, text: str) -> None:
        """Take a line that a run shows."""
        self.add(text.partition(":")[0])

    def send(self, number: int, events: int = 1) -> None:
        """Send a signal and wait for what comes of it."""
        os.kill(os.getpid(), number)
        self.wait(events)

    def wait(self, events: int) -> None:
        """Wait for what comes of a signal; the next one may be sent only after that."""
        for _ in range(events):
            assert self._one_more.acquire(timeout=60)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    events = Recorded()
    system = SimpleNamespace(_exit=lambda code: events.add("exit", code), kill=os.kill, getpid=os.getpid)
    monkeypatch.setattr(stop_signals, "os", system)
    return events


@contextlib.contextmanager
def stopping(recorded: Recorded) -> Iterator[StopSignals]:
    with StopSignals(recorded.notice, lambda: None) as stop:
        yield stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_saves_and_a_second_one_leaves_at_once(number: signal.Signals, recorded: Recorded) -> None:
    with stopping(recorded) as stop:
        stop.begin()
        recorded.send(number)
        assert stop.agreed(3)
        recorded.send(signal.SIGHUP, events=0)  # a closed terminal sends two
        recorded.send(signal.SIGTERM, events=2)
        assert stop.end() == number
    assert recorded == [(number.name, 0), ("SIGTERM", 0), ("exit", 143)]


def test_a_signal_in_one_of_several_processes_reaches_the_service_that_they_agree_through(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its C++ handler is run also for Ctrl-C, and a second signal is not left to it."""
    service, added = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: recorded.add("service", number)), []
    monkeypatch.setattr(stop_signals.jax, "process_count", lambda: 2)
    address = ctypes.cast(service, ctypes.c_void_p)
    ctypes.CDLL(None).signal.restype = ctypes.c_void_p
    ctypes.CDLL(None).signal(signal.SIGTERM, address)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with stopping(recorded) as stop:
            stop.begin()
            recorded.send(number, events=2)
            recorded.send(signal.SIGTERM, events=2)
            added += [("service", signal.SIGTERM), (number.name, 0), ("SIGTERM", 0), ("exit", 143)]
        ctypes.CDLL(None).signal(signal.SIGTERM, address)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert recorded == added


@pytest.mark.planted
def test_one_of_several_processes_does_not_leave_the_others_without_their_agreement(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step may come before JAX has seen the signal; then all processes compute the score."""
    reached = [False, False, True]
    monkeypatch.setattr(stop_signals.jax, "process_count", lambda: 2)
    monkeypatch.setattr(stop_signals.multihost_utils, "reached_preemption_sync_point", lambda taken: reached[taken - 1])
    for steps, code in ((2, 0), (3, signal.SIGINT)):
        with stopping(recorded) as stop:
            stop.begin()
            recorded.send(signal.SIGINT)
            for taken in range(1, steps + 1):
                assert stop.agreed(taken) == (taken == 3)
            assert stop.signal == signal.SIGINT and stop.end() == code


def test_a_signal_exits_at_once_if_nothing_is_unsaved(recorded: Recorded) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        with stopping(recorded) as stop:
            recorded.send(number, events=2)
    with stopping(recorded) as stop:
        with pytest.raises(KeyboardInterrupt):
            recorded.send(signal.SIGINT, events=0)
        recorded.wait(1)
        stop.begin()
        assert stop.end() == 0
        recorded.send(signal.SIGTERM, events=2)
    exits = [event for event in recorded if event[0] == "exit"]
    assert exits == [("exit", 143), ("exit", 129), ("exit", 143)]


def test_a_signal_is_acknowledged_while_the_main_thread_runs_no_python(recorded: Recorded) -> None:
    """It waits in C for a lock, as for XLA, until the acknowledgement releases the lock."""
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)  # zeros: an open pthread_mutex_t

    def notify(text: str) -> None:
        library.pthread_mutex_unlock(mutex)

    with StopSignals(notify, lambda: None) as stop:
        stop.begin()
        library.pthread_mutex_lock(mutex)
        sender = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
        sender.start()
        library.pthread_mutex_lock(mutex)
        sender.join()


def test_a_terminal_that_accepts_no_message_does_not_keep_a_run_from_ending(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a pipe that nobody reads."""
    full = threading.Event()
    monkeypatch.setattr(stop_signals, "PATIENCE", 0.01)

    def block(text: str = "") -> None:
        full.wait()

    with StopSignals(block, block) as stop:
        stop.begin()
        recorded.send(signal.SIGTERM, events=0)
        while not stop.signal:
            pass
        recorded.send(signal.SIGTERM)
    full.set()
    assert recorded == [("exit", 143)]


LOCKED = """
import ctypes, os, subprocess, sys
from train.run.stop_signals import StopSignals
from zoo.runtime import c_signals
number, once = sys.argv[1:]
if once == "planted mistake":
    c_signals.handle_once = lambda number: None
with StopSignals(print, lambda: None) as stop:
    stop.begin()
    kill = f"sleep 0.1; kill -{number} {os.getpid()}"
    subprocess.Popen(["sh", "-c", f"{kill}; {kill}; sleep 0.2; kill -KILL {os.getpid()}"])
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)  # zeros: an open pthread_mutex_t
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)
"""


@pytest.mark.planted
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full)])
def test_a_second_signal_ends_a_run_whose_native_code_holds_the_lock_of_python(number: signal.Signals) -> None:
    """A function of `ctypes.PyDLL` keeps the lock. Without the removal, only SIGKILL has an effect."""
    assert run_python("-c", LOCKED, str(int(number)), "") == Ended(-number, "", "")
    assert run_python("-c", LOCKED, str(int(number)), "planted mistake").code == -signal.SIGKILL


def test_an_ignored_sighup_stays_ignored(recorded: Recorded) -> None:
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping(recorded) as stop:
            stop.begin()
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            recorded.send(signal.SIGHUP, events=0)
            recorded.send(signal.SIGTERM)
            assert stop.signal == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, before)
