"""The training loop in this process: what it compiles and moves, what it chooses, and that a kill changes neither."""

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.commands import eval_run
from eval.tasks.held_out import scorers
from tests.support import tiny
from tests.support.runs import snapshot, text
from train import trainer
from train.checkpoints import disk_space
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.manifest import Manifest
from train.config import run_config
from train.config.data_options import CausalData
from train.config.option_groups import Selection
from train.engine import device_mesh, optim, state_init
from train.objectives.causal import Causal
from train.run.costs import COUNTS
from train.run.metrics_file import read_rows
from train.run.run_dir import RunDir
from train.step.assembly import ENGINES
from train.step.training_step import make_step
from train.weights import lineage
from train.weights.load import load_model
from zoo.errors import BadInput
from zoo.models import model

VALUES = {0: 6.0, 2: 5.0, 4: 3.0, 6: 4.0, 8: 3.0}
"""What the validations of a run return, by step; it has no patience for a third after the best."""
# Without dropout, which takes long to compile.
PLAIN = dataclasses.replace(tiny.run().model, dropout=0.0, attention_dropout=0.0, embedding_dropout=0.0)


def compiled(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Names of the programs that XLA was given to compile, found in the cache or not."""
    return re.findall(r"Compiling (\S+) with global shapes", caplog.text)


@pytest.mark.full
@pytest.mark.parametrize("engine", ["jit", pytest.param("pmap", marks=pytest.mark.full)])
def test_the_step_is_compiled_once(engine: run_config.Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Over the first steps, and again after the state went through a checkpoint."""
    run = tiny.run(engine=engine, steps=4, model=PLAIN)
    mesh, net, tx = device_mesh.make_mesh(run.mesh), model(run.model), optim.make_optimizer(run.optim)
    abstract = state_init.abstract_state(run, net, tx, mesh)
    chex.clear_trace_counter()  # it goes by the function's name
    step = chex.assert_max_traces(make_step(run, net, Causal(), tx, jnp.float32), n=1)
    made = ENGINES[engine](step, mesh, jax.tree.map(lambda leaf: leaf.sharding, abstract), run.data.batch)
    state = made.shard(state_init.init_state(run, net, tx, mesh))
    programs = []
    with Checkpoints(tmp_path, 1, notify=pytest.fail) as checkpoints:
        for number in range(4):
            if number == 2:
                checkpoints.save(made.get(state), {})
                restored = checkpoints.restore(abstract)
                state = made.shard(restored[0])
            batch = made.shard_batch(tiny.batch(number))
            with jax.log_compiles(), caplog.at_level(logging.WARNING):
                state, _ = made.step(state, batch)
            programs.append(len(compiled(caplog)))
            caplog.clear()
    assert int(jax.device_get(made.get(state).step)) == 4
    assert programs[0] > 0 and programs[1:] == [0, 0, 0]


class Killed(Exception):
    """As far as the run's folder is concerned."""


def train(run: run_config.Run, first: int = 0, killed: int | None = None) -> int:
    """Start a run from its `first` step; its validations return `VALUES`, its score at the end is a real one.

    It ends by a kill at the validation of a step, or while it is scored, which is here step 0.
    """
    # A run that begins with the parameters of another is also validated before its first step.
    steps = iter(range(first + 2 if first or not run.init else 0, 100, 2))

    def validate(params: Any) -> SimpleNamespace:
        step = next(steps)
        if step == killed:
            raise Killed
        return SimpleNamespace(record=lambda: {"bits_per_byte": VALUES[step]})

    def fail(params: Any) -> Any:
        raise Killed

    kinds = iter((lambda _: validate, lambda real: fail if killed == 0 else real))
    return trainer.run(run, evaluate=lambda *args, **named: next(kinds)(scorers.scorer(*args, **named)), on_end=lambda _: None)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> run_config.Run:
    """A run of twenty steps that ended after its eighth, its parameters sharded."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(text())
    run = tiny.run(
        out=str(folder),
        selection=Selection(best=True, patience=2),
        model=PLAIN,
        data=CausalData(paths=(str(folder / "text.txt"),), length=32, batch=8),
        mesh=run_config.Mesh(data=1, fsdp=8),
        checkpoint=run_config.Checkpoint(every=4),
        log=run_config.Log(every=2, validate_every=2, validate_rows=4, samples=0),
    )
    assert train(run) == 0
    return run


@pytest.mark.full
def test_a_run_without_a_better_validation_ends_and_is_finished(
    ended: run_config.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunDir.of(ended)
    assert [row["step"] for row in read_rows(folder.metrics) if row["kind"] == "valid"] == [2, 4, 6, 8]
    capsys.readouterr()
    before = snapshot(folder.path)
    assert train(ended) == 0
    assert f"{folder.path} is finished: held-out " in capsys.readouterr().out
    assert snapshot(folder.path) == before


def test_the_best_checkpoint_is_scored_and_loaded(ended: run_config.Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunDir.of(ended)
    stored = json.loads(folder.scores.read_text())
    assert stored["step"] == load_model(folder.path).step == 4
    printed = {step: evaluated(folder, step, capsys) for step in (None, 8)}
    assert load_model(folder.path, step=-1).step == 8 and evaluated(folder, -1, capsys) == printed[8]
    assert printed[None] == pytest.approx(stored["loss"], abs=2e-6)
    assert abs(printed[8] - printed[None]) > 1e-3
    with pytest.raises(BadInput, match=r"steps that can be read: 8, 4"):
        eval_run.run_eval(str(folder.path), step=6, batch=8, stride=0, mesh=run_config.Mesh())


@pytest.mark.planted
def test_a_checkpoint_without_the_digest_of_the_held_out_text_is_scored_and_continued(
    ended: run_config.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checkpoints of earlier versions lack it; one of another text is still refused, by the digest of its tokens."""
    copied = dataclasses.replace(ended, out=str(tmp_path / "runs"))
    folder = RunDir.of(copied)
    shutil.copytree(RunDir.of(ended).path, folder.path)
    for checkpoint in folder.checkpoints.glob("0*"):
        manifest = Manifest.read(checkpoint, int(checkpoint.name))
        meta = {name: value for name, value in manifest.meta.items() if name != "held_out_text"}
        assert len(meta) == len(manifest.meta) - 1
        dataclasses.replace(manifest, meta=meta).write(checkpoint)
    assert evaluated(folder, 8, capsys) > 0
    folder.scores.unlink()
    assert train(copied) == 0
    for checkpoint in folder.checkpoints.glob("0*"):
        manifest = Manifest.read(checkpoint, int(checkpoint.name))
        dataclasses.replace(manifest, meta=manifest.meta | {"held_out": "another"}).write(checkpoint)
    with pytest.raises(BadInput, match="was trained on other data: held_out: "):
        evaluated(folder, 8, capsys)


def evaluated(folder: RunDir, step: int | None, capsys: pytest.CaptureFixture[str]) -> float:
    """The loss that `zoo eval` prints."""
    capsys.readouterr()
    assert eval_run.run_eval(str(folder.path), step=step, batch=8, stride=0, mesh=run_config.Mesh()) == 0
    return float(re.findall(r"^loss +(\S+)$", capsys.readouterr().out, re.MULTILINE)[0])


@pytest.mark.full
def test_killed_while_it_validates_and_while_it_is_scored_it_ends_with_the_same_bits(
    ended: run_config.Run, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Each start with a step left compiles the step once."""
    run = dataclasses.replace(ended, name="killed")
    theirs, ours = RunDir.of(ended), RunDir.of(run)
    for first, killed in ((0, 6), (4, 0)):
        with jax.log_compiles(), caplog.at_level(logging.WARNING), pytest.raises(Killed):
            train(run, first, killed)
    assert compiled(caplog).count("jit(step)") == 2
    assert not ours.scores.exists()
    capsys.readouterr()
    # All it has left to do is to be scored.
    assert train(run, 8) == 0
    assert "ended at step 8 of 20: no improvement in 2 validations" in capsys.readouterr().out
    assert [row["step"] for row in read_rows(ours.starts)] == [0, 4, 8]
    assert ours.scores.read_text() == theirs.scores.read_text()
    for step in (None, 8):
        one, other = load_model(ours.path, step=step), load_model(theirs.path, step=step)
        assert one.step == other.step
        chex.assert_trees_all_equal(one.params, other.params)


def test_a_run_records_what_it_starts_from_when_it_begins(ended: run_config.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run keeps the record, whatever has become of its parent, and its counts are those of an uninterrupted one."""
    run = dataclasses.replace(ended, name="child", init=str(RunDir.of(ended).path))
    with pytest.raises(Killed):
        train(run, killed=6)
    monkeypatch.setattr(lineage, "read_parents", pytest.fail)
    assert train(run, 4) == 0
    meta, parent = (Checkpoints(RunDir.of(of).checkpoints, 1, notify=pytest.fail).meta(8) for of in (run, ended))
    rows = [row for row in read_rows(RunDir.of(run).metrics) if row["kind"] == "train"]
    assert meta["counts"] == rows[-1]["counts"] == parent["counts"]
    record = meta["parents"]["init"]
    (itself,) = record["ancestors"]
    assert meta["targets"] == {}
    starts = read_rows(RunDir.of(run).starts)
    assert all(start["seconds"] > 0 and start["peak_bytes"] > 0 and start["provenance"]["device"] == "cpu" for start in starts)
    assert record["ancestors"][0]["costs"]["seconds"] == sum(start["seconds"] for start in read_rows(RunDir.of(ended).starts))
    assert (record["path"], record["seeds"], itself["costs"]["tokens"]) == (run.init, [0], 8 * 8 * 32)
    assert {name: itself["costs"][name] for name in COUNTS} == meta["counts"] and meta["counts"]["text_tokens"] > 1000


@pytest.mark.planted
def test_lost_rows_are_noticed_and_a_missing_report_is_written(
    ended: run_config.Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run takes the name of one of another configuration that was killed before its first checkpoint."""
    run = dataclasses.replace(ended, name="lost")
    folder = RunDir.of(run)
    with pytest.raises(Killed):
        train(dataclasses.replace(run, seed=1), killed=2)
    assert not folder.has_results
    with pytest.raises(Killed):
        train(run, killed=6)
    assert "a run of another configuration left no checkpoint here; this one takes its place" in capsys.readouterr().out
    assert [row["step"] for row in read_rows(folder.starts)] == [0]
    lines = folder.metrics.read_text().splitlines(keepends=True)
    folder.metrics.write_text("".join(lines[2:]))
    assert train(run, 4) == 0
    assert "! " + str(folder.metrics) + ": 2 of 4 rows are missing since the checkpoint was saved" in capsys.readouterr().out
    written = []
    assert trainer.run(run, evaluate=scorers.scorer, on_end=written.append) == 0
    assert written == [folder.path]
    # What a run needs is known before it is trained.
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(BadInput, match=r"--checkpoint.keep 2: .* has 1,000 free; make room"):
        train(dataclasses.replace(run, name="roomless"))
    assert not RunDir(Path(run.out) / "roomless").config.exists()


@pytest.mark.full
@pytest.mark.planted
def test_the_loop_refuses_a_hidden_transfer(ended: run_config.Run) -> None:
    """A validation that adds a numpy array to a parameter: JAX would move it to the devices without a word."""

    def leaky(*_: Any, **__: Any) -> Callable[[Any], Any]:
        return lambda params: jax.tree.map(lambda leaf: leaf + np.ones(leaf.shape, leaf.dtype), params)

    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        trainer.run(dataclasses.replace(ended, name="leaky"), evaluate=leaky, on_end=pytest.fail)
