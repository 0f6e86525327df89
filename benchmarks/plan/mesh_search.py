"""Search for the best mesh, remat policy and micro-batches: the candidates that fit, ordered by their bound on MFU."""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Collection, Iterator
from typing import Any, get_args

from benchmarks.plan import plan_cache, plan_text, target_devices
from benchmarks.plan.compile_program import Mode
from benchmarks.plan.plan_record import Plan, SearchResult
from benchmarks.plan.target_devices import Target
from train.config import mesh_sizes, run_config
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

    @property
    def sizes(self) -> dict[str, int]:
        return {axis: getattr(self, axis) for axis in ("data", "fsdp", "tensor", "sequence")}

    @property
    def mesh(self) -> run_config.Mesh:
        return run_config.Mesh(**self.sizes)

    def saves_no_more(self, other: "Candidate") -> bool:
        """Return whether all that this candidate's remat policy saves for the backward pass is saved by that of another."""
        if "none" in (self.remat, other.remat):
            return other.remat == "none"
        return SAVED[self.remat] <= SAVED[other.remat]

    def has_axes(self, mesh: run_config.Mesh, named: Collection[str]) -> bool:
        """Return whether this candidate has the sizes in `mesh` of the axes that the user named."""
        return all(getattr(mesh, axis) in (getattr(self.mesh, axis), -1) for axis in named)

    def of(self, run: run_config.Run) -> run_config.Run:
        """Return the run with this mesh, remat policy and number of micro-batches."""
        compute = dataclasses.replace(run.model.compute, remat=self.remat)
        model = dataclasses.replace(run.model, compute=compute)
        mesh = dataclasses.replace(self.mesh, slices=run.mesh.slices)
        return dataclasses.replace(run, mesh=mesh, model=model, accumulate=self.accumulate)

    def __str__(self) -> str:
        micro = f", {self.accumulate} micro-batches" if self.accumulate > 1 else ""
        return f"{plan_text.mesh_text(self.sizes)}, remat {self.remat}{micro}"


REMATS = tuple(remat for remat in get_args(Remat) if remat != "offload")
"""The policies that a search tries. `offload` is not one: its bound would leave out the transfers to the host."""
ACTIVATION_COPIES = {"none": 20, "save_dots": 12, "save_mlp": 9, "save_qkv": 8, "save_out": 5, "attention": 4, "full": 2}
"""About how many arrays of the size of the residual stream a layer stores; only used to order the candidates."""
RECOMPUTE_FACTOR = {
    "none": 1,
    "save_dots": 1,
    "save_mlp": 1.11,
    "save_qkv": 1.14,
    "save_out": 1.22,
    "attention": 1.25,
    "full": 4 / 3,
}
assert set(REMATS) == set(ACTIVATION_COPIES) == set(RECOMPUTE_FACTOR) == {"none", *SAVED}
"""About how much computation recomputation adds, as a factor."""


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

    A candidate is skipped if it needs more memory than one that does not fit, or takes no less time than one that fits.

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
    fitting: list[tuple[Candidate, Plan]] = []
    large: list[tuple[Candidate, Plan]] = []
    tried = refused = 0
    why = ""
    with contextlib.closing(PieceProgress(count)) as progress:
        # At least one candidate is compiled, however little time there is: it may be enough.
        while waiting and (not tried or time.monotonic() - began < seconds):
            before, candidate = len(waiting), waiting.pop(0)
            progress.begin(str(candidate))
            try:
                plan = plan_cache.cached_plan(candidate.of(run), mode, target, fresh=fresh)
            except BadInput as error:
                refused, why = refused + 1, str(error)
                progress.done(1, why)
                continue
            tried += 1
            (fitting if plan.fits else large).append((candidate, plan))
            waiting = [other for other in waiting if not can_skip(other, candidate, plan)]
            outcome = "does not fit" if not plan.fits else "fits" if plan.bound is None else f"MFU {plan_text.bound_text(plan)}"
            counts = f"{tried} tried, {len(fitting)} fit, {len(waiting)} left"
            progress.done(before - len(waiting), f"{plan_text.format_bytes(plan.total)}, {outcome}; {counts}")
    if not fitting and not large:
        raise BadInput(f"--target {target.name}: nothing could be compiled; the last reason: {why}")
    if not fitting:
        least, plan = min(large, key=lambda pair: pair[1].total)
        limit = plan_text.format_bytes(plan.device_memory or 0)
        rest = f"; {refused} were refused, the last because of {why}" if refused else ""
        rest += f"; {len(waiting)} were not tried (--minutes)" if waiting else ""
        raise BadInput(
            f"--target {target.name}: none of {tried} tried fits {limit}; the least, {least}, needs "
            f"{plan_text.format_bytes(plan.total)}: choose more devices or a smaller --batch{rest}"
        )
    ranked = sorted((plan for _, plan in fitting), key=lambda plan: (-(plan.bound or 0), plan.total))
    skipped = count - tried - refused - len(waiting)
    summary = f"{tried} of {count} candidates compiled, {skipped} skipped, in {time.monotonic() - began:.0f} s"
    if refused:
        summary += f"; {refused} refused, the last because of {why}"
    if waiting:
        summary += f"; {len(waiting)} not tried because the time was over: the same command with --minutes goes on"
    return SearchResult(ranked=ranked, summary=summary)


def can_skip(candidate: Candidate, tried: Candidate, plan: Plan) -> bool:
    """Return whether a candidate cannot be better than `tried`, whose plan is `plan`.

    Both have the same mesh. Either `tried` does not fit, and the candidate needs more memory; or `tried` fits and is bound by
    compute or links, and the candidate computes and sends at least as much.
    """
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
    for candidate in mesh_candidates(run, mode, count, target.slices):
        shards, rows = candidate.fsdp * candidate.sequence, candidate.data * candidate.fsdp
        share = shards * candidate.tensor
        state = 16 * parameters / share
        parts = rows * candidate.sequence
        activations = 2 * ACTIVATION_COPIES[candidate.remat] * layers * width * tokens / (parts * candidate.accumulate)
        fits = device is None or device.memory is None or state + activations < device.memory
        # Bytes that a device sends: for fsdp and sequence two gathers and a scatter of each layer in each micro-batch, for data a
        # sum of all gradients, for tensor two sums of activations in each block and direction, for sequence four exchanges.
        gathered = 8 * parameters / candidate.tensor * (1 - 1 / shards) * candidate.accumulate
        summed = 8 * parameters / share * (1 - 1 / candidate.data)
        reduced = 16 * layers * width * tokens / parts * (1 - 1 / candidate.tensor)
        exchanged = 16 * layers * width * tokens / (parts * candidate.tensor) * (1 - 1 / candidate.sequence)
        outer = mesh_sizes.slice_sizes(candidate.mesh, dict.fromkeys(AXES, 1) | candidate.sizes, target.slices)
        # Between slices, each device sends its part of what they exchange: see `collectives.divide_by_slices`.
        across = 8 * parameters / share * (1 - 1 / outer["data"])
        across += 8 * parameters / (share / outer["fsdp"]) * (1 - 1 / outer["fsdp"]) * candidate.accumulate
        flops = RECOMPUTE_FACTOR[candidate.remat] * 6 * parameters * tokens / count
        peak = max(device.peak.values()) * 1e12 if device else 1e12
        links, network = (1e9 * ((getattr(device, name) if device else None) or 1) for name in ("links", "between_slices"))
        seconds = (flops / peak, (gathered + summed + reduced + exchanged) / links, across / network)
        # Many candidates are bound by the same network: of these, the one that needs the others least is first.
        estimates[candidate] = (not fits, max(seconds), sum(seconds))
    return sorted(estimates, key=lambda candidate: estimates[candidate])


def mesh_candidates(run: run_config.Run, mode: Mode, devices: int, slices: int = 1) -> Iterator[Candidate]:
    """Yield every mesh of the devices that divides heads and rows, with every remat policy and number of micro-batches.

    Only data and fsdp extend over several slices.

    Without a backward pass nothing is computed again. Positions are divided only in training, where a device has one row at a
    time: for several rows, micro-batches send less.
    """
    remats: tuple[Any, ...] = REMATS if mode == "train" else ("none",)
    rows = run.data.batch
    parts = _divisors(devices)
    for fsdp, tensor, sequence in itertools.product(parts, parts, parts if mode == "train" else [1]):
        data, rest = divmod(devices, fsdp * tensor * sequence)
        divides = run.model.heads % (tensor * sequence) == 0 and run.data.length % sequence == 0
        if rest or not divides or rows % (data * fsdp) or data * fsdp % slices:
            continue
        counts = [rows // (data * fsdp)] if sequence > 1 else _divisors(rows // (data * fsdp))
        for accumulate in counts if mode == "train" else [1]:
            if math.log2(accumulate).is_integer() or accumulate == run.accumulate:
                for remat in remats:
                    yield Candidate(data=data, fsdp=fsdp, tensor=tensor, sequence=sequence, remat=remat, accumulate=accumulate)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
