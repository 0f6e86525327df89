"""The iteration of a shape, ours and that of peers: they must agree, and are then timed in the same rounds."""

import contextlib
import dataclasses
import functools
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.core import guarded_trials, peer_process, timing
from benchmarks.core.guarded_trials import SkipTrial, Trial, Watch, WrongResult
from benchmarks.core.options import FeedbackOptions
from benchmarks.core.peer_process import Kind, Peer
from benchmarks.feedback.iteration import ITERATION, PARTS, REFERENCE_FACTOR, SIZES, FirstSteps, Iteration, Shape
from benchmarks.step.measure_model import LOSSES, TOLERANCES
from benchmarks.step.programs import OURS
from zoo import models
from zoo.runtime.hardware import device_peak

PEERS = {"TRL": Kind("benchmarks.feedback.peer_trl", ("torch", "transformers", "trl"))}
"""Other implementations of the same iteration: their tokens and losses must agree with ours before they are timed."""


def iteration_key(shape: Shape, program: str, part: str) -> dict[str, Any]:
    """Return the key of a cell."""
    sizes = {name: getattr(shape, name) for name in SIZES}
    return {"model": shape.size, **sizes, "precision": shape.precision, "program": program, "part": part}


def iteration_keys(shape: Shape, programs: Sequence[str]) -> list[dict[str, Any]]:
    """Return the keys of all cells of programs; the first of each program is that of its whole iteration."""
    # Only our trainer computes the log-probabilities under the policy apart from the step.
    parts = {program: [part for part in PARTS if part != "policy" or program == OURS] for program in programs}
    return [iteration_key(shape, program, part) for program in programs for part in (ITERATION, *parts[program])]


@dataclasses.dataclass
class IterationTrial(Trial):
    """An iteration of ours or of a peer; its key is that of the whole."""

    seconds: list[Mapping[str, float]] = dataclasses.field(default_factory=list)
    """The seconds of the parts, of each call."""


def measure_iteration(
    shape: Shape, options: FeedbackOptions, environment: Mapping[str, Any], wanted_keys: Sequence[dict[str, Any]], watch: Watch
) -> Iterator[dict[str, Any]]:
    """Yield the cells of a shape, without the process."""
    own = IterationTrial(iteration_key(shape, OURS, ITERATION))
    names = list(dict.fromkeys(cell_key["program"] for cell_key in wanted_keys if cell_key["program"] != OURS))
    trials = [own, *(IterationTrial(iteration_key(shape, name, ITERATION)) for name in names)]
    group = _Group(shape, environment)
    with contextlib.ExitStack() as stack:
        guarded_trials.run_guarded(own, group.prepare, watch, "compiling")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for trial, name in zip(trials[1:], names, strict=True):
            # Its process ends with the measurement, also after an error.
            stack.callback(trial.stop_peer)
            act = functools.partial(group.start_peer, name=name, folder=folder)
            guarded_trials.run_guarded(trial, act, watch, f"{name}: first steps")
        rate = _time(trials, options, shape, watch)
        for trial in trials:
            if trial.program is not None and not trial.state:
                trial.columns["memory"] = peer_process.peak_resident() if trial.peer is None else trial.peer.resident
                trial.end("timed", trial.reason)
            yield from group.cells(trial, own, rate)


def _time(trials: Sequence[IterationTrial], options: FeedbackOptions, shape: Shape, watch: Watch) -> float:
    """Time the trials that are ready in the same rounds, and return the machine's rate of matrix products in them."""

    def rounds(programs: Mapping[str, timing.Program]) -> float:
        timed_trials = [trial for trial in trials if trial.program is not None]
        watch.begin("timing", *(trial.key for trial in timed_trials))
        for program in programs.values():
            # Everything is compiled; the first call may still allocate.
            program()
        for trial in timed_trials:
            trial.seconds.clear()
        _, rates = timing.measured_with_rates(programs, [shape.precision], rounds=options.rounds, budget=options.budget)
        return rates[shape.precision]

    return guarded_trials.repeat_without_failures(trials, rounds) or 0.0


class _Group:
    """State that the trials of a shape share: the weights, and the numbers that every trial must reproduce."""

    def __init__(self, shape: Shape, environment: Mapping[str, Any]) -> None:
        self.shape, self._environment = shape, environment
        self._params: Any = None
        self._iteration: Iteration | None = None
        self._first: FirstSteps | None = None

    def prepare(self, trial: IterationTrial) -> None:
        """Compile our iteration and take its first steps."""
        model = models.model(self.shape.config)
        # Weights of the policy, both moments, a gradient, the reference, and two copies for sampling and scoring.
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))
        guarded_trials.skip_too_large(7 * 4 * count, "its weights alone need")
        self._params = jax.block_until_ready(jax.jit(model.init)(jax.random.key(0)))
        iteration = Iteration(self.shape, self._params)
        first = iteration.first_steps()
        if not all(map(math.isfinite, first.losses)):
            raise WrongResult(f"its first two losses are {first.losses[0]} and {first.losses[1]}")
        trial.columns |= dict(zip(LOSSES, first.losses, strict=True))
        self._iteration, self._first = iteration, first
        trial.program = lambda: trial.seconds.append(iteration.run())

    def start_peer(self, trial: IterationTrial, name: str, folder: Path) -> None:
        """Start a peer's process, and compare its tokens and losses with ours."""
        if reason := (kind := PEERS[name]).missing_packages():
            raise SkipTrial(reason)
        if self._first is None or self._iteration is None:
            raise SkipTrial("no iteration of jax-zoo ran that it could be compared with")
        if self.shape.precision != "float32":
            raise SkipTrial("it is compared in float32 only, where the likeliest tokens must be equal")
        self._export(folder)
        trial.peer = peer = Peer(kind, folder)
        versions, answer = peer.begin()["versions"], peer.run()["result"]
        trial.columns |= {"versions": versions, **dict(zip(LOSSES, answer["losses"], strict=True))}
        check_agreement(self._iteration.greedy(self._first.prompts), answer["greedy"], self._first.losses, answer["losses"])
        trial.program = lambda: trial.seconds.append(peer.run()["result"])

    def cells(self, trial: IterationTrial, own: IterationTrial, rate: float) -> list[dict[str, Any]]:
        """Return the cells of a trial: its iteration and its parts."""
        trial_keys = iteration_keys(self.shape, [trial.key["program"]])
        if trial.state != "timed":
            cells = [{"key": cell_key, "state": trial.state, "reason": trial.reason} for cell_key in trial_keys]
            return [{**trial.columns, **cells[0]}, *cells[1:]]
        peak = device_peak(self._environment["device"], self.shape.precision)
        memory = self._iteration.memory() if self._iteration is not None and trial is own else {}
        cells = []
        for cell_key in trial_keys:
            part = cell_key["part"]
            seconds, unit = (np.array([call[part] for call in compared.seconds]) for compared in (trial, own))
            unit_seconds = unit if own.state == "timed" else None
            columns = timing.time_columns(seconds, unit_seconds)
            work = self.shape.tokens_of(part), self.shape.flops_of(part)
            columns |= timing.step_rate_columns(*work, float(np.median(seconds)), rate, peak)
            columns["share"] = float(np.median(seconds / [call[ITERATION] for call in trial.seconds]))
            columns |= {"memory": memory[part]} if part in memory else {}
            columns |= trial.columns if part == ITERATION else {}
            cells.append({"key": cell_key, "state": "timed", "reason": trial.reason, **columns})
        return cells

    def _export(self, folder: Path) -> None:
        """Write the weights, the arrays of our first iteration, and the request."""
        assert self._first is not None
        run = self.shape.run()
        arrays = {name: getattr(self._first, name) for name in ("prompts", "responses", "old")}
        request = {"group": self.shape.group, "tokens": self.shape.tokens, "vocabulary": self.shape.config.vocab}
        request |= {"beta": run.options.policy_gradient.beta, "clip": run.options.policy_gradient.clip_low}
        request |= {"reference_factor": REFERENCE_FACTOR}
        request["optim"] = peer_process.optimizer_numbers(run.optim)
        peer_process.export_for_peers(folder, self.shape.config, self._params, request, arrays)


def check_agreement(
    expected_tokens: np.ndarray, tokens: Sequence[Sequence[int]], expected_losses: Sequence[float], losses: Sequence[float]
) -> None:
    """Compare the greedy tokens and the losses of the first two steps of a peer with ours, in float32.

    Raises:
        WrongResult: a token differs, or a loss by more than `benchmarks.step.measure_model.TOLERANCES`, absolute below 1.
    """
    other = np.array(tokens)
    if other.shape != expected_tokens.shape:
        raise WrongResult(f"its greedy tokens have the shape {list(other.shape)}, and ours {list(expected_tokens.shape)}")
    if (different := other != expected_tokens).any():
        row, place = (int(index[0]) for index in np.nonzero(different))
        numbers = f"its token {place} of response {row} is {other[row, place]}, and ours {expected_tokens[row, place]}"
        raise WrongResult(f"{different.any(1).sum()} of {len(other)} greedy responses differ: {numbers}")
    for label, expected, loss, bound in zip(LOSSES.values(), expected_losses, losses, TOLERANCES["float32"], strict=True):
        # The terms of these means are as large as the advantages, whose standard deviation is 1, and cancel at first.
        if not abs(loss - expected) <= bound * max(1.0, abs(expected)):
            raise WrongResult(f"its {label} is {loss:.6f} and ours {expected:.6f}: more than {bound:.0e} apart")
