"""Training loop of a run: data, model, steps, checkpoints and final score."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from train import objectives, run_description
from train.checkpoints import best_checkpoint, disk_space
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.config_check import check_identity
from train.checkpoints.manifest import compare
from train.config import run_config
from train.engine import device_mesh, optim, state_init
from train.inputs import data_notices, run_inputs
from train.inputs.run_inputs import Inputs
from train.parametrization import check_adapter, parametrization_of
from train.rollouts.batch_feed import FeedSource
from train.rows.batches import Batches
from train.rows.row_source import RowSource, ordered
from train.rows.text_counts import TextCounts
from train.run import extension, metric_definitions, metrics_file, trackers
from train.run.console import Console
from train.run.costs import COUNTS
from train.run.item_outcomes import HELD_OUT, write_outcomes
from train.run.matmul_rate import PeakRate
from train.run.metric_logger import MetricLogger
from train.run.result_files import read_result
from train.run.run_dir import RunDir, check_same_run, confirm_own, plugin_notices, remove_stale_files, write_json
from train.run.run_identity import identity
from train.run.stop_signals import StopSignals
from train.step.assembly import assemble
from train.store.run_uploads import uploads_of
from train.weights import lineage, warm_start
from train.weights.generation_settings import keep_generation
from zoo import models
from zoo.errors import BadInput
from zoo.fault_points import fault_point
from zoo.models import Model
from zoo.precision import DTYPES, resolve_precision
from zoo.runtime import hang_watch, jax_setup
from zoo.runtime.progress import this_process

NOT_DATA = ("config", "records", "counts", "feed", "ended", "parents", "targets", "base")
"""Metadata of a checkpoint that says nothing about the data of its run."""
Scorer = Callable[[Any], Any]
"""Function from parameters to a score, whose `record()` maps names in `train.run.metric_definitions` to numbers."""


def run(
    run: run_config.Run,
    *,
    evaluate: Callable[..., Scorer],
    on_end: Callable[[Path], Any],
    sample: Callable[..., Any] | None = None,
    preview: Callable[..., str] | None = None,
) -> int:
    """Train to the end, from the newest checkpoint if there is one, and return the exit code (128 + signal after a signal).

    Args:
        evaluate: creates a scorer, as `eval.scoring.scorers.scorer`.
        sample: writes continuations of held-out text, as `eval.report.samples.of_run`.
        preview: returns a continuation to show after each validation, as `eval.report.samples.preview`.
        on_end: writes the report of the run, as `eval.report.report.write`.

    Raises:
        BadInput: the configuration, the data and this machine do not fit together, or the folder contains another run.
    """
    process = jax.process_index()
    console, stacks = Console(steps=run.steps, process=process, selected=run.selection.metric), RunDir.of(run).stacks(process)
    # A process of several may only wait for the one that is stuck.
    subject = "the run is stuck" if jax.process_count() == 1 else f"process {process} is stuck or waits for one that is"
    watch = hang_watch.watch_progress(run.machine.hang_after, stacks, subject, console.__exit__)
    with console, StopSignals(console.notice, console.__exit__) as stop, watch:
        return _run(run, console, stop, evaluate=evaluate, on_end=on_end, sample=sample, preview=preview)


def _run(
    run: run_config.Run,
    console: Console,
    stop: StopSignals,
    *,
    evaluate: Callable[..., Scorer],
    on_end: Callable[[Path], Any],
    sample: Callable[..., Any] | None,
    preview: Callable[..., str] | None,
) -> int:
    started = time.perf_counter()
    # --- Devices and precision ---
    console.progress("starting the devices", now=True)
    fault_point("train.start")
    folder, process = RunDir.of(run), jax.process_index()
    # A run that began on CPU and is resumed on an accelerator keeps its precision.
    run = run_inputs.resolve_config(dataclasses.replace(run, precision=resolve_precision(run.precision)), folder)
    run = extension.with_earlier_steps(run, folder)
    mesh = device_mesh.make_mesh(run.mesh)
    device_mesh.check(run, mesh)
    check_same_run(folder, run)
    trackers.check(run.log.sinks)
    best_checkpoint.check(run)
    if run.init and not folder.is_resumable:
        warm_start.check(run)
        check_adapter(run)
    dtype, model = DTYPES[run.precision], models.model(run.model)
    optim.check(run.optim, model)
    run.check_base()
    objective = objectives.objective(run.objective).bind(run, mesh)
    parameters = parametrization_of(run, objective, mesh)

    # --- Data ---
    # Tokenizing has a progress bar of its own.
    console.clear()
    data = run_inputs.read(run, folder, jax_setup.cache_dir() / "text", quiet=process != 0)

    def show_extension(done: int, total: int) -> None:
        progress = f"{done:,} of {total:,} batches" if done else f"{total:,} batches, compiling first"
        console.progress(f"computing the reference: {progress}", now=not done)

    data = objective.extend_inputs(run, mesh, data, jax_setup.cache_dir() / "reference", progress=show_extension)
    console.progress("preparing the model", now=True)
    build = run_inputs.builder(run, data)
    local_rows = device_mesh.local_rows(mesh, run.data.batch)
    batches = Batches(data.rows, build, run.seed, run.data.batch, local_rows, run.mask_period, run.repeat)
    shapes = batches.shapes()
    _check_carry(run, model, data)
    implementations = run_description.attention_implementations(run, parameters, objective, shapes)

    with contextlib.ExitStack() as stack:
        # --- Folder ---
        stack.enter_context(folder.claim(process))
        check_same_run(folder, run)
        uploads = stack.enter_context(uploads_of(run, folder, process, notify=console.notice))
        checkpoints = Checkpoints(folder.checkpoints, run.checkpoint.keep, notify=console.notice, on_commit=uploads.commit)
        best = stack.enter_context(best_checkpoint.BestCheckpoint(run, folder, notify=console.notice))
        latest = checkpoints.latest()
        newest = {} if latest is None else checkpoints.meta(latest)
        # Why the run ended before its last step.
        ended = newest.get("ended") or best.exhausted(latest)
        extension.check_continues(run, folder, newest, ended)
        trained = latest == run.steps or bool(ended)
        # A run that was killed between its score and its samples is scored again, and then writes its samples and its report.
        reported = folder.report.exists() or folder.samples.exists() or not run.log.samples
        if folder.scores.exists() and trained and reported:
            if process == 0 and not folder.report.exists():
                on_end(folder.path)
            result = _result(read_result(folder.scores), run)
            console.finish(f"{folder.path} is finished: {result}. Choose another --name")
            return 0
        stack.enter_context(checkpoints)

        # --- State ---
        built = assemble(run, objective, mesh, parameters)
        engine = built.engine
        restored = checkpoints.restore(built.state)
        metadata = {
            **data.fingerprints(),
            "targets": objective.target_options(run, data.counts),
            "config": identity(run),
        }
        if restored is not None:
            check_identity(folder.checkpoints, restored[1], run)
            if changed := compare(restored[1], metadata, ignored=NOT_DATA):
                raise BadInput(f"{folder.path} was trained on other data: {'; '.join(changed)}; choose another --name")
            # A parent may have moved, or may have been trained again, since the run began.
            metadata |= {"parents": restored[1]["parents"]} if "parents" in restored[1] else {}
            # A lost config.json is written again below.
            for line in plugin_notices(folder.path) if folder.config.exists() else []:
                console.notice(line)
        if process == 0:
            done = 0 if restored is None else int(jax.device_get(restored[0].step))
            disk_space.check(folder, run, built.state, first=done, base={} if folder.is_resumable else parameters.base)
            if remove_stale_files(folder, run):
                console.notice(f"{folder.path}: a run of another configuration left no checkpoint here; this one takes its place")
            # Write the configuration first, so that after a kill no other run can take over the tokenizer.
            folder.write_config(run)
            extension.begin_extension(run, folder, {} if restored is None else restored[1], done, notify=console.notice)
            confirm_own(folder.path, notify=console.notice)
            folder.tokenizer.mkdir(exist_ok=True)
            data.tokenizer.save(folder.tokenizer)
            if run.init and restored is None and model.generates:
                keep_generation(run.init, folder.path)
            shares = data.rows.shares(run.batches * run.data.batch // run.repeat)
            write_json(folder.data, [{**dataclasses.asdict(share), "epochs": share.epochs} for share in shares])
        if restored is not None:
            state, _ = restored
            parameters, saved = parameters.restore_base(folder, mesh, restored[1], notify=console.notice)
        else:
            metadata["parents"] = lineage.read_parents(run)
            pretrained = warm_start.initial_params(run, model, mesh, console.notice) if run.init else None
            parameters, params = parameters.begin(run, mesh, objective.initial_params(model, pretrained))
            state = state_init.init_state(run, model, built.tx, mesh, params, parameters.trained)
            saved = parameters.save_base(folder, state, notify=console.notice)
        metadata |= saved
        first = int(jax.device_get(state.step))
        state = engine.shard(state)
        frozen, base = engine.replicate(objective.frozen_inputs()), engine.replicate(parameters.base)

        # --- Logging ---
        rate = PeakRate(dtype, metrics_file.best_rate(folder, run.precision), console.notice)
        facts = run_description.describe(run, model, mesh, data, implementations, rate.source, folder)
        facts |= parameters.describe(run.objective)
        console.header(f"{run.recipe}, {'from the start' if first == 0 else f'resumed at step {first}'}", facts)
        for line in data_notices.notices(run, data):
            console.notice(line)
        flops = parameters.step_flops(objective, shapes)
        if process == 0:
            metrics_file.record_start(folder, first, facts, flops, rate.measured)
        tokens = math.prod(shapes.tokens.shape)
        counts = TextCounts(
            data.tokenizer,
            device_mesh.owned_rows(mesh, run.data.batch),
            saved=dict.fromkeys(COUNTS, 0) if restored is None else restored[1].get("counts"),
        )
        recorder = stack.enter_context(
            MetricLogger(
                run,
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

        def show_scoring(done: int, total: int) -> None:
            progress = f"{done:,} of {total:,} batches" if done else f"{total:,} batches, compiling first if needed"
            console.progress(f"scoring {progress}", now=not done)

        def scorer(rows: RowSource) -> Scorer:
            return evaluate(run, model, mesh, data, rows, build, batch=run.data.batch, dtype=dtype, progress=show_scoring)

        def show_preview(params: Any) -> None:
            # Not at the end, where samples are written; generation copies its prompt to the devices.
            if preview is not None and run.log.samples and step < run.steps:
                with jax.transfer_guard("allow"):
                    text = preview(model, params, mesh, data, length=run.data.length, dtype=dtype)
                if text:
                    console.sample(text)

        model_params = parameters.reader(mesh)

        def scored(trained: Any) -> Any:
            return parameters.without_added(model_params(trained))

        validate = scorer(data.validation_rows(run).subsample(run.log.validate_rows))
        source = FeedSource(
            run=run,
            model=model,
            mesh=mesh,
            dtype=dtype,
            data=data,
            batches=batches,
            local=local_rows,
            params=lambda state: model_params(engine.get(state).params),
            saved={} if restored is None else restored[1].get("feed", {}),
            folder=folder,
            process=process,
            notify=console.notice,
            progress=lambda activity: console.progress(activity, now=True),
        )
        feeding = objective.feed(source, first)

        # --- Steps ---
        console.doing("compiling the step")
        fault_point("train.compile")
        # A run that stopped early and was killed before its score has no step left.
        step, signalled, exhausted = first, False, "" if restored is None else restored[1].get("ended", "")
        stopping = bool(exhausted) or bool(best.exhausted(first))

        def validated() -> Any:
            with recorder.pause("validating"):
                fault_point("train.validate")
                began = time.perf_counter()
                params = scored(engine.get(state).params)
                score = validate(params)
                recorder.valid(score, time.perf_counter() - began)
                show_preview(params)
                rate.update()
            return score

        with jax.transfer_guard("disallow"), _profile(run, folder) as profiled, feeding as feed:
            # A fresh head would be scored by chance before the first step.
            if run.init and model.generates and step == 0 and not stopping:
                validated()
            while step < run.steps and not stopping:
                if recorder.due(run.checkpoint.every, ahead=1):
                    # Wait before this step and not in `save`: a run that is killed while it waits would lose one more step.
                    with recorder.pause("waiting for the save"):
                        checkpoints.wait()
                with recorder.waiting():
                    host = feed.batch(step, state)
                owned = counts.owned_part(host)
                counts.add(owned, objective.text_ids(run, owned))
                with this_process.stage("waiting for the devices", waiting=True):
                    state, measured = engine.step(state, engine.shard_batch(host), frozen, base)
                stop.begin()
                fault_point("train.step")
                recorder.step(measured, feed.rows_of(step) if run.log.ledger else None)
                step += 1
                checkpoints.poll()
                profiled(step - first)
                signalled = signalled or stop.agreed(step - first)
                exhausted = feed.exhausted()
                stopping = bool(signalled or exhausted) and feed.at_boundary(step)
                if recorder.due(run.log.every):
                    recorder.row(counts.total(), *feed.metrics())
                if recorder.due(run.log.validate_every):
                    score = validated()
                    with recorder.pause("saving"):
                        best.save_if_best(engine.get(state), score, metadata)
                    stopping = stopping or bool(best.exhausted(step))
                if recorder.due(run.checkpoint.every) or stopping:
                    with recorder.pause("saving"):
                        fault_point("train.save")
                        rate.update()
                        recorder.sync()
                        counted = {"records": recorder.summaries(), "counts": counts.total()}
                        reached = {"feed": feed.saved(), "ended": exhausted}
                        uploads.before_save(best.wait)
                        checkpoints.save(engine.get(state), metadata | counted | reached)
                        if process == 0:
                            metrics_file.record_usage(folder, time.perf_counter() - started, rate.measured)
        this_process.begin("waiting for the save")
        if not checkpoints.wait():
            newest = "the start" if (latest := checkpoints.latest()) is None else f"step {latest}"
            fix = f"{checkpoints.remedy()}, and the run continues from {newest}"
            raise BadInput(f"{folder.checkpoints}: step {step} could not be saved ({checkpoints.reason()}); {fix}")
        if signal_number := stop.end():
            if process == 0:
                on_end(folder.path)
            console.finish(f"stopped and saved at step {step} of {run.steps}; the same command continues from there")
            return 128 + signal_number

        if step < run.steps:
            console.notice(f"ended at step {step} of {run.steps}: {exhausted or best.exhausted(step)}")

        # --- Score ---
        console.doing("scoring the held-out data")
        fault_point("train.score")
        stride, (params, scored_step) = max(1, run.data.length // 2), best.params(engine.get(state), built.state)
        params = scored(params)
        score = scorer(data.scored_rows(run, stride))(params)
        if process == 0:
            metrics_file.record_usage(folder, time.perf_counter() - started, rate.measured)
            if mistakes := getattr(score, "mistakes", None):
                write_json(folder.predictions, mistakes)
            if outcomes := getattr(score, "outcomes", None):
                write_outcomes(folder, HELD_OUT, outcomes)
            # Written before the samples and after the other results of scoring: a run with a score counts as finished.
            write_json(folder.scores, {**score.record(), "stride": stride, "step": scored_step})
        fault_point("train.scored")
        if sample is not None and run.log.samples:
            console.doing("writing samples")
            sample_args = (folder.samples, model, params, mesh, data)
            sample(*sample_args, length=run.data.length, step=scored_step, dtype=dtype, count=run.log.samples)
        fault_point("train.report")
        if process == 0:
            on_end(folder.path)
        for line in metric_definitions.notices(score.record()):
            console.notice(line)
        rows = metrics_file.read_rows(folder.metrics) if process == 0 else []
        if change := metric_definitions.validation_change(rows, run.selection.metric):
            console.sample(change)
        console.finish(f"{_result(score.record(), run)}  {folder.report}")
    return 0


def _check_carry(run: run_config.Run, model: Model, data: Inputs) -> None:
    """Refuse a model with memory if consecutive rows do not continue each other."""
    carries = bool(jax.tree.leaves(jax.eval_shape(lambda: model.init_carry(run.data.batch))))
    if carries and not ordered(data.rows.components[0].rows):
        fix = f"the rows of {run.objective} are shuffled and do not continue each other; choose --model.memory 0"
        raise BadInput(f"--model.memory: the model would remember the previous row, but {fix}")


@contextlib.contextmanager
def _profile(run: run_config.Run, folder: RunDir):
    """Trace `--profile` steps, from the second step after the start on, because the first one compiles."""
    last = 1 + run.machine.profile

    def after(step: int) -> None:
        if run.machine.profile and step == 1:
            jax.profiler.start_trace(folder.profile)
        if run.machine.profile and step == last:
            with this_process.phase("writing the profile"):
                jax.profiler.stop_trace()

    yield after


def _result(score: dict[str, float], run: run_config.Run) -> str:
    return f"held-out {metric_definitions.summary(score, selected=run.selection.metric)}"
