"""Verdicts on claims about fits: p values of statistics of all runs, at the levels and with the words of all verdicts.

Levels and correction are those of `eval.experiments.analysis.verdicts`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.experiments.analysis import isoflop_fit
from eval.experiments.analysis.isoflop_fit import Estimate
from eval.experiments.analysis.significance_tests import LEVEL
from eval.experiments.analysis.verdicts import decide_claims, p_entries

Array = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitDraft:
    """A claim about a fit with its p values, before the correction for the other claims."""

    claim: Mapping[str, Any]
    reason: str
    """Why the claim is not testable, or else what was estimated."""
    testable: bool = False
    above: Array = dataclasses.field(default_factory=lambda: np.ones(3))
    """p values of "the difference, in the claim's favour, is above" the limits -margin, 0 and margin."""
    below: Array = dataclasses.field(default_factory=lambda: np.ones(3))
    difference: Estimate | None = None
    """Difference between the estimate and the number that it is compared with."""


def compare_estimate(claim: Mapping[str, Any], difference: Estimate, text: str) -> FitDraft:
    """Return a claim about the difference between an estimate and the number that it is compared with."""
    limits = float(claim["margin"]) * np.array([-1.0, 0.0, 1.0])
    # In the claim's favour, above 0.
    toward = dataclasses.replace(difference, value=(-1 if claim["kind"] == "less" else 1) * difference.value)
    above, below = (np.array([float(test(limit)) for limit in limits]) for test in (toward.p_above, toward.p_below))
    return FitDraft(claim=claim, reason=text, testable=True, difference=difference, above=above, below=below)


def count_inner_minima(claim: Mapping[str, Any], p: Array, opposite_p: Array) -> FitDraft:
    """Compare the number of budgets with an inner minimum with the margin of a claim, which is the number that is needed.

    Args:
        p, opposite_p: [budgets], p values of "it has an inner minimum" and of its opposite.
    """
    needed, count = round(claim["margin"]), len(p)
    above = float(isoflop_fit.partial_conjunction_p(p, needed))
    # Fewer than `needed` have one if at least `count - needed + 1` have none.
    below = float(isoflop_fit.partial_conjunction_p(opposite_p, count - needed + 1))
    text = f"{int((p <= LEVEL).sum())} of {count} budgets have an inner minimum by a test at {LEVEL:.1%}, {needed} are needed"
    return FitDraft(claim=claim, reason=text, testable=True, above=np.full(3, above), below=np.full(3, below))


def judge_fit_claims(registration: Mapping[str, Any], drafts: Sequence[FitDraft], seeds: int) -> list[dict[str, Any]]:
    """Return the "claims" of experiment.json, as `eval.experiments.analysis.verdicts.judge` does.

    Args:
        drafts: of all registered claims, in their order.
        seeds: fewest seeds of a row.
    """
    if not drafts:
        return []
    above, below = (np.stack([getattr(draft, side) for draft in drafts]) for side in ("above", "below"))
    above, below, verdicts = decide_claims(above, below, np.array([draft.claim["kind"] == "equivalent" for draft in drafts]))
    changed = registration.get("changed") or ()
    return [
        _entry(draft, above[i], below[i], str(verdicts[i]), claims=len(drafts), seeds=seeds)
        | {"exploratory": draft.claim["id"] in changed}
        for i, draft in enumerate(drafts)
    ]


def _entry(draft: FitDraft, above: Array, below: Array, verdict: str, *, claims: int, seeds: int) -> dict[str, Any]:
    """Return the entry of experiment.json; `above` and `below` are the adjusted p values, [3]."""
    claim, difference, kind = draft.claim, draft.difference, draft.claim["kind"]
    entry: dict[str, Any] = dict.fromkeys(
        ("estimate", "interval", "bound", "mde", "rho", "p", "p_holm", "p_direction_holm", "p_opposite_holm")
    )
    entry |= {"id": claim["id"], "test": "fit", "n": seeds if draft.testable else 0}
    if not draft.testable:
        return entry | {"verdict": "not testable", "reason": draft.reason}
    entry |= p_entries(kind, draft.above, draft.below, above, below)
    if difference is not None:
        low, high = (float(end) for end in difference.interval())
        is_upper = (kind == "less") != (verdict == "contradicted")
        entry |= {"estimate": float(difference.value), "interval": [low, high]}
        entry["bound"] = max(abs(low), abs(high)) if kind == "equivalent" else high if is_upper else low
        entry["mde"] = difference.detectable(LEVEL / claims, 0.9 if kind == "equivalent" else 0.8)
    opposite = verdict == "contradicted"
    level = f"adjusted p {entry['p_opposite_holm' if opposite else 'p_holm']:.2g}{' of the opposite' * opposite}"
    return entry | {"verdict": verdict, "reason": f"{draft.reason}; {level}"}
