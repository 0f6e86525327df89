"""Simulated grids of seeds with known differences, and how often they are judged falsely.

`python -m tests.support.simulated_grids` prints the table of rates in docs/experiments.md.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from eval.experiments.analysis import significance_tests
from eval.experiments.analysis.claim_comparison import p_values
from eval.experiments.analysis.significance_tests import LEVEL
from eval.experiments.analysis.verdicts import decide_claims

Array = Any
Sampler = Callable[[np.random.Generator, tuple[int, ...]], Array]
"""Returns values with mean 0 and standard deviation 1."""


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.normal(size=shape)


def lognormal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return (np.exp(rng.normal(size=shape)) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)


def contaminated(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return normal values of which a tenth lies 5 of their standard deviations higher."""
    return (rng.normal(size=shape) + 5 * (rng.random(shape) < 0.1) - 0.5) / np.sqrt(1 + 25 * 0.09)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grids:
    """Grids with claims that row is above reference; each claim has rows of its own, and the unit is the row's deviation."""

    row: Sampler = normal
    reference: Sampler = normal
    ratio: float = 1.0
    """Standard deviation of the reference in relation to that of the row."""
    difference: float = 0.0
    margin: float = 0.0
    kind: str = "greater"
    seeds: int = 5
    claims: int = 1
    clear: int = 0
    """Claims among them whose difference is the margin and whose noise is a thousandth: their direction is always shown."""
    pilot: int = 0
    """Seeds of a pilot; 0 = none."""
    correlation: float | None = None
    """Correlation of normal parts of the seeds of both rows, which are then compared as pairs."""
    draws: int = 10_000


def judge_grids(grids: Grids, seed: int = 0, test: Callable[..., Any] | None = None) -> tuple[Array, Array]:
    """Return [draws, claims] verdicts and which of them are false.

    Args:
        test: another test of the difference of independent rows.
    """
    rng, shape = np.random.default_rng(seed), (grids.draws, grids.claims, grids.seeds)
    noise = np.where(np.arange(grids.claims) < grids.clear, 1e-3, 1.0)[:, None]
    difference = np.where(np.arange(grids.claims) < grids.clear, grids.margin, grids.difference)

    def sample(size: int) -> tuple[Array, Array]:
        full = (*shape[:2], size)
        row, reference = grids.row(rng, full), grids.ratio * grids.reference(rng, full)
        if grids.correlation is not None:
            common, own = rng.normal(size=full), np.sqrt(1 - grids.correlation)
            row, reference = (np.sqrt(grids.correlation) * common + own * side for side in (row, reference))
        return row * noise, reference * noise

    row, reference = sample(grids.seeds)
    row = row + difference[:, None]
    paired = grids.correlation is not None
    least: Array = 0.0
    if grids.pilot:
        first, second = sample(grids.pilot)
        least = (first - second).std(-1, ddof=1) if paired else np.maximum(first.std(-1, ddof=1), second.std(-1, ddof=1))
    chosen = significance_tests.paired_difference if paired else test or significance_tests.larger_variance_difference
    result = chosen(row, reference, least) if grids.pilot else chosen(row, reference)
    above, below = p_values(grids.kind, result, grids.margin)
    _, _, judged = decide_claims(above, below, np.full(grids.claims, grids.kind == "equivalent"), LEVEL)
    return judged, is_false(judged, difference, grids.margin, grids.kind)


def is_false(judged: Array, difference: Array, margin: float, kind: str) -> Array:
    """Return which verdicts state something about the true difference that does not hold."""
    away = (judged == "equivalent") & (abs(difference) >= margin)
    if kind == "equivalent":
        return away | ((judged == "contradicted") & (abs(difference) <= margin))
    over = ((judged == "reproduced") & (difference <= margin)) | ((judged == "direction only") & (difference <= 0))
    return away | over | ((judged == "contradicted") & (difference >= 0))


def false_rate(grids: Grids, **more: Any) -> float:
    """Return the share of grids with any false verdict."""
    return float(judge_grids(grids, **more)[1].any(-1).mean())


def stuck_rates(
    of_row: float, of_reference: float, *, better: float = 0.0, seeds: int = 5, draws: int = 20_000
) -> dict[str, float]:
    """Return how often a claim that the row is better is judged in each way, if seeds learn with a chance.

    Args:
        of_row, of_reference: chance that a seed does not learn.
        better: difference of the seeds that learned, in standard deviations.
    """
    rng = np.random.default_rng(0)
    learned = [rng.binomial(seeds, 1 - chance, draws) for chance in (of_row, of_reference)]
    both = (learned[0] == seeds) & (learned[1] == seeds)
    means = significance_tests.larger_variance_difference(
        better + rng.normal(size=(draws, seeds)), rng.normal(size=(draws, seeds))
    )
    table = np.array(
        [
            [significance_tests.fisher_fewer(first, seeds, second, seeds) for second in range(seeds + 1)]
            for first in range(seeds + 1)
        ]
    )
    more, fewer = table[learned[1], learned[0]], table[learned[0], learned[1]]
    above, below = p_values("greater", means, 0.0)
    above, below = np.where(both[:, None], above, more[:, None]), np.where(both[:, None], below, fewer[:, None])
    judged = decide_claims(above[:, None], below[:, None], np.array([False]))[2][:, 0]
    return {name: float((judged == name).mean()) for name in ("reproduced", "direction only", "contradicted")}


RATIOS = (0.1, 0.3, 1.0, 3.0, 10.0)


def worst(samplers: list[tuple[Sampler, Sampler]], ratios: tuple[float, ...] = RATIOS, **more: Any) -> float:
    """Return the greatest rate of false verdicts over ratios, numbers of seeds and claims, and differences at 0 and +-margin."""
    margins = more.pop("margins", ((0.0, 0.0), (1.0, 1.0), (-1.0, 1.0), (6.0, 6.0), (-6.0, 6.0)))
    return max(
        false_rate(Grids(row=row, reference=reference, ratio=ratio, seeds=n, claims=k, difference=d, margin=m, **more))
        for row, reference in samplers
        for ratio in ratios
        for n, k in ((5, 1), (5, 4), (8, 1), (8, 4))
        for d, m in margins
    )


def table_rows() -> list[tuple[str, float]]:
    """Return the rows of the table of false verdicts."""
    one, every = [(lognormal, normal), (normal, lognormal)], [(lognormal, lognormal)]
    outlier = [(contaminated, normal), (normal, contaminated), (contaminated, contaminated)]
    null = ((0.0, 0.0),)
    equivalence = ((1.0, 1.0), (-1.0, 1.0), (6.0, 6.0))
    stuck = [stuck_rates(chance, chance) for chance in (0.1, 0.3, 0.5)]
    one_row = [stuck_rates(chance, 0.0) for chance in (0.1, 0.3, 0.5)]
    return [
        ("normal, deviations 1 to 10 apart", worst([(normal, normal)])),
        ("the same, equivalences", worst([(normal, normal)], kind="equivalent", margins=equivalence)),
        ("the same, with claims at their margin", worst([(normal, normal)], clear=1, margins=((0.0, 6.0),))),
        ("a tenth of the seeds 5 deviations higher, in one row or in both", worst(outlier, margins=null)),
        ("lognormal in one row or in both, deviations equal", worst([*one, *every], (1.0,), margins=null)),
        ("lognormal, deviations 3 to 10 apart", worst([*one, *every], margins=null)),
        ("the same with a pilot of 5 seeds", worst([*one, *every], margins=null, pilot=5)),
        ("pairs, correlation 0 to 0.9", max(worst([(normal, normal)], (1.0,), correlation=c) for c in (0.0, 0.5, 0.9))),
        (
            "pairs with such rows or lognormal ones, correlation 0.9",
            worst([*outlier, *one], (1.0,), margins=null, correlation=0.9),
        ),
        ("the same with a pilot of 5 seeds", worst([*outlier, *one], (1.0,), margins=null, correlation=0.9, pilot=5)),
        ("seeds of both rows do not learn, chance 0.1 to 0.5", max(sum(rates.values()) for rates in stuck)),
        (
            "seeds of one row do not learn, which is called the better",
            max(r["reproduced"] + r["direction only"] for r in one_row),
        ),
    ]


if __name__ == "__main__":
    for title, rate in table_rows():
        print(f"| {title} | {100 * rate:.1f} |")
