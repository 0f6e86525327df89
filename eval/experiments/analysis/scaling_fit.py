"""The judge of `scaling`: fits of the optimal model size to curves of equal FLOPs, with a bootstrap over cells.

At each budget C the mean loss of the sizes is a parabola in log N (Hoffmann et al. 2022, approach 2), whose minimum is the
optimal size; the slope of log N_opt over log C is the exponent. N counts all parameters of layers and embeddings, and C the FLOPs
that the runs recorded. The bootstrap samples, for each budget and size, its seeds with replacement.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DRAWS = 1_000
LEVEL = 0.05
"""Error of each one-sided bound, before Holm's correction."""
FEWEST_SIZES, FEWEST_BUDGETS, FEWEST_SEEDS = 3, 2, 2
CHINCHILLA = 0.5
NEEDS_MINIMA = ("below_kaplan", "chinchilla", "prediction")
"""Claims that are not testable unless the mean losses have an inner minimum at every budget."""

Curves = dict[str, dict[str, tuple[float, list[tuple[float, float]]]]]
"""Budget -> row -> (parameters, [(FLOPs, loss) of each seed])."""


def judge_scaling_claims(
    registration: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], floors: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Return the "claims" of experiment.json, as `eval.experiments.analysis.verdicts.judge` does."""
    from eval.experiments.analysis import significance_tests

    curves = read_curves(registration, cells)
    reason = _too_little(curves)
    draw = np.random.default_rng(0)
    draws = [] if reason else [fit_exponent(curves, draw) for _ in range(DRAWS)]
    entries = [_judged(claim, curves, reason, draws) for claim in registration["claims"]]
    testable = [entry for entry in entries if entry["p"] is not None]
    adjusted = significance_tests.holm_adjusted(np.array([entry["p"] for entry in testable])) if testable else []
    for entry, p_holm in zip(testable, adjusted, strict=True):
        entry["p_holm"] = float(p_holm)
        if entry["verdict"] in ("reproduced", "equivalent") and p_holm > LEVEL:
            entry["verdict"], entry["reason"] = "not shown", f"adjusted p {p_holm:.2g} is above {LEVEL:g}"
    for entry in entries:
        entry["exploratory"] = entry["id"] in (registration.get("changed") or ())
    return entries


def read_curves(registration: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> Curves:
    """Return the losses by budget and row; a row's name begins with its budget, as in c1e12-l2w64."""
    metric = registration["claims"][0]["metric"] if registration["claims"] else "train/loss"
    stage, score = metric.split("/")
    curves: Curves = {}
    for row in registration["rows"]:
        if row["name"] == registration["control"]:
            continue
        options = row["stages"][stage]["options"]
        layers, width, vocab = (options[f"model.{name}"] for name in ("layers", "width", "vocab"))
        values = [
            (float(cell["costs"]["flops"]), float(cell["scores"][score]))
            for cell in cells
            if (cell["row"], cell["stage"]) == (row["name"], stage) and cell["status"] in ("done", "did not learn")
            if cell["costs"].get("flops") and score in cell["scores"]
        ]
        if values:
            # Attention and feed-forward matrices of a layer have 12 D^2 parameters.
            size = float(12 * layers * width**2 + vocab * width)
            curves.setdefault(row["name"].partition("-")[0], {})[row["name"]] = (size, values)
    return curves


def optimal_size(sizes: Sequence[float], losses: Sequence[float]) -> tuple[float, float, bool]:
    """Fit a parabola over log size; return the log of the best size, the loss there, and whether it is an inner minimum."""
    logs = np.log(sizes)
    a, b, c = np.polyfit(logs, losses, 2)
    if a <= 0 or not logs[0] < -b / (2 * a) < logs[-1]:
        best = int(np.argmin(losses))
        return float(logs[best]), float(losses[best]), False
    return float(-b / (2 * a)), float(c - b**2 / (4 * a)), True


def fit_exponent(curves: Curves, draw: np.random.Generator | None = None) -> dict[str, float]:
    """Return the exponent, the number of budgets without an inner minimum, and the error of the prediction at the last budget.

    Args:
        draw: generator that samples seeds with replacement; None = use each seed once.
    """
    log_flops, log_sizes, losses, outer = [], [], [], 0
    for rows in _ordered(curves):
        means, flops = [], []
        for _, values in rows:
            chosen = range(len(values)) if draw is None else draw.integers(0, len(values), len(values))
            means.append(float(np.mean([values[i][1] for i in chosen])))
            flops.append(float(np.mean([values[i][0] for i in chosen])))
        size, loss, is_inner = optimal_size([parameters for parameters, _ in rows], means)
        log_flops.append(math.log(float(np.mean(flops))))
        log_sizes.append(size)
        losses.append(loss)
        outer += not is_inner
    result = {"exponent": float(np.polyfit(log_flops, log_sizes, 1)[0]), "outer": float(outer), "error": math.nan}
    if len(losses) > 2:
        slope, level = np.polyfit(log_flops[:-1], np.log(losses[:-1]), 1)
        result["error"] = float(losses[-1] - math.exp(slope * log_flops[-1] + level))
    return result


def _ordered(curves: Curves) -> list[list[tuple[float, list[tuple[float, float]]]]]:
    """Return the rows of each budget in the order of their sizes, the budgets in the order of their FLOPs."""
    budgets = sorted(curves.values(), key=lambda rows: min(values[0][0] for _, values in rows.values()))
    return [sorted(rows.values(), key=lambda row: row[0]) for rows in budgets]


def _too_little(curves: Curves) -> str:
    """Return why nothing can be fitted, "" if it can."""
    fitted = [rows for rows in curves.values() if len(rows) >= FEWEST_SIZES]
    if len(fitted) < max(FEWEST_BUDGETS, len(curves)):
        return f"a fit needs {FEWEST_BUDGETS} budgets of {FEWEST_SIZES} sizes with results, each; there are {len(fitted)}"
    seeds = min(len(values) for rows in curves.values() for _, values in rows.values())
    return f"a bootstrap needs {FEWEST_SEEDS} seeds of each size; there is {seeds}" if seeds < FEWEST_SEEDS else ""


def _judged(claim: Mapping[str, Any], curves: Curves, reason: str, draws: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    entry: dict[str, Any] = dict.fromkeys(("estimate", "bound", "p", "p_holm", "rho", "mde"))
    entry |= {"id": claim["id"], "test": "bootstrap", "n": 0, "verdict": "not testable", "reason": reason}
    if reason:
        return entry
    entry["n"] = min(len(values) for rows in curves.values() for _, values in rows.values())
    estimate = fit_exponent(curves)
    name, target, margin = {
        "inner_minimum": ("outer", 0.0, 0.5),
        "below_kaplan": ("exponent", 0.0, claim["margin"]),
        "chinchilla": ("exponent", CHINCHILLA, claim["margin"]),
        "prediction": ("error", 0.0, claim["margin"]),
    }[claim["id"]]
    if math.isnan(estimate[name]):
        return entry | {"reason": "a prediction needs three budgets"}
    if claim["id"] in NEEDS_MINIMA and estimate["outer"]:
        what = f"at {estimate['outer']:.0f} of {len(curves)} budgets the best size is the smallest or the largest"
        return entry | {"reason": f"{what}, so there is no optimum to fit"}
    values = np.array([item[name] for item in draws])
    # A draw without an optimum at some budget does not support a claim about the optima.
    unfit = np.array([claim["id"] in NEEDS_MINIMA and item["outer"] > 0 for item in draws])
    if claim["kind"] == "equivalent":
        # The larger of two one-sided tests, by the share of draws beyond either margin.
        p = max(_share((values >= target + margin) | unfit), _share((values <= target - margin) | unfit))
        bound = float(np.quantile(abs(values - target), 1 - LEVEL))
        beyond = bound > margin and min(np.quantile(abs(values - target), LEVEL), abs(estimate[name] - target)) > margin
    else:
        p, bound = _share((values >= margin) | unfit), float(np.quantile(values, 1 - LEVEL))
        beyond = float(np.quantile(values, LEVEL)) > margin
    holds = p <= LEVEL
    verdict = (
        ("equivalent" if claim["kind"] == "equivalent" else "reproduced") if holds else "contradicted" if beyond else "not shown"
    )
    low, high = np.quantile(values, (LEVEL, 1 - LEVEL))
    text = f"{name} {estimate[name]:.3f}, 90% of {DRAWS:,} draws of seeds are from {low:.3f} to {high:.3f}"
    return entry | {"estimate": estimate[name] - target, "bound": bound, "p": p, "verdict": verdict, "reason": text}


def _share(beyond: Any) -> float:
    """Return the share of draws that contradict a claim; never 0, since the number of draws is finite."""
    return (1 + int(np.sum(beyond))) / (DRAWS + 1)
