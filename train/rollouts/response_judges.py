"""The judges of a rollout's responses, over all processes: their scores, the time that each takes, and whether they repeat."""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float64, Int64

from train.rollouts.rewards import (
    OPTION,
    Completion,
    Judge,
    Scores,
    describe_completion,
    score_completions,
    scores_of,
    weighted_sum,
)
from train.rows.batch_feed import FeedSource
from zoo.errors import BadInput

LONGEST = 2048
"""Number of bytes of a message that another process also shows."""


class ResponseJudges:
    """The judges of a run. Functions judge the responses of this process's devices, reward models all of them."""

    def __init__(self, source: FeedSource, show: Callable[[str], None]) -> None:
        """Divide the judges of a run by kind; `show` shows which one is being waited for."""
        self._source, self._show = source, show
        self._functions, self._models = (
            [judge for judge in source.data.rewards if judge.collective == kind] for kind in (False, True)
        )
        self._is_checked = not self._functions
        self.seconds: dict[str, float] = collections.defaultdict(float)
        """Name of a judge -> the seconds that it took."""

    def scores(self, completions: Sequence[Completion]) -> Scores:
        """Return the weighted sum of the scores of all judges for the completions of all processes.

        The first call also checks that functions repeat what they return.

        Raises:
            BadInput: a judge gives a completion no score, or a function does not repeat its scores in another process.
        """
        rows = self._source.local
        own = [completions[row] for row in rows.tolist()]
        with raised_in_all_processes():
            of_functions = [self._scores(judge, own) for judge in self._functions]
        if not self._is_checked:
            self._is_checked = True
            first = _of_first_process(np.stack([scores.values for scores in of_functions]))
            repeated = [completions[row] for row in _of_first_process(rows).tolist()]
            with raised_in_all_processes():
                self._check_repeated(first, repeated)
        of_models = [self._scores(judge, completions) for judge in self._models]
        own_sum = weighted_sum(self._functions, of_functions, len(own)).values
        model_sum = weighted_sum(self._models, of_models, len(completions))
        return Scores(_gather(own_sum, rows, len(completions)) + model_sum.values, model_sum.truncated)

    def _scores(self, judge: Judge, completions: Sequence[Completion]) -> Scores:
        self._show(f"waiting for the rewards of {judge.name}: {len(completions):,} responses")
        began = time.perf_counter()
        scores = scores_of(judge, completions)
        self.seconds[judge.name] += time.perf_counter() - began
        return scores

    def _check_repeated(self, first: Float64[np.ndarray, "F n"], repeated: Sequence[Completion]) -> None:
        """Call the functions with the completions of process 0 again, and compare the scores with those that it got.

        In one process a difference is reported. In several it is refused, because a validation judges in all of them, and they
        would not agree on its score.

        Args:
            first: scores that each function gave in process 0.

        Raises:
            BadInput: there are several processes, and a function gave other scores than before.
        """
        process = self._source.process
        for judge, before in zip(self._functions, first, strict=True):
            after = self._scores(judge, repeated).values
            # Rounding may differ between two kinds of processors.
            differs = ~np.isclose(before, after, rtol=1e-6, atol=1e-9)
            if not differs.any():
                continue
            at = int(differs.argmax())
            numbers, item = (f"{scores[at]:g}" for scores in (before, after)), describe_completion(repeated[at])
            if jax.process_count() == 1:
                what = f"{judge.name} returned {' and then '.join(numbers)} for {item}, with the same arguments"
                self._source.notify(f"{what}: a run that continues will differ from one that did not stop")
                continue
            where = f"in process {process}" if process else "at a second call"
            what = f"returned {' in process 0 and '.join(numbers)} {where} for {item}, with the same arguments"
            fix = "its result must depend on them alone; remove random numbers, clocks and other state"
            raise BadInput(f"{OPTION} {judge.name}: {what}; {fix}")


def rewards_in_all_processes(judges: Sequence[Judge], completions: Sequence[Completion]) -> Scores:
    """Return the weighted sum of the scores of all judges for completions that all processes pass.

    Raises:
        BadInput: a judge gives a completion no score in one of the processes.
    """
    functions, models = ([judge for judge in judges if judge.collective == kind] for kind in (False, True))
    with raised_in_all_processes():
        of_functions = score_completions(functions, completions)
    of_models = score_completions(models, completions)
    return Scores(of_functions.values + of_models.values, of_models.truncated)


@contextlib.contextmanager
def raised_in_all_processes() -> Iterator[None]:
    """Raise an error of the block in all processes, which would otherwise fail while they wait for the one that ends.

    Raises:
        BadInput: the block raised it in one of the processes; the message is that of the first of them.
    """
    error = None
    try:
        yield
    except BadInput as raised:
        error = raised
    if jax.process_count() > 1:
        text = np.frombuffer(str(error or "").encode()[:LONGEST].ljust(LONGEST, b"\0"), np.uint8)
        with jax.transfer_guard("allow"):
            texts = np.asarray(multihost_utils.process_allgather(text))
        messages = [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in texts.astype(np.uint8)]
        error = next((BadInput(message) for message in messages if message), None)
    if error is not None:
        raise error


def _of_first_process(array: np.ndarray) -> np.ndarray:
    """Return the array that process 0 passes, of a type of 64 bits; all processes pass one of the same shape."""
    if jax.process_count() == 1:
        return array
    # As integers, because JAX would make 32 of 64 bits.
    with jax.transfer_guard("allow"):
        received = multihost_utils.broadcast_one_to_all(np.ascontiguousarray(array).view(np.uint32))
    return np.ascontiguousarray(received).view(array.dtype)


def _gather(values: Float64[np.ndarray, " n"], local: Int64[np.ndarray, " n"], rows: int) -> Float64[np.ndarray, " B"]:
    """Return the values of the rows of all processes. This process passes those of the offsets `local`."""
    if jax.process_count() > 1:
        # As integers, because JAX would make float32 of float64.
        bits = np.ascontiguousarray(values).view(np.uint32).reshape(-1, 2)
        with jax.transfer_guard("allow"):
            packed = multihost_utils.process_allgather(np.concatenate([local.astype(np.uint32)[:, None], bits], 1))
        all_packed = np.asarray(packed).reshape(-1, 3)
        local = all_packed[:, 0].astype(np.int64)
        values = np.ascontiguousarray(all_packed[:, 1:]).view(np.float64)[:, 0]
    result = np.empty(rows)
    result[local] = values
    return result
