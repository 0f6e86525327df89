"""Comparison of what a run has stored with what its replay or a second scoring computed: to the bit, or within a bound."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from eval.audit.hardware import LARGEST_DIFFERENCE

SINCE_LAST_ROW = ("skipped", "spikes")
"""Counts of the steps since the row before, of which a start in the middle of these steps sees only a part."""
LARGEST_OF_SCORES = 1e-4
"""Largest relative difference of a score other than a loss between kinds of hardware: perplexity is an exponential of a loss."""
LARGEST_SHARE = 0.01
"""Share of items of which the most probable predictions may differ between kinds of hardware, by rounding. A score of predictions
may differ by this share of its scale."""
OF_PREDICTIONS = re.compile(
    r"accuracy|f1|exact|matthews|bleu|chrf|rouge|(predicted|unended|truncated)_share|mrr|ndcg|map|recall|precision"
    r"|v_measure|homogeneity|completeness"
)
"""Part of the name of a score of predictions: of the most probable classes, words and texts, of ranks, or of clusters."""
SCALES = {"bleu": 100.0, "chrf": 100.0, "matthews": 2.0}
"""Scales of scores of predictions; that of the others is 1."""
LARGEST_LIST = 3
"""Number of differences that a message names."""


def row_problem(
    stored: Sequence[Mapping[str, Any]], computed: Sequence[Mapping[str, Any]], *, bits: bool, partial: str = ""
) -> str:
    """Return the first difference between rows of metrics.jsonl or ledger.jsonl, as text; "" if there is none.

    Args:
        bits: compare all values exactly, except those of "time"; else losses within `LARGEST_DIFFERENCE`, and no other metric.
        partial: name of the first row ("train 12") whose counts of skipped steps are not compared.
    """
    by_name = [{_row_name(row): row for row in rows} for rows in (stored, computed)]
    if names := [name for name in by_name[1] if name not in by_name[0]]:
        return f"there is no row of {names[0]}"
    if names := [name for name in by_name[0] if name not in by_name[1]]:
        return f"there is a row of {names[0]}, which the run does not write"
    if len(stored) != len(computed):
        return f"there are {len(stored)} rows, and the run writes {len(computed)}"
    for name, row in by_name[0].items():
        ignored = SINCE_LAST_ROW if name == partial else ()
        if problem := values_problem(row, by_name[1][name], bits=bits, ignored=("time", *ignored)):
            return f"{name}: {problem}"
    return ""


def values_problem(stored: Any, computed: Any, *, bits: bool, scores: bool = False, ignored: Sequence[str] = ()) -> str:
    """Return the first difference between two JSON objects, as text with both values; "" if there is none.

    Args:
        bits: compare all numbers exactly; else only whole numbers and texts exactly, losses within `LARGEST_DIFFERENCE`, and
            other numbers only if they are `scores`, within `LARGEST_OF_SCORES`, or those `OF_PREDICTIONS` within `LARGEST_SHARE`
            of their scale.
        ignored: keys that are not compared.
    """
    old, new = (dict(_flat(value, "", ignored)) for value in (stored, computed))
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in old or name not in new:
            return f"{name} is {'not stored' if name not in old else 'stored, and not computed again'}"
        if not _agree(name, old[name], new[name], bits=bits, scores=scores):
            return f"{name} is {_text(old[name])}, and computed again {_text(new[name])}"
    return ""


def array_problem(stored: Mapping[str, np.ndarray], computed: Mapping[str, np.ndarray]) -> str:
    """Return which arrays differ in any bit, with the largest difference of each; "" if none does."""
    wrong = [path for path, array in stored.items() if array.tobytes() != computed[path].tobytes()]
    if not wrong:
        return ""
    lines = [f"{path} (by up to {_largest_difference(stored[path], computed[path]):.2g})" for path in wrong[:LARGEST_LIST]]
    return f"{len(wrong)} of {len(stored)} arrays differ: {', '.join(lines)}{', ...' if len(wrong) > LARGEST_LIST else ''}"


def relative_difference(stored: Mapping[str, np.ndarray], computed: Mapping[str, np.ndarray]) -> float:
    """Return the norm of the difference of two sets of floating-point arrays, relative to the norm of the first."""
    pairs = [
        (array.astype(np.float64), computed[path].astype(np.float64))
        for path, array in stored.items()
        if np.issubdtype(array.dtype, np.floating)
    ]
    norm = math.sqrt(sum(float(np.sum(old**2)) for old, _ in pairs))
    difference = math.sqrt(sum(float(np.sum((old - new) ** 2)) for old, new in pairs))
    return difference / norm if norm else difference


def _largest_difference(stored: np.ndarray, computed: np.ndarray) -> float:
    if not np.issubdtype(stored.dtype, np.number):
        return float(np.count_nonzero(stored != computed))
    return float(np.abs(stored.astype(np.float64) - computed.astype(np.float64)).max())


def _agree(name: str, old: Any, new: Any, *, bits: bool, scores: bool) -> bool:
    if bits or not (isinstance(old, float) and isinstance(new, float)) or math.isnan(old) or math.isnan(new):
        # JSON of a float has all of its bits, and NaN equals NaN.
        return json.dumps(old) == json.dumps(new)
    name = name.removeprefix("metrics.")
    if name == "loss" or name.startswith("terms."):
        return math.isclose(old, new, rel_tol=LARGEST_DIFFERENCE)
    # The factor allows for the rounding of a difference of exactly this share.
    largest = LARGEST_SHARE * SCALES.get(name, 1.0) * (1 + 1e-9) if OF_PREDICTIONS.search(name) else 0.0
    return not scores or math.isclose(old, new, rel_tol=LARGEST_OF_SCORES, abs_tol=largest)


def _row_name(row: Mapping[str, Any]) -> str:
    return f"{row.get('kind', 'step')} {row['step']}"


def _flat(value: Any, prefix: str, ignored: Sequence[str]) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield prefix, value
        return
    for key, item in value.items():
        if prefix or key not in ignored:
            yield from _flat(item, f"{prefix}.{key}".removeprefix("."), ignored)


def _text(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:40]}..."
