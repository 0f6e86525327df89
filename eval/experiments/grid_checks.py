"""Checks of a grid before anything runs: equal budgets, tokenizers and held-out data, and metrics that rows have."""

from collections.abc import Callable, Mapping, Sequence

from eval.experiments.analysis.significance_tests import FEWEST_SEEDS
from eval.experiments.cost_estimates import Cost
from eval.experiments.declaration import Budget, Claim
from eval.experiments.grid import Grid, Node
from train.run.metric_definitions import validation_metrics
from zoo.errors import BadInput

SLACK = 0.01
"""Share by which equal budgets may differ, as in comparisons of runs: a budget is rarely a multiple of a step's."""
TASK_SCORES = {
    **dict.fromkeys(("masked", "masked:all"), ("loss", "perplexity", "accuracy")),
    "labelled": ("accuracy", "f1_macro"),
    "text_to_text:exact": ("exact", "f1"),
    "text_to_text:bleu,chrf": ("bleu", "chrf"),
    "text_to_text:chrf": ("chrf",),
}
"""Task -> its metrics that a claim may name; tasks that are not listed are not checked."""


def check_grid(grid: Grid, costs: Callable[[], Mapping[str, Cost]]) -> None:
    """Refuse a grid whose rows cannot be compared. A claim about a fit is about all rows, which may have tokenizers of their own.

    Args:
        costs: returns the cost of each node; it is only called for a budget in FLOPs.

    Raises:
        BadInput: the number of seeds is not that of the registered looks; a row lacks the metric of a claim; two rows of a claim
            differ in their tokenizer or held-out data; or two rows have unequal budgets under the declared rule, and both numbers
            are named.
    """
    looks = grid.experiment.tiers[grid.tier].looks
    if looks and looks[-1] != len(grid.seeds):
        listed = ", ".join(map(str, looks))
        raise BadInput(f"--seeds {len(grid.seeds)}: the tier {grid.tier} is judged after {listed} seeds; leave the option out")
    for claim in grid.experiment.claims_by_metric(grid.tier):
        _check_metric(grid, claim)
        _check_data(grid, claim)
    if grid.experiment.budget == "flops":
        by_node = costs()
        check_budgets(grid, {name: cost.flops for name, cost in by_node.items()}, "FLOPs")
    elif grid.experiment.budget == "input_tokens":
        check_budgets(grid, {node.name: input_positions(node) for node in grid.nodes}, "input tokens")


def few_seeds(grid: Grid) -> str:
    """Return a notice if the grid has too few seeds for a verdict; "" for `smoke`, for pilots, and for judges of fits."""
    is_judged = grid.tier != "smoke" and grid.experiment.claims and grid.experiment.judge is None
    if not is_judged or len(grid.seeds) >= FEWEST_SEEDS:
        return ""
    return f"{len(grid.seeds)} seed{'s' * (len(grid.seeds) > 1)}: no claim gets a verdict, which needs {FEWEST_SEEDS}"


def input_positions(node: Node) -> int:
    """Return the positions of the inputs of all training steps of a node, padding included; 0 for an evaluation."""
    run = node.config
    return 0 if node.task else run.data.sizes.examples(run.steps) * run.data.length


def check_budgets(grid: Grid, spent: Mapping[str, float | int], unit: str) -> None:
    """Refuse rows whose training budgets differ by more than `SLACK`; the control row may have any budget.

    Args:
        spent: the budget of each node, by its name.

    Raises:
        BadInput: names two rows and their budgets.
    """
    for line in unequal_budgets(row_budgets(grid, spent), row_groups(grid), unit):
        raise BadInput(f"experiment {grid.experiment.name}: {line}; change the steps of one")


def row_budgets(grid: Grid, spent: Mapping[str, float | int]) -> dict[str, float | int]:
    """Return the budget of a cell of each row along its chain of stages, the control left out."""
    rows = [row.name for row in grid.experiment.tier_rows(grid.tier) if row.name != grid.experiment.control]
    return {row: sum(spent[node.name] for node in grid.chain(row, grid.seeds[0])) for row in rows}


def row_groups(grid: Grid) -> dict[str, str]:
    """Return the group of each row."""
    return {row.name: row.group for row in grid.experiment.rows}


def unequal_budgets(budgets: Mapping[str, float | int], groups: Mapping[str, str], unit: str, slack: float = SLACK) -> list[str]:
    """Return a line for each group of rows whose budgets differ by more than `slack`, with the least and the greatest budget."""
    lines = []
    for group in dict.fromkeys(groups.values()):
        of_group = {row: budget for row, budget in budgets.items() if groups[row] == group}
        if not of_group:
            continue
        (least, low), (greatest, high) = (select(of_group.items(), key=lambda item: item[1]) for select in (min, max))
        if high > low * (1 + slack):
            lines.append(f"unequal budgets: {least} takes {_number(low)} {unit} and {greatest} {_number(high)}")
    return lines


def budget_unit(rule: Budget) -> str:
    """Return the name of the unit of a budget."""
    return {"input_tokens": "input tokens", "text_tokens": "text tokens", "flops": "FLOPs"}[rule]


def _number(value: float | int) -> str:
    return f"{round(value):,}" if value < 1e10 else f"{value:.3e}"


def _claimed(grid: Grid, claim: Claim) -> list[tuple[str, Node | None]]:
    """Return each row that a claim is about, with its node of the claim's stage, or None."""
    stage, rows = claim.metric.partition("/")[0], (claim.row, *claim.reference)
    names = [row.name for row in grid.experiment.tier_rows(grid.tier)]
    chosen: Sequence[str] = [row for row in rows if row in names] or names
    chains = {row: {node.stage: node for node in grid.chain(row, grid.seeds[0])} for row in chosen}
    return [(row, chain.get(stage)) for row, chain in chains.items()]


def _check_metric(grid: Grid, claim: Claim) -> None:
    for row, node in _claimed(grid, claim):
        name = claim.metric.partition("/")[2]
        problem = f"experiment {grid.experiment.name}: claim {claim.id} is on {claim.metric}, and row {row} lacks"
        if node is None:
            raise BadInput(f"{problem} the stage; add it, or name another metric")
        # The metrics of a fine-tuned run depend on its labels, which are not known yet.
        of_run = validation_metrics(node.config) if node.config.options.metrics else ()
        scores = TASK_SCORES.get(node.task, ()) if node.task else of_run
        if scores and name not in scores:
            raise BadInput(f"{problem} it; choose one of {', '.join(scores)}")


def _check_data(grid: Grid, claim: Claim) -> None:
    nodes = [(row, node) for row, node in _claimed(grid, claim) if node is not None]
    declared = {row.name: row.tokenizer for row in grid.experiment.rows}
    first, reference = nodes[0]
    for row, node in nodes[1:]:
        has_own = claim.row not in declared and declared[row] != declared[first]
        tokenizer = () if has_own else ("tokenizer.path",)
        for what, options in (("tokenizer", tokenizer), ("held-out data", ("data.valid_paths", "files", "limit"))):
            for option in options:
                values = [other.options.get(option) for other in (reference, node)]
                if values[0] != values[1]:
                    texts = [" ".join(map(str, value)) if isinstance(value, tuple) else value for value in values]
                    raise BadInput(
                        f"experiment {grid.experiment.name}: claim {claim.id} compares rows of unequal {what}: "
                        f"--{option.replace('_', '-')} {texts[0]} in {first}, {texts[1]} in {row}; give both rows the same value"
                    )
