"""Runs that are stopped, killed, damaged or out of room, in one process or several, end as the run that nothing happened to."""

import functools
import json
import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support import forked, runs
from tests.support.runs import EVERY, STEPS, Started, Training, assert_close, assert_same, gone, home, reference, snapshot, text
from train.tokenizers.tokenizer import Tokenizer
from zoo.cli import main

TWO = {"processes": 2, "devices": 2}
SHARDED = ("--mesh.fsdp", "2", "--mesh.tensor", "2")
POSITIONS = ("--mesh.fsdp", "2", "--mesh.sequence", "2")


def flip(folder: Path) -> None:
    largest = max(files(folder), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def truncate(folder: Path) -> None:
    largest = max(files(folder), key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def copy_half(folder: Path) -> None:
    for file in files(folder)[::2]:
        file.unlink()


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


@pytest.mark.planted
def test_stopped_killed_and_damaged_a_run_ends_with_the_same_bits(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SIGTERM, after which nothing is lost, by SIGKILL, and by a flipped bit in its newest checkpoint."""
    run = Training(home(), "harmed")
    monkeypatch.chdir(home())
    with run.start() as started:
        started.reach(EVERY + 1)
        started.send(signal.SIGSTOP)
        taken = started.reach(1)
        assert main.main(run.argv(devices=8)) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert f"runs/harmed is in use by process {started.process.pid} on " in line
        started.send(signal.SIGCONT)
        stopped = started.stopped(signal.SIGTERM)
        assert taken <= stopped < STEPS
    with run.start() as started:
        started.committed(stopped + 1)
        started.killed()
    *_, intact, newest = run.checkpoints()
    assert int(newest.name) == run.latest()
    flip(newest)
    done = run.finish()
    assert f"CHECKPOINT {newest} IS DAMAGED: " in done.stdout
    assert run.resumed_at() == [0, stopped, int(intact.name)]
    runs.assert_every_sample_once_per_epoch(run)
    assert_same(run, reference())


@pytest.mark.slow
def test_killed_at_random_moments() -> None:
    """Each kill is at a random step and up to 50 ms later; every second one waits for a save to be under way."""
    seed = int(os.environ.get("KILLS_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"KILLS_SEED={seed}")
    rng = random.Random(seed)
    kills, steps = 20, 5 * STEPS
    flags = ("--steps", str(steps))
    unharmed = reference(*flags)  # made first: what it compiles is then in the cache, and no kill leaves half of it there
    run, during_save, resumed = Training(home(), f"killed-{kills}", flags), 0, 0
    for kill in range(kills):
        at = resumed + rng.randint(1, 2 * (steps - resumed) // (kills - kill + 1) + 1)
        with run.start() as started:
            if kill % 2 == 1 and resumed < steps:
                started.reach(min(at, steps - 2 * EVERY))
                started.saving()
                time.sleep(rng.uniform(0, 0.1 if during_save else 0.005))
            else:
                started.reach(min(at, steps))
                time.sleep(rng.uniform(0, 0.05))
            committed = run.latest() or 0
            started.killed()
        during_save += bool(run.left_over())
        taken, before, resumed = run.ledger()[-1]["step"], resumed, run.latest() or 0
        assert resumed >= committed >= before
        assert taken - resumed <= 2 * EVERY - 1
        assert run.resumed_at()[-1] == before
    run.finish()
    assert run.resumed_at()[-1] == resumed
    assert during_save > 0
    assert not run.left_over()
    runs.assert_every_sample_once_per_epoch(run, steps)
    assert_same(run, unharmed)


@pytest.mark.slow
@pytest.mark.planted(3)
def test_a_run_with_damaged_checkpoints_that_is_interrupted_and_killed_while_it_saves_ends_with_the_same_bits() -> None:
    """The three newest are damaged, each in its own way: the one before them is used, and every loss is reported. Then a closed
    terminal saves, after which nothing is lost; a second interrupt does not wait; and a kill comes while a save is under way."""
    run = reference().copied("damaged", 4 * EVERY)
    intact, *broken = run.checkpoints()
    for harm, folder in zip((copy_half, truncate, flip), broken, strict=True):
        harm(folder)
    with run.start() as started:
        started.reach(int(intact.name) + 1)
        stopped = started.stopped(signal.SIGHUP)
        printed = started.out.read_text()
    for folder in broken:
        assert f"CHECKPOINT {folder} IS DAMAGED: " in printed
        assert folder.with_suffix(".corrupt-1").exists()
    with run.start() as started:
        started.reach(stopped + 1)
        done = started.interrupted()
        # The kernel removes a handler that is used: if the second signal comes before it is installed again, it ends the process.
        assert done.code in (128 + signal.SIGINT, -signal.SIGINT) and done.stderr == ""
        assert "stopped and saved" not in done.stdout
    newest = run.latest()
    assert newest is not None and newest >= stopped
    with run.start() as started:
        started.saving()
        started.killed()
    assert run.left_over()
    committed = run.latest()
    assert committed is not None and committed >= newest
    run.finish()
    assert not run.left_over()
    assert run.resumed_at() == [0, int(intact.name), stopped, newest, committed]
    assert_same(run, reference())


def other_text(run: Training) -> None:
    (run.home / "text.txt").write_text(text().replace("whale", "shark"))


def other_tokenizer(run: Training) -> None:
    Tokenizer.train(["sharks and whales and sharks"] * 9, 280).save(run.folder / "tokenizer")


@pytest.mark.parametrize(
    ("change", "part"),
    [(other_text, " data: "), pytest.param(other_tokenizer, " tokenizer: ", marks=pytest.mark.planted)],
)
def test_another_run_is_refused(
    change: Callable[[Training], None], part: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(home() / "text.txt", tmp_path)
    run = reference().copied("other", 2 * EVERY, home=tmp_path)
    change(run)
    before = snapshot(run.folder)
    monkeypatch.chdir(tmp_path)
    assert main.main(run.argv(devices=8)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.match(f"zoo: runs/{run.name} .*{re.escape(part)}", line)
    assert snapshot(run.folder) == before


def test_a_finished_run_says_so(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(reference().folder)
    monkeypatch.chdir(home())
    assert main.main(reference().argv(devices=8)) == 0
    out, err = capsys.readouterr()
    assert f"runs/{reference().name} is finished: held-out " in out and err == ""
    assert snapshot(reference().folder) == before


def limit(started: Started, size: int) -> None:
    """Let no file grow beyond a size: the process gets EFBIG, as it would get ENOSPC from a full disk."""
    resource.prlimit(started.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


ALL_BUT_ARRAYS = 1 << 16


@pytest.mark.full
def test_a_failed_save_is_reported_and_the_last_one_ends_the_run() -> None:
    """The last save of a start is not made up for by another: it is an error."""
    unharmed = reference()  # made first: no file of the compilation cache has to be written below the limit
    run = Training(home(), "full", ("--checkpoint.every", str(STEPS)))
    with run.start() as started:
        limit(started, ALL_BUT_ARRAYS)
        started.reach(1)
        started.send(signal.SIGTERM)
        done = started.ended()
    assert done.code == 2
    [line] = done.stderr.splitlines()
    assert (
        line.startswith("zoo: ")
        and "could not be saved (File too large); make room, " in line
        and line.endswith(", and the run continues from the start")
    )
    assert run.latest() is None
    run = Training(home(), "full", ("--checkpoint.every", str(2 * EVERY)))
    with run.start() as started:
        limit(started, ALL_BUT_ARRAYS)
        started.reach(1)
        started.wait(lambda: "FAILED" in started.out.read_text())
        limit(started, resource.RLIM_INFINITY)
        done = started.ended()
    [line] = [line for line in done.stdout.splitlines() if "FAILED" in line]
    assert line.startswith(f"! CHECKPOINT of step {2 * EVERY} FAILED and was removed: ")
    assert (done.code, done.stderr) == (0, "")
    assert_same(run, unharmed)


@pytest.mark.full
def test_steps_that_are_not_finite_are_skipped_and_never_saved() -> None:
    flags = ("--optim.lr", "100", "--optim.weight-decay", "10", "--optim.clip", "0", "--optim.warmup", "0", "--steps", "20")
    run = Training(home(), "diverging", (*flags, "--max-skipped", "6"))
    with run.start() as started:
        done = started.ended()
    assert done.code == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("zoo: 6 steps in a row had a non-finite loss or gradient") and "--optim.lr 100" in line
    # The run itself records why it failed, for whatever started it.
    assert json.loads((run.folder / "failure.json").read_text())["reason"] == line.removeprefix("zoo: ")
    rows = [row for row in run.rows() if row["kind"] == "train"]
    skipped = sum(row["skipped"] for row in rows)
    assert 2 <= skipped <= 6
    assert not np.isfinite(rows[-1]["grad_norm"]) and rows[-1]["skipped"] == 2
    saved = [int(folder.name) for folder in run.checkpoints()]
    assert saved[-1] >= rows[-1]["step"] - EVERY
    states = {step: run.state(step) for step in saved}
    assert all(np.isfinite(leaf).all() for state in states.values() for leaf in state.values())


@pytest.mark.slow
def test_spikes_are_skipped_at_the_same_steps_after_a_kill_and_in_two_processes() -> None:
    """What decides about them is in the checkpoint. At such a low learning rate the losses are noise around a line, which is
    enough for a spike so close to their mean."""
    flags = ("--optim.lr", "1e-5", "--spikes.sigmas", "0.5", "--spikes.window", "3", "--max-skipped", str(STEPS))
    unharmed = reference(*flags)
    again, two = (unharmed.copied(f"spikes-{name}", 2 * EVERY) for name in ("again", "two"))
    again.finish()
    assert_same(again, unharmed)
    two.finish(**TWO)
    assert_close(two, unharmed)
    spikes = [[row["spikes"] for row in run.rows() if row["kind"] == "train"] for run in (two, unharmed)]
    assert spikes[0] == spikes[1] and 2 <= sum(spikes[0]) < STEPS - 3
    assert sum(spikes[0][2 * EVERY // 2 :]) > 0


def test_two_processes_train_as_one() -> None:
    two = reference(**TWO)
    assert_close(two, reference())
    assert two.losses()[-1] < two.losses()[0] - 0.5


@pytest.mark.slow
def test_adapters_train_in_two_processes_as_in_one() -> None:
    flags = ("--init", str(reference().folder), "--lora.rank", "4", "--lora.dropout", "0.1", "--optim.lr", "3e-2")
    one, two = reference(*flags), reference(*flags, **TWO)
    assert_close(two, one)
    assert two.losses()[-1] < two.losses()[0]


def kill_one_of_two(run: Training, step: int) -> None:
    """Continue a run in two processes and kill one after the checkpoint of a step. The other one is stuck: by itself it would not
    notice."""
    with run.start(**TWO) as started:
        started.committed(step)
        workers = started.workers()
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGSTOP)
        os.kill(workers[1], signal.SIGKILL)
        done = started.ended()
        assert done.code == 128 + signal.SIGKILL
        assert gone(workers)


@pytest.mark.slow
def test_a_killed_process_ends_the_group_and_other_devices_go_on_with_the_next_sample() -> None:
    """Begun on four devices of one process, continued in two processes and ended on two slices that divide positions too."""
    run = reference().copied("elastic", EVERY)
    kill_one_of_two(run, 2 * EVERY)
    newest = run.latest()
    run.finish(*POSITIONS, "--mesh.slices", "2", devices=8)
    assert run.resumed_at() == [0, EVERY, newest] and newest is not None and newest < STEPS
    runs.assert_every_sample_once_per_epoch(run)
    assert_close(run, reference())


@pytest.mark.slow
def test_a_killed_group_goes_on_with_the_same_command_and_bits() -> None:
    run = reference(**TWO).copied("two-killed", 2 * EVERY)
    kill_one_of_two(run, 3 * EVERY)
    newest = run.latest()
    run.finish(**TWO)
    assert run.resumed_at() == [0, 2 * EVERY, newest]
    assert_same(run, reference(**TWO))


@pytest.mark.slow
def test_devices_and_processes_change_at_every_start() -> None:
    run, stops = reference().copied("changing", EVERY), [0, EVERY]
    with run.start(devices=2) as started:
        started.committed(EVERY + 1)
        started.killed()
        stops.append(run.latest())
    with run.start(**TWO) as started:
        # JAX looks for a signal once per second, which may be longer than the rest of the run. So one process waits, and with it
        # the first step of both, until the other one has seen the signal.
        started.wait(lambda: len(run.resumed_at()) == len(stops))
        _, waiting = started.workers()
        os.kill(waiting, signal.SIGSTOP)
        started.send(signal.SIGTERM)
        started.wait(lambda: "SIGTERM caught" in started.err.read_text())
        os.kill(waiting, signal.SIGCONT)
        stops.append(started.saved(signal.SIGTERM))
    run.finish(*SHARDED)
    assert run.resumed_at() == stops
    assert len(set(stops)) == 4 and stops[-1] < STEPS
    runs.assert_every_sample_once_per_epoch(run)
    assert_close(run, reference())


def rollouts(run: Training) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (run.folder / "rollouts").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["rloo", "ppo"])
def test_a_killed_run_samples_the_same_texts(recipe: str) -> None:
    """It is killed a moment after a step, while it trains on a rollout or samples the next one."""
    run, unharmed = Training(home(), f"killed-{recipe}", recipe=recipe), reference(recipe=recipe)
    with run.start() as started:
        started.committed(EVERY)
        started.reach(EVERY + 2)
        started.killed()
    before = run.latest()
    run.finish()
    assert run.resumed_at() == [0, before] and before is not None and before >= EVERY
    assert_same(run, unharmed)
    assert rollouts(run) == rollouts(unharmed) and len(rollouts(run)) == -(-STEPS // EVERY)


IN_ROLLOUTS = {"train.rollout": 5, "train.judge": 4, "checkpoint.rename": 1}
"""Fault point -> the pass at which a run is killed: in the second rollout, each of which has three batches, and in a save."""


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["rloo", "ppo"])
def test_a_run_killed_while_it_samples_judges_and_saves_ends_with_the_same_bits(recipe: str) -> None:
    one = {"devices": 1}
    passes = IN_ROLLOUTS if recipe == "rloo" else {"train.rollout": 2, "train.judge": 2, "checkpoint.rename": 1}
    run, unharmed = Training(home(), f"killed-in-{recipe}", recipe=recipe), reference(recipe=recipe, **one)
    for point, number in passes.items():
        with run.start(limit=functools.partial(forked.with_faults, f"{point}:kill:{number}"), **one) as started:
            done = started.ended()
        assert done.code == -signal.SIGKILL, (point, done)
    run.finish(**one)
    assert len(run.resumed_at()) == len(passes) + 1 and run.resumed_at() == sorted(run.resumed_at())
    assert_same(run, unharmed)
    assert rollouts(run) == rollouts(unharmed)


DISAGREEING = """
import jax

def fails(ids, **_):
    if jax.process_index() == 1:
        raise ValueError("only here")
    return [0.5] * len(ids)

def number(ids, **_):
    return [float(jax.process_index())] * len(ids)
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        pytest.param("fails", "raised ValueError: only here at disagreeing.py:6 for 8 completions", marks=pytest.mark.full),
        pytest.param("number", "returned 0 in process 0 and 1 in process 1 for the completion", marks=pytest.mark.slow),
    ],
)
def test_a_reward_that_fails_in_one_of_two_processes_ends_both_in_one_line(function: str, message: str) -> None:
    (home() / "disagreeing.py").write_text(DISAGREEING)
    run = Training(home(), f"disagreeing-{function}", ("--rollout.reward", f"disagreeing:{function}"), recipe="rloo")
    with run.start(**TWO) as started:
        done = started.ended()
    assert done.code == 2
    [line] = done.stderr.splitlines()
    assert f"--rollout.reward disagreeing:{function}: {message}" in line


@pytest.mark.slow
def test_two_processes_sample_the_texts_of_one() -> None:
    two, one = reference(recipe="rloo", **TWO), reference(recipe="rloo")
    assert two.ledger() == one.ledger()
    texts = [
        {name: [list(json.loads(line).values())[:3] for line in lines.splitlines()] for name, lines in rollouts(run).items()}
        for run in (two, one)
    ]
    assert texts[0] == texts[1]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["t5-nano", "transformer-nano", "xlnet-nano"])
def test_a_killed_run_of_another_family_ends_with_the_same_bits(recipe: str) -> None:
    run = reference(recipe=recipe).copied(f"killed-{recipe}", EVERY)
    with run.start() as started:
        started.committed(2 * EVERY)
        started.killed()
    newest = run.latest()
    run.finish()
    assert run.resumed_at() == [0, EVERY, newest]
    assert_same(run, reference(recipe=recipe))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "flags", "machine"),
    [
        ("gpt-nano", SHARDED, TWO),
        ("gpt-nano", POSITIONS, TWO),
        ("gpt-nano", (*POSITIONS, "--model.compute.sequence", "ring"), TWO),
        ("gpt-nano", ("--engine", "pmap"), TWO),
        ("gpt-nano", ("--mesh.slices", "2", "--mesh.fsdp", "2"), TWO),
        ("t5-nano", (), TWO),
        ("t5-nano", SHARDED, {}),
        ("transformer-nano", ("--engine", "pmap"), {}),
        ("transformer-nano", ("--mesh.fsdp", "4"), {}),
        ("xlnet-nano", (), TWO),
        ("xlnet-nano", ("--engine", "pmap"), {}),
        ("xlnet-nano", SHARDED, {}),
        ("xlnet-nano", POSITIONS, TWO),
    ],
)
def test_losses_are_the_same_in_two_processes_and_on_every_engine(
    recipe: str, flags: tuple[str, ...], machine: dict[str, int]
) -> None:
    run = Training(home(), f"{recipe}-{len(machine)}{''.join(flags)}", flags, recipe)
    run.finish(**machine)
    assert_close(run, reference(recipe=recipe))
