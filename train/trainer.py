"""A run from its first line to its last: text, model, steps, checkpoints, score."""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from train import objectives
from train.checkpoints import best_checkpoint, disk_space
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.identity import check_identity
from train.checkpoints.manifest import compare
from train.config import run_config
from train.engine import device_mesh, optim
from train.engine.step import DTYPES, assemble
from train.inputs import dataset, notices
from train.inputs.dataset import Inputs
from train.rows.batches import Batches
from train.rows.mixture import ordered
from train.run import hardware, metric_names, metrics_file, trackers
from train.run.console import Console
from train.run.metric_logger import Recorder
from train.run.run_dir import Folder, check_holder, identity, take_over, write_json
from train.run.stop_signals import Stop
from train.weights import warm_start
from zoo.attention import attention
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.models import Model, model, parameter_count
from zoo.runtime import jax_setup

Scorer = Callable[[Any], Any]
"""Parameters -> a score, whose `record()` has its numbers by the names of `train.run.metric_names`."""


def run(
    cfg: run_config.Run,
    *,
    evaluate: Callable[..., Scorer],
    on_end: Callable[[Path], Any],
    sample: Callable[..., Any] | None = None,
) -> int:
    """Train to the end, from the newest checkpoint if there is one; returns the exit code (128 + signal after a signal).

    Args:
        evaluate: makes a scorer: `eval.scoring.scorers.scorer`.
        sample: writes continuations of held-out text: `eval.report.samples.write`.
        on_end: writes what the run leaves for people to read: `eval.report.report.write`.

    Raises:
        BadInput: the configuration, the data and this machine do not fit, or the folder holds another run.
    """
    console = Console(steps=cfg.steps, process=jax.process_index())
    with console, Stop(console.notice, console.__exit__) as stop:
        return _run(cfg, console, stop, evaluate=evaluate, on_end=on_end, sample=sample)


def _run(
    cfg: run_config.Run,
    console: Console,
    stop: Stop,
    *,
    evaluate: Callable[..., Scorer],
    on_end: Callable[[Path], Any],
    sample: Callable[..., Any] | None,
) -> int:
    # --- Devices and numbers ---
    folder, process = Folder.of(cfg), jax.process_index()
    # A run begun on CPU and resumed on an accelerator keeps its arithmetic.
    cfg = dataset.settled(dataclasses.replace(cfg, precision=_precision(cfg)), folder)
    mesh = device_mesh.make(cfg.mesh)
    device_mesh.check(cfg, mesh)
    check_holder(folder, cfg)
    trackers.check(cfg.log.sinks)
    best_checkpoint.check(cfg)
    if cfg.init and not folder.begun:
        warm_start.check(cfg)
    dtype, net = DTYPES[cfg.precision], model(cfg.model)
    optim.check(cfg.optim, net)
    goal = objectives.bind(cfg, mesh)

    # --- Data ---
    data = dataset.read(cfg, folder, jax_setup.cache_dir() / "text", quiet=process != 0)
    build = dataset.builder(cfg, data)
    local = device_mesh.local_rows(mesh, cfg.data.batch)
    batches = Batches(data.rows, build, cfg.seed, cfg.data.batch, local, period=cfg.masking.static)
    shapes = batches.shapes()
    _check_carry(cfg, net, data)
    implementations = _implementations(cfg, net, goal, shapes)

    with contextlib.ExitStack() as stack:
        # --- Folder ---
        stack.enter_context(folder.claim(process))
        check_holder(folder, cfg)
        checkpoints = Checkpoints(folder.checkpoints, cfg.checkpoint.keep, notify=console.notice)
        choice = stack.enter_context(best_checkpoint.Choice(cfg, folder, notify=console.notice))
        trained = checkpoints.latest() == cfg.steps or choice.exhausted(checkpoints.latest())
        # A run that was killed between its score and its samples is scored again, and then writes them and its report.
        shown = folder.report.exists() or folder.samples.exists() or not cfg.log.samples
        if folder.scores.exists() and trained and shown:
            if process == 0 and not folder.report.exists():
                on_end(folder.path)
            console.finish(f"{folder.path} is finished: {_result(json.loads(folder.scores.read_text()))}. Choose another --name")
            return 0
        stack.enter_context(checkpoints)

        # --- State ---
        built = assemble(cfg, net, goal, mesh)
        engine = built.engine
        restored = checkpoints.restore(built.state)
        meta = {**data.fingerprints(), "config": identity(cfg)}
        if restored is not None:
            check_identity(folder.checkpoints, restored[1], cfg)
            if changed := compare(restored[1], meta, ignored=("config", "records")):
                raise BadInput(f"{folder.path} was trained on other data: {'; '.join(changed)}; choose another --name")
        if process == 0:
            disk_space.check(folder, cfg, built.state, first=0 if restored is None else int(jax.device_get(restored[0].step)))
            if take_over(folder, cfg):
                console.notice(f"{folder.path}: a run of another configuration left no checkpoint here; this one takes its place")
            # The configuration first: it keeps another run from taking over a tokenizer that a kill left alone.
            folder.write_config(cfg)
            folder.tokenizer.mkdir(exist_ok=True)
            data.tokenizer.save(folder.tokenizer)
            shares = data.rows.shares(cfg.steps * cfg.data.batch)
            write_json(folder.data, [{**dataclasses.asdict(share), "epochs": share.epochs} for share in shares])
        if restored is not None:
            state, _ = restored
        else:
            given = warm_start.params(cfg, net, mesh, console.notice) if cfg.init else None
            state = device_mesh.init_state(cfg, net, built.tx, mesh, objectives.begin(goal, net, given))
        first = int(jax.device_get(state.step))
        state, frozen = engine.put(state), engine.hold(objectives.frozen(goal))

        # --- What people see ---
        rate, against = _rate(dtype)
        facts = describe(cfg, net, mesh, data, implementations, against, folder)
        console.header(f"{cfg.recipe}, {'from the start' if first == 0 else f'resumed at step {first}'}", facts)
        for line in notices.notices(cfg, data):
            console.notice(line)
        flops = objectives.flops(goal, net, shapes)
        if process == 0:
            metrics_file.started(folder, first, facts, flops)
        tokens = math.prod(shapes.tokens.shape)
        recorder = stack.enter_context(
            Recorder(
                cfg,
                folder,
                console,
                first=first,
                tokens=tokens,
                flops=flops,
                rate=rate,
                process=process,
                saved=restored[1].get("records", {}) if restored else {},
            )
        )

        def scorer(rows: Any) -> Scorer:
            return evaluate(cfg, net, mesh, data, rows, build, batch=cfg.data.batch, dtype=dtype)

        validate = scorer(data.scored(cfg, cfg.data.length).spread(cfg.log.validate_rows))

        # --- Steps ---
        console.doing("compiling the step")
        # A run that ended early and was killed before it was scored has no step left.
        at, stopping = first, choice.exhausted(first)
        with (
            jax.transfer_guard("disallow"),
            _profile(cfg, folder) as profiled,
            batches.read(first) as stream,
        ):
            while at < cfg.steps and not stopping:
                if recorder.due(cfg.checkpoint.every, ahead=1):
                    # Waiting in `save` instead could cost a killed run the step that is to be saved as well.
                    with recorder.pause():
                        checkpoints.wait()
                host = next(stream)
                state, measured = engine.step(state, engine.place(host), frozen)
                stop.begin()
                recorder.step(measured, batches.rows_of(at) if cfg.log.ledger else None)
                at += 1
                checkpoints.poll()
                profiled(at - first)
                stopping = stop.agreed(at)
                if recorder.due(cfg.log.every):
                    recorder.row()
                if recorder.due(cfg.log.validate_every):
                    with recorder.pause():
                        began = time.perf_counter()
                        score = validate(engine.get(state).params)
                        recorder.valid(score, time.perf_counter() - began)
                        choice.note(engine.get(state), score, meta)
                        stopping = stopping or choice.exhausted(at)
                if recorder.due(cfg.checkpoint.every) or stopping:
                    with recorder.pause():
                        recorder.sync()
                        checkpoints.save(engine.get(state), {**meta, "records": recorder.summaries()})
        if not checkpoints.wait():
            newest = "the start" if (step := checkpoints.latest()) is None else f"step {step}"
            fix = f"{checkpoints.remedy()}, and the run goes on from {newest}"
            raise BadInput(f"{folder.checkpoints}: step {at} could not be saved; {fix}")
        if number := stop.end():
            if process == 0:
                on_end(folder.path)
            console.finish(f"stopped and saved at step {at} of {cfg.steps}; the same command goes on from there")
            return 128 + number

        if at < cfg.steps:
            console.notice(f"ended at step {at} of {cfg.steps}: {cfg.selection.patience} validations without a better one")

        # --- Score ---
        console.doing("scoring what is held out")
        stride, (params, step) = max(1, cfg.data.length // 2), choice.params(engine.get(state), built.state)
        score = scorer(data.scored(cfg, stride))(params)
        if process == 0:
            if mistakes := getattr(score, "mistakes", None):
                write_json(folder.predictions, mistakes)
            # Before the samples, and after all else that only scoring gives: a run is finished when it has its score.
            write_json(folder.scores, {**score.record(), "stride": stride, "step": step})
        if sample is not None and cfg.log.samples:
            console.doing("writing samples")
            given = (folder.samples, net, params, mesh, data)
            sample(*given, length=cfg.data.length, step=step, dtype=dtype, count=cfg.log.samples)
        if process == 0:
            on_end(folder.path)
        for line in metric_names.notices(score.record()):
            console.notice(line)
        console.finish(f"{_result(score.record())}  {folder.report}")
    return 0


def describe(
    cfg: run_config.Run, net: Model, mesh: Mesh, data: Inputs, implementations: str, against: str, folder: Folder
) -> dict[str, str]:
    """What a run is, as the console and the report show it."""
    devices = mesh.devices.size
    axes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return {
        "model": f"{net.family}, {parameter_count(cfg.model):,} parameters",
        **data.facts(cfg),
        "devices": f"{devices} x {mesh.devices.flat[0].device_kind}{processes}" + (f", mesh {axes}" if axes else ""),
        "precision": cfg.precision,
        "attention": implementations,
        "MFU against": against,
        "run": str(folder.path),
    }


def _check_carry(cfg: run_config.Run, net: Model, data: Inputs) -> None:
    """Refuse a memory of rows that have nothing to do with each other."""
    carries = bool(jax.tree.leaves(jax.eval_shape(lambda: net.init_carry(cfg.data.batch))))
    if carries and not ordered(data.rows.components[0].rows):
        fix = f"its rows of {cfg.objective} do not continue each other, they are shuffled; choose --model.memory 0"
        raise BadInput(f"--model.memory: the model would remember the row before, but {fix}")


def _precision(cfg: run_config.Run) -> run_config.Precision:
    if cfg.precision != "auto":
        return cfg.precision
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _rate(dtype: Any) -> tuple[float, str]:
    """FLOP/s of all devices that MFU is stated against, and its source in words."""
    kind = jax.devices()[0].device_kind
    if peak := hardware.device_peak(kind, dtype):
        return peak * jax.device_count(), f"{kind}'s published peak, {peak / 1e12:.0f} TFLOP/s each"
    rate = metrics_file.matrix_rate(dtype) * jax.process_count()
    return rate, f"matrix products measured here, {rate / 1e9:.0f} GFLOP/s"


def _implementations(cfg: run_config.Run, net: Model, goal: Any, batch: Batch) -> str:
    """What attention runs on, from tracing the loss on the shapes of a batch."""
    dtype = DTYPES[cfg.precision]

    def loss(params: Any, batch: Batch, seeds: Any, frozen: Any, carry: Any) -> Any:
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        return goal.loss(net, cast, batch, frozen, seeds=seeds, carry=carry, smoothing=0.0, chunk=0)

    seeds = jax.ShapeDtypeStruct((cfg.data.batch, 2), jnp.uint32)
    params, carry = jax.eval_shape(lambda: (net.init(jax.random.key(0)), net.init_carry(cfg.data.batch)))
    with attention.choices() as made:
        jax.eval_shape(loss, params, batch, seeds, objectives.frozen(goal), carry)
    return ", ".join(sorted({call.name for call in made}))


@contextlib.contextmanager
def _profile(cfg: run_config.Run, folder: Folder):
    """Trace `--profile` steps, from the second of this start on: the first one compiles."""
    last = 1 + cfg.machine.profile

    def after(step: int) -> None:
        if cfg.machine.profile and step == 1:
            jax.profiler.start_trace(folder.profile)
        if cfg.machine.profile and step == last:
            jax.profiler.stop_trace()

    yield after


def _result(score: dict[str, float]) -> str:
    return f"held-out {metric_names.told(score)}"
