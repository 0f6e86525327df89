"""A run in other processes than it began in, or in several of them: signals, a dead peer, other devices."""

import os
import signal

import pytest

from tests.support.runs import (
    EVERY,
    STEPS,
    Training,
    alive,
    assert_close,
    assert_every_sample_once_per_epoch,
    assert_same,
    home,
    reference,
)
from zoo import cli

TWO = {"processes": 2, "devices": 4}
LEGS = [
    (signal.SIGTERM, (), {"devices": 8}),
    (signal.SIGKILL, (), {"devices": 2}),
    (signal.SIGTERM, ("--mesh.fsdp", "2", "--mesh.tensor", "2"), {"devices": 4}),
    (signal.SIGINT, (), TWO),
]
"""What ends a part of a run, and where that part runs."""


def test_two_processes_train_as_one() -> None:
    """Losses of two processes with four devices each equal those of one with eight, relatively to 1e-5."""
    two = reference(**TWO)
    assert_close(two, reference())
    assert two.losses()[-1] < two.losses()[0] - 0.5


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--mesh.fsdp", "2", "--mesh.tensor", "2"), ("--engine", "pmap")])
def test_two_processes_train_as_one_on_every_mesh_and_engine(flags: tuple[str, ...]) -> None:
    run = Training(home(), f"two{''.join(flags)}", flags)
    with run.start(**TWO) as started:
        started.reach(EVERY + 1)
        workers = started.workers()
        stopped = started.stopped(signal.SIGTERM)
        assert not any(map(alive, workers))
    run.finish(**TWO)
    assert run.resumed_at() == [0, stopped]
    assert_close(run, reference())


def test_a_killed_process_ends_the_group_and_the_same_command_goes_on() -> None:
    """The other one is stuck: by itself it would not notice."""
    run = Training(home(), "two-killed")
    with run.start(**TWO) as started:
        started.committed(EVERY)
        workers = started.workers()
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGSTOP)
        os.kill(workers[1], signal.SIGKILL)
        done = started.ended()
        assert done.code == 128 + signal.SIGKILL
        assert done.seconds < 3
        assert not any(map(alive, workers))
    run.finish(**TWO)
    assert run.resumed_at()[1:] >= [EVERY]
    assert_same(run, reference(**TWO))


def test_signals_save_and_a_folder_in_use_is_refused(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM, SIGINT, and a SIGINT that a second one does not wait for; and another process that tries to join in.

    Nothing is lost, but by the second SIGINT, and the run ends as the one that nothing happened to.
    """
    run, starts = Training(home(), "signals"), [0]
    monkeypatch.chdir(home())
    for number in (signal.SIGTERM, signal.SIGINT):
        with run.start() as started:
            started.reach(starts[-1] + EVERY + 1)
            started.send(signal.SIGSTOP)
            taken = started.reach(1)
            assert cli.main(run.argv()) == 2
            [line] = capsys.readouterr().err.splitlines()
            assert f"runs/signals is in use by process {started.process.pid} on " in line
            started.send(signal.SIGCONT)
            starts.append(started.stopped(number))
            assert taken <= starts[-1] < STEPS
    with run.start() as started:
        started.reach(starts[-1] + 1)
        done = started.interrupted()
        assert (done.code, done.stderr) == (128 + signal.SIGINT, "")
        assert "stopped and saved" not in done.stdout
    newest = run.latest()
    assert newest is not None and newest >= starts[-1]
    run.finish()
    assert run.resumed_at() == [*starts, newest]
    assert_same(run, reference())


@pytest.mark.parametrize("legs", [LEGS[:3], pytest.param(LEGS, marks=pytest.mark.slow)], ids=["devices", "processes"])
def test_other_devices_and_processes_go_on_with_the_next_sample(legs: list[tuple]) -> None:
    """From eight devices to two, to four with parameters and heads sharded, to two processes; and back."""
    run, stops = Training(home(), f"elastic-{len(legs)}"), [0]
    for number, flags, machine in legs:
        with run.start(*flags, **machine) as started:
            started.reach(stops[-1] + 1)
            if number == signal.SIGKILL:
                started.committed(stops[-1] + 1)
                started.killed()
                newest = run.latest()
                assert newest is not None
                stops.append(newest)
            else:
                stops.append(started.stopped(number))
    run.finish()
    assert run.resumed_at() == stops
    assert len(set(stops)) == 1 + len(legs) and stops[-1] < STEPS
    assert_every_sample_once_per_epoch(run)
    assert_close(run, reference())
