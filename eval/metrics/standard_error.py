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
