"""The folder of a run, opened for training, and the state that training continues from."""

import contextlib
import dataclasses
from typing import Any

import jax

from train.checkpoints import disk_space
from train.checkpoints.best_checkpoint import BestCheckpoint
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.config_check import check_identity
from train.checkpoints.manifest import manifest_differences
from train.engine import state_init
from train.engine.state import State
from train.loop.prepare import PreparedRun
from train.parametrization import Parametrization
from train.run import extension
from train.run.result_files import check_same_run, remove_stale_files
from train.run.run_dir import plugin_notices, write_json
from train.run.run_identity import run_identity
from train.step.assembly import Assembly
from train.store.run_uploads import Uploads, uploads_of
from train.weights import lineage, warm_start
from train.weights.generation_settings import keep_generation
from train.weights.run_modules import modules_of_run
from zoo.embedding_modules import write_modules
from zoo.errors import BadInput
from zoo.runtime.native_log import native_log

NOT_DATA = ("config", "records", "counts", "feed", "ended", "parents", "targets", "base", "held_out_text")
"""Metadata of a checkpoint that says nothing about the data of its run, or, as held_out_text, nothing that held_out does not."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class OpenRun(PreparedRun):
    """A run whose folder this process has claimed, with its checkpoints."""

    uploads: Uploads
    checkpoints: Checkpoints
    best: BestCheckpoint
    is_finished: bool
    """True if the run has trained, and has its score and its samples."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Start:
    """The checkpoint or the initial parameters that a start of a run continues from."""

    parameters: Parametrization
    """The parametrization with its frozen parameters."""
    first: int
    """Number of steps that were taken before."""
    restored: dict[str, Any]
    """Metadata of the checkpoint; {} = there is none."""
    metadata: dict[str, Any]
    """Metadata of every checkpoint that this start saves."""


def open_run(prepared: PreparedRun, stack: contextlib.ExitStack) -> OpenRun:
    """Claim the folder of a run and open its checkpoints, until the stack is closed.

    Raises:
        BadInput: another process has claimed the folder, it contains another run, or the run cannot be extended.
    """
    run, folder, notify = prepared.run, prepared.folder, prepared.console.notice
    stack.enter_context(folder.claim(prepared.process))
    check_same_run(folder, run)
    stack.enter_context(native_log.redirected(folder.native(prepared.process)))
    uploads = stack.enter_context(uploads_of(run, folder, prepared.process, notify=notify))
    checkpoints = Checkpoints(folder.checkpoints, run.checkpoint.keep, notify=notify, on_commit=uploads.commit)
    best = stack.enter_context(BestCheckpoint(run, folder, notify=notify))
    latest = checkpoints.latest()
    newest = {} if latest is None else checkpoints.meta(latest)
    # Why the run ended before its last step.
    ended = newest.get("ended") or best.exhausted(latest)
    extension.check_continues(run, folder, newest, ended)
    trained = latest == run.steps or bool(ended)
    # A run that was killed between its score and its samples is scored again, and then writes its samples and its report.
    reported = folder.report.exists() or folder.samples.exists() or not run.log.samples
    is_finished = folder.scores.exists() and trained and reported
    if not is_finished:
        stack.enter_context(checkpoints)
    fields = {field.name: getattr(prepared, field.name) for field in dataclasses.fields(prepared)}
    return OpenRun(uploads=uploads, checkpoints=checkpoints, best=best, is_finished=is_finished, **fields)


def restore_or_init(opened: OpenRun, assembly: Assembly) -> tuple[Start, State]:
    """Read the newest checkpoint or create the initial state, and write the files that the folder has before the first step.

    Raises:
        BadInput: the run was trained on other data, the checkpoints do not fit on the disk, or --init cannot be read.
    """
    run, folder, notify = opened.run, opened.folder, opened.console.notice
    checkpoint = opened.checkpoints.restore(assembly.state)
    metadata = {
        **opened.data.fingerprints(),
        "targets": opened.objective.target_options(run, opened.data.counts),
        "config": run_identity(run),
    }
    if checkpoint is not None:
        metadata |= _check_restored(opened, checkpoint[1], metadata)
    if opened.process == 0:
        _write_folder(opened, assembly, checkpoint)
    if checkpoint is not None:
        state, restored = checkpoint
        parameters, base = opened.parameters.restore_base(folder, opened.mesh, restored, notify=notify)
    else:
        restored = {}
        metadata["parents"] = lineage.read_parents(run)
        loads = run.init and not run.fork
        pretrained = warm_start.initial_params_from(run, opened.model, opened.mesh, notify) if loads else None
        initial = opened.objective.initial_params(opened.model, pretrained)
        parameters, params = opened.parameters.begin(run, opened.mesh, initial)
        if run.fork:
            state = warm_start.forked_state(run, assembly.state, notify)
        else:
            state = state_init.init_state(run, opened.model, assembly.tx, opened.mesh, params, parameters.trained)
        base = parameters.save_base(folder, state, notify=notify)
    first = int(jax.device_get(state.step))
    start = Start(parameters=parameters, first=first, restored=restored, metadata=metadata | base)
    return start, state


def _check_restored(opened: OpenRun, restored: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    """Refuse the checkpoint of another run or of other data, and return the metadata that later checkpoints repeat."""
    check_identity(opened.folder.checkpoints, restored, opened.run)
    if changed := manifest_differences(restored, metadata, ignored=NOT_DATA):
        path = opened.folder.path
        raise BadInput(f"{path} was trained on other data: {'; '.join(changed)}; choose another --name")
    # A lost config.json is written again later.
    for line in plugin_notices(opened.folder.path) if opened.folder.config.exists() else []:
        opened.console.notice(line)
    # A parent may have moved, or may have been trained again, since the run began.
    return {"parents": restored["parents"]} if "parents" in restored else {}


def _write_folder(opened: OpenRun, assembly: Assembly, checkpoint: Any) -> None:
    """Check the disk, and write the files that a run has from the start on: configuration, tokenizer and shares of the data."""
    run, folder, data, notify = opened.run, opened.folder, opened.data, opened.console.notice
    done = run.fork if checkpoint is None else int(jax.device_get(checkpoint[0].step))
    base = {} if folder.is_resumable else opened.parameters.base
    disk_space.check_disk_space(folder, run, assembly.state, first=done, base=base)
    if remove_stale_files(folder, run):
        notify(f"{folder.path}: a run of another configuration left no checkpoint here; this one takes its place")
    # Write the configuration first, so that after a kill no other run can take over the tokenizer.
    folder.write_config(run)
    extension.begin_extension(run, folder, {} if checkpoint is None else checkpoint[1], done, notify=notify)
    folder.tokenizer.mkdir(exist_ok=True)
    data.tokenizer.save(folder.tokenizer)
    if run.init and checkpoint is None and opened.model.generates:
        keep_generation(run.init, folder.path)
    if checkpoint is None and (modules := modules_of_run(run)) is not None:
        write_modules(folder.embedding, modules, run.model.width)
    shares = data.rows.shares(run.examples // run.repeat)
    write_json(folder.data, [{**dataclasses.asdict(share), "epochs": share.epochs} for share in shares])
