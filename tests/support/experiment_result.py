"""Experiments without runs: registrations and cells with chosen scores, and a realistic experiment.json."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

METRIC = "pretrain/masked_loss"
COSTS = ("input_tokens", "text_tokens", "predictions", "bytes", "flops", "seconds", "peak_bytes")


def claim(kind: str = "less", row: str = "a", reference: Any = "b", **more: Any) -> dict[str, Any]:
    fields = {"id": f"{row}-{kind}-{reference}", "text": f"{row} is {kind} than {reference}", "metric": METRIC, "margin": 0.02}
    return fields | {"source": "Table 1", "paper_difference": None, "kind": kind, "row": row, "reference": reference} | more


def registration(
    claims: Sequence[Mapping[str, Any]], rows: Sequence[str], seeds: int, control: str = "control"
) -> dict[str, Any]:
    listed = [{"name": name, "label": name, "stages": {"pretrain": {}}} for name in rows]
    return {"rows": listed, "seeds": list(range(seeds)), "control": control, "claims": list(claims), "changed": []}


def cells(values: Mapping[str, Any], metric: str = METRIC) -> list[dict[str, Any]]:
    """Return a cell for each value of each row; text is the status of a seed without a value."""
    stage, score = metric.split("/")
    return [
        {"row": row, "seed": seed, "stage": stage}
        | ({"status": value, "scores": {}} if isinstance(value, str) else {"status": "done", "scores": {score: float(value)}})
        for row, of_row in values.items()
        for seed, value in enumerate(of_row)
    ]


ROWS = {
    "dynamic": ("Dynamic masks", 5.62, 0.741),
    "static10": ("Static, 10 masks", 5.622, 0.738),
    "static1": ("Static, 1 mask", 5.71, 0.712),
    "whole": ("Dynamic, whole words", 5.63, 0.744),
    "none": ("No pretraining", 6.46, 0.655),
}
"""Name of a row -> its label, and means of loss and accuracy."""
PAPER = {"dynamic": (78.7, 84.0, 92.9), "static10": (78.3, 84.3, 92.5)}
DOWNSTREAM = "sst2/accuracy"
TOKENS = 11_264_000
FLOORS = [
    {"name": "unigram loss", "metric": METRIC, "value": 6.56, "source": "token frequencies of the held-out text"},
    {"name": "naive Bayes of words", "metric": DOWNSTREAM, "value": 0.815, "gate": False, "source": "counted"},
]
CLAIMS = [
    claim("less", "dynamic", ["static1"], id="loss", text="Masks that change give a lower loss than a single mask."),
    claim("equivalent", "dynamic", ["static10"], id="ten", text="Ten masks are as good as masks that change."),
    claim("greater", "static1", ["dynamic"], id="accuracy", metric=DOWNSTREAM, paper_difference=0.4, paper_noise=0.3)
    | {"text": "A single mask classifies sentiment better than masks that change."},
    claim("greater", "static10", ["static1", "dynamic"], id="both", metric=DOWNSTREAM)
    | {"text": "Ten masks classify sentiment better than one mask and than masks that change."},
    claim("less", "whole", ["dynamic"], id="words", text="Masks of whole words give a lower loss."),
]
VERDICTS = ["reproduced", "equivalent", "contradicted", "not shown", "not testable"]
"""Verdicts on the claims."""


def masks(*, seeds: int = 5, first: int | None = None) -> dict[str, Any]:
    """Return a realistic experiment.json on RoBERTa's Table 1, with seeds that diverged, failed and were not run.

    Args:
        first: number of cells, to cut the grid short.
    """
    from eval.experiments.analysis.verdicts import judge

    grid = _grid(seeds)[:first]
    listed = registration(CLAIMS, [], seeds, "none") | {"hash": "9f2c41d0", "budget": "input_tokens", "changed": ["both"]}
    listed["rows"] = [{"name": name, "label": label, "stages": _stages(name)} for name, (label, _, _) in ROWS.items()]
    listed["forecast"] = {"loss": "reproduced: .08 nats in three seeds of an earlier run", "words": "not shown"}
    return {
        "schema": 1,
        "name": "masks",
        "question": "Does it matter whether a text is masked anew each time that it is seen?",
        "source": "Liu et al. 2019 (RoBERTa), Table 1",
        "scale": "2.6M parameters and 11M tokens a row; in the paper 125M parameters and 33B tokens.",
        "date": "2026-11-27",
        "tier": "night",
        "registration": listed,
        "cells": grid,
        "claims": judge(listed, grid, FLOORS),
        "paper": [
            {"row": row, "metric": metric, "value": value, "source": "RoBERTa, Table 1, medians of five seeds"}
            for row, values in PAPER.items()
            for metric, value in zip(("SQuAD 2.0 F1", "MNLI-m", "SST-2"), values, strict=True)
        ],
        "floors": FLOORS,
        "budget": {"rule": "input_tokens", "values": dict.fromkeys(ROWS, TOKENS), "note": "FLOPs differ, see the costs."},
        "deviations": ["The corpus was read without its last novel."],
    }


def _stages(row: str) -> dict[str, Any]:
    static = {"static10": 10, "static1": 1}.get(row, 0)
    pretrain = {"recipe": "roberta-nano", "options": {"steps": 1 if row == "none" else 5500, "masking.static": static}}
    tune = {"recipe": "finetune-sst2", "after": "pretrain", "options": {"optim.lr": 0.0001}}
    return {"pretrain": pretrain, "sst2": tune}


def _grid(seeds: int) -> list[dict[str, Any]]:
    rng, grid = np.random.default_rng(1), []
    statuses = {("whole", 3, "pretrain"): "diverged", ("whole", 1, "pretrain"): "missing", ("static10", 4, "sst2"): "failed"}
    origin = {"commit": "0123abc", "dirty": False, "device": "cpu, 2 cores", "versions": {"jax": "0.10.2", "flax": "0.12.12"}}
    for name, (_, loss, accuracy) in ROWS.items():
        for seed in range(seeds):
            flops = 1.63e14 if name == "whole" else 1.42e14
            final, score = loss + 0.004 * rng.normal(), accuracy + 0.004 * rng.normal()
            curve = [
                [TOKENS * s, flops * s, final + 2.0 * math.exp(-7 * s) + 0.01 * rng.normal()] for s in np.linspace(0.08, 1, 12)
            ]
            costs = {
                "pretrain": (TOKENS, 10_475_520, 1_689_600, 40_100_000, flops, 1210.0 + 9 * seed, 1_310_000_000),
                "sst2": (886_784, 410_000, 13_856, None, 9.5e12, 92.0, 900_000_000),
            }
            scores = {"pretrain": {"masked_loss": final, "predictions": 24_000}, "sst2": {"accuracy": score, "examples": 1821}}
            for stage in scores:
                status = statuses.get((name, seed, stage), "done")
                run = f"runs/{name}-{seed}-{stage}"
                grid.append(
                    {"row": name, "seed": seed, "stage": stage, "run": run, "status": status, "provenance": origin}
                    | {"scores": {} if status in ("diverged", "failed", "missing") else scores[stage]}
                    | {"curves": {"masked_loss": curve[: 5 if status == "diverged" else 12]} if stage == "pretrain" else {}}
                    | {"costs": dict(zip(COSTS, costs[stage], strict=True)), "fingerprints": {"data": f"sha256:{stage}"}}
                    | {"command": f"zoo train roberta-nano --seed {seed} --steps 5500 --data.paths public/train --out {run}"}
                )
                if status == "diverged":
                    grid[-1]["curves"]["masked_loss"].append([5e6, 6e13, math.inf])
                    break
    return grid
