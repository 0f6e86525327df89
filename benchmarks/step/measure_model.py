"""One model of `zoo bench step`: all its variants and peers must agree, and are then timed in the same rounds."""

import contextlib
import dataclasses
import functools
import itertools
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.core import guarded_trials, result_files, timing
from benchmarks.core.guarded_trials import SkipTrial, Trial, Watch, WrongResult
from benchmarks.core.memory import planned_memory
from benchmarks.core.options import StepOptions
from benchmarks.core.peer_process import Peer
from benchmarks.hlo import hlo_parser
from benchmarks.step import instruction_times, peer_libraries, programs, time_breakdown
from benchmarks.step.cases import Case
from benchmarks.step.programs import Step, Variant, peer_key, step_key
from train import objectives
from zoo.runtime.hardware import device_peak

TOLERANCES = {"float32": (2e-5, 1e-3), "bfloat16": (1e-3, 1e-2), "dropout": (3e-2, 1e-1)}
"""Largest relative difference from the unit's losses: of the first step, and of the step after its update.

The first is a mean over hundreds of predictions, whose roundings cancel; it reveals a mistake in the loss. The second follows an
update by Adam, which magnifies the roundings of small gradients; it reveals a mistake in a gradient or in the optimizer. With
dropout, each implementation drops other activations."""
LOSSES = {"loss": "first loss", "loss_after": "loss after an update"}
"""Columns, and their names in messages."""
PROFILED = 3
"""Number of steps under the profiler."""


@dataclasses.dataclass
class StepTrial(Trial):
    """A step of ours or of a peer; its program is set once its losses agree."""

    step: Step | None = None
    second: float = 0.0
    """Seconds of its second step."""


def measure_model(
    case: Case, variants: Sequence[Variant], options: StepOptions, environment: Mapping[str, Any], watch: Watch
) -> Iterator[dict[str, Any]]:
    """Yield the cells of a model, without the process, each as soon as it is measured.

    Args:
        variants: the first one is the unit of ratios, and its losses are the expected ones.
        environment: of this process.
        watch: notified of every activity.
    """
    trials = [StepTrial(step_key(case, variant)) for variant in variants]
    group = _Group(case, options, environment)
    with contextlib.ExitStack() as stack:
        for trial, variant in zip(trials, variants, strict=True):
            act = functools.partial(group.prepare, variant=variant)
            guarded_trials.run_guarded(trial, act, watch, f"{_short(variant)}: compiling")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, precision in peer_libraries.requested_peers(options):
            trial = StepTrial(peer_key(case, name, precision))
            if group.out_of_memory and any(other.peer for other in trials):
                # Time the peers that are running and stop them; the unit is timed again with the next ones.
                group.time(trials, watch)
            trials.append(trial)
            # Its process ends with the measurement, also after an error.
            stack.callback(trial.stop_peer)
            act = functools.partial(group.start_worker, name=name, precision=precision, folder=folder)
            guarded_trials.run_guarded(trial, act, watch, f"{name}, {precision}: first steps")
        group.time(trials, watch)
        # Cells without a profile are complete now; one profile takes as long as several steps.
        waiting = [options.profile and trial.state == "timed" and trial.step is not None for trial in trials]
        yield from (trial.cell() for trial, waits in zip(trials, waiting, strict=True) if not waits)
        for trial in itertools.compress(trials, waiting):
            watch.begin("profiling", trial.key)
            try:
                group.profile(trial)
            except Exception as error:
                # The time is still valid.
                trial.reason = f"it has no profile: {guarded_trials.error_in_one_line(error)}"
            yield trial.cell()


class _Group:
    """State that the trials of a model share: parameters, expected losses, and the state that steps pass on to each other."""

    def __init__(self, case: Case, options: StepOptions, environment: Mapping[str, Any]) -> None:
        self.case, self.options, self.environment = case, options, environment
        self.params: Any = None
        self._expected_losses: tuple[float, ...] = ()
        self._reference: StepTrial | None = None
        self._largest_peak = 0
        # (mesh, precision) -> the step that has the state now.
        self._state_owners: dict[Any, Step] = {}

    @property
    def _bytes_needed(self) -> int:
        """Return the bytes that our programs and one more peer need in the rounds.

        A peer is assumed to need half as much again as our programs do.
        """
        return int(2.5 * self._largest_peak)

    @property
    def out_of_memory(self) -> bool:
        """Return whether one more peer would not fit into memory."""
        return bool(guarded_trials.too_large_reason(self._bytes_needed, ""))

    # --- before the rounds ---

    def prepare(self, trial: StepTrial, variant: Variant) -> None:
        """Compile one of our variants and take its first steps."""
        step = Step(self.case, variant)
        devices = step.mesh.size if jax.default_backend() == "cpu" else 1
        guarded_trials.skip_too_large(step.state_bytes * devices, "its state alone needs")
        spent = step.compile()
        memory = planned_memory(step.compiled)
        trial.columns |= {**spent, **memory}
        guarded_trials.skip_too_large(memory["memory"] * devices, "compiled, it needs")
        if self.params is None:
            self.params = programs.case_params(self.case)
        step.start(self.params)
        began = time.perf_counter()
        first = step.run()
        called = time.perf_counter() - began
        losses = first, step.run()
        trial.second = time.perf_counter() - began - called
        step.stop()
        trial.step = step
        trial.columns |= {"first_step_seconds": sum(spent.values()) + called}
        if (stats := jax.local_devices()[0].memory_stats()) and "peak_bytes_in_use" in stats:
            trial.columns["allocator_peak"] = stats["peak_bytes_in_use"]
        self._largest_peak = max(self._largest_peak, memory["memory"])
        self._check_losses(trial, losses, called)

    def start_worker(self, trial: StepTrial, name: str, precision: str, folder: Path) -> None:
        """Start a peer's process and let it take its first steps."""
        if reason := (kind := peer_libraries.PEERS[name]).missing_packages():
            raise SkipTrial(reason)
        if not self._expected_losses:
            raise SkipTrial("no program of jax-zoo ran that it could be compared with")
        guarded_trials.skip_too_large(self._bytes_needed, "together with jax-zoo's programs it is assumed to need")
        peer_libraries.export_case(folder, self.case, self.params, self.case.run().optim)
        trial.peer = peer = Peer(kind, folder, {"precision": precision})
        built, first, second = peer.begin(), peer.run(), peer.run()
        trial.columns |= {"first_step_seconds": built["seconds"] + first["seconds"], "resident": peer.resident}
        trial.columns["versions"], trial.second = built["versions"], second["seconds"]
        self._check_losses(trial, (first["result"], second["result"]), 0.0)

    def _check_losses(self, trial: StepTrial, losses: tuple[float, ...], spent: float) -> None:
        """Compare the losses of the first steps with those of the first trial that had any."""
        trial.columns |= {name: loss for name, loss in zip(LOSSES, losses, strict=True) if math.isfinite(loss)}
        if not all(map(math.isfinite, losses)):
            raise WrongResult(f"its first two losses are {losses[0]} and {losses[1]}")
        if not self._expected_losses:
            self._expected_losses, self._reference = losses, trial
        # The coarser of the two precisions decides.
        either = max((compared.key["precision"] for compared in (trial, self._reference or trial)), key=TOLERANCES.__getitem__)
        bounds = TOLERANCES["dropout" if self.options.dropout else either]
        for label, loss, expected, bound in zip(LOSSES.values(), losses, self._expected_losses, bounds, strict=True):
            if abs(loss - expected) > bound * abs(expected):
                reason = f"its {label} is {loss:.6f} and that of the first of ours {expected:.6f}: more than {bound:.0e} apart"
                raise WrongResult(reason)
        if not guarded_trials.end_if_slow(trial, spent, self.options.cell_seconds):
            trial.program = functools.partial(self._run, trial)

    # --- the rounds ---

    def time(self, trials: Sequence[StepTrial], watch: Watch) -> None:
        """Time all trials that have no state yet in the same rounds, together with the unit, which may have been timed before."""
        selected = [trial for trial in trials if not trial.state or trial is trials[0]]

        def rounds(called: Mapping[str, timing.Program]) -> tuple[dict[str, Any], dict[str, float]]:
            taking = [trial for trial in selected if trial.program is not None]
            watch.begin("timing", *(trial.key for trial in taking))
            precisions = {trial.key["precision"] for trial in taking if not trial.state}
            for trial in taking:
                if not trial.state:
                    # It took two steps for the comparison; if a step takes seconds, that is warm enough.
                    more = [] if trial.second > timing.SLOW else timing.warm_up(called[result_files.cell_identity(trial.key)])
                    trial.columns["warm_calls"] = 2 + len(more)
            for trial in taking:
                # Create the state now, so that no round includes that.
                guarded_trials.call_guarded(trial, functools.partial(self._run, trial, take=False))
            return timing.measured_with_rates(called, precisions, rounds=self.options.rounds, budget=self.options.budget)

        if not any(trial.program is not None and not trial.state for trial in trials):
            return
        seconds, rates = guarded_trials.repeat_without_failures(selected, rounds) or ({}, {})
        self._release_states()
        for trial in selected:
            if trial.program is not None and not trial.state:
                own = seconds[result_files.cell_identity(trial.key)]
                trial.columns |= timing.time_columns(own, seconds.get(result_files.cell_identity(trials[0].key)))
                trial.columns |= self._rates(trial, rates[trial.key["precision"]])
                if trial.peer is not None:
                    trial.columns["resident"] = trial.peer.resident
                trial.end("timed", trial.reason)

    def profile(self, trial: StepTrial) -> None:
        """Record the time breakdown of a timed program."""
        assert trial.step is not None
        step = self._with_state(trial.step)
        program, profile = (
            hlo_parser.parse_program(step.compiled.as_text()),
            instruction_times.profile_program(step.run, PROFILED),
        )
        breakdown = time_breakdown.break_down(program, profile, training=self.case.mode == "train")
        trial.columns["profile"] = {"plain": trial.columns["seconds"], **breakdown}

    def _run(self, trial: StepTrial, *, take: bool = True) -> None:
        """Transfer the shared state to a trial and, if `take`, take a step with it."""
        try:
            if trial.step is not None:
                step = self._with_state(trial.step)
                if take:
                    step.run()
            elif trial.peer is not None and take:
                trial.peer.run()
        except Exception:
            # The shared state that it had may be lost.
            self._release_states()
            raise

    def _release_states(self) -> None:
        for step in self._state_owners.values():
            step.stop()
        self._state_owners.clear()

    def _with_state(self, step: Step) -> Step:
        """Return the step after it has received the state: steps over the same devices share one state and pass it on."""
        place = step.variant.mesh, "" if self.case.mode == "train" else step.variant.precision
        if (owner := self._state_owners.get(place)) is None:
            step.start(self.params)
        elif owner is not step:
            owner.transfer_state(step)
        self._state_owners[place] = step
        return step

    def _rates(self, trial: StepTrial, rate: float) -> dict[str, Any]:
        """Return the columns that follow from the time of a step; `rate` is that of matrix products in the same rounds."""
        seconds, peak = trial.columns["seconds"], device_peak(self.environment["device"], trial.key["precision"])
        devices = 1 if trial.step is None else trial.step.mesh.size
        columns = timing.step_rate_columns(self.case.tokens, _flops(self.case), seconds, rate, peak, devices)
        if self.case.mode == "decode":
            read, copied = _reads(self.case, trial.key["precision"]), self.environment["copy_rate"]
            columns |= {
                "bytes": read,
                "bytes_per_s": read / seconds,
                "copy_rate": copied,
                "of_copy_rate": read / seconds / copied,
            }
        return columns


def _flops(case: Case) -> float | None:
    """Return the FLOPs of a step's matrix products; None for decoding, which is bound by memory reads."""
    if case.mode == "decode":
        return None
    batch, model = case.arrays(), case.model
    return objectives.objective(case.objective)().flops(model, batch) if case.mode == "train" else model.flops(batch)


@functools.cache
def _reads(case: Case, precision: str) -> int:
    """Return the bytes that a step must read, however it is computed; the same number is used for peers."""
    return Step(case, Variant(precision=precision)).bytes_read


def _short(variant: Variant) -> str:
    return ", ".join(value for value in vars(variant).values() if value not in ("none", "auto", "data=1"))
