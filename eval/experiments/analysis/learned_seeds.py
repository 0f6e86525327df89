"""The floor that a seed must beat to count as one that learned, and the comparison of the shares of seeds that did."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.experiments.analysis import significance_tests
from eval.experiments.analysis.seed_values import SeedValues, find_seed_metric, seed_values, split_metric

Floor = tuple[str, float]
"""Name and value of what a model reaches that learned nothing."""
NEXT_LOSS = "next_loss"
"""Score that a run has if its loss is the sum of the masked loss and of that of the next sentence."""


def strictest_floor(
    registration: Mapping[str, Any],
    metric: str,
    sign: int,
    rows: Sequence[str],
    cells: Sequence[Mapping[str, Any]],
    floors: Sequence[Mapping[str, Any]],
) -> Floor | None:
    """Return the best of the values that take no learning: of the control row, the floors, and the reported baseline.

    The reported baseline is a score of the same evaluation, such as the unigram loss. The control row is no floor for a claim
    about itself.

    Args:
        sign: 1 if higher values are better, -1 if lower ones are.
        rows: those of the claim.
    """
    stage, score = split_metric(metric)
    candidates: list[Floor] = []
    if (control := registration.get("control")) and control not in rows:
        values = seed_values(registration, cells, control, metric).values
        candidates += [(f"the control row, {control},", sum(values.values()) / len(values))] if values else []
    candidates += [(f"the floor {floor['name']}", float(floor["value"])) for floor in floors if floor["metric"] == metric]
    baseline = reported_baseline(metric)
    # The loss of word frequencies is no floor of a sum with the loss of the next sentence.
    is_sum = score == "loss" and any(seed_values(registration, cells, row, f"{stage}/{NEXT_LOSS}").values for row in rows)
    if baseline and not is_sum:
        reported = [value for row in rows for value in seed_values(registration, cells, row, baseline).values.values()]
        candidates += [(f"the {find_seed_metric(baseline).label}", sum(reported) / len(reported))] if reported else []
    return max(candidates, key=lambda floor: sign * floor[1]) if candidates else None


def reported_baseline(metric: str) -> str:
    """Return the metric of the same evaluation that is what a model reaches without learning; "" if there is none."""
    stage, score = split_metric(metric)
    name = find_seed_metric(score).reference or ("unigram_loss" if score == "loss" else "")
    return f"{stage}/{name}" if name else ""


def share_of(seeds: SeedValues) -> dict[str, Any]:
    """Return how many of the seeds of a row that ended learned, and the 95% interval of that share by Clopper and Pearson."""
    low, high = significance_tests.share_interval(seeds.learned, seeds.ended) if seeds.ended else (0.0, 1.0)
    return {"learned": seeds.learned, "seeds": seeds.ended, "low": low, "high": high}


def share_p_values(row: SeedValues, reference: SeedValues) -> tuple[float, float]:
    """Return the p values of "the row learns more often than the reference" and of "more rarely" (Fisher's exact test)."""
    of_row, of_reference = (row.learned, row.ended), (reference.learned, reference.ended)
    return (
        significance_tests.fisher_fewer(*of_reference, *of_row),
        significance_tests.fisher_fewer(*of_row, *of_reference),
    )
