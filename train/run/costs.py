"""What a training run has cost, read from its files: tokens and FLOPs of all of its steps."""

from train.run.metrics_file import read_rows
from train.run.run_dir import RunDir
from zoo.errors import BadInput

Costs = dict[str, float | int | None]
"""Name of a cost -> its amount over all steps; None if the run has not recorded it. The names are those of `NAMES`."""

NAMES = ("tokens", "flops")
"""Names of all costs: positions of the training batches, padding included (for an encoder-decoder those of the decoder), and
FLOPs."""


def read_costs(folder: RunDir, last: int) -> Costs:
    """Return the costs of a run of `last` steps; each that its files do not have is None.

    Raises:
        BadInput: metrics.jsonl or starts.jsonl has a line that is no row.
    """
    rows = read_rows(folder.metrics) if folder.metrics.exists() else []
    trained = [row for row in rows if row.get("kind") == "train"]
    starts = read_rows(folder.starts) if folder.starts.exists() else []
    per_step = starts[-1].get("flops") if starts else None
    return {
        # Every step has the same number of tokens, and a run that ended early may have ended between two rows.
        "tokens": trained[-1]["tokens"] * last // trained[-1]["step"] if trained else None,
        "flops": None if per_step is None else last * per_step,
    }


def read_known_costs(folder: RunDir, last: int) -> Costs:
    """Return the costs as `read_costs` does, but None for all of them if a file is damaged."""
    try:
        return read_costs(folder, last)
    except BadInput:
        return dict.fromkeys(NAMES)
