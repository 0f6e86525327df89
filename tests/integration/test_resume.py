"""Runs survive: killed, damaged, out of room or diverging, they end as the run that nothing happened to, or say why not."""

import dataclasses
import logging
import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval import scores
from tests.support import tiny
from tests.support.runs import (
    EVERY,
    STEPS,
    Started,
    Training,
    assert_every_sample_once_per_epoch,
    assert_same,
    home,
    reference,
    snapshot,
    text,
)
from train import config, loop, optim
from train import mesh as meshes
from train.checkpoint import Checkpoints
from train.objectives import causal
from train.step import ENGINES, make_step
from train.tokenizer import Tokenizer
from zoo import cli
from zoo.models import model

HALF = 10
"""Steps between checkpoints where a test needs time between two of them."""


# Killed.


@pytest.mark.parametrize(("kills", "steps"), [(3, STEPS), pytest.param(20, 5 * STEPS, marks=pytest.mark.slow)])
def test_killed_at_random_moments(kills: int, steps: int) -> None:
    """Each kill is at a random step and up to 50 ms later; every second one waits for a save to be under way."""
    seed = int(os.environ.get("KILLS_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"KILLS_SEED={seed}")
    rng = random.Random(seed)
    flags = () if steps == STEPS else ("--steps", str(steps))
    unharmed = reference(*flags)  # made first: what it compiles is then in the cache, and no kill leaves half of it there
    run, during_save, resumed = Training(home(), f"killed-{kills}", flags), 0, 0
    for kill in range(kills):
        # Far enough for all kills together to come about to the end.
        at = resumed + rng.randint(1, 2 * (steps - resumed) // (kills - kill + 1) + 1)
        with run.start() as started:
            if kill % 2 == 1 and resumed < steps:
                started.reach(min(at, steps - 2 * EVERY))
                started.saving()
                # One at its beginning for certain, the others anywhere in it.
                time.sleep(rng.uniform(0, 0.1 if during_save else 0.005))
            else:
                started.reach(min(at, steps))
                time.sleep(rng.uniform(0, 0.05))
            committed = run.latest() or 0
            started.killed()
        during_save += bool(run.left_over())
        taken, before, resumed = run.ledger()[-1]["step"], resumed, run.latest() or 0
        print(f"kill {kill}: after step {taken}, resumes at {resumed}, {run.left_over()}")
        assert resumed >= committed >= before
        assert taken - resumed <= 2 * EVERY - 1
        assert run.resumed_at()[-1] == before
    run.finish()
    assert run.resumed_at()[-1] == resumed
    assert during_save > 0
    assert not run.left_over()
    assert_every_sample_once_per_epoch(run, steps)
    assert_same(run, unharmed)


# Damaged.


def flip(folder: Path) -> None:
    [*_, largest] = sorted(files(folder), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def truncate(folder: Path) -> None:
    [*_, largest] = sorted(files(folder), key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def copy_half(folder: Path) -> None:
    """What an interrupted copy leaves: some of the files."""
    for file in files(folder)[::2]:
        file.unlink()


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


@pytest.mark.planted(3)
def test_damaged_newest_checkpoints_are_passed_over() -> None:
    """The three newest, each in its own way; each time the one before is used, and nobody can overlook it."""
    run = Training(home(), "damaged", ("--checkpoint.keep", "4"))
    with run.start() as started:
        started.committed(4 * EVERY)
        started.killed()
    *_, intact, third, second, newest = sorted(run.folder.glob("checkpoints/????????"))
    assert int(newest.name) == run.latest()
    flip(newest)
    truncate(second)
    copy_half(third)
    done = run.finish()
    assert run.resumed_at() == [0, int(intact.name)]
    for folder in (newest, second, third):
        assert f"CHECKPOINT {folder} IS DAMAGED: " in done.stdout
        assert folder.with_suffix(".corrupt-1").exists()
    assert_same(run, reference())


# Another run.


def other_text(run: Training) -> None:
    (run.home / "text.txt").write_text(text().replace("whale", "shark"))


def other_tokenizer(run: Training) -> None:
    Tokenizer.train(["sharks and whales and sharks"] * 9, 280).save(run.folder / "tokenizer")


@pytest.mark.parametrize(
    ("change", "flags", "said"),
    [
        (None, ("--model.layers", "3"), "model.layers: 2 before, 3 now"),
        (None, ("--seed", "1"), "seed: 0 before, 1 now"),
        (None, ("--tokenizer.vocab", "290"), "tokenizer.vocab: 300 before, 290 now"),
        (None, ("--tokenizer.path", "elsewhere"), "tokenizer.path:  before, elsewhere now"),
        (None, ("--steps", "99"), "steps: 20 before, 99 now"),
        (other_text, (), " data: "),
        pytest.param(other_tokenizer, (), " tokenizer: ", marks=pytest.mark.planted),
    ],
)
def test_another_run_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Training], None] | None,
    flags: tuple[str, ...],
    said: str,
) -> None:
    """A run that has a checkpoint and is not finished yet, started with something else."""
    run = Training(tmp_path, reference().name)
    shutil.copy(home() / "text.txt", tmp_path)
    shutil.copytree(reference().folder, run.folder)
    shutil.rmtree(run.folder / "checkpoints" / f"{STEPS:08d}")
    (run.folder / "scores.json").unlink()
    if change:
        change(run)
    before = snapshot(run.folder)
    monkeypatch.chdir(tmp_path)
    assert cli.main(run.argv(*flags)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.match(f"zoo: runs/{run.name} .*{re.escape(said)}", line)
    assert snapshot(run.folder) == before


def test_a_finished_run_says_so(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(reference().folder)
    monkeypatch.chdir(home())
    assert cli.main(reference().argv()) == 0
    out, err = capsys.readouterr()
    assert f"runs/{reference().name} is finished: held-out " in out
    assert err == ""
    assert snapshot(reference().folder) == before


# Out of room.


def fill(started: Started) -> None:
    """No file grows beyond 64 KiB any more: enough for all but the arrays of a checkpoint. The process gets EFBIG."""
    limit(started, 1 << 16)


def limit(started: Started, size: int) -> None:
    resource.prlimit(started.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_one_failed_save_is_loud_and_training_goes_on() -> None:
    """The last one of a start is not made up for by another: it is an error."""
    run = Training(home(), "full-once", ("--checkpoint.every", str(HALF)))
    with run.start() as started:
        started.reach(1)
        fill(started)
        started.send(signal.SIGTERM)
        done = started.ended()
    assert done.code == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("zoo: ") and line.endswith("could not be saved; make room, and the run goes on from the start")
    assert run.latest() is None

    with run.start() as started:
        started.reach(1)
        fill(started)
        started.wait(lambda: "FAILED" in started.out.read_text())
        limit(started, resource.RLIM_INFINITY)
        done = started.ended()
    [line] = [line for line in done.stdout.splitlines() if "FAILED" in line]
    assert line.startswith(f"! CHECKPOINT of step {HALF} FAILED and was removed: ")
    assert (done.code, done.stderr) == (0, "")
    assert run.resumed_at() == [0, 0]
    assert_same(run, reference())


def test_two_failed_saves_end_the_run_and_harm_nothing() -> None:
    run = Training(home(), "full")
    with run.start() as started:
        started.committed(EVERY)
        fill(started)
        done = started.ended()
    assert done.code == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("zoo: two checkpoints in a row failed: ")
    assert not run.left_over()
    newest = run.latest()
    assert newest is not None
    assert done.stdout.count("FAILED") == 2
    run.finish()
    assert run.resumed_at() == [0, newest]
    assert_same(run, reference())


# Diverging.


def test_steps_that_are_not_finite_are_skipped_and_never_saved() -> None:
    """At this rate the gradient overflows within a few steps."""
    flags = ("--optim.lr", "100", "--optim.weight-decay", "10", "--optim.clip", "0", "--optim.warmup", "0")
    run = Training(home(), "diverging", (*flags, "--max-skipped", "6", "--checkpoint.keep", "9"))
    with run.start() as started:
        done = started.ended()
    assert done.code == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("zoo: 6 steps in a row had a non-finite loss or gradient") and "--optim.lr 100" in line
    rows = [row for row in run.rows() if row["kind"] == "train"]
    skipped = sum(row["skipped"] for row in rows)
    assert 2 <= skipped <= 6
    assert not np.isfinite(rows[-1]["grad_norm"]) and rows[-1]["skipped"] == 2
    saved = [int(entry.name) for entry in run.folder.glob("checkpoints/????????")]
    assert max(saved) >= rows[-1]["step"] - EVERY
    states = {step: run.state(step) for step in sorted(saved)}
    assert all(np.isfinite(leaf).all() for state in states.values() for leaf in state.values())
    first_skipped = rows[-1]["step"] - skipped + 1
    after = [state for step, state in states.items() if step >= first_skipped - 1]
    assert len(after) >= 2
    chex.assert_trees_all_equal(*[{path: leaf for path, leaf in state.items() if path != "step"} for state in after])


# Compiled once, and nothing moved unseen.


def compiled(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Names of the programs that XLA was given to compile, found in the cache or not."""
    return re.findall(r"Compiling (\S+) with global shapes", caplog.text)


@pytest.mark.parametrize("engine", ["jit", "pmap"])
def test_the_step_is_compiled_once(engine: config.Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Over the first steps, and again after the state went through a checkpoint."""
    run = tiny.run(engine=engine, steps=4)
    mesh, net, tx = meshes.make(run.mesh), model(run.model), optim.optimizer(run.optim)
    abstract = meshes.abstract_state(run, net, tx, mesh)
    chex.clear_trace_counter()  # it goes by the function's name
    step = chex.assert_max_traces(make_step(run, net, causal, tx, jnp.float32), n=1)
    made = ENGINES[engine](step, mesh, jax.tree.map(lambda leaf: leaf.sharding, abstract), run.data.batch)
    state = made.put(meshes.init_state(run, net, tx, mesh))
    programs = []
    with Checkpoints(tmp_path, 1, notify=pytest.fail) as checkpoints:
        for number in range(4):
            if number == 2:
                checkpoints.save(made.get(state), {})
                restored = checkpoints.restore(abstract)
                assert restored is not None
                state = made.put(restored[0])
            batch = made.place(tiny.batch(number))
            with jax.log_compiles(), caplog.at_level(logging.WARNING):
                state, _ = made.step(state, batch)
            programs.append(len(compiled(caplog)))
            caplog.clear()
    assert int(jax.device_get(made.get(state).step)) == 4
    assert programs[0] > 0 and programs[1:] == [0, 0, 0]


def small(folder: Path) -> config.Run:
    return tiny.run(
        steps=4,
        out=str(folder),
        data=config.Data(paths=(str(home() / "text.txt"),), length=32),
        checkpoint=config.Checkpoint(every=2),
    )


def test_a_start_compiles_the_step_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the whole loop, from the start and resumed."""
    run = small(tmp_path)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        assert loop.run(run, evaluate=scores.scorer, on_end=lambda _: None) == 0
        shutil.rmtree(tmp_path / "tiny" / "checkpoints" / "00000004")
        assert loop.run(run, evaluate=scores.scorer, on_end=lambda _: None) == 0
    assert compiled(caplog).count("jit(step)") == 2


@pytest.mark.planted
def test_the_loop_refuses_a_hidden_transfer(tmp_path: Path) -> None:
    """A validation that adds a numpy array to a parameter: JAX would move it to the devices without a word."""

    def leaky(*given: Any, **named: Any) -> Callable[[Any], Any]:
        return lambda params: jax.tree.map(lambda leaf: leaf + np.ones(leaf.shape, leaf.dtype), params)

    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        loop.run(dataclasses.replace(small(tmp_path), log=config.Log(validate_every=1)), evaluate=leaky, on_end=pytest.fail)
