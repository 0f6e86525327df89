"""Preparation of a run, before its folder is opened: devices, model, objective and data."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from train import objectives, run_description
from train.checkpoints import best_checkpoint
from train.config.run_config import Run
from train.engine import device_mesh, optim
from train.inputs import run_inputs
from train.inputs.run_inputs import Inputs
from train.objectives.base import Objective
from train.parametrization import Parametrization, check_adapter, parametrization_of
from train.rows.batches import Batches, Build
from train.rows.row_source import RowSource, are_rows_ordered
from train.run import extension, trackers
from train.run.console import Console
from train.run.result_files import check_same_run
from train.run.run_dir import RunDir
from train.weights import warm_start
from zoo import models
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.fault_points import fault_point
from zoo.models import Model
from zoo.precision import DTYPES, resolve_precision
from zoo.runtime import caches

Scorer = Callable[[Any], Any]
"""Function from parameters to a score, whose `record()` maps names in `train.run.metric_definitions` to numbers."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """Functions of `eval` that a run calls, which `train` cannot import."""

    evaluate: Callable[..., Scorer]
    """Creates a scorer, as `eval.tasks.held_out.scorers.scorer`."""
    on_end: Callable[[Path], Any]
    """Writes the report of the run, as `eval.report.report.write_report`."""
    sample: Callable[..., Any] | None = None
    """Writes continuations of held-out text, as `eval.report.samples.write_run_samples`."""
    preview: Callable[..., str] | None = None
    """Returns a continuation to show after each validation, as `eval.report.samples.preview_continuation`."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PreparedRun:
    """A run with its resolved configuration, its model, its objective and its data."""

    run: Run
    folder: RunDir
    process: int
    console: Console
    evaluation: Evaluation
    mesh: Mesh
    model: Model
    dtype: Any
    """Dtype of the arithmetic."""
    objective: Objective
    parameters: Parametrization
    """The parameters that are trained; the frozen ones are shapes."""
    data: Inputs
    build: Build
    local_rows: np.ndarray
    """Offsets of this process's rows within a global batch, int64 [n]."""
    batches: Batches
    shapes: Batch
    """Shapes and dtypes of a global batch."""
    traced: dict[str, str]
    """The attention implementations and the logits of the loss, and why `auto` chose them, by name for users."""

    def scorer(self, rows: RowSource) -> Scorer:
        """Return the scorer of held-out rows, whose progress the console shows."""
        options: dict[str, Any] = {"batch": self.run.data.batch, "dtype": self.dtype}
        show = _counted(self.console, "scoring", ", compiling first if needed")
        return self.evaluation.evaluate(self.run, self.model, self.mesh, self.data, rows, self.build, progress=show, **options)


def prepare(run: Run, console: Console, evaluation: Evaluation) -> PreparedRun:
    """Start the devices, create the model and the objective, and read the data.

    Raises:
        BadInput: the configuration, the data and this machine do not fit together, or the folder contains another run.
    """
    console.progress("starting the devices", now=True)
    fault_point("train.start")
    folder, process = RunDir.of(run), jax.process_index()
    # A run that began on CPU and is resumed on an accelerator keeps its precision.
    run = run_inputs.resolve_config(dataclasses.replace(run, precision=resolve_precision(run.precision)))
    run = extension.with_earlier_steps(run, folder)
    mesh, model = _checked_mesh(run, folder), models.model(run.model)
    optim.check_optimizer(run.optim, model)
    objective = objectives.objective(run.objective).bind(run, mesh)
    parameters = parametrization_of(run, objective, mesh)

    # Tokenizing has a progress bar of its own.
    console.clear()
    data = run_inputs.read_inputs(run, folder, caches.cache_dir() / "text", quiet=process != 0)
    show = _counted(console, "computing the reference:", ", compiling first")
    data = objective.extend_inputs(run, mesh, data, caches.cache_dir() / "reference", progress=show)
    console.progress("preparing the model", now=True)
    build, local_rows = run_inputs.builder(run, data), device_mesh.local_rows(mesh, run.data.batch)
    batches = Batches(
        data.rows,
        build,
        run.seed,
        run.data.batch,
        local_rows,
        run.mask_period,
        run.repeat,
        sizes=run.data.sizes,
        local_of=functools.partial(device_mesh.local_rows, mesh),
    )
    shapes = objective.abstract_batch(run, data.tokenizer, data.rows.components[0].rows)
    _check_carry(run, model, data)
    if mesh.devices.flat[0].platform != "cpu":
        # The checks of kernels print a line each.
        console.clear()
    return PreparedRun(
        run=run,
        folder=folder,
        process=process,
        console=console,
        evaluation=evaluation,
        mesh=mesh,
        model=model,
        dtype=DTYPES[run.precision],
        objective=objective,
        parameters=parameters,
        data=data,
        build=build,
        local_rows=local_rows,
        batches=batches,
        shapes=shapes,
        traced=run_description.describe_loss(run, parameters, objective, shapes, mesh),
    )


def _checked_mesh(run: Run, folder: RunDir) -> Mesh:
    """Return the mesh of a run, after all checks that need no data."""
    mesh = device_mesh.make_mesh(run.mesh)
    device_mesh.check_mesh(run, mesh)
    check_same_run(folder, run)
    trackers.check_sinks(run.log.sinks)
    best_checkpoint.check_metric(run)
    if run.init and not folder.is_resumable:
        warm_start.check_init(run)
        check_adapter(run)
    run.check_base()
    run.options.check_start(run)
    return mesh


def _counted(console: Console, activity: str, first: str) -> Callable[[int, int], None]:
    """Return a function that shows (batches done, total batches) of an activity; `first` is added before the first batch."""

    def show(done: int, total: int) -> None:
        progress = f"{done:,} of {total:,} batches" if done else f"{total:,} batches{first}"
        console.progress(f"{activity} {progress}", now=not done)

    return show


def _check_carry(run: Run, model: Model, data: Inputs) -> None:
    """Refuse a model with memory if consecutive rows do not continue each other."""
    carries = bool(jax.tree.leaves(jax.eval_shape(lambda: model.init_carry(run.data.batch))))
    if carries and not are_rows_ordered(data.rows.components[0].rows):
        fix = f"the rows of {run.objective} are shuffled and do not continue each other; choose --model.memory 0"
        raise BadInput(f"--model.memory: the model would remember the previous row, but {fix}")
