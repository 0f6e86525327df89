"""The page of a scaling experiment: figures and tables of the fit, computed from experiment.json alone."""

import json
from typing import Any

import pytest

from eval.experiments.analysis.family_exponents import judge_family_claims
from eval.experiments.analysis.scaling_fit import judge_scaling_claims
from eval.experiments.page import FIT_RULE, render_html, render_markdown, scaling_charts
from tests.support.experiment_result import masks
from tests.support.scaling_grids import families_result, loss_with_optimum, scaling_result


def scaling_page_result(*, cut: int | None = None, **settings: Any) -> dict[str, Any]:
    """Return an experiment.json of a scaling experiment; `cut` is the number of cells."""
    grid = scaling_result(loss_with_optimum(0.34, 0.34), noise=0.005, **settings)
    return fit_page_result("scaling", judge_scaling_claims, *grid, cut=cut)


def families_page_result() -> dict[str, Any]:
    """Return an experiment.json of four families, of which one has another exponent."""
    losses = dict.fromkeys(("gpt", "bert", "t5", "xlnet"), loss_with_optimum(0.34, 0.34))
    grid = families_result({**losses, "t5": loss_with_optimum(0.2, 0.4)}, noise=0.01)
    return fit_page_result("scaling_families", judge_family_claims, *grid)


def fit_page_result(name: str, judge: Any, registration: Any, cells: Any, cut: int | None = None) -> dict[str, Any]:
    cells = [{"run": f"{cell['row']}-{cell['seed']}", "command": "zoo train", "curve": [], **cell} for cell in cells[:cut]]
    registration |= {"hash": "9f2c41d0", "budget": "flops", "forecast": {}}
    result = masks() | {"name": name, "registration": registration, "cells": cells, "paper": [], "floors": [], "budget": {}}
    return json.loads(json.dumps(result | {"claims": judge(registration, cells)}, default=float))


def test_the_page_has_the_curves_the_exponents_and_the_prediction() -> None:
    result = scaling_page_result()
    page, text = render_html(result), render_markdown(result)
    assert page == render_html(json.loads(json.dumps(result)))
    # Two figures; an experiment without fits has none.
    assert page.count("<svg") == 4 and "Curves of equal FLOPs. 2e+11 FLOPs: 18," in page
    for counting in ("with embeddings, C with", "with embeddings, C without", "without embeddings, C with"):
        assert f"N {counting} last layer" in text
    assert "5e+12 FLOPs, held out" in text and FIT_RULE.split(":")[0] in text
    assert scaling_charts.scaling_blocks(masks()) == []
    assert "Optimal sizes" not in render_html(masks())


def test_the_page_of_several_families_has_the_curves_of_each() -> None:
    result = families_page_result()
    page, text = render_html(result), render_markdown(result)
    for family in ("gpt", "bert", "t5", "xlnet"):
        assert f"{family}, loss over parameters at equal FLOPs" in page
        assert f"{family}, N with embeddings, C with last layer" in text
    assert "Optimal sizes. gpt: exponent 0.5" in page and "t5: exponent 0.6" in page
    assert "held out" not in text and "exponents 0.6" in text


@pytest.mark.parametrize("cut", [0, 20])
def test_a_truncated_grid_has_no_fit(cut: int) -> None:
    result = scaling_page_result(cut=cut)
    assert scaling_charts.scaling_blocks(result) == [] and "a fit needs the loss of every registered run" in render_markdown(
        result
    )


@pytest.mark.planted
def test_a_budget_whose_best_size_is_at_an_end_has_no_cross() -> None:
    """A wrong grid of sizes: the optima of the two largest budgets lie far below it."""
    result = scaling_page_result(exponent=2.0)
    page = render_html(result)
    assert "5e+12 FLOPs: no inner minimum" in page and "no inner minima" in page
    assert "there is no inner minimum to predict" in page
