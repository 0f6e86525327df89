"""The most probable tokens of a teacher at every position of the training rows, computed once and stored on disk.

They are computed before the first step, by the mechanism of `train.weights.reference_log_probs`, and each batch reads those of
its rows. A run whose file exists does not load its teacher. The digest of the teacher's parameters is one of the fingerprints in
a checkpoint, so another teacher is refused.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Int64

from train.config.distillation_options import StoredDistillation
from train.config.run_config import Run
from train.engine.losses import most_probable
from train.rows.batches import Build
from train.rows.row_source import digest_of
from train.weights import reference_cache
from train.weights.reference_log_probs import Progress, digest_of_parameters, every_process_has, numbers_of_rows
from train.weights.teacher import check_teacher, load_teacher, teacher_config
from zoo.errors import BadInput
from zoo.nn.task_heads import predicting_states

IDS, LOG_PROBS = "teacher_ids", "teacher_log_probs"
"""Names in `Batch.extra`: int32 [B, P, K], and float32 [B, P, K + 1], whose last number is that of all other tokens."""


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTeacher:
    """The numbers of a teacher for each training row."""

    rows: Any
    """Records of `row_type`, memory-mapped."""
    digest: str
    """Digest of its parameters."""

    def numbers(self, rows: Int64[np.ndarray, " n"]) -> dict[str, np.ndarray]:
        """Return the part of `Batch.extra` of the rows with these numbers."""
        records = self.rows[rows]
        return {IDS: records["ids"].astype(np.int32), LOG_PROBS: np.ascontiguousarray(records["log_probs"])}


def stored_options(run: Run) -> StoredDistillation | None:
    """Return the options of a teacher whose probabilities are stored; None without one."""
    options = getattr(run.options, "distillation", None)
    return options if isinstance(options, StoredDistillation) and options.teacher and options.top_k else None


def row_type(run: Run, positions: int) -> np.dtype[Any]:
    """Return the type of the numbers of a row with `positions` predictions; a file has those of all rows after its header."""
    k, ids = run.options.distillation.top_k, np.uint16 if run.model.vocab <= 1 << 16 else np.uint32
    return np.dtype([("ids", ids, (positions, k)), ("log_probs", np.float32, (positions, k + 1))])


def add_teacher(run: Run, mesh: Mesh, inputs: Any, build: Build, cache: Path, *, progress: Progress) -> Any:
    """Return inputs with the numbers of the run's teacher for the training rows. Every process calls this.

    Args:
        build: function that makes the arrays of a row, the same ones in each epoch.
        cache: folder of the files of `train.weights.reference_cache`.

    Raises:
        BadInput: a teacher that cannot be loaded, cannot teach this student or has numbers that are not finite; or the disk has
            no room for them.
    """
    # A stored file depends on the teacher, and not on the student.
    check_teacher(run, teacher_config(run), has_head=True)
    rows, options, digest = inputs.rows, run.options.distillation, digest_of_parameters(run.teacher)
    first = build(np.random.default_rng(0), rows.row(0), rows.length)
    kind = row_type(run, len(first["targets"]))
    # A row's arrays depend on more than its text, such as the length of a target.
    layout = [leaf.tobytes() for leaf in jax.tree.leaves(first)]
    depends_on = [digest, rows.fingerprint, inputs.tokenizer.fingerprint, len(rows), run.precision, options.temperature]
    key = digest_of(json.dumps([*depends_on, options.top_k]), layout)
    values = reference_cache.read_rows(cache, key, len(rows), kind)
    if not every_process_has(values):
        _write(run, mesh, inputs, build, cache, key, kind, progress)
        # Local processes wait for the one that has written the file.
        every_process_has(True)
        values = reference_cache.read_rows(cache, key, len(rows), kind)
        if values is None:
            raise BadInput(f"{cache}: the file of the teacher's probabilities was removed or damaged; run the command again")
    return dataclasses.replace(inputs, teacher=StoredTeacher(values, digest))


def _write(
    run: Run, mesh: Mesh, inputs: Any, build: Build, cache: Path, key: str, kind: np.dtype[Any], progress: Progress
) -> None:
    rows, top_k = inputs.rows, run.options.distillation.top_k
    needed = reference_cache.HEADER + len(rows) * kind.itemsize
    disk = next(path for path in (cache, *cache.parents) if path.exists())
    if needed > (free := shutil.disk_usage(disk).free):
        what = f"the teacher's probabilities of {len(rows):,} rows need {needed:,} bytes, and {disk} has {free:,} free"
        raise BadInput(f"--distillation.top-k {top_k}: {what}; make room, choose fewer, or set ZOO_CACHE to another disk")
    parts = _records(run, mesh, rows, build, kind, progress)
    if jax.process_index() == 0 or run.machine.coordinator:
        try:
            reference_cache.write_rows(cache, key, len(rows), parts)
        except OSError as error:
            what = f"the teacher's probabilities cannot be written to {cache} ({error.strerror})"
            raise BadInput(f"--distillation.top-k {top_k}: {what}; set ZOO_CACHE to a folder with {needed:,} bytes") from None
    else:
        # Its devices compute with those of the process that writes.
        for _ in parts:
            pass


def _records(run: Run, mesh: Mesh, rows: Any, build: Build, kind: np.dtype[Any], progress: Progress) -> Iterator[np.ndarray]:
    """Yield the records of all rows in order, a batch at a time."""
    teacher, options = load_teacher(run, mesh), run.options.distillation
    settings: dict[str, Any] = {"temperature": options.temperature, "chunk": run.loss_chunk}

    def numbers(frozen: Any, batch: Any) -> jax.Array:
        hidden = predicting_states(teacher.model.apply(frozen, batch), batch)
        return most_probable(Partial(teacher.model.unembed, frozen), hidden, options.top_k, **settings)

    for values in numbers_of_rows(run, mesh, rows, build, numbers, teacher.frozen, progress):
        if not np.isfinite(values).all():
            fix = "its probabilities are not finite; choose another, or --precision float32"
            raise BadInput(f"--distillation.teacher {run.teacher}: {fix}")
        records = np.empty(len(values), kind)
        records["ids"], records["log_probs"] = values[..., : options.top_k], values[..., options.top_k :]
        yield records
