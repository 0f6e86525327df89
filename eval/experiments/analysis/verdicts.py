"""Verdicts on the claims of an experiment, by rules that are fixed before its first run.

A difference d is that of row and reference, with the sign of the claim: above 0, it is in the claim's favour. The rules:

1. Seeds. Row and reference need five registered seeds each, all of which were run to an end.
2. Learned. A seed learned if its value is better than the floor of the metric (`learned_seeds.strictest_floor`) by more than the
   claim's margin. A seed that diverged or failed did not. If no seed of either side learned, the claim is not testable.
3. Means or shares. If all seeds of both sides learned, means are compared, else the shares of seeds that learned (Fisher's exact
   test). Both are tests given the number of seeds that learned, so that together they have the level of one.
4. Means. The error is that of the larger of the two variances, or of the pilot's (`Claim.pilot_deviation`), or that of the paired
   differences; the error over items is added if the outcomes of items are known.
5. Verdict. With the margin m, a direction is "reproduced" if d > m is shown, "equivalent" if -m < d < m, "contradicted" if d < 0,
   "direction only" if d > 0, in this order, and else "not shown". An equivalence is "equivalent" if -m < d < m is shown, and
   "contradicted" if d > m or d < -m is.
6. Levels. All statements "d is above" a limit have a family-wise level of 2.5% over the claims and their metrics, and so have all
   statements "d is below" one (`significance_tests.step_down`). Whatever the true differences are, a registration with any false
   verdict has a chance of at most 5%. With one claim, the verdict is what its two-sided 95% interval says.
7. Two metrics. If the verdicts by both metrics disagree, the verdict is "depends on the metric".
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.experiments.analysis import learned_seeds, significance_tests
from eval.experiments.analysis.claim_comparison import Comparison, Json
from eval.experiments.analysis.learned_seeds import Floor
from eval.experiments.analysis.seed_values import find_seed_metric, row_seeds, seed_values, sign_of_better
from eval.experiments.analysis.significance_tests import LEVEL, Array, Design
from eval.experiments.declaration import FEWEST_SEEDS
from zoo.errors import BadInput

FINAL = ("reproduced", "contradicted", "equivalent", "depends on the metric")
"""Verdicts that a later look does not change."""


def judge(
    registration: Json, cells: Sequence[Json], floors: Sequence[Json] = (), items: Sequence[Json] = ()
) -> list[dict[str, Any]]:
    """Return the "claims" of experiment.json: an entry for each registered claim, in their order.

    The numbers of an entry are those of the first metric and, of several references, of the one with the greatest p value.
    `interval` is the two-sided 95% interval of the difference, and `bound` its end on the side that decides; `p` and `p_holm` are
    of the claim with its margin, `p_direction_holm` of its direction alone, `p_opposite_holm` of the opposite. `mde` is the
    difference whose direction these seeds find in 80% of the cases (of an equivalence, the margin that they show), and `power`
    the chance for a difference that equals the margin (of an equivalence, that it is shown if the rows are equal).

    Args:
        registration: as in experiment.json. With `looks`, the claims are judged at these numbers of seeds, and at no other.
        cells: as in experiment.json; cells may be missing.
        floors: as in experiment.json: values of a metric that a trivial method reaches.
        items: as in experiment.json: errors over items of a difference in a metric, see `item_sampling_error`.

    Raises:
        BadInput: a claim on a metric whose better direction is unknown, an equivalence without a margin, or looks that do not end
            at the number of seeds.
    """
    looks = registration.get("looks")
    if not looks:
        return _judge_once(registration, cells, floors, items, LEVEL)
    seeds = registration["seeds"]
    if any("seeds" in row for row in registration["rows"]):
        raise BadInput("looks: rows have seeds of their own; leave out one of the two")
    if sorted({*looks}) != list(looks) or looks[-1] != len(seeds) or looks[0] < FEWEST_SEEDS:
        raise BadInput(f"looks {looks}: must rise from at least {FEWEST_SEEDS} to the number of seeds, {len(seeds)}")
    entries: list[dict[str, Any]] = []
    for look, level in zip(looks, significance_tests.spent_levels(looks), strict=True):
        now = _judge_once({**registration, "seeds": seeds[:look]}, cells, floors, items, level)
        now = [entry | {"look": look} for entry in now]
        entries = [_later(before, entry) for before, entry in zip(entries, now, strict=True)] if entries else now
    return entries


def _later(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return the entry that counts: the earlier one if it is final, or if the later look decides nothing more."""
    open_now = now["verdict"] == "not testable" or (before["verdict"] == "direction only" and now["verdict"] == "not shown")
    return before if before["verdict"] in FINAL or open_now else now


def _judge_once(
    registration: Json, cells: Sequence[Json], floors: Sequence[Json], items: Sequence[Json], level: float
) -> list[dict[str, Any]]:
    drafts = [[_draft(registration, part, cells, floors, items) for part in claim_parts(c)] for c in registration["claims"]]
    flat = [draft for parts in drafts for draft in parts]
    if not flat:
        return []
    above, below = (np.array([getattr(draft, side) for draft in flat]) for side in ("above", "below"))
    kinds = np.array([draft.claim["kind"] == "equivalent" for draft in flat])
    above, below, verdicts = decide_claims(above, below, kinds, level)
    judged = {
        id(draft): draft.entry(above=above[i], below=below[i], verdict=str(verdicts[i]), level=level, tests=len(flat))
        for i, draft in enumerate(flat)
    }
    changed = set(registration.get("changed") or ())
    return [
        _combined([judged[id(draft)] for draft in parts]) | {"exploratory": parts[0].claim["id"] in changed} for parts in drafts
    ]


def claim_references(claim: Json) -> list[str]:
    """Return the names of the rows that a claim compares its row with; the claim has one name or a list."""
    names = claim["reference"]
    return [names] if isinstance(names, str) else list(names)


def claim_parts(claim: Json) -> list[Json]:
    """Return a claim as it is for each of its metrics: the first, and the second if it has one.

    A claim that a row is better is one in both: a lower loss and a higher accuracy.
    """
    if not claim.get("second_metric"):
        return [claim]
    names = {"metric": "second_metric", "margin": "second_margin", "pilot_deviation": "second_pilot_deviation"}
    second = {**claim, **{name: claim.get(other) for name, other in names.items()}, "better": None}
    if sign_of_better(claim["metric"], claim.get("better")) != sign_of_better(second["metric"]):
        second["kind"] = {"less": "greater", "greater": "less"}.get(claim["kind"], claim["kind"])
    return [claim, second]


def decide_claims(above: Array, below: Array, is_equivalence: Array, level: float = LEVEL) -> tuple[Array, Array, Array]:
    """Return the adjusted p values and the verdicts.

    Args:
        above, below: [..., claims, 3], p values of "d is above" and of "d is below" the limits -margin, 0 and margin; 1 for a
            claim that is not testable.
        is_equivalence: [claims].
    """
    # The strongest statements of a family; of an equivalence, one that implies the others, which several references need not.
    release_above = np.where(is_equivalence, np.maximum(above[..., 0], above[..., 2]), above[..., 2])
    release_below = np.where(is_equivalence, np.maximum(below[..., 0], below[..., 2]), below[..., 1])
    above, below = (
        np.stack([significance_tests.step_down(release, family[..., limit]) for limit in range(3)], -1)
        for release, family in ((release_above, above), (release_below, below))
    )
    over, under = above <= level, below <= level
    within = over[..., 0] & under[..., 2]
    direction = np.select(
        [over[..., 2], within, under[..., 1], over[..., 1]],
        ["reproduced", "equivalent", "contradicted", "direction only"],
        "not shown",
    )
    equivalence = np.select([within, over[..., 2] | under[..., 0]], ["equivalent", "contradicted"], "not shown")
    return above, below, np.where(is_equivalence, equivalence, direction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Draft:
    """A claim by one metric with its tests, before the correction for the other claims.

    What must hold for all references needs no correction: its p value is the greatest (Berger 1982, intersection-union test).
    What need hold for one of them has the least p value, multiplied by their number.
    """

    claim: Json
    comparisons: list[Comparison]
    decisive: Comparison
    """The comparison with the greatest p value, whose numbers the entry has."""
    floor: Floor | None
    above: Array
    below: Array
    reason: str
    """The reason that the claim is not testable, "" if it is."""

    def entry(self, *, above: Array, below: Array, verdict: str, level: float, tests: int) -> dict[str, Any]:
        """Return the entry of experiment.json for one metric.

        Args:
            above, below: [3], the adjusted p values.
            tests: number of claims and metrics that share the level.
        """
        claim, kind, decisive = self.claim, self.claim["kind"], self.decisive
        names = ("estimate", "interval", "bound", "unit", "mde", "power", "p", "p_holm", "p_direction_holm", "p_opposite_holm")
        entry: dict[str, Any] = dict.fromkeys(names)
        if not self.reason:
            entry |= p_entries(kind, self.above, self.below, above, below)
        verdict = "not testable" if self.reason else verdict
        if (difference := decisive.difference) is not None:
            entry |= {"estimate": float(difference.estimate), "unit": float(difference.unit)}
            if decisive.outcome == "means":
                entry |= _mean_entries(claim, decisive, verdict, level / tests)
        row, reference = decisive.row, decisive.reference
        return {
            "id": claim["id"],
            "metric": claim["metric"],
            **entry,
            "rho": decisive.rho,
            "test": {"shares": "fisher", "none": ""}.get(decisive.outcome)
            or ("tost" if kind == "equivalent" else "paired" if claim.get("paired") else "larger variance"),
            "n": min(len(row.values), len(reference.values)),
            "verdict": verdict,
            "reason": self.reason or _explanation(claim, decisive, verdict, entry, level),
            "reference": reference.row,
            "counts": {"row": len(row.values), "reference": len(reference.values)},
            "learned": {"row": row.learned, "reference": reference.learned},
            "shares": {"row": learned_seeds.share_of(row), "reference": learned_seeds.share_of(reference)},
            "outcome": decisive.outcome,
            "floor": None if self.floor is None else {"name": self.floor[0].strip(","), "value": self.floor[1]},
            "paired": bool(claim.get("paired")),
            "seed_error": decisive.seed_error,
            "item_error": None if decisive.item is None else decisive.item["item_error"],
            "items": None if decisive.item is None else {**decisive.item, "seed_error": decisive.seed_error},
            "notes": [*row.notes, *(line for item in self.comparisons for line in item.reference.notes)],
        }


def _draft(registration: Json, claim: Json, cells: Sequence[Json], floors: Sequence[Json], items: Sequence[Json]) -> _Draft:
    kind, metric, margin = claim["kind"], claim["metric"], float(claim.get("margin") or 0)
    if kind == "equivalent" and not margin > 0:
        raise BadInput(f"claims.{claim['id']}.margin {claim.get('margin')}: an equivalence needs one above 0; state it")
    # Refuses a metric without a direction before any run, as this function also works without cells.
    sign = sign_of_better(metric, claim.get("better"))
    names = claim_references(claim)
    floor = learned_seeds.strictest_floor(registration, metric, sign, (claim["row"], *names), cells, floors)
    limit = None if floor is None else floor[1] + sign * margin
    row, *others = (seed_values(registration, cells, name, metric).against(limit, sign) for name in (claim["row"], *names))
    by_reference = {item["reference"]: item for item in items if (item["row"], item["metric"]) == (claim["row"], metric)}
    tests = [Comparison.of(claim, row, other, floor, by_reference.get(other.row)) for other in others]
    reason = next((test.reason for test in tests if test.reason), "")
    control = registration.get("control")
    if not reason and floor is None and control and control not in (claim["row"], *names):
        reason = (
            f"the control row, {control}, lacks {metric} ({len(row_seeds(registration, control))} seeds), and there is no floor"
        )
        reason += "; run it first"
    above, below = (np.stack([getattr(test, side) for test in tests]) for side in ("above", "below"))
    hardest = np.argmax(np.maximum(above[:, 0], below[:, 2]) if kind == "equivalent" else above[:, 2])
    for_all = {"above": above.max(0), "below": below.max(0)}
    for_one = {side: np.minimum(1.0, len(tests) * family.min(0)) for side, family in (("above", above), ("below", below))}
    if kind == "equivalent":
        above = np.array([*for_all["above"][:2], for_one["above"][2]])
        below = np.array([for_one["below"][0], *for_all["below"][1:]])
    else:
        above, below = for_all["above"], for_one["below"]
    if reason:
        above, below = np.ones((2, 3))
    return _Draft(
        **{"claim": claim, "comparisons": tests, "decisive": tests[int(hardest)], "floor": floor, "reason": reason},
        above=above,
        below=below,
    )


def p_entries(kind: str, above: Array, below: Array, above_holm: Array, below_holm: Array) -> dict[str, float | None]:
    """Return the p values of an entry: of the claim with its margin, adjusted, of its direction alone, and of the opposite.

    Args:
        above, below, above_holm, below_holm: [3], as in `decide_claims`, before and after the correction.
    """
    if kind == "equivalent":
        p, p_holm = max(above[0], below[2]), max(above_holm[0], below_holm[2])
        direction, opposite = None, min(above_holm[2], below_holm[0])
    else:
        p, p_holm, direction, opposite = above[2], above_holm[2], float(above_holm[1]), below_holm[1]
    return {"p": float(p), "p_holm": float(p_holm), "p_direction_holm": direction, "p_opposite_holm": float(opposite)}


def _mean_entries(claim: Json, test: Comparison, verdict: str, alpha: float) -> dict[str, Any]:
    """Return interval, bound, detectable difference and power of a comparison of means."""
    difference, kind, margin = test.difference, claim["kind"], float(claim.get("margin") or 0)
    assert difference is not None
    estimate, half = float(difference.estimate), float(difference.half_width(0.975))
    low, high = estimate - half, estimate + half
    entry: dict[str, Any] = {"interval": [low, high]}
    entry["bound"] = (
        max(abs(low), abs(high)) if kind == "equivalent" else high if (kind == "less") != (verdict == "contradicted") else low
    )
    if max(test.deviations) > 0:
        design = Design(
            counts=difference.counts,
            deviations=test.deviations,
            alpha=alpha,
            is_paired=bool(claim.get("paired")),
            least=float(claim.get("pilot_deviation") or 0),
            item_error=0.0 if test.item is None else test.item["item_error"],
            items=0 if test.item is None else test.item["items"],
        )
        power = significance_tests.power_of_equivalence if kind == "equivalent" else significance_tests.power_of_direction
        entry["mde"] = significance_tests.smallest_effect(design, is_equivalence=kind == "equivalent")
        entry["power"] = power(margin, design) if margin else None
    return entry


def _combined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the entry of a claim from those of its metrics."""
    first, names = parts[0], ("metric", "estimate", "interval", "p", "verdict")
    entry = {key: value for key, value in first.items() if key != "metric"}
    entry["metrics"] = [{name: part[name] for name in names} for part in parts]
    if len(parts) == 1:
        return entry
    second = parts[1]
    entry["notes"] = [*first["notes"], *(line for line in second["notes"] if line not in first["notes"])]
    sides = {first["verdict"], second["verdict"]}
    clashes = ({"reproduced", "contradicted"}, {"direction only", "contradicted"}, {"equivalent", "contradicted"})
    if sides in (*clashes, {"reproduced", "equivalent"}):
        reason = f"{first['verdict']} in {first['metric']}, {second['verdict']} in {second['metric']}"
        return entry | {"verdict": "depends on the metric", "reason": reason}
    return entry


def _explanation(claim: Json, test: Comparison, verdict: str, entry: Json, level: float) -> str:
    """Return the numbers behind a verdict in a sentence."""
    show, margin = find_seed_metric(claim["metric"], claim.get("better")).show, float(claim.get("margin") or 0)
    p, opposite, limit = entry["p_holm"], entry["p_opposite_holm"], f"{100 * level:.2g}%"
    if test.outcome == "shares":
        counts = " and ".join(f"{side.learned} of {side.ended} seeds of {side.row}" for side in (test.row, test.reference))
        decides = min(p, opposite) if verdict == "not shown" else opposite if verdict == "contradicted" else p
        return f"{counts} learned, so the shares are compared and not the means: adjusted p {decides:.2g}, level {limit}"
    if verdict == "reproduced":
        return f"a difference beyond {show(margin)} has an adjusted p of {p:.2g}, at most {limit}"
    if verdict == "contradicted":
        what = f"a difference beyond {show(margin)}" if claim["kind"] == "equivalent" else "the opposite direction"
        return f"{what} has an adjusted p of {opposite:.2g}, at most {limit}"
    if verdict == "equivalent":
        return f"a difference of {show(margin)} or more is excluded at {limit} on both sides"
    detectable = "" if entry["mde"] is None else f"; these seeds find {show(entry['mde'])} in 80% of the cases"
    if verdict == "direction only":
        beyond = f"a difference beyond {show(margin)} one of {p:.2g}"
        return f"the direction has an adjusted p of {entry['p_direction_holm']:.2g}, {beyond}; the level is {limit}"
    if claim["kind"] == "equivalent":
        detectable = detectable.replace("find", "show a margin of")
        return f"adjusted p {p:.2g} is above {limit}{detectable}"
    text = f"the direction has an adjusted p of {entry['p_direction_holm']:.2g}, above {limit}{detectable}"
    return f"{text}; the smallest difference of interest is {show(margin)}" if margin else text
