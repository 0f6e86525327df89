"""The judge of `scaling_families`: verdicts on synthetic grids of several families whose exponents are known."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import scipy.stats

from eval.experiments import catalogue, preregistration
from eval.experiments.analysis.family_exponents import fit_families, judge_family_claims
from eval.experiments.analysis.isoflop_fit import Estimate
from eval.experiments.analysis.parametric_fit import ParametricLoss
from eval.experiments.analysis.scaling_runs import count_parameters
from eval.experiments.analysis.significance_tests import LEVEL
from eval.experiments.cost_estimates import node_cost, node_costs, step_flops
from eval.experiments.experiment_data import Files
from eval.experiments.grid import Grid, build_grid
from eval.experiments.grid_checks import check_grid
from tests.support.scaling_grids import (
    BUDGETS,
    exponents_of_grids,
    families_result,
    log_sizes_around,
    loss_with_optimum,
    parabolic_losses,
)
from zoo import models
from zoo.cli.commands.train import parse_options
from zoo.errors import BadInput

FAMILIES = ("gpt", "bert", "t5", "xlnet")
EVEN, STEEPER, FAR = loss_with_optimum(0.34, 0.34), loss_with_optimum(0.272, 0.408), loss_with_optimum(0.15, 0.35)
"""Losses with the exponents 0.5, 0.6 and 0.7."""


def losses(**others: ParametricLoss) -> dict[str, ParametricLoss]:
    return dict.fromkeys(FAMILIES, EVEN) | others


def verdicts(entries: list[dict[str, Any]]) -> dict[str, str]:
    return {entry["id"]: entry["verdict"] for entry in entries}


def test_equal_exponents_are_equivalent() -> None:
    registration, cells = families_result(losses(), noise=0.003)
    entries = judge_family_claims(registration, cells)
    assert verdicts(entries) == {"inner_minima": "reproduced", "bert": "equivalent", "t5": "equivalent", "xlnet": "equivalent"}
    for entry in entries[1:]:
        low, high = entry["interval"]
        assert low < entry["estimate"] < high and abs(entry["estimate"]) < 0.03 and entry["n"] == 3
        assert "95% interval of the difference" in entry["reason"]


@pytest.mark.planted
def test_another_exponent_of_a_family_is_detected() -> None:
    entries = judge_family_claims(*families_result(losses(t5=FAR, xlnet=STEEPER), noise=0.003))
    # 0.6 is at the margin.
    assert verdicts(entries) == {"inner_minima": "reproduced", "bert": "equivalent", "t5": "contradicted", "xlnet": "not shown"}
    assert entries[2]["estimate"] == pytest.approx(0.2, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("other", [EVEN, STEEPER], ids=["equal", "at the margin"])
def test_the_judge_gives_few_false_verdicts(other: ParametricLoss, seeds: int) -> None:
    """With equal exponents, only "contradicted" is a false verdict; at the margin, every verdict but "not shown" is."""
    right = {"equivalent", "not shown"} if other is EVEN else {"not shown"}
    false = 0
    for draw in range(60):
        entries = judge_family_claims(
            *families_result(losses(bert=other, t5=other, xlnet=other), noise=0.02, seeds=seeds, draw=draw)
        )
        false += any(entry["verdict"] not in {*right, "not testable"} for entry in entries[1:])
    # 3 of 60 are expected at 5 %, and 8 or more with a chance of 1 %.
    assert false < 8


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("deviations", [(0.005, 0.005), (0.003, 0.03)], ids=["equal noise", "tenfold noise"])
@pytest.mark.parametrize("difference", [0.0, 0.1])
def test_false_verdicts_on_a_difference_are_at_most_5_percent(
    seeds: int, deviations: tuple[float, float], difference: float
) -> None:
    estimates = []
    for i, (exponent, deviation) in enumerate(zip((0.5 + difference, 0.5), deviations, strict=True)):
        sizes = log_sizes_around(exponent)
        noise = np.full((len(BUDGETS), 5), deviation)
        estimates.append(exponents_of_grids(sizes, parabolic_losses(sizes, exponent), noise, seeds=seeds, draw=i))
    estimate = estimates[0].minus(estimates[1])
    rate = float(((estimate.p_below(difference) <= LEVEL) | (estimate.p_above(difference) <= LEVEL)).mean())
    # Three standard errors of a rate of 5 % in 4,000 grids.
    assert rate < 2 * LEVEL + 0.01


def test_the_difference_of_two_estimates_is_welchs() -> None:
    samples = np.random.default_rng(0).normal((0.0, 0.7), (1.0, 3.0), (6, 2)).T
    first, second = (
        Estimate(value=x.mean(), error=x.std(ddof=1) / np.sqrt(len(x)), degrees=np.float64(len(x) - 1)) for x in samples
    )
    expected: Any = scipy.stats.ttest_ind(*samples, equal_var=False, alternative="less")
    assert first.minus(second).p_below(0.0) == pytest.approx(float(expected.pvalue), rel=1e-12)


@pytest.mark.planted
def test_a_family_without_its_runs_is_named_and_the_others_are_compared() -> None:
    registration, cells = families_result(losses(), noise=0.003)
    cells = [cell for cell in cells if cell["row"] != "fresh-t5"]
    minima, bert, t5, xlnet = judge_family_claims(registration, cells)
    assert {minima["verdict"], t5["verdict"]} == {"not testable"} and (bert["verdict"], xlnet["verdict"]) == ("equivalent",) * 2
    assert t5["reason"] == minima["reason"] == "t5: the control row, fresh-t5, has no train/loss; run it first"
    # A family is judged by its own control: that of another would accept a model that learned nothing.
    registration, cells = families_result(losses(), noise=0.003)
    for cell in cells:
        if cell["row"] == "fresh-xlnet":
            cell["scores"] = {"loss": 1.0}
    *others, xlnet = judge_family_claims(registration, cells)
    assert "is not better than the control row in every seed" in xlnet["reason"] and others[1]["verdict"] == "equivalent"


@pytest.mark.planted
def test_sizes_of_one_family_that_are_best_at_an_end_contradict_the_minima() -> None:
    registration, cells = families_result(losses(), noise=0.003)
    for cell in cells:
        if "-bert-" in cell["row"] and not cell["row"].startswith("fresh"):
            size = float(cell["row"].partition("-n")[2])
            cell["scores"] = {"loss": 2.0 + 0.1 * np.log(size / 1e3) + 0.001 * cell["seed"]}
    minima, bert, t5, _ = judge_family_claims(registration, cells)
    assert minima["verdict"] == "contradicted" and "bert: 0 of 4 budgets have an inner minimum" in minima["reason"]
    assert bert["verdict"] == "not testable" and t5["verdict"] == "equivalent"


def test_a_result_of_one_family_is_one_fit() -> None:
    registration, cells = families_result({"gpt": EVEN}, noise=0.003)
    assert [*fit_families(registration, cells)] == ["gpt"]


FILES = Files(train="{train}", valid="{valid}", tasks="{tasks}", corpus="public 0")


def smoke_grid(**changes: Any) -> Grid:
    declared = catalogue.find_experiment("scaling_families")
    rows = tuple(
        dataclasses.replace(row, overrides={**row.overrides, "steps": 1, **changes.get(row.name, {})}) for row in declared.rows
    )
    return build_grid(dataclasses.replace(declared, rows=rows), "smoke", FILES, parse_options, seeds=(0,))


def test_each_family_has_a_tokenizer_of_its_own_which_is_registered(tmp_path: Path) -> None:
    grid = smoke_grid()
    check_grid(grid, lambda: {node.name: node_cost(node, 1.0) for node in grid.nodes})
    kinds = {node.name: node.config.tokenizer.kind for node in grid.nodes if node.stage == "tokenizer"}
    assert kinds == {
        **{"tokenizer": "gpt", "tokenizer-bert-nano": "wordpiece"},
        **{"tokenizer-t5-nano": "sentencepiece", "tokenizer-xlnet-nano": "xlnet"},
    }
    (node,) = [node for node in grid.nodes if node.name == "c1e10-t5-l1w16-train-0"]
    assert node.options["tokenizer.path"] == "runs/tokenizer-t5-nano/tokenizer" and node.parents == ("tokenizer-t5-nano",)
    registration = preregistration.register_grid(grid, tmp_path)
    assert sorted(registration["other_tokenizers"]) == ["tokenizer-bert-nano", "tokenizer-t5-nano", "tokenizer-xlnet-nano"]
    for name, digest in (("tokenizer", "1" * 64), ("tokenizer-t5-nano", "2" * 64)):
        registration = preregistration.record_tokenizer(registration, digest, tmp_path, name)
    assert registration["changed"] == []
    changed = preregistration.record_tokenizer(registration, "3" * 64, tmp_path, "tokenizer-t5-nano")
    assert len(changed["changed"]) == 4 and changed["edits"][0]["field"] == "tokenizer-t5-nano"


@pytest.mark.full
def test_sizes_of_a_family_have_equal_flops_by_the_formulas_of_their_objectives() -> None:
    """Of the smallest budget, a step of the largest size is a fiftieth."""
    declared = catalogue.find_experiment("scaling_families")
    grid = build_grid(declared, "smoke", FILES, parse_options, seeds=(0,), flops_per_step=step_flops)
    check_grid(grid, lambda: node_costs(grid))


@pytest.mark.planted
def test_a_row_with_a_tokenizer_other_than_its_familys_is_refused() -> None:
    with pytest.raises(BadInput, match=r"unequal tokenizer: .* in c1e10-gpt-l1w8, other in c1e10-gpt-l1w16"):
        check_grid(smoke_grid(**{"c1e10-gpt-l1w16": {"tokenizer.path": "other"}}), dict)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_matrices_of_layers_and_the_embeddings_are_counted_as_the_models_have_them(family: str) -> None:
    """What is not counted is norms, biases, types, and the transform before BERT's last layer."""
    declared = catalogue.find_experiment("scaling_families")
    own = [row for row in declared.rows if f"-{family}-l" in row.name][::9]
    rows = (*own, *(row for row in declared.rows if row.name == declared.control))
    tiers = {"smoke": dataclasses.replace(declared.tiers["smoke"], rows=())}
    grid = build_grid(
        dataclasses.replace(declared, rows=rows, tiers=tiers),
        "smoke",
        FILES,
        parse_options,
        seeds=(0,),
        flops_per_step=lambda _: 1e9,
    )
    for node in [node for node in grid.nodes if node.row in {row.name for row in own}]:
        shapes = jax.eval_shape(functools.partial(models.model(node.config.model).init, jax.random.key(0)))
        leaves = {jax.tree_util.keystr(path): leaf.size for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]}
        tables = ("['embed']['tokens']['embedding']", "['embed']['positions']['embedding']")
        expected = sum(
            n for name, n in leaves.items() if name in tables or ("['layers']" in name and name.endswith("['kernel']"))
        )
        assert sum(count_parameters({"recipe": f"{family}-nano", "options": node.options})) == expected
