"""Types of an audit: its checks and its intervals of steps, and how the intervals are chosen. Nothing here imports JAX."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

Result = Literal["passed", "failed", "not checked"]


@dataclasses.dataclass(frozen=True)
class Check:
    """A check of an audit and its result."""

    name: str
    result: Result
    detail: str = ""
    """The facts that were compared, or the first that differ."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """Steps that are replayed from a stored state."""

    first: int
    """Step of the stored state, 0 for the initial parameters; step `first` + 1 is the first that is taken."""
    last: int
    """Last step that is taken."""
    end: int
    """Step of the next stored state."""

    @property
    def is_complete(self) -> bool:
        """True if the replay ends at a stored state, which can then be compared."""
        return self.last == self.end


def passed_or_failed(name: str, problem: str, detail: str = "") -> Check:
    """Return a check that failed if there is a `problem`, else one that passed with `detail`."""
    return Check(name, "failed" if problem else "passed", problem or detail)


def seed_of_digests(digests: Mapping[str, str]) -> int:
    """Return the seed of the choice of intervals, below 2**32: a hash of the digests of a run's files."""
    return int(hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:8], 16)


def choose_intervals(
    states: Sequence[int], *, steps: int, every: int, count: int, share: float, seed: int, best: int | None = None
) -> list[Interval]:
    """Return the intervals to replay, in the order of their steps.

    The interval with the step of the scored parameters is always chosen, and the others at random. Each begins at a stored state,
    since nothing else can be replayed. That of the scored parameters is taken at least up to them, whatever the share, and the
    last one completely; the others have at most their parts of `share`, but at least a row of metrics.

    Args:
        states: steps of the stored states, ascending, with 0, or the step of a fork, for the initial state.
        steps: number of steps of the run.
        every: number of steps between two rows of metrics.
        count: number of intervals; 0 = all of the run, each interval completely.
        share: largest share of the steps of the run that all of them take together.
        seed: seed of the choice.
        best: step of the best checkpoint, which is scored in place of the newest one; None = the run keeps none.
    """
    pairs = list(itertools.pairwise(states))
    scored = next((number for number, (first, end) in enumerate(pairs) if best is not None and first < best <= end), None)
    if not count:
        return [Interval(first, end, end) for first, end in pairs]
    others = np.random.default_rng(seed).permutation(len(pairs) - 1)[: count - 1].tolist() if len(pairs) > 1 else []
    required: list[int] = [len(pairs) - 1, *([] if scored is None else [scored])]
    chosen: list[int] = sorted({*others, *required})
    longest = int(share * (steps - states[0]) / len(chosen))
    intervals = []
    for number in chosen:
        first, end = pairs[number]
        row = (first // every + 1) * every
        least = end if number == len(pairs) - 1 else best if number == scored and best is not None else row
        intervals.append(Interval(first, min(end, max(least, row, first + longest)), end))
    return intervals


def describe_coverage(
    intervals: Sequence[Interval], reproduced: Sequence[int], states: Sequence[int], steps: int
) -> dict[str, Any]:
    """Return which steps of a run were replayed, as JSON, and why the others were not.

    Args:
        intervals: those that were replayed.
        reproduced: steps of the stored states that replays have reproduced to the bit.
        states: as in `choose_intervals`.
        steps: number of steps of the run.
    """
    taken = sum(interval.last - interval.first for interval in intervals)
    partly = "the other steps were not replayed: a step is replayed only together with all steps since the stored state before it"
    return {
        "replayed_steps": taken,
        "steps": steps - states[0],
        "share": taken / (steps - states[0]),
        "stored_states": list(states),
        "states_reproduced": list(reproduced),
        "states_not_reproduced": [state for state in states[1:] if state not in reproduced],
        "note": "all steps up to the newest checkpoint were replayed" if taken == states[-1] - states[0] else partly,
    }
