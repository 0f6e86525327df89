"""Notices about the training rows of a run: many unknown tokens cost quality, much padding costs time."""

from collections.abc import Sequence
from typing import Any

from train.config import run_config
from train.config.objectives import ClassificationOptions
from train.data.example_types import Example
from train.inputs import instruction_inputs, labelled_inputs, seq2seq_inputs
from train.inputs.example_inputs import ExampleRows
from train.rows import encoder_rows
from train.rows.row_source import RowSource
from zoo.configs._encoder import LABELLED

UNKNOWN = 0.05
"""Share of unknown tokens above which there is a notice."""
PADDING = 0.5
"""Share of padding in the rows above which a notice is shown."""
FEW = 10
"""Number of examples of an average label from which a notice is shown about a label with a single one."""


def notices(run: run_config.Run, data: Any) -> list[str]:
    """Return a sentence for each problem in the training rows of `data`, a `train.inputs.run_inputs.Inputs`."""
    lines = []
    if (share := unknown_share(data)) > UNKNOWN:
        lines.append(
            f"{share:.1%} of the training tokens are unknown to the tokenizer; choose one of this language and writing, with "
            "--init or --tokenizer.path, or one that falls back to bytes"
        )
    if isinstance(data, labelled_inputs.LabelledInputs) and (line := labels_seen_once(run, data.trained_examples)):
        lines.append(line)
    # Batches of one source divide examples into components, whose rows have one length.
    are_examples = isinstance(data, labelled_inputs.LabelledInputs)
    for rows in [data.training] if are_examples else [component.rows for component in data.rows.components]:
        if (share := padding_share(run, rows)) > PADDING:
            lines.append(f"{share:.1%} of the training rows are padding; {_shorter(run, rows)}")
        if isinstance(rows, instruction_inputs.DialogueRows) and (count := sum(text.differs for text in rows.texts)):
            lines.append(
                f"in {count:,} of {len(rows.texts):,} training examples the tokens before the response are not those of the "
                "prompt alone, from which a text is generated; put the space between them at the beginning of completions, or "
                "correct what the chat template writes for add_generation_prompt"
            )
    return lines


def labels_seen_once(run: run_config.Run, examples: Sequence[Example]) -> str:
    """Return a sentence that names the labels or tags that occur once, which may be misspelled; "" if there is none.

    Few examples are no reason to doubt a label, so that on average a label must have more than `FEW` of them.
    """
    if run.model.task not in LABELLED or (isinstance(run.options, ClassificationOptions) and run.options.labelled.regression):
        return ""
    origins: dict[str, list[str]] = {}
    for example in examples:
        for label in labelled_inputs.labels_of_example(example):
            origins.setdefault(label, []).append(example.origin)
    single = [f"{label} ({places[0]})" for label, places in origins.items() if len(places) == 1]
    if not single or sum(map(len, origins.values())) <= FEW * len(origins):
        return ""
    names = ", ".join(single[:3]) + (", ..." if len(single) > 3 else "")
    what = "1 label occurs" if len(single) == 1 else f"{len(single)} labels occur"
    return f"{what} once, such as by a misspelling: {names}; correct the file, or refuse other labels by --model.labels NAME ..."


def unknown_share(data: Any) -> float:
    """Return the share of the training tokens, special ones excluded, that are unknown to the tokenizer."""
    special = data.tokenizer.special_tokens or data.tokenizer.text_special_tokens
    if special is None:
        return 0.0
    counts = data.counts()
    unknown = int(counts[special.unk])
    # Special tokens are part of the template, not of the text.
    total = int(counts.sum()) - sum(int(counts[mark]) for mark in special.special) + unknown
    return unknown / total if total else 0.0


def padding_share(run: run_config.Run, rows: RowSource) -> float:
    """Return the share of padding in rows. Rows that are cut from a stream of text have none."""
    if isinstance(rows, ExampleRows):
        return 1 - rows.text_size / rows.room(run)
    return 1 - rows.targets / (len(rows) * rows.length) if isinstance(rows, encoder_rows.EncoderRows) else 0.0


def _shorter(run: run_config.Run, rows: RowSource) -> str:
    """Return advice on how to reduce the padding."""
    if isinstance(rows, labelled_inputs.LabelledRows):
        longest = max(len(inputs.ids) for row in rows.rows for inputs in row.inputs)
        if longest < rows.length:
            return f"choose --data.length {longest}, which the longest of them needs"
        return "choose a shorter --data.length, with --labelled.truncate for the few long ones"
    fix = "choose a shorter --data.length"
    is_pair, has_encoder = isinstance(rows, seq2seq_inputs.PairRows), run.model.is_encoder_decoder
    if is_pair or (has_encoder and hasattr(run.data, "target_length")):
        fix += " and --data.target-length"
    may_pack = not getattr(run.data, "pack", True) and (has_encoder or not is_pair)
    return f"{fix}, or --data.pack" if may_pack else fix
