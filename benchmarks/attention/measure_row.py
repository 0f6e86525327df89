"""One row of the sweep: all its implementations are checked, compiled, compared, and then timed in the same rounds."""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.attention import conformance, cost_model, rounding_error_bounds, torch_attention
from benchmarks.attention.problems import FEATURES, Problem
from benchmarks.attention.sweep_rows import UNIT, SweepRow
from benchmarks.attention.torch_attention import Peer
from benchmarks.core import device_time, guarded_trials, timing
from benchmarks.core.guarded_trials import SkipTrial, Trial, Watch, WrongResult
from benchmarks.core.memory import planned_memory
from benchmarks.core.options import AttentionOptions
from benchmarks.core.result_files import cell_identity
from benchmarks.core.timing import Program
from zoo.attention import attention
from zoo.errors import BadInput
from zoo.runtime.hardware import device_peak

BASELINES = ("reference", UNIT)
"""Implementations whose results the others of a row are compared with; the first of these that ran is used."""
DISTANCE_BOUNDS = {"float32": 2e-5, "bfloat16": 0.1}
"""Largest distance of results from the baseline's: root of the mean square, relative to the baseline's own. torch, which also
rounds the scores and a bias to bfloat16, reaches 0.08; a mistake of 1 % in the scale is hundreds of times the first bound."""
TINY = 1e-20
"""Arrays below this count as zero."""


@dataclass
class RowTrial(Trial):
    """One implementation to be timed."""

    results: list[np.ndarray] | None = None
    """Results of its first call: outputs, then gradients."""

    @property
    def name(self) -> str:
        return self.key["implementation"]


MakePeer = Callable[[str, Problem, str], Peer | str]
"""(name, problem, direction) -> the peer's program, or why there is none: `torch_attention.make_peer`."""


def measure_row(
    row: SweepRow,
    names: Sequence[str],
    options: AttentionOptions,
    environment: Mapping[str, Any],
    watch: Watch,
    peer: MakePeer = torch_attention.make_peer,
) -> list[dict[str, Any]]:
    """Return the cells of a row, without the process.

    Args:
        names: implementations, and peers. `UNIT` is always measured, and has a cell if it is among them.
        environment: of this process.
        watch: notified of every activity.
    """
    trials = [RowTrial(row.key(name)) for name in sorted(dict.fromkeys((UNIT, *names)), key=_position)]
    watch.begin("making the inputs", *(trial.key for trial in trials))
    problem = _make_problem(row, trials)
    if problem is not None:
        baseline: RowTrial | None = None
        for trial in trials:
            start = _prepare if trial.name in attention.implementation_names() else functools.partial(_prepare_peer, peer=peer)
            act = functools.partial(start, row=row, problem=problem, options=options, baseline=baseline)
            guarded_trials.run_guarded(trial, act, watch, f"{trial.name}: checking, compiling")
            if baseline is None and trial.name in BASELINES and trial.results is not None:
                baseline = trial
        for trial in trials:
            trial.results = None
        watch.begin("timing", *(trial.key for trial in trials if trial.program is not None))
        _time(trials, options)
        for trial in trials:
            if trial.state == "timed":
                peak = device_peak(environment["device"], row.dtype)
                trial.columns |= cost_model.attention_rate_columns(
                    problem, row.direction, cost_model.time_of(trial.columns), environment, peak
                )
    return [trial.cell() for trial in trials if trial.name in names]


def _position(name: str) -> int:
    """Return the sort position: baselines come first, peers last."""
    return BASELINES.index(name) if name in BASELINES else len(BASELINES) + (name not in attention.implementation_names())


def _make_problem(row: SweepRow, trials: Sequence[RowTrial]) -> Problem | None:
    """Return the arrays of a row; if they do not fit into memory or are contradictory, end all trials and return None."""
    shape, feature = row.shape, FEATURES[row.feature]
    # q, k, v and the output; the same for their gradients.
    numbers = 2 * shape.batch * shape.head * (shape.queries * shape.heads + shape.keys * shape.groups)
    least = numbers * jnp.dtype(row.dtype).itemsize * (2 if row.direction == "both" else 1)
    reason = guarded_trials.too_large_reason(least, "its inputs and outputs alone need")
    if feature.square and shape.queries != shape.keys:
        reason = f"{row.feature} needs as many keys as queries, and these are {shape.keys} and {shape.queries}"
    state = "skipped"
    if not reason:
        try:
            return Problem.of(feature, shape, row.dtype)
        except Exception as error:
            state, reason = "failed", guarded_trials.error_in_one_line(error)
    for trial in trials:
        trial.end(state, reason)
    return None


# --- before the rounds ----------------------------------------------------------------------------------------------------------


def _prepare(trial: RowTrial, row: SweepRow, problem: Problem, options: AttentionOptions, baseline: RowTrial | None) -> None:
    name = trial.name
    for request in problem.requests():
        if why := attention.unsupported_reason(name, request):
            raise SkipTrial(why)
    _check_cases(trial, row)
    guarded_trials.skip_too_large(cost_model.predicted_score_bytes(name, problem, row.direction), "its scores alone need")
    function, arguments = problem.program(name, row.direction)
    compiled, spent = timing.compile_cold(jax.jit(function), *arguments)
    memory = planned_memory(compiled)["memory"]
    trial.columns |= {**spent, "memory": memory}
    trial.columns["kernels"] = cost_model.kernels_in_program(compiled.as_text() or "")
    # The arguments are allocated already.
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(arguments))
    guarded_trials.skip_too_large(memory - held, "compiled, it needs")
    trial.program = lambda: jax.block_until_ready(compiled(*arguments))
    _first_call(trial, _arrays, row, options, baseline)


def _prepare_peer(
    trial: RowTrial, row: SweepRow, problem: Problem, options: AttentionOptions, baseline: RowTrial | None, peer: MakePeer
) -> None:
    """Prepare a peer; its compilation is not measured, but its results are compared."""
    result = peer(trial.name, problem, row.direction)
    if isinstance(result, str):
        raise SkipTrial(result)
    trial.program, arrays = result
    _first_call(trial, arrays, row, options, baseline)


def _arrays(returned: Any) -> list[np.ndarray]:
    return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(returned)]


def _first_call(
    trial: RowTrial,
    arrays: Callable[[Any], list[np.ndarray]],
    row: SweepRow,
    options: AttentionOptions,
    baseline: RowTrial | None,
) -> None:
    """Compare the results of a program with the baseline, and call it until it is warm."""
    assert trial.program is not None
    began = time.perf_counter()
    returned = trial.program()
    spent = time.perf_counter() - began
    trial.results = arrays(returned)
    if baseline is not None and baseline.results is not None:
        difference, distance = (_worst(measure, trial.results, baseline.results) for measure in (_difference, _distance))
        trial.columns |= {"compared": baseline.name, **_finite(difference=difference, distance=distance)}
        for error, bound, scale in (
            (difference, _bound(row), "the largest"),
            (distance, DISTANCE_BOUNDS[row.dtype], "their mean square's root"),
        ):
            # NaN does not agree.
            if not error <= bound:
                reason = f"its results differ from those of {baseline.name} by {error:.1e} of {scale}, and {bound:.1e} is allowed"
                raise WrongResult(reason)
    if not guarded_trials.end_if_slow(trial, spent, options.cell_seconds, clock="wall"):
        trial.columns["warm_calls"] = 1 + len(timing.warm_up(trial.program))


def _check_cases(trial: RowTrial, row: SweepRow) -> None:
    """Compare an implementation with float64 on the cases of the feature; record the error that uses most of its bound.

    A forward row is judged by outputs alone. An implementation that refuses a case's odd length is checked at another; one that
    refuses that too is neither checked nor timed.
    """
    worst = (0.0, 0.0)
    for case in FEATURES[row.feature].cases:
        try:
            result = _check(trial.name, case, row.dtype)
        except BadInput as refusal:
            raise SkipTrial(f"it cannot be checked: {refusal}") from None
        result = result.forward if row.direction == "forward" else result
        if not result.ok:
            error, allowed = result.worst
            trial.columns |= _finite(error=error, allowed=allowed)
            difference = f"{result.nearest} is off by {error:.1e} on the case {case!r}, and {allowed:.1e} is allowed"
            raise WrongResult(f"it disagrees with float64: {difference}")
        worst = max(worst, result.worst, key=lambda pair: rounding_error_bounds.share_of_bound(*pair))
    trial.columns |= _finite(error=worst[0], allowed=worst[1])


@functools.cache
def _check(name: str, case: str, dtype: str) -> conformance.CaseResult:
    return conformance.check_supported(name, case, dtype)[0]


def _finite(**columns: float) -> dict[str, float]:
    """Return the columns that are finite numbers: result files contain no NaN and no infinity."""
    return {name: value for name, value in columns.items() if math.isfinite(value)}


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference of two arrays, relative to the second one's largest entry or 1."""
    return float(np.abs(one - other).max() / max(np.abs(other).max(), 1.0))


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the root mean square of the difference of two arrays, relative to the root mean square of the second array.

    Attention over long rows computes averages, so most entries are small. If the difference were divided by the largest entry or
    by 1, an array of zeros would pass.
    """
    difference, size = (np.sqrt(np.square(x, dtype=np.float64).mean()) for x in (one - other, other))
    return float(difference / max(size, TINY))


def _worst(
    measure: Callable[[np.ndarray, np.ndarray], float], results: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> float:
    """Return the largest measure of all pairs of arrays; infinite if their shapes differ."""
    if [array.shape for array in results] != [array.shape for array in expected]:
        return float("inf")
    # `max` would drop a NaN that does not come first.
    return float(np.max([measure(one, other) for one, other in zip(results, expected, strict=True)]))


def _bound(row: SweepRow) -> float:
    """Return the bound on the difference of two correct results of a row, from the number of terms of its longest sums."""
    shape, terms = row.shape, row.shape.keys
    if row.direction == "both":
        # Gradients of keys sum over the queries of all heads that share them, those of a bias over those of all examples.
        of_bias = any(conformance.CASES[case].bias for case in FEATURES[row.feature].cases)
        terms = max(terms, shape.queries * (shape.batch if of_bias else shape.heads // shape.groups))
    return rounding_error_bounds.difference_bound(row.dtype, terms)


# --- the rounds -----------------------------------------------------------------------------------------------------------------


def _time(trials: Sequence[RowTrial], options: AttentionOptions) -> None:
    """Time all trials with a program in the same rounds."""

    def rounds(programs: Mapping[str, Program]) -> tuple[Any, ...]:
        budget = (options.budget or 0.0) * len(programs)
        return timing.time_within_budget(programs, rounds=options.rounds or 0, budget=budget), *_on_device(programs)

    seconds, on_device, why = guarded_trials.repeat_without_failures(trials, rounds) or ({}, {}, "")
    unit = next((seconds.get(cell_identity(trial.key)) for trial in trials if trial.name == UNIT), None)
    for trial in trials:
        if (place := cell_identity(trial.key)) in seconds:
            trial.columns |= timing.time_columns(seconds[place], unit)
            if place in on_device:
                trial.columns["device_seconds"] = on_device[place]
            trial.columns["clock"] = "device" if place in on_device else "wall"
            trial.end("timed", trial.reason or why)


def _on_device(programs: Mapping[str, Program]) -> tuple[dict[str, float], str]:
    """Return (seconds of the device, why there are none); if the profiler fails, the wall time is still valid."""
    try:
        return device_time.device_seconds(programs), ""
    except guarded_trials.RepeatFailure:
        raise
    except Exception as error:
        return {}, f"wall time, because the profiler failed: {guarded_trials.error_in_one_line(error)}"
