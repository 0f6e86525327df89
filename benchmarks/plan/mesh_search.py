"""Search for the best mesh, memory policies and micro-batches: the candidates that fit, ordered by their bound on MFU."""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, get_args

from benchmarks.plan import plan_cache, plan_record, plan_text, target_devices
from benchmarks.plan.compile_program import Mode
from benchmarks.plan.plan_record import Plan, SearchResult
from benchmarks.plan.target_devices import Target
from train.config import mesh_sizes, optim_options, run_config
from train.config.batch_sizes import micro_batches
from train.run.progress_display import PieceProgress
from zoo.configs import Remat
from zoo.errors import BadInput, require
from zoo.mesh_axes import AXES
from zoo.models import parameter_count
from zoo.nn.layer_stack import SAVED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to run a job."""

    data: int
    fsdp: int
    tensor: int
    sequence: int
    remat: Remat
    accumulate: int
    moments: optim_options.Moments = "float32"
    offload: bool = False
    """True if moments are on the host."""

    @property
    def sizes(self) -> dict[str, int]:
        return {axis: getattr(self, axis) for axis in ("data", "fsdp", "tensor", "sequence")}

    @property
    def mesh(self) -> run_config.Mesh:
        return run_config.Mesh(**self.sizes)

    def saves_no_more(self, other: "Candidate") -> bool:
        """Return whether all that this candidate's remat policy saves for the backward pass is saved by that of another."""
        if "offload" in (self.remat, other.remat):
            return self.remat == other.remat
        if "none" in (self.remat, other.remat):
            return other.remat == "none"
        return SAVED[self.remat] <= SAVED[other.remat]

    def has_axes(self, mesh: run_config.Mesh, named: Collection[str]) -> bool:
        """Return whether this candidate has the sizes in `mesh` of the axes that the user named."""
        return all(getattr(mesh, axis) in (getattr(self.mesh, axis), -1) for axis in named)

    def of(self, run: run_config.Run) -> run_config.Run:
        """Return the run with this mesh, these memory policies and this number of micro-batches."""
        compute = dataclasses.replace(run.model.compute, remat=self.remat)
        model = dataclasses.replace(run.model, compute=compute)
        optim = dataclasses.replace(run.optim, moments=self.moments, offload=self.offload)
        mesh = dataclasses.replace(self.mesh, slices=run.mesh.slices)
        return dataclasses.replace(run, mesh=mesh, model=model, optim=optim, accumulate=self.accumulate)

    def __str__(self) -> str:
        micro = f", {self.accumulate} micro-batches" if self.accumulate > 1 else ""
        optimizer = plan_record.optimizer_policy(run_config.Optim(moments=self.moments, offload=self.offload))
        return f"{plan_text.mesh_text(self.sizes)}, remat {self.remat}{micro}{optimizer and f', {optimizer}'}"


REMATS: tuple[Remat, ...] = get_args(Remat)
"""The policies that a search tries, `offload` only where a rate of the link to the host is published, which bounds its time."""
OPTIMIZERS: tuple[tuple[optim_options.Moments, bool], ...] = (("bfloat16", False), ("float32", True), ("bfloat16", True))
"""Number format of moments, and whether they are on the host, in the order in which a search tries them where nothing fits."""
ACTIVATION_COPIES = {
    "none": 20,
    "save_dots": 12,
    "save_mlp": 9,
    "save_qkv": 8,
    "save_out": 5,
    "attention": 4,
    "full": 2,
    "offload": 2,
}
"""About how many arrays of the size of the residual stream a layer stores; only used to order the candidates."""
RECOMPUTE_FACTOR = {
    "none": 1,
    "save_dots": 1,
    "save_mlp": 1.11,
    "save_qkv": 1.14,
    "save_out": 1.22,
    "attention": 1.25,
    "full": 4 / 3,
    "offload": 1,
}
assert set(REMATS) == set(ACTIVATION_COPIES) == set(RECOMPUTE_FACTOR) == {"none", "offload", *SAVED}
"""About how much computation recomputation adds, as a factor."""


@dataclasses.dataclass(kw_only=True)
class Search:
    """A search in progress."""

    run: run_config.Run
    mode: Mode
    target: Target
    fresh: bool
    fitting: list[tuple[Candidate, Plan]] = dataclasses.field(default_factory=list)
    large: list[tuple[Candidate, Plan]] = dataclasses.field(default_factory=list)
    refused: int = 0
    why: str = ""
    """The reason of the last refusal."""

    @property
    def tried(self) -> int:
        return len(self.fitting) + len(self.large)

    def compile(self, candidate: Candidate) -> tuple[Plan | None, str]:
        """Return the plan of a candidate, and a line about it; None if it is refused."""
        try:
            plan = plan_cache.cached_plan(candidate.of(self.run), self.mode, self.target, fresh=self.fresh)
        except BadInput as error:
            self.refused, self.why = self.refused + 1, str(error)
            return None, self.why
        (self.fitting if plan.fits else self.large).append((candidate, plan))
        outcome = "does not fit" if not plan.fits else "fits" if plan.bound is None else f"MFU {plan_text.bound_text(plan)}"
        return plan, f"{plan_text.format_bytes(plan.total)}, {outcome}; {self.tried} tried, {len(self.fitting)} fit"

    def failure(self, waiting: int) -> BadInput:
        """Return the error that nothing fits; `waiting` candidates were not tried."""
        if not self.large:
            return BadInput(f"--target {self.target.name}: nothing could be compiled; the last reason: {self.why}")
        least, plan = min(self.large, key=lambda pair: pair[1].total)
        limit = plan_text.format_bytes(plan.device_memory or 0)
        rest = f"; {self.refused} were refused, the last because of {self.why}" if self.refused else ""
        rest += f"; {waiting} were not tried (--minutes)" if waiting else ""
        return BadInput(
            f"--target {self.target.name}: none of {self.tried} tried fits {limit}; the least, {least}, needs "
            f"{plan_text.format_bytes(plan.total)}: choose more devices or a smaller --batch{rest}"
        )


def search_meshes(
    run: run_config.Run,
    mode: Mode,
    target: Target,
    *,
    named: Collection[str] = (),
    seconds: float,
    fresh: bool = False,
) -> SearchResult:
    """Compile candidates, the likely ones first, until all are tried or the time is over.

    A candidate is skipped if it needs more memory than one that does not fit, or takes no less time than one that fits. If none
    fits, the one of each mesh that needs the least memory is tried with less memory for moments (`smaller_candidates`).

    Args:
        named: axes of the mesh that all candidates have from the run.
        seconds: time after which no other candidate is started; the current one is finished.

    Raises:
        BadInput: there is no candidate, or none of those tried fits; names the one that needs the least memory.
    """
    fix = "a search divides no experts; leave out --search, or this option"
    require("expert" not in named or run.mesh.expert == 1, "mesh.expert", run.mesh.expert, fix)
    waiting = [candidate for candidate in ordered_candidates(run, mode, target) if candidate.has_axes(run.mesh, named)]
    if not waiting:
        axes = "".join(f"--mesh.{axis} {getattr(run.mesh, axis)} " for axis in named)
        mesh = f"no mesh of {target.name}{axes and f' with {axes.rstrip()}'}"
        raise BadInput(f"--batch {run.data.batch}: {mesh} divides the rows and the heads; choose another")
    began, count = time.monotonic(), len(waiting)
    search = Search(run=run, mode=mode, target=target, fresh=fresh)
    skipped, retried = 0, False
    with contextlib.closing(PieceProgress(count)) as progress:
        # At least one candidate is compiled, however little time there is: it may be enough.
        while waiting and (not search.tried or time.monotonic() - began < seconds):
            before, candidate = len(waiting), waiting.pop(0)
            progress.begin(str(candidate))
            plan, outcome = search.compile(candidate)
            if plan is not None:
                waiting = [other for other in waiting if not can_skip(other, candidate, plan)]
                skipped += before - 1 - len(waiting)
                outcome += f", {len(waiting)} left"
            progress.done(before - len(waiting), outcome)
            if not waiting and not search.fitting and not retried and mode == "train":
                waiting, retried = smaller_candidates(search.large, run, target), True
                count += len(waiting)
                progress.extend(len(waiting))
    if not search.fitting:
        raise search.failure(len(waiting))
    # A bound without the transfers to the host is comparable to no other.
    ranked = sorted(
        (plan for _, plan in search.fitting), key=lambda plan: (plan.times.host is None, -(plan.bound or 0), plan.total)
    )
    summary = f"{search.tried} of {count} candidates compiled, {skipped} skipped, in {time.monotonic() - began:.0f} s"
    if search.refused:
        summary += f"; {search.refused} refused, the last because of {search.why}"
    if waiting:
        summary += f"; {len(waiting)} not tried because the time was over: the same command with --minutes goes on"
    return SearchResult(ranked=ranked, summary=summary)


def smaller_candidates(large: Sequence[tuple[Candidate, Plan]], run: run_config.Run, target: Target) -> list[Candidate]:
    """Return candidates with less memory for moments, of each mesh of those that do not fit the one that needs the least.

    Each policy of `OPTIMIZERS` is a candidate if it saves enough even if it saves all that it could: half of the moments, or all.
    The least change comes first, and within it the candidate that lacks the least memory.
    """
    least: dict[run_config.Mesh, tuple[Candidate, Plan]] = {}
    for candidate, plan in sorted(large, key=lambda pair: pair[1].total):
        least.setdefault(candidate.mesh, (candidate, plan))
    smaller: list[Candidate] = []
    for moments, offload in OPTIMIZERS:
        if moments == "bfloat16" and not run.optim.can_round:
            continue
        host = target.platform != "cpu" and run.optim.can_offload
        if (offload and not host) or (moments, offload) == (run.optim.moments, run.optim.offload):
            continue
        # What the job saves already is kept.
        if (run.optim.moments == "bfloat16" and moments != "bfloat16") or (run.optim.offload and not offload):
            continue
        for candidate, plan in least.values():
            saved = plan.memory["optimizer"] * (1.0 if offload else 0.5)
            if plan.largest - saved <= (plan.device_memory or math.inf):
                smaller.append(dataclasses.replace(candidate, moments=moments, offload=offload))
    return smaller


def can_skip(candidate: Candidate, tried: Candidate, plan: Plan) -> bool:
    """Return whether a candidate cannot be better than `tried`, whose plan is `plan`.

    Either they store moments differently, and `tried` fits. Or both have the same mesh and moments, and either `tried` does not
    fit, and the candidate needs more memory; or `tried` fits and is bound by compute or links, and the candidate computes and
    sends at least as much.
    """
    if (candidate.moments, candidate.offload) != (tried.moments, tried.offload):
        # These come in the order of what they cost, and only where nothing fits without.
        return plan.fits
    if candidate.mesh != tried.mesh:
        return False
    if plan.fits:
        # A candidate that stores less may also read and write less; without published rates the least memory is the best.
        bound = plan.times.longest is not None and plan.times.slowest != "memory"
        return bound and candidate.saves_no_more(tried) and candidate.accumulate >= tried.accumulate
    # Micro-batches need a second tree of gradients for the sum: a candidate without them may fit despite its larger activations.
    fewer = candidate.accumulate == tried.accumulate or 1 < candidate.accumulate < tried.accumulate
    return tried.saves_no_more(candidate) and fewer


def ordered_candidates(run: run_config.Run, mode: Mode, target: Target) -> list[Candidate]:
    """Return all candidates: first those that fit by an estimate, and of these the fastest by it."""
    device, count = target.published, len(target_devices.devices_of_target(target))
    parameters, layers, width = parameter_count(run.model), run.model.layers, run.model.width
    tokens = run.data.batch * run.data.length
    estimates: dict[Candidate, tuple[bool, float, float]] = {}
    for candidate in mesh_candidates(run, mode, target):
        shards, rows = candidate.fsdp * candidate.sequence, candidate.data * candidate.fsdp
        share = shards * candidate.tensor
        state = 16 * parameters / share
        parts = rows * candidate.sequence
        activations = 2 * ACTIVATION_COPIES[candidate.remat] * layers * width * tokens / (parts * candidate.accumulate)
        fits = device is None or device.memory is None or state + activations < device.memory
        # Bytes that a device sends: for fsdp and sequence two gathers and a scatter of each layer, and for data a sum of all
        # gradients, in each micro-batch; for tensor two sums of activations in each block and direction, for sequence four
        # exchanges.
        gathered = 8 * parameters / candidate.tensor * (1 - 1 / shards) * candidate.accumulate
        summed = 8 * parameters / share * (1 - 1 / candidate.data) * candidate.accumulate
        reduced = 16 * layers * width * tokens / parts * (1 - 1 / candidate.tensor)
        exchanged = 16 * layers * width * tokens / (parts * candidate.tensor) * (1 - 1 / candidate.sequence)
        outer = mesh_sizes.slice_sizes(candidate.mesh, dict.fromkeys(AXES, 1) | candidate.sizes, target.slices)
        # Between slices, each device sends its part of what they exchange: see `collectives.divide_by_slices`.
        across = 8 * parameters / share * (1 - 1 / outer["data"]) * candidate.accumulate
        across += 8 * parameters / (share / outer["fsdp"]) * (1 - 1 / outer["fsdp"]) * candidate.accumulate
        flops = RECOMPUTE_FACTOR[candidate.remat] * 6 * parameters * tokens / count
        peak = max(device.peak.values()) * 1e12 if device else 1e12
        links, network = (1e9 * ((getattr(device, name) if device else None) or 1) for name in ("links", "between_slices"))
        seconds = (flops / peak, (gathered + summed + reduced + exchanged) / links, across / network)
        # Many candidates are bound by the same network: of these, the one that needs the others least is first.
        estimates[candidate] = (not fits, max(seconds), sum(seconds))
    return sorted(estimates, key=lambda candidate: estimates[candidate])


def mesh_candidates(run: run_config.Run, mode: Mode, target: Target) -> Iterator[Candidate]:
    """Yield every mesh of the target's devices that divides heads and rows, with every remat policy and number of micro-batches.

    Only data and fsdp extend over several slices.

    Without a backward pass nothing is computed again. Positions are divided only in training, where a device has one row at a
    time: for several rows, micro-batches send less.
    """
    remats: tuple[Any, ...] = REMATS if mode == "train" else ("none",)
    if target.published is None or target.published.host_link is None:
        remats = tuple(remat for remat in remats if remat != "offload")
    rows, devices = run.data.batch, len(target_devices.devices_of_target(target))
    smaller = [stage.rows for stage in run.data.sizes.stages[:-1]]
    parts, policies = _divisors(devices), {"moments": run.optim.moments, "offload": run.optim.offload}
    for fsdp, tensor, sequence in itertools.product(parts, parts, parts if mode == "train" else [1]):
        data, rest = divmod(devices, fsdp * tensor * sequence)
        # Where the devices do not divide the heads, attention is a ring, unless the run excludes that.
        head_devices = tensor * (sequence if run.model.compute.sequence == "all_to_all" else 1)
        divides = run.model.heads % head_devices == 0 and run.data.length % sequence == 0
        if rest or not divides or rows % (data * fsdp) or data * fsdp % target.slices:
            continue
        counts = [rows // (data * fsdp)] if sequence > 1 else _divisors(rows // (data * fsdp))
        for accumulate in counts if mode == "train" else [1]:
            divides = all(size % (data * fsdp * micro_batches(size, rows, accumulate)) == 0 for size in smaller)
            if divides and (math.log2(accumulate).is_integer() or accumulate == run.accumulate):
                for remat in remats:
                    mesh = {"data": data, "fsdp": fsdp, "tensor": tensor, "sequence": sequence}
                    yield Candidate(**mesh, **policies, remat=remat, accumulate=accumulate)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
