"""`zoo audit RUN`: the checks of a run in their order, and the certificate that they make."""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eval.audit import certificate, hardware
from eval.audit.audit_types import Check, Interval, choose_intervals, describe_coverage, passed_or_failed, seed_of_digests
from eval.audit.recomputed_scores import check_scores
from eval.audit.repeated_tasks import check_evaluations
from eval.audit.replayed_intervals import Replayed, RunReplays
from eval.audit.run_digests import (
    Manifests,
    check_arrays,
    check_configuration,
    check_options,
    check_rows,
    check_selection,
    digest_run_files,
    require_audit_files,
)
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.manifest import folder_name
from train.config.run_config import Run
from train.loop.prepare import PreparedRun
from train.run.metrics_file import read_rows, read_starts, software_versions
from train.run.provenance import read_provenance
from train.run.run_dir import RunDir, read_config
from zoo.errors import BadInput, printable
from zoo.sha256_and_fsync import sha256

DATA, BEST = "data and tokenizer", "selection of the best checkpoint"
"""Names of checks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """Options of an audit."""

    steps: int
    """Number of intervals; 0 = all of the run."""
    share: float
    """Largest share of the steps of the run that the intervals take."""
    seed: int | None
    """Seed of the choice of intervals; None = a hash of the run's files."""
    other_versions: bool
    """Compare losses within the bound if the versions differ."""


def audit_run(path: str, options: AuditOptions) -> dict[str, Any]:
    """Return the certificate of an audit of a run, which is only read.

    Raises:
        BadInput: a file that an audit needs is missing, the data or the versions are others, the run is in use, or its steps
            cannot be taken here.
    """
    folder, began = RunDir(path), time.time()
    require_audit_files(folder)
    run, files, starts = read_config(path), digest_run_files(folder), read_starts(folder)
    here = {"provenance": read_provenance(), "versions": software_versions()}
    if not starts:
        raise BadInput(f"{folder.starts} has no rows, so the machine and the versions are not known; restore the file")
    versions = hardware.check_versions(path, starts, here, permitted=options.other_versions)
    manifests, best, checks = _stored_checks(folder, run, starts)
    newest, selected = max(manifests), max(best) if best and run.selection.best else None
    seed = seed_of_digests(files) if options.seed is None else options.seed
    states = [run.fork, *manifests]
    choice = {"steps": run.steps, "every": run.log.every, "count": options.steps, "share": options.share, "seed": seed}
    intervals = choose_intervals(states, **choice, best=selected)
    replayed: list[Replayed] = []
    # What a step computes cannot be compared for another configuration or a damaged checkpoint.
    if all(check.result == "passed" for check in checks if check.name not in ("metrics.jsonl", "ledger.jsonl", BEST)):
        with tempfile.TemporaryDirectory(prefix="zoo-audit-") as work:
            replays = RunReplays(folder, run, manifests, starts, here, Path(work), selected)
            checks += _computed_checks(folder, replays, manifests, best, starts, versions, here)
            for interval in intervals:
                _show(f"replaying steps {interval.first + 1:,} to {interval.last:,}")
                try:
                    replayed.append(replays.replay(interval, other_versions=versions))
                    checks.append(_interval_check(replayed[-1]))
                except BadInput as error:
                    # For example the model of --init is not here, which the steps from later checkpoints do not need.
                    checks.append(Check(_interval_name(interval), "not checked", str(error)))
            compared = {state for result in replayed for state in result.states(selected)}
            checks += _check_scored_state(newest if selected is None else selected, compared)
            checks += check_evaluations(folder, {*manifests, *best}, compared)
    else:
        checks.append(Check("replays and scores", "not checked", "the configuration or a checkpoint is not that of the run"))
    spans = [result.interval for result in replayed]
    reproduced = [result.interval.end for result in replayed if result.has_same_state]
    differences = [*versions, *(line for start in starts for line in hardware.hardware_differences(start, here))]
    exact = not differences and not any(result.differences for result in replayed)
    has_data = any(check.name == DATA and check.result == "passed" for check in checks)
    return {
        "format": certificate.FORMAT,
        "verdict": certificate.verdict_of(checks, exact=exact),
        "run": {"folder": str(path), **_summary(run), "newest_step": newest, "best_step": selected},
        "checks": [{"check": check.name, "result": check.result, "detail": check.detail} for check in checks],
        "seed": seed,
        "seed_from": "a hash of the files" if options.seed is None else "--seed",
        "intervals": [result.record() for result in replayed],
        "coverage": describe_coverage(spans, reproduced, states, run.steps),
        "bounds": {"loss": hardware.LARGEST_DIFFERENCE, "parameters": hardware.LARGEST_DISTANCE},
        "limits": list(certificate.LIMITS),
        "files": files,
        "data": _data_digests(run, manifests[newest].meta, with_files=has_data),
        "recorded": [{name: start.get(name) for name in ("step", "at", "provenance", "versions")} for start in starts],
        "audited_by": here,
        "audited_at": began,
        "seconds": time.time() - began,
    }


def _stored_checks(folder: RunDir, run: Run, starts: Sequence[Mapping[str, Any]]) -> tuple[Manifests, Manifests, list[Check]]:
    """Return the manifests of the checkpoints and of the best one, and the checks of what the files say of each other.

    Raises:
        BadInput: there is no intact checkpoint.
    """
    (manifests, checks), (best, best_checks), (_, base_checks) = map(check_arrays, (folder.checkpoints, folder.best, folder.base))
    checks = [*checks, *best_checks, *base_checks]
    if not manifests:
        raise BadInput(f"{folder.checkpoints}: no intact checkpoint ({checks[-1].detail}); restore its files")
    checks += [check_configuration(folder, run, manifests, best), check_options(folder, starts)]
    checks += [check_rows(file, manifests) for file in (folder.metrics, folder.ledger)]
    return manifests, best, [*checks, *check_selection(folder, run, best, BEST)]


def _check_scored_state(step: int, compared: Collection[int]) -> list[Check]:
    """Return a check that could not be made if no replay has reached the state that the run is scored with."""
    detail = f"no replay has reproduced the state of step {step}, which the run is scored with"
    return [] if step in compared else [Check("scored state", "not checked", detail)]


def _computed_checks(
    folder: RunDir,
    replays: RunReplays,
    manifests: Manifests,
    best: Manifests,
    starts: list[dict[str, Any]],
    versions: list[str],
    here: Mapping[str, Any],
) -> list[Check]:
    """Return the checks of the final configuration: data, the ledger, the steps of the arrays, and the score."""
    prepared = replays.final.prepared
    bits = not versions and not hardware.hardware_differences(starts[-1], here)
    checks = [passed_or_failed(DATA, "", "their fingerprints are those of every checkpoint")]
    checks.append(_check_ledger(folder, prepared, manifests))
    checks.append(_check_steps(folder, prepared.mesh, manifests, best))
    _show("scoring the held-out data")
    return checks + check_scores(folder, prepared, manifests, best, bits=bits)


def _check_ledger(folder: RunDir, prepared: PreparedRun, manifests: Manifests) -> Check:
    """Compare every row of the ledger with the rows that the seed and the data determine for its step."""
    rows = [row for row in read_rows(folder.ledger) if row["step"] <= max(manifests)]
    problem = ""
    first, run = prepared.run.fork + 1, prepared.run
    if [row["step"] for row in rows] != list(range(first, max(manifests) + 1)):
        problem = f"it does not have each of the steps {first} to {max(manifests)} once"
    else:
        batches = prepared.batches
        wrong = (row["step"] for row in rows if row.get("rows") != batches.rows_of(run.batch_of(row["step"] - 1)).tolist())
        problem = f"step {step} does not have the rows of its batch" if (step := next(wrong, None)) is not None else ""
    return passed_or_failed("samples of each step", problem, f"{len(rows)} steps have the rows that the seed determines")


def _check_steps(folder: RunDir, mesh: Mesh, manifests: Manifests, best: Manifests) -> Check:
    """Compare the number of each checkpoint with the counter in its arrays."""
    counter = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    for place, step in [*((folder.checkpoints, step) for step in manifests), *((folder.best, step) for step in best)]:
        restored = Checkpoints(place, 1, notify=_show).restore({"step": counter}, step=step, partial=True)
        assert restored is not None
        if (number := int(np.asarray(jax.device_get(restored[0]["step"])))) != step:
            return Check("steps of checkpoints", "failed", f"the arrays of {place.name}/{folder_name(step)} are of step {number}")
    return Check("steps of checkpoints", "passed", f"{len(manifests) + len(best)} checkpoints")


def _interval_check(replayed: Replayed) -> Check:
    span = replayed.interval
    exact = not replayed.differences
    compared = "to the bit" if exact else f"losses within {hardware.LARGEST_DIFFERENCE:g}"
    state = f", and the {'state' if exact else 'parameters'} of step {span.last}" if span.is_complete else ""
    state += f", and the best checkpoint{' to the bit' if exact else ''}" if replayed.has_best else ""
    distance = "" if replayed.distance is None else f", which differ by {replayed.distance:.2g} of their norm"
    detail = f"{replayed.rows} rows of metrics {compared}{state}{distance}"
    return passed_or_failed(_interval_name(span), "; ".join(replayed.problems), detail)


def _interval_name(interval: Interval) -> str:
    return f"steps {interval.first + 1} to {interval.last}"


def _summary(run: Run) -> dict[str, Any]:
    return {"recipe": run.recipe, "objective": run.objective, "steps": run.steps, "seed": run.seed}


def _data_digests(run: Run, meta: Mapping[str, Any], *, with_files: bool) -> dict[str, Any]:
    """Return the fingerprints in a checkpoint, and the SHA-256 of each file that the options of the data name.

    Args:
        with_files: the data are those that the run was trained on; otherwise config.json may name any file, and none is read.
    """
    names = (*run.data.paths, *run.data.valid_paths) if with_files else ()
    files = {name: sha256(Path(name)) for name in names if Path(name).is_file()}
    return {"fingerprints": {name: meta.get(name) for name in ("tokenizer", "data", "held_out")}, "files": files}


def _show(line: str) -> None:
    print(printable(line), file=sys.stderr)
