"""Plans of published training steps beside their measured times and memory."""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.core.source_paths import ROOT
from benchmarks.plan import plan_cache, target_devices
from benchmarks.plan.plan_record import Plan
from benchmarks.plan.roofline import SUSTAINED
from benchmarks.published.published_rows import Half, NotPlanned, PublishedRow
from benchmarks.published.run_rules import Translation, translate_row
from train.run.progress_display import PieceProgress
from zoo.errors import BadInput
from zoo.file_access import read_regular_text

RULES = "benchmarks/results/published-plans_rules_2026-12-01.md"
"""The rules and predictions that were written before the first row was planned."""
RULES_DIGEST = "e1e6a975cacf7026a5b9136ddb4a6ab473fca39d01b96439916c6085156012e8"
GIB = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedRow:
    """A published step and its plan; seconds and bytes of a device."""

    name: str
    model: str
    target: str
    chip: str
    half: Half
    measured: float
    bound: float
    bound_by: str
    """Name of the longest of the times: compute, memory or interconnect."""
    estimate: float | None
    """Without what the plan recomputes, if the published run keeps all products; None if no rates are published."""
    fits: bool
    planned_bytes: int
    measured_bytes: float | None
    """None if it is not published, or that of another recomputation."""
    remarks: list[str]

    @property
    def ratio(self) -> float | None:
        """Measured time over the estimate."""
        return self.measured / self.estimate if self.estimate else None

    def plain(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self) | {"ratio": self.ratio}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """All rows of a file: those that were planned, and why the others were not."""

    rows: list[ComparedRow]
    reasons: dict[str, list[str]]
    """Reason -> names of the rows that it left out."""
    waiting: int
    """Number of rows that can be planned, and were not because the time was over."""

    def plain(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        rows = [row.plain() for row in self.rows]
        return {"rules": RULES_DIGEST, "rows": rows, "not_planned": self.reasons, "waiting": self.waiting}


def check_rules() -> None:
    """Refuse to compare by rules that are not those of the predictions.

    Raises:
        BadInput: the file of the rules is missing or was changed.
    """
    try:
        digest = hashlib.sha256(read_regular_text(ROOT / RULES).encode()).hexdigest()
    except OSError as error:
        raise BadInput(f"{RULES}: cannot be read ({error.strerror}); restore it from the repository") from None
    if digest != RULES_DIGEST:
        raise BadInput(f"{RULES}: was changed after the rows were planned by it (SHA-256 {digest[:12]}...); restore it")


def compare_rows(rows: Sequence[PublishedRow], *, minutes: float, fresh: bool) -> Comparison:
    """Plan rows until the time is over; a plan in the cache takes none, and at least one row is compiled.

    Raises:
        BadInput: see `check_rules`.
    """
    check_rules()
    translated: list[Translation] = []
    reasons: collections.defaultdict[str, list[str]] = collections.defaultdict(list)
    for row in rows:
        try:
            translated.append(translate_row(row))
        except NotPlanned as reason:
            reasons[str(reason)].append(row.name)
    if translated:
        # The compilers of all targets can be in one process; a row whose compiler is not installed is refused on its own.
        target_devices.prepare_target(target_devices.parse_target("cpu:1"))
    ordered = in_rounds(translated)
    compared, waiting, compiled = [], 0, 0
    end = time.monotonic() + 60 * minutes
    with contextlib.closing(PieceProgress(max(1, len(ordered)))) as progress:
        for translation in ordered:
            progress.begin(f"{translation.row.name} for {translation.target.name}")
            try:
                plan = None if fresh else _stored(translation)
                if plan is None and compiled and time.monotonic() > end:
                    waiting += 1
                    continue
                compiled += plan is None
                plan = plan or plan_cache.cached_plan(translation.run, "train", translation.target, fresh=fresh)
            except BadInput as error:
                message = str(error).removeprefix(f"--target {translation.target.name}: ")
                reasons[f"the planner refuses it: {message}"].append(translation.row.name)
                progress.done(1, str(error))
                continue
            compared.append(compare_plan(translation, plan))
            progress.done(1, f"measured {compared[-1].measured:.3g} s, at least {compared[-1].bound:.3g} s")
    names = [row.name for row in rows]
    return Comparison(rows=sorted(compared, key=lambda row: names.index(row.name)), reasons=dict(reasons), waiting=waiting)


def _stored(translation: Translation) -> Plan | None:
    target_devices.devices_of_target(translation.target)
    return plan_cache.stored_plan(translation.run, "train", translation.target)


def in_rounds(rows: Sequence[Translation]) -> list[Translation]:
    """Return the rows in rounds, each with the next row of every pair of source and device, in the order of their digests."""
    groups: collections.defaultdict[tuple[str, str], list[Translation]] = collections.defaultdict(list)
    for one in sorted(rows, key=lambda one: one.row.digest):
        groups[one.row.optional("source_group"), one.target.chip].append(one)
    return [one for part in itertools.zip_longest(*groups.values()) for one in part if one]


def compare_plan(translation: Translation, plan: Plan) -> ComparedRow:
    """Return a row beside its plan; see `RULES` for the bound."""
    row, device = translation.row, translation.target.published
    assert device is not None
    own = plan.model_flops / plan.devices / (device.peak[plan.precision] * 1e12)
    times = {"compute": own, "memory": plan.times.memory_least or 0.0, "interconnect": plan.times.interconnect or 0.0}
    if translation.same_recomputation:
        times["compute"] = plan.times.compute or own
    estimate = plan.times.estimate
    if translation.keeps_products and estimate and plan.times.compute:
        estimate -= (plan.times.compute - own) / SUSTAINED.get(translation.target.chip, 1.0)
    bound_by = max(times, key=lambda name: times[name])
    measured_bytes = None
    if translation.same_recomputation and row.optional("peak_mem_gb"):
        measured_bytes = row.number("peak_mem_gb") * (GIB if "GiB" in row.optional("notes") else 1e9)
    return ComparedRow(
        name=row.name,
        model=row.optional("model"),
        target=translation.target.name,
        chip=translation.target.chip,
        half=row.half,
        measured=row.number("step_time_s"),
        bound=times[bound_by],
        bound_by=bound_by,
        estimate=estimate,
        fits=plan.fits,
        planned_bytes=plan.total,
        measured_bytes=measured_bytes,
        remarks=list(translation.remarks),
    )


# --- verdicts -------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """Statistics of compared rows of one kind of device, or of all."""

    rows: int
    above: list[str]
    """Rows whose bound is above the measured time."""
    ratio: float | None
    """Median of measured time over the estimate; None without an estimate."""
    correlation: float | None
    """Spearman's correlation of measured time and estimate; None for fewer than three rows."""
    memory: list[float]
    """Planned over measured bytes, where comparable."""


def summarize_rows(rows: Sequence[ComparedRow]) -> Summary:
    """Return the statistics of rows."""
    estimated = [row for row in rows if row.estimate]
    return Summary(
        rows=len(rows),
        above=[row.name for row in rows if row.bound >= row.measured],
        ratio=statistics.median(row.measured / (row.estimate or 1) for row in estimated) if estimated else None,
        correlation=rank_correlation([row.measured for row in estimated], [row.estimate or 0.0 for row in estimated]),
        memory=[row.planned_bytes / row.measured_bytes for row in rows if row.measured_bytes],
    )


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Return Spearman's correlation, equal values having the mean of their ranks; None if it is not defined."""
    if len(left) < 3 or len(set(left)) == 1 or len(set(right)) == 1:
        return None
    return statistics.correlation(_ranks(left), _ranks(right))


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]
