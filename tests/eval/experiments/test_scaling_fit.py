"""The fit of optimal sizes: exponents that are put into synthetic losses come out again."""

from typing import Any

import numpy as np
import pytest

from eval.experiments import catalogue
from eval.experiments.analysis import scaling_fit

BUDGETS = (1e12, 1e13, 1e14)
VOCAB = 2048


def synthetic(alpha: float, beta: float, *, noise: float = 1e-4, seeds: int = 3) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a registration and cells with the losses 2 + A N^-alpha + B D^-beta, the best size of each budget in the middle."""
    rng = np.random.default_rng(0)
    rows, cells = [{"name": "fresh", "label": "", "stages": {}}], []
    for budget in BUDGETS:
        best = 1e5 * (budget / BUDGETS[0]) ** (beta / (alpha + beta))
        for factor in (0.25, 0.5, 1.0, 2.0, 4.0):
            # One layer of a real-valued width has this many parameters.
            roots = np.roots([12.0, VOCAB, -best * factor])
            width = float(roots[roots > 0][0].real)
            name = f"c{budget:g}-{factor:g}"
            options = {"model.layers": 1, "model.width": width, "model.vocab": VOCAB}
            rows.append({"name": name, "label": name, "stages": {"train": {"options": options}}})
            size = best * factor
            data, scale = budget / size, budget / best
            for seed in range(seeds):
                loss = 2 + (size / best) ** -alpha / alpha + (data / scale) ** -beta / beta + noise * rng.normal()
                # Without it the smallest loss would be the same at all budgets.
                loss *= (budget / BUDGETS[0]) ** -0.05
                scored = {"stage": "train", "status": "done", "scores": {"loss": loss}, "costs": {"flops": budget}}
                cells.append({"row": name, "seed": seed, **scored})
    claims = [vars(claim) for claim in catalogue.find_experiment("scaling").claims]
    return {"rows": rows, "control": "fresh", "claims": claims, "seeds": list(range(seeds)), "changed": []}, cells


@pytest.mark.parametrize(
    ("alpha", "beta", "verdicts"),
    [
        (0.3, 0.3, ["reproduced", "reproduced", "equivalent", "equivalent"]),
        pytest.param(0.1, 0.4, ["reproduced", "contradicted", "contradicted", "equivalent"], marks=pytest.mark.planted),
    ],
)
def test_the_exponent_of_synthetic_losses_is_recovered(
    alpha: float, beta: float, verdicts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling_fit, "DRAWS", 150)
    registration, cells = synthetic(alpha, beta)
    curves = scaling_fit.read_curves(registration, cells)
    assert scaling_fit.fit_exponent(curves)["exponent"] == pytest.approx(beta / (alpha + beta), abs=0.02)
    assert [entry["verdict"] for entry in scaling_fit.judge_scaling_claims(registration, cells)] == verdicts


def test_too_few_seeds_or_sizes_are_not_testable() -> None:
    for registration, cells in (synthetic(0.3, 0.3, seeds=1), (synthetic(0.3, 0.3)[0], [])):
        entries = scaling_fit.judge_scaling_claims(registration, cells)
        assert {entry["verdict"] for entry in entries} == {"not testable"} and all(entry["reason"] for entry in entries)


@pytest.mark.planted
@pytest.mark.parametrize("budgets", [1, 3])
def test_an_exponent_of_sizes_that_are_no_optima_is_not_testable(budgets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the smallest size is the best one at some budgets, the exponent is a property of the grid of sizes."""
    monkeypatch.setattr(scaling_fit, "DRAWS", 150)
    registration, cells = synthetic(0.3, 0.3)
    smallest = [f"c{budget:g}-0.25" for budget in BUDGETS[:budgets]]
    for cell in (cell for cell in cells if cell["row"] in smallest):
        cell["scores"] = {"loss": cell["scores"]["loss"] - 5}
    minimum, *others = scaling_fit.judge_scaling_claims(registration, cells)
    assert minimum["verdict"] == "contradicted" and {entry["verdict"] for entry in others} == {"not testable"}
    expected = f"at {budgets} of 3 budgets the best size is the smallest or the largest, so there is no optimum to fit"
    assert {entry["reason"] for entry in others} == {expected}
