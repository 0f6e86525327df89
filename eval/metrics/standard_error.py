"""The mean of independent outcomes and its standard error."""

import math
from collections.abc import Sequence

import numpy as np


def mean_and_error(outcomes: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error, from the sample variance (divisor n - 1); None for a single outcome."""
    values = np.asarray(outcomes, np.float64)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def with_error(name: str, outcomes: Sequence[float]) -> dict[str, float]:
    """Return the mean of outcomes as a metric, and its standard error as NAME_stderr, unless there is a single outcome."""
    mean, error = mean_and_error(outcomes)
    return {name: mean} if error is None else {name: mean, f"{name}_stderr": error}


def ratio_and_error(sums: np.ndarray, count: np.ndarray) -> tuple[float, float | None]:
    """Return the ratio of the sums of N independent items, and its standard error by the delta method; None for a single item.

    It is that of a mean over predictions, of which items have different numbers.

    Args:
        sums: float64 [N], the outcome of each item, summed over its predictions.
        count: [N], the number of its predictions; at least one is above 0.
    """
    ratio = float(sums.sum() / count.sum())
    # The linear part of the change of the ratio by each item.
    _, error = mean_and_error(((sums - ratio * count) / count.mean()).tolist())
    return ratio, error
