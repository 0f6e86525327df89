"""Costs of a training run, read from its files: tokens in several counts, FLOPs, time and memory."""

from collections.abc import Mapping
from typing import Any

from train.config.batch_sizes import BatchSizes
from train.run.metrics_file import read_metrics, read_starts
from train.run.run_dir import RunDir
from train.run.time_account import run_seconds
from zoo.errors import BadInput

Costs = dict[str, float | int | None]
"""Name of a cost -> its amount over all steps; None if the run has not recorded it. The names are those of `NAMES`."""

COUNTS = ("input_tokens", "text_tokens", "predictions", "bytes")
"""Names of the counts of training batches. input_tokens: positions that the model reads, special tokens included and padding
excluded; for an encoder-decoder those of its encoder. text_tokens: tokens of the text that the rows stand for, both sides of a
pair included, and without special tokens; text that several rows have counts in each. predictions: targets with a weight above 0.
bytes: UTF-8 bytes of the text tokens, as `Tokenizer.token_bytes` has them."""
NAMES = ("tokens", *COUNTS, "flops", "seconds", "step_seconds", "wall_seconds", "peak_bytes")
"""Names of all costs. tokens: positions of the training batches, padding included; for an encoder-decoder its decoder's.
seconds: from each start of the run to its last checkpoint or its end, scoring included. step_seconds and wall_seconds: those in
steps that counted, and all from the beginning of the first start to the end of the last one. peak_bytes: the most memory in use
on one device, or on a CPU by one process."""


def read_costs(folder: RunDir, last: int, meta: Mapping[str, Any], sizes: BatchSizes) -> Costs:
    """Return the costs of a run of `last` steps; None for each cost that its files do not have.

    Args:
        meta: metadata of the checkpoint of that step.
        sizes: the batches of the run.

    Raises:
        BadInput: metrics.jsonl or starts.jsonl has an invalid line.
    """
    rows = read_metrics(folder)
    trained = [row for row in rows if row["kind"] == "train"]
    starts = read_starts(folder)
    per_step = starts[-1].get("flops") if starts else None
    counts = meta.get("counts") or {}
    spent = run_seconds(starts)
    used = {name: [start[name] for start in starts if start.get(name) is not None] for name in ("seconds", "peak_bytes")}
    return {
        # Every row of a batch has the same number of tokens, and a run that ended early may have ended between two rows.
        "tokens": trained[-1]["tokens"] * sizes.examples(last) // sizes.examples(trained[-1]["step"]) if trained else None,
        **{name: counts.get(name) for name in COUNTS},
        "flops": None if per_step is None else per_step * (sizes.examples(last) / sizes.stages[-1].rows),
        "seconds": sum(used["seconds"]) if used["seconds"] else None,
        "step_seconds": spent.get("steps"),
        "wall_seconds": sum(spent.values()) or None,
        "peak_bytes": max(used["peak_bytes"], default=None),
    }


def read_known_costs(folder: RunDir, last: int, meta: Mapping[str, Any], sizes: BatchSizes) -> Costs:
    """Return the costs as `read_costs` does, but None for all of them if a file is damaged."""
    try:
        return read_costs(folder, last, meta, sizes)
    except BadInput:
        return dict.fromkeys(NAMES)
