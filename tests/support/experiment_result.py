"""Experiments without runs: registrations and cells with chosen scores, and a realistic experiment.json."""

from collections.abc import Mapping, Sequence
from typing import Any

METRIC = "pretrain/masked_loss"


def claim(kind: str = "less", row: str = "a", reference: Any = "b", **more: Any) -> dict[str, Any]:
    fields = {"id": f"{row}-{kind}-{reference}", "text": f"{row} is {kind} than {reference}", "metric": METRIC, "margin": 0.02}
    return fields | {"source": "Table 1", "paper_difference": None, "kind": kind, "row": row, "reference": reference} | more


def registration(
    claims: Sequence[Mapping[str, Any]], rows: Sequence[str], seeds: int, control: str = "control"
) -> dict[str, Any]:
    listed = [{"name": name, "label": name, "stages": {"pretrain": {}}} for name in rows]
    return {"rows": listed, "seeds": list(range(seeds)), "control": control, "claims": list(claims), "changed": []}


def cells(values: Mapping[str, Sequence[Any]], metric: str = METRIC) -> list[dict[str, Any]]:
    """Return a cell for each value of each row; text is the status of a seed without a value."""
    stage, score = metric.split("/")
    return [
        {"row": row, "seed": seed, "stage": stage}
        | ({"status": value, "scores": {}} if isinstance(value, str) else {"status": "done", "scores": {score: float(value)}})
        for row, of_row in values.items()
        for seed, value in enumerate(of_row)
    ]
