"""Notices about the rows that a run trains on: many unknown tokens cost it quality, much padding costs it time."""

from typing import Any

from train.config import run_config
from train.inputs import labelled_inputs, pair_inputs
from train.rows import encoder_rows

UNKNOWN = 0.05
"""Share of unknown tokens from which a run says so."""
PADDING = 0.5
"""Share of padding from which a run says so."""


def notices(run: run_config.Run, data: Any) -> list[str]:
    """Return a sentence for each of these that is too frequent in the training rows of a run's `train.inputs.dataset.Inputs`."""
    lines = []
    if (share := unknown_share(data)) > UNKNOWN:
        lines.append(
            f"{share:.1%} of the training tokens are unknown to the tokenizer; choose one of this language and writing, with "
            "--init or --tokenizer.path, or one that falls back to bytes"
        )
    for component in data.rows.components:
        rows = component.rows
        if (share := padding_share(run, rows)) > PADDING:
            lines.append(f"{share:.1%} of the training rows are padding; {_shorter(run, rows)}")
    return lines


def unknown_share(data: Any) -> float:
    """Return the share of the training tokens, special ones aside, that stand for something that the tokenizer does not know."""
    special = data.tokenizer.marks or data.tokenizer.text_marks
    if special is None:
        return 0.0
    counts = data.counts()
    unknown = int(counts[special.unk])
    # Its special tokens are the template's, and no share of the text.
    total = int(counts.sum()) - sum(int(counts[mark]) for mark in special.special) + unknown
    return unknown / total if total else 0.0


def padding_share(run: run_config.Run, rows: Any) -> float:
    """Return the share of the room in rows that is left empty. Rows that are cut from a stream of text are full."""
    if isinstance(rows, labelled_inputs.Rows):
        return 1 - rows.text_size / (rows.length * sum(len(row.inputs) for row in rows.rows))
    if isinstance(rows, pair_inputs.Rows):
        return 1 - rows.text_size / (len(rows) * (rows.length + (run.data.target_length or rows.length)))
    return 1 - rows.targets / (len(rows) * rows.length) if isinstance(rows, encoder_rows.Plan) else 0.0


def _shorter(run: run_config.Run, rows: Any) -> str:
    """Return what to do about the padding."""
    if isinstance(rows, labelled_inputs.Rows):
        longest = max(len(inputs.ids) for row in rows.rows for inputs in row.inputs)
        if longest < rows.length:
            return f"choose --data.length {longest}, which the longest of them needs"
        return "choose a shorter --data.length, with --labelled.truncate for the few long ones"
    fix = "choose a shorter --data.length"
    if isinstance(rows, pair_inputs.Rows):
        fix += " and --data.target-length"
        return fix if run.data.pack or not run.model.sourced else f"{fix}, or --data.pack"
    return fix if run.data.pack else f"{fix}, or --data.pack"
