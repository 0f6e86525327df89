"""Declarations of experiments: every row is a run that `zoo train` accepts, and unfair ones are refused."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from eval.experiments import catalogue, collect_results, preregistration
from eval.experiments.analysis.verdicts import claim_references
from eval.experiments.cost_estimates import node_cost
from eval.experiments.declaration import Row, Stage, Tier, Times
from eval.experiments.experiment_data import Files
from eval.experiments.grid import Grid, build_grid, option_words
from eval.experiments.grid_checks import check_grid
from tests.support.small_experiment import experiment, small_grid, with_claim, with_row
from train import objectives
from zoo.cli.commands.train import parse_options
from zoo.errors import BadInput

FILES = Files(train="{train}", valid="{valid}", tasks="{tasks}", corpus="public 0")
FAST = ("distil", "masks", "permutation", "scaling")
"""Experiments with a teacher, without tasks, with another family, and with steps that follow from FLOPs."""
CASES = [(name, tier) for name in catalogue.names() for tier in catalogue.find_experiment(name).tiers]


def approximate_flops(run: Any) -> float:
    return (
        6.0 * (12 * run.model.layers * run.model.width**2 + run.model.vocab * run.model.width) * run.data.batch * run.data.length
    )


def grid_of(name: str, tier: str) -> Grid:
    return build_grid(catalogue.find_experiment(name), tier, FILES, parse_options, seeds=(0, 1), flops_per_step=approximate_flops)


@pytest.mark.parametrize(
    ("name", "tier"),
    [pytest.param(*case, marks=[] if case[1] == "nano" and case[0] in FAST else pytest.mark.full) for case in CASES],
)
def test_every_row_of_every_experiment_is_a_run_of_an_equal_budget(name: str, tier: str) -> None:
    grid = grid_of(name, tier)
    check_grid(grid, lambda: {n.name: node_cost(n, 0.0 if n.task else approximate_flops(n.config)) for n in grid.nodes})
    rows = grid.experiment.tier_rows(tier)
    assert all(len(grid.chain(row.name, seed)) >= 1 for row in rows for seed in (0, 1))
    # Seeds differ in the seed alone.
    first, second = ([node.options for node in grid.chain(rows[0].name, seed)] for seed in (0, 1))
    assert [options.keys() for options in first] == [options.keys() for options in second]
    assert grid.levels()[0][0].name == "tokenizer"
    # Every run has the teacher that its objective needs, also the one that trains the tokenizer.
    runs = [node.config for node in grid.nodes if not node.task]
    assert all(run.teacher for run in runs if getattr(objectives.objective(run.objective), "NEEDS_TEACHER", False))
    assert grid.experiment.tier_claims(tier) or tier == "smoke"


def test_options_become_words_of_a_command_line() -> None:
    values = {"data.paths": ("a b", "{run}"), "selection.best": False, "data.pack": True, "optim.lr": 1e-3, "x": None}
    words = [word for key, value in values.items() for word in option_words(key, value, lambda text: text.replace("{run}", "r"))]
    assert words == ["--data.paths", "a b", "r", "--selection.no-best", "--data.pack", "--optim.lr", "0.001"]


def test_a_row_may_multiply_the_options_of_a_tier() -> None:
    grid = small_grid(**with_row("b", **{"steps": Times(0.5), "data.batch": Times(2.0)}))
    (run,) = [node.config for node in grid.nodes if node.name == "b-pretrain-0"]
    assert (run.steps, run.data.batch) == (2, 16)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no control": ({"control": "fresh"}, "there is no control"),
    "a claim without a forecast": ({"forecast": {}}, "it has no forecast"),
    "five claims": ({"claims": tuple(dataclasses.replace(experiment().claims[0], id=str(i)) for i in range(5))}, "5 claims"),
    "a claim on another row": (with_claim(row="c"), "there is no row c"),
    "an evaluation of nothing": ({"stages": (*experiment().stages, Stage(name="x", task="lambada"))}, "needs a parent"),
    "unequal budgets": (with_row("b", steps=5), "a takes 1,024 input tokens and b 1,280"),
    "a metric that a row lacks": (
        with_claim(metric="pretrain/accuracy"),
        "row b lacks it; choose one of bits_per_byte, perplexity",
    ),
    "a second metric without a margin": (with_claim(second_metric="score/perplexity"), "its margin 0.0 of score/perplexity must"),
    "a second metric that a row lacks": (with_claim(second_metric="pretrain/accuracy", second_margin=0.1), "row b lacks it"),
    "looks at few seeds": ({"tiers": {"smoke": Tier(seeds=8, looks=(3, 8))}}, r"looks \(3, 8\) must rise from 5"),
    "looks without the last seeds": ({"tiers": {"smoke": Tier(seeds=8, looks=(5, 7))}}, "to its number of seeds, 8"),
    "a stage that a row lacks": (
        {**with_claim(metric="score/perplexity"), "rows": (*experiment().rows[:2], Row(name="none", label=""))}
        | {"rows": tuple(dataclasses.replace(row, without=("score",) * (row.name == "b")) for row in experiment().rows)},
        "row b lacks the stage",
    ),
    "unequal tokenizers": (with_row("b", **{"tokenizer.path": "other"}), "unequal tokenizer: .* other in b"),
    "unequal held-out data": (with_row("b", **{"data.valid_paths": "other"}), "unequal held-out data: .* other in b"),
    "an option that does not exist": (with_row("b", **{"data.bach": 3}), "row b, stage pretrain: there is no option --data.bach"),
    "a value out of range": (with_row("b", **{"optim.lr": -1}), "row b, stage pretrain: --optim.lr"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.planted) for name in BAD])
def test_unfair_and_wrong_declarations_are_refused(name: str) -> None:
    changes, message = BAD[name]
    with pytest.raises(BadInput, match=message):
        check_grid(small_grid(**changes), dict)


def test_declared_floors_are_a_part_of_the_results(tmp_path: Path) -> None:
    grid = small_grid(floors=(("majority", "score/accuracy", 0.5, "counted"),))
    result = collect_results.collect_results(grid, preregistration.register_grid(grid, tmp_path), tmp_path)
    assert [(floor["name"], floor["value"]) for floor in result["floors"]] == [("majority", 0.5)]
    assert (result["items"], result["claims"][0]["verdict"]) == ([], "not testable")


@pytest.mark.planted
def test_a_number_of_seeds_beside_the_looks_is_refused() -> None:
    declared = experiment(tiers={"smoke": Tier(corpus="embedded", seeds=8, looks=(5, 8))})
    check_grid(build_grid(declared, "smoke", FILES, parse_options), dict)
    with pytest.raises(BadInput, match="--seeds 6: the tier smoke is judged after 5, 8 seeds; leave the option out"):
        check_grid(build_grid(declared, "smoke", FILES, parse_options, seeds=tuple(range(6))), dict)


def test_the_nearest_experiment_is_named() -> None:
    with pytest.raises(BadInput, match="the nearest is masks"):
        catalogue.find_experiment("mask")


def test_results_name_no_folder_of_the_machine() -> None:
    files = Files(train="/data/public/train", valid="/data/public/valid", tasks="/data/tasks", corpus="public 0")
    text = files.without_folders("--data.paths /data/public/train --task-files /data/tasks/sst2/dev.tsv --out runs")
    assert text == "--data.paths CORPUS/train --task-files TASKS/sst2/dev.tsv --out runs"
    assert FILES.without_folders("--data.paths files/train") == "--data.paths files/train"


def difference_is_from_table(claim: Any, rows: dict[str, Row]) -> bool:
    """Return whether the paper's difference is that of a column of its table, or of the logarithms of perplexities."""
    row, *others = (rows[name].paper or {} for name in (claim.row, *claim_references(dataclasses.asdict(claim))))
    pairs = [(key, row[key], other[key]) for other in others for key in row.keys() & other.keys()]
    values = [a - b for _, a, b in pairs] + [math.log(a / b) for key, a, b in pairs if key == "perplexity"]
    return not pairs or any(abs(claim.paper_difference - value) < 6e-3 for value in values)


@pytest.mark.planted
def test_the_papers_differences_follow_from_its_table() -> None:
    for name in catalogue.names():
        experiment = catalogue.find_experiment(name)
        rows = {row.name: row for row in experiment.rows}
        claims = [(claim, claim.paper_difference) for claim in experiment.claims if claim.paper_difference and claim.row in rows]
        for claim, difference in claims:
            assert difference_is_from_table(claim, rows), claim.id
            if name == "distil":
                wrong = dataclasses.replace(claim, paper_difference=-difference)
                assert not difference_is_from_table(wrong, rows)
