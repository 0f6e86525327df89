"""Verdicts on the claims of an experiment, by rules that are fixed before its first run.

A verdict is one of five: "reproduced", "contradicted", "equivalent", "not shown" and "not testable". The rules, in their order:

1. Seeds. Row and reference need three values each; seeds that are missing make n smaller. A row of which more than one seed did
   not learn or diverged is not testable. No run that has a value is left out.
2. Control. Row and reference must be better than the control row (one-sided Welch test at 5%), else the claim is not testable at
   this scale: two models that learned nothing do not differ, which says nothing about the claim. If the control row has no such
  score, the floors of the metric take its place, or else the baseline that is reported with the runs (unigram loss,
   majority class); a floor with "gate" always counts.
3. Test. Paired if the claim says so, else Welch. Holm's correction is over all claims of the registration; one that is not
   testable counts as p = 1.
4. Levels. The claim must hold at 4%, and its opposite at 1%. Together an experiment without any effect gives a false verdict of
   either kind in at most 5% of the cases.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.experiments.analysis import significance_tests
from eval.experiments.analysis.seed_values import SeedValues, find_seed_metric, seed_values, sign_of_better, split_metric
from eval.experiments.analysis.significance_tests import Array, Difference
from zoo.errors import BadInput

FEWEST_SEEDS = 3
"""Values of each row without which there is no verdict."""
LEVEL, OPPOSITE_LEVEL = 0.04, 0.01
"""Family-wise level of "reproduced" and "equivalent", and of "contradicted"; the sum is the chance of a false verdict."""
GATE_LEVEL = 0.05
"""Level at which a row must be better than the control row. It is not corrected: this test only withholds verdicts."""
BOUND = 0.95
"""Confidence of the bounds that are printed, each for a claim alone."""


def judge(
    registration: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], floors: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Return the "claims" of experiment.json: an entry for each registered claim, in their order.

    In addition to the fields of the schema, an entry has `reference` (of several, the one with the greatest p value, to which the
    numbers belong), `counts` and `learned` (seeds with a value, and seeds that learned, of row and reference), `unit` (the
    standard deviation that `mde` is a multiple of), `paired`, `p_opposite_holm`, `exploratory` and `notes`. `bound` is on the
    side that decides the verdict. For an equivalence it is that of the absolute difference, and `mde` the smallest margin that
    would be shown if there were no difference.

    Args:
        registration: as in experiment.json.
        cells: as in experiment.json; cells may be missing.
        floors: as in experiment.json: values of a metric that a trivial method reaches.

    Raises:
        BadInput: a claim on a metric whose better direction is unknown, or an equivalence without a margin.
    """
    drafts = [_Draft.of(registration, claim, cells, floors) for claim in registration["claims"]]
    if not drafts:
        return []
    p_holm, opposite_holm, holds, contradicted = decide_claims(
        np.array([draft.p for draft in drafts]), np.array([draft.p_opposite for draft in drafts])
    )
    changed = set(registration.get("changed") or ())
    return [
        draft.entry(
            claims=len(drafts),
            p_holm=float(p_holm[i]),
            p_opposite_holm=float(opposite_holm[i]),
            holds=bool(holds[i]),
            contradicted=bool(contradicted[i]),
            exploratory=draft.claim["id"] in changed,
        )
        for i, draft in enumerate(drafts)
    ]


def claim_references(claim: Mapping[str, Any]) -> list[str]:
    """Return the names of the rows that a claim compares its row with; the claim has one name or a list."""
    names = claim["reference"]
    return [names] if isinstance(names, str) else list(names)


def decide_claims(p: Array, p_opposite: Array) -> tuple[Array, Array, Array, Array]:
    """Return adjusted p values of the claims and of their opposites, which claims hold, and which are contradicted.

    Args:
        p, p_opposite: [..., claims], 1 for a claim that is not testable.
    """
    adjusted, opposite = significance_tests.holm_adjusted(p), significance_tests.holm_adjusted(p_opposite)
    holds = adjusted <= LEVEL
    return adjusted, opposite, holds, ~holds & (opposite <= OPPOSITE_LEVEL)


def p_values(kind: str, difference: Difference, margin: float) -> tuple[Array, Array]:
    """Return the p values of a claim and of its opposite."""
    if kind == "equivalent":
        return difference.p_within(margin), difference.p_beyond(margin)
    below, above = difference.p_below(), difference.p_above()
    return (below, above) if kind == "less" else (above, below)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Comparison:
    """The test of a claim against one of its references."""

    name: str
    reference: SeedValues
    difference: Difference | None
    """None if a row has fewer than two values."""
    rho: float | None
    shared: int
    """Number of seeds with a value in both rows."""

    @classmethod
    def of(cls, name: str, row: SeedValues, reference: SeedValues, is_paired: bool) -> "_Comparison":
        seeds = [seed for seed in row.values if seed in reference.values]
        pairs = [[side.values[seed] for seed in seeds] for side in (row, reference)]
        first, second = pairs if is_paired else [list(side.values.values()) for side in (row, reference)]
        difference = None
        if min(len(first), len(second)) >= 2:
            difference = (significance_tests.paired_difference if is_paired else significance_tests.welch_difference)(
                first, second
            )
        rho = significance_tests.seed_correlation(*pairs)
        return cls(name=name, reference=reference, difference=difference, rho=rho, shared=len(seeds))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Draft:
    """A claim with its test, before the correction for the other claims.

    A claim about several references must hold for all of them, which needs no correction: its p value is the greatest of their p
    values (Berger 1982, intersection-union test). The opposite claim need hold for only one reference, so the least p value is
    multiplied by the number of references.
    """

    claim: Mapping[str, Any]
    row: SeedValues
    comparisons: list[_Comparison]
    decisive: _Comparison
    """The comparison with the greatest p value, whose numbers the entry has."""
    p: float
    p_opposite: float
    reason: str
    """The reason that the claim is not testable, "" if it is."""

    @classmethod
    def of(
        cls,
        registration: Mapping[str, Any],
        claim: Mapping[str, Any],
        cells: Sequence[Mapping[str, Any]],
        floors: Sequence[Mapping[str, Any]],
    ) -> "_Draft":
        kind, margin, is_paired = claim["kind"], float(claim.get("margin") or 0), bool(claim.get("paired"))
        if kind == "equivalent" and not margin > 0:
            raise BadInput(f"claims.{claim['id']}.margin {claim.get('margin')}: an equivalence needs one above 0; state it")
        # Refuses a metric without a direction before any run, as this function also works without cells.
        sign_of_better(claim["metric"], claim.get("better"))
        sides = {
            name: seed_values(registration, cells, name, claim["metric"]) for name in (claim["row"], *claim_references(claim))
        }
        row, *others = sides.values()
        comparisons = [
            _Comparison.of(name, row, other, is_paired) for name, other in zip(claim_references(claim), others, strict=True)
        ]
        reason = _too_few(claim["metric"], sides) or (_too_few_pairs(comparisons) if is_paired else "") or _not_learned(sides)
        reason = reason or _gate(registration, claim, sides, cells, floors)
        tests = [comparison.difference for comparison in comparisons if comparison.difference is not None]
        if not reason and not all(difference.error > 0 for difference in tests):
            reason = "all seeds have the same values, so that there is no noise to compare with; check that the runs differ"
        if reason:
            return cls(
                claim=claim, row=row, comparisons=comparisons, decisive=comparisons[0], p=1.0, p_opposite=1.0, reason=reason
            )
        p, p_opposite = zip(*(p_values(kind, difference, margin) for difference in tests), strict=True)
        return cls(
            claim=claim,
            row=row,
            comparisons=comparisons,
            decisive=comparisons[int(np.argmax(p))],
            p=float(max(p)),
            p_opposite=min(1.0, len(tests) * float(min(p_opposite))),
            reason="",
        )

    def entry(
        self, *, claims: int, p_holm: float, p_opposite_holm: float, holds: bool, contradicted: bool, exploratory: bool
    ) -> dict[str, Any]:
        """Return the entry of experiment.json."""
        claim, difference, kind = self.claim, self.decisive.difference, self.claim["kind"]
        is_paired, reference = bool(claim.get("paired")), self.decisive.reference
        estimate = bound = unit = mde = None
        counts = (len(self.row.values), len(reference.values))
        if difference is not None:
            estimate, unit, counts = float(difference.estimate), float(difference.unit), difference.counts
            if difference.error > 0:
                bound = _bound(kind, difference, contradicted)
                smallest = significance_tests.smallest_margin if kind == "equivalent" else significance_tests.smallest_effect
                mde = unit * smallest(counts, claims=claims, alpha=LEVEL, is_paired=is_paired)
        verdict = "not testable" if self.reason else _verdict(kind, holds, contradicted)
        reason = self.reason or _explanation(claim, verdict, p_holm, p_opposite_holm, mde)
        return {
            "id": claim["id"],
            "estimate": estimate,
            "bound": bound,
            "p": None if self.reason else self.p,
            "p_holm": None if self.reason else p_holm,
            "rho": self.decisive.rho,
            "test": "tost" if kind == "equivalent" else "paired" if is_paired else "welch",
            "n": min(counts),
            "mde": mde,
            "verdict": verdict,
            "reason": reason,
            "reference": self.decisive.name,
            "counts": {"row": counts[0], "reference": counts[1]},
            "learned": {"row": self.row.learned, "reference": reference.learned},
            "unit": unit,
            "paired": is_paired,
            "p_opposite_holm": None if self.reason else p_opposite_holm,
            "exploratory": exploratory,
            "notes": [*self.row.notes, *(line for item in self.comparisons for line in item.reference.notes)],
        }


def _verdict(kind: str, holds: bool, contradicted: bool) -> str:
    if holds:
        return "equivalent" if kind == "equivalent" else "reproduced"
    return "contradicted" if contradicted else "not shown"


def _bound(kind: str, difference: Difference, contradicted: bool) -> float:
    """Return the bound on the side that decides: the upper one of a "less", the lower one of a "greater", or the other one."""
    half, estimate = float(difference.half_width(BOUND)), float(difference.estimate)
    half = -half if contradicted else half
    return {"less": estimate + half, "greater": estimate - half, "equivalent": abs(estimate) + half}[kind]


def _too_few(metric: str, sides: Mapping[str, SeedValues]) -> str:
    lines = [
        f"{side.row} has {len(side.values)} seed{'s' * (len(side.values) != 1)} with {metric}"
        for side in sides.values()
        if len(side.values) < FEWEST_SEEDS
    ]
    return f"{'; '.join(lines)}; a verdict needs {FEWEST_SEEDS}" if lines else ""


def _too_few_pairs(comparisons: Sequence[_Comparison]) -> str:
    lines = [f"{item.shared} seeds are shared with {item.name}" for item in comparisons if item.shared < FEWEST_SEEDS]
    return f"{'; '.join(lines)}; a paired verdict needs {FEWEST_SEEDS}" if lines else ""


def _not_learned(sides: Mapping[str, SeedValues]) -> str:
    lines = [
        f"{side.learned} of {side.ended} seeds of {side.row} learned" for side in sides.values() if side.learned < side.ended - 1
    ]
    return f"{'; '.join(lines)}; a verdict allows one that did not" if lines else ""


def _gate(
    registration: Mapping[str, Any],
    claim: Mapping[str, Any],
    sides: Mapping[str, SeedValues],
    cells: Sequence[Mapping[str, Any]],
    floors: Sequence[Mapping[str, Any]],
) -> str:
    """Return why a claim is not testable against the control row or a floor; "" if it is testable."""
    metric = claim["metric"]
    sign = sign_of_better(metric, claim.get("better"))
    control = seed_values(registration, cells, registration["control"], metric)
    baseline = list(control.values.values())
    # A claim about the control row is itself the comparison with it.
    is_control = registration["control"] in sides
    stands_in = not baseline and not is_control
    limits = [floor for floor in floors if floor["metric"] == metric and (floor.get("gate") or stands_in)]
    limits += _own_floor(registration, claim, cells) if stands_in and not limits else []
    if not is_control and len(baseline) < 2 and not limits:
        return f"the control row, {control.row}, lacks {metric} ({len(baseline)} seeds), and there is no floor; run it first"
    for side in sides.values():
        values = list(side.values.values())
        gates = [
            (
                f"the floor {floor['name']} ({floor['value']:g})",
                significance_tests.difference_from_constant(values, float(floor["value"])),
            )
            for floor in limits
        ]
        if len(baseline) > 1 and not is_control:
            gates.append((f"the control row, {control.row},", significance_tests.welch_difference(values, baseline)))
        for against, difference in gates:
            if not _is_better(difference, sign):
                return f"{side.row} is not better than {against} in {metric}: at this scale the claim cannot be tested"
    return ""


def _own_floor(
    registration: Mapping[str, Any], claim: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the baseline that is reported with the runs, as their held-out text's unigram loss; empty if there is none."""
    stage, score = split_metric(claim["metric"])
    name = find_seed_metric(score).reference or ("unigram_loss" if score.endswith("loss") else "")
    values = seed_values(registration, cells, claim["row"], f"{stage}/{name}").values if name else {}
    return [{"name": find_seed_metric(name).label, "value": float(np.mean(list(values.values())))}] if values else []


def _is_better(difference: Difference, sign: int) -> bool:
    if not difference.error > 0:
        return bool(sign * difference.estimate > 0)
    return bool((difference.p_above() if sign > 0 else difference.p_below()) <= GATE_LEVEL)


def _explanation(claim: Mapping[str, Any], verdict: str, p_holm: float, p_opposite_holm: float, mde: float | None) -> str:
    """Return the numbers behind a verdict in a sentence."""
    show, margin = find_seed_metric(claim["metric"], claim.get("better")).show, claim.get("margin") or 0.0
    assert mde is not None
    if verdict == "reproduced":
        return f"adjusted p {p_holm:.2g} is at most {LEVEL:g}"
    if verdict == "contradicted":
        opposite = f"a difference beyond {show(margin)}" if claim["kind"] == "equivalent" else "the opposite direction"
        return f"{opposite} has an adjusted p of {p_opposite_holm:.2g}, at most {OPPOSITE_LEVEL:g}"
    if claim["kind"] == "equivalent":
        if verdict == "equivalent":
            return f"a difference beyond {show(margin)} is excluded with an adjusted p of {p_holm:.2g}, at most {LEVEL:g}"
        return f"adjusted p {p_holm:.2g} is above {LEVEL:g}; this number of seeds can show a margin of {show(mde)} (80% power)"
    text = f"adjusted p {p_holm:.2g} is above {LEVEL:g}; this number of seeds finds a difference of {show(mde)} (80% power)"
    return f"{text}; the smallest difference of interest is {show(margin)}" if margin else text
