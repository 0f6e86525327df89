"""The scores of a row over its seeds, and the seeds without a score, for verdicts and pages."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from train.run.metric_definitions import METRICS, Metric
from zoo.errors import BadInput

LOWER_ENDINGS = ("loss", "perplexity", "bits_per_byte", "nats", "error")
"""Endings of the names of scores that are better when lower, for scores that `METRICS` does not have."""
HIGHER_ENDINGS = ("accuracy", "f1", "exact", "exact_match", "acc", "acc_norm", "bleu", "chrf")
"""Endings of the names of scores that are better when higher, also of those of lm-eval's tasks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedValues:
    """The values of one metric in one row."""

    row: str
    """Name of the row."""
    values: dict[int, float]
    """Seed -> value, in the order of the registration; also of seeds that did not learn."""
    diverged: list[int]
    """Seeds that ended with numbers that are not finite; they have no value."""
    failed: list[int]
    """Seeds with a stage that failed, which have no value."""
    missing: list[int]
    """Seeds that have not been run to the end."""
    stuck: list[int] = dataclasses.field(default_factory=list)
    """Seeds with a value that is not better than the floor of the metric; empty unless a floor was applied."""

    @property
    def ended(self) -> int:
        """Number of seeds that ended, with a value or without."""
        return len(self.values) + len(self.diverged) + len(self.failed)

    @property
    def learned(self) -> int:
        """Number of seeds that ended and learned."""
        return len(self.values) - len(self.stuck)

    @property
    def notes(self) -> list[str]:
        """Return a line for each kind of seed that has no value or did not learn."""
        kinds = {"diverged": self.diverged, "did not learn": self.stuck, "failed": self.failed, "not finished": self.missing}
        return [
            f"{self.row}: seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} {kind}"
            for kind, seeds in kinds.items()
            if seeds
        ]

    def against(self, limit: float | None, sign: int) -> "SeedValues":
        """Return the values with the seeds that did not learn: those that are not better than a limit.

        Args:
            limit: None = every seed with a value learned.
            sign: 1 if higher values are better, -1 if lower ones are.
        """
        stuck = [] if limit is None else [seed for seed, value in self.values.items() if not sign * (value - limit) > 0]
        return dataclasses.replace(self, stuck=stuck)


def split_metric(metric: str) -> tuple[str, str]:
    """Return the stage and the score of a metric.

    Raises:
        BadInput: the metric is not "stage/score".
    """
    stage, slash, score = metric.partition("/")
    if not (stage and slash and score):
        raise BadInput(f'metric {metric}: must be "stage/score", for example pretrain/masked_loss; name the stage')
    return stage, score


def row_seeds(registration: Mapping[str, Any], row: str) -> list[int]:
    """Return the seeds of a row: its own, if it has a list of them, else those of the registration."""
    own = next((item.get("seeds") for item in registration["rows"] if item["name"] == row), None)
    return list(registration["seeds"] if own is None else own)


def seed_values(registration: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], row: str, metric: str) -> SeedValues:
    """Return the values of a metric in a row.

    A seed counts as diverged or failed if this holds for the metric's stage or for a stage before it. Several cells of one seed
    (for example fine-tunings of one pretrained model) are averaged: the number of values is that of the seeds.
    """
    stage, score = split_metric(metric)
    chain = _chain(registration, row, stage)
    # Cells that all rows share, such as the cells of a teacher, have the row "".
    of_row = [cell for cell in cells if cell["row"] in (row, "") and cell["stage"] in chain]
    values: dict[int, float] = {}
    lists: dict[str, list[int]] = {"diverged": [], "failed": [], "missing": []}
    for seed in row_seeds(registration, row):
        of_seed = [cell for cell in of_row if cell["seed"] == seed]
        status = {cell["status"] for cell in of_seed}
        scores = [cell["scores"].get(score) for cell in of_seed if cell["stage"] == stage]
        finite = [float(value) for value in scores if value is not None and math.isfinite(value)]
        if "diverged" in status:
            lists["diverged"].append(seed)
        elif "failed" in status:
            lists["failed"].append(seed)
        elif not finite or "missing" in status:
            lists["missing"].append(seed)
        else:
            values[seed] = sum(finite) / len(finite)
    return SeedValues(row=row, values=values, **lists)


def _chain(registration: Mapping[str, Any], row: str, stage: str) -> list[str]:
    """Return a stage and those before it in its row, as far as the registration names them.

    The parent of a stage is "after" in the stages of the row, or in an optional list of stages of the registration.
    """
    parents = {item["name"]: item.get("after") for item in registration.get("stages") or ()}
    of_row = next((item.get("stages") or {} for item in registration["rows"] if item["name"] == row), {})
    parents |= {name: entry["after"] for name, entry in of_row.items() if isinstance(entry, Mapping) and "after" in entry}
    chain = [stage]
    while (parent := parents.get(chain[-1])) and parent not in chain:
        chain.append(parent)
    return chain


def find_seed_metric(metric: str, better: str | None = None) -> Metric:
    """Return label, format and better direction of a metric: those of `METRICS`, else by the ending of its name.

    Args:
        better: "lower" or "higher", for a score whose name does not determine it. Without it, the direction is then None.
    """
    name = metric.rpartition("/")[2]
    if name in METRICS and better in (None, METRICS[name].better):
        return METRICS[name]
    direction: Any = better
    if direction is None:
        direction = "lower" if name.endswith(LOWER_ENDINGS) else "higher" if name.endswith(HIGHER_ENDINGS) else None
    return Metric(label=name.replace("_", " "), note="", better=direction)


def sign_of_better(metric: str, better: str | None = None) -> int:
    """Return 1 for a metric that is better when higher, and -1 for one that is better when lower.

    Raises:
        BadInput: neither is known.
    """
    direction = find_seed_metric(metric, better).better
    if direction is None:
        raise BadInput(f'metric {metric}: whether lower or higher is better is not known; add better="lower" or "higher"')
    return 1 if direction == "higher" else -1
