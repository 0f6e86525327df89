"""The judge of `width_transfer`: verdicts on synthetic losses over the learning rate whose minima are known."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from eval.experiments import catalogue
from eval.experiments.analysis.best_rates import RateCurve, judge_rate_claims, read_rate_curves
from eval.experiments.page import RATE_RULE, rate_charts, render_html, render_markdown
from tests.support.experiment_result import masks

FAMILIES = ("gpt", "bert", "t5")
SEEDS = 5
SHIFTS = {"narrow": 0.0, "transferred": 0.1, "standard": -3.0}
"""Model -> doublings from the best rate of the narrow model, 2^-7, to its own."""


def rates_result(
    changes: Mapping[tuple[str, str], float] = {}, *, noise: float = 0.003, seeds: int = SEEDS, draw: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a registration and cells; `changes` are shifts by (family, model)."""
    rng = np.random.default_rng(draw)
    rows, cells = [], []
    for family in FAMILIES:
        runs = [(f"fresh-{family}", 1e-9, 6.0)]
        for model, shift in SHIFTS.items():
            tried = range(-12, -4) if model == "standard" else range(-10, -4)
            optimum = -7 + changes.get((family, model), shift)
            runs += [(f"{family}-{model}-r{at}", 2.0**at, 3.0 + 0.05 * (at - optimum) ** 2) for at in tried]
        for name, rate, loss in runs:
            rows.append({"name": name, "stages": {"train": {"recipe": f"{family}-nano", "options": {"optim.lr": rate}}}})
            for seed in range(seeds):
                scores = {"loss": loss + noise * float(rng.normal())}
                cells.append({"row": name, "seed": seed, "stage": "train", "status": "done", "scores": scores})
    claims = [vars(claim) for claim in catalogue.find_experiment("width_transfer").claims]
    registration = {"rows": rows, "control": "fresh-gpt", "claims": claims, "seeds": list(range(seeds)), "changed": []}
    return registration, cells


def verdicts(*grid: Any) -> dict[str, str]:
    return {entry["id"].removesuffix("_transferred"): entry["verdict"] for entry in judge_rate_claims(*grid)}


def test_rates_that_stay_and_rates_that_fall() -> None:
    entries = judge_rate_claims(*rates_result())
    assert [entry["verdict"] for entry in entries] == ["equivalent"] * 3 + ["reproduced"]
    low, high = entries[0]["interval"]
    assert low < 0.1 < high and entries[0]["estimate"] == pytest.approx(0.1, abs=0.06) and entries[0]["n"] == SEEDS
    assert "by a factor of 1.0" in entries[0]["reason"] and "in doublings +0.1" in entries[0]["reason"]
    assert "t5: the best rate moves from 0.007" in entries[3]["reason"] and "in doublings -3.0" in entries[3]["reason"]


@pytest.mark.planted
def test_other_shifts_are_detected() -> None:
    moved = verdicts(*rates_result({("bert", "transferred"): 1.4, ("t5", "transferred"): -0.5}))
    assert moved == {"gpt": "equivalent", "bert": "contradicted", "t5": "not shown", "standard_falls": "reproduced"}
    # One family whose rate rises contradicts a claim about all.
    assert verdicts(*rates_result({("gpt", "standard"): 0.6}))["standard_falls"] == "contradicted"


def test_a_best_rate_at_an_end_is_not_compared() -> None:
    registration, cells = rates_result({("gpt", "narrow"): 4.0, ("t5", "standard"): -9.0})
    entries = {entry["id"]: entry for entry in judge_rate_claims(registration, cells)}
    assert entries["gpt_transferred"]["verdict"] == "not testable"
    assert (
        "gpt, narrow: the best rate of 5 seeds is the lowest or the highest that was tried"
        in entries["gpt_transferred"]["reason"]
    )
    assert entries["standard_falls"]["verdict"] == "not testable"
    # The lowest rate of the standard parametrization is an upper bound of its best one.
    lowest = verdicts(*rates_result({("t5", "standard"): -9.0}))
    assert lowest == {"gpt": "equivalent", "bert": "equivalent", "t5": "equivalent", "standard_falls": "reproduced"}
    assert verdicts(*rates_result({("t5", "standard"): 4.0}))["standard_falls"] == "not testable"


def test_missing_runs_few_seeds_and_models_that_did_not_learn() -> None:
    registration, cells = rates_result()
    cut = [cell for cell in cells if cell["row"] != "bert-narrow-r-8"]
    reasons = {entry["id"]: entry["reason"] for entry in judge_rate_claims(registration, cut)}
    assert reasons["bert_transferred"] == "bert, narrow: bert-narrow-r-8 lacks seeds; it needs the loss of every registered run"
    assert {*verdicts(*rates_result(seeds=3)).values()} == {"not testable"}
    worse = [{**cell, "scores": {"loss": 2.9}} if cell["row"] == "fresh-t5" else cell for cell in cells]
    assert "is better than the control row in every seed" in judge_rate_claims(registration, worse)[2]["reason"]


def test_a_run_that_diverged_has_no_part_in_a_parabola() -> None:
    registration, cells = rates_result(noise=0.0)
    for cell in cells:
        if cell["row"] == "gpt-narrow-r-6":
            cell |= {"status": "diverged", "scores": {}}
    curve = read_rate_curves(registration, cells)["gpt"]["narrow"]
    assert isinstance(curve, RateCurve) and np.isinf(curve.losses[:, 4]).all() and (curve.best == -7).all()


def test_the_best_rate_is_the_minimum_of_the_parabola() -> None:
    rates = np.arange(-9.0, -3.0)
    losses = np.array([2.0 + 0.3 * (rates - optimum) ** 2 for optimum in (-6.2, -5.5, -12.0)])
    curve = RateCurve(log_rates=rates, losses=losses)
    assert curve.best == pytest.approx([-6.2, -5.5, -9.0]) and curve.is_inside.tolist() == [True, True, False]


def test_false_verdicts_are_rare() -> None:
    """With shifts of exactly the margin, 0.5 doublings, neither an equivalence nor its opposite is true beyond doubt."""
    changes = {(family, "transferred"): 0.5 for family in FAMILIES} | {("gpt", "standard"): -0.5}
    wrong = [
        any(
            verdict in ("equivalent", "contradicted", "reproduced")
            for verdict in verdicts(*rates_result(changes, noise=0.02, draw=draw)).values()
        )
        for draw in range(150)
    ]
    # With a rate of 5%, 150 grids have more than 10.5% wrong ones with a chance of 0.1%.
    assert np.mean(wrong) <= 0.05 + 3.1 * math.sqrt(0.05 * 0.95 / 150)


def test_the_page_has_a_figure_of_each_family() -> None:
    registration, cells = rates_result()
    cells = [{"run": f"{cell['row']}-{cell['seed']}", "command": "zoo train", "curve": [], **cell} for cell in cells]
    registration |= {"hash": "9f2c41d0", "budget": "input_tokens", "forecast": {}}
    result = masks() | {
        "name": "width_transfer",
        "registration": registration,
        "cells": cells,
        "paper": [],
        "floors": [],
        "budget": {},
    }
    result |= {"claims": judge_rate_claims(registration, cells)}
    page, text = render_html(json.loads(json.dumps(result, default=float))), render_markdown(result)
    assert page.count("over the learning rate") >= 3 and "Best rates: narrow: 0.007" in page
    assert RATE_RULE in text and "t of the shifts" in text
    assert rate_charts.rate_blocks(masks()) == []
