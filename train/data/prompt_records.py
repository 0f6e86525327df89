"""Parsing of the records of a file as prompts, texts or conversations, with the columns that reward functions read."""

import json
from collections.abc import Sequence
from typing import Any

from train.config.option_groups import ExampleFileOptions
from train.data.dataset_formats import get_field
from train.data.dialogues import (
    INPUT,
    INSTRUCTION,
    SHAREGPT,
    SYSTEM,
    alpaca_turns,
    check_unanswered,
    document_of,
    parse_turns,
    sharegpt_turns,
)
from train.data.example_types import Message, Prompt
from train.data.records import Record
from train.data.text_files import check_string, list_names
from zoo.errors import BadInput

RESERVED = ("prompts", "completions", "ids")
"""Names of the arguments of a reward function that are not columns."""


def prompt_of_record(record: Record, options: ExampleFileOptions) -> Prompt:
    """Return the prompt of a record with "prompt", a text or the messages of a conversation, and any other columns.

    Without "prompt", it is a conversation of ShareGPT, or an instruction of Alpaca with its input; its output remains a column.

    Raises:
        BadInput: there is no prompt or there are two, it is neither a text nor a conversation that ends with a turn of the user,
            or a column has the name of another argument of a reward function.
    """
    del options
    where, values = record.where, record.values
    messages, used = _conversation(values, where)
    text = "" if messages else check_string(get_field(values, "prompt", str, where), f'{where}: "prompt"')
    columns = {name: value for name, value in values.items() if name not in used}
    if taken := [name for name in columns if name in RESERVED]:
        raise BadInput(f"{where}: column {json.dumps(taken[0])}: reward functions have this argument already; rename the column")
    # Equal prompts are held out together.
    return Prompt(origin=where, document=document_of(messages or text), prompt=text, columns=columns, messages=messages)


def _conversation(values: dict[str, Any], where: str) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Return the messages of a prompt, () if it is a text, and the columns that it is in."""
    if "prompt" in values:
        value = values["prompt"]
        return check_unanswered(parse_turns(value, where, "prompt"), where) if isinstance(value, list) else (), ("prompt",)
    if SHAREGPT in values and INSTRUCTION in values:
        raise BadInput(f'{where}: it has both "{SHAREGPT}" and "{INSTRUCTION}"; leave one of them out, or write "prompt"')
    if SHAREGPT in values:
        return check_unanswered(sharegpt_turns(values, where), where), (SHAREGPT, SYSTEM)
    if INSTRUCTION in values:
        return alpaca_turns(values, where, answered=False), (INSTRUCTION, INPUT, SYSTEM)
    return (), ("prompt",)


def check_columns(examples: Sequence[Prompt]) -> None:
    """Refuse prompts that do not all have the same columns, since reward functions read them as lists of equal lengths.

    Raises:
        BadInput: names the first prompt that differs, and both sets of columns; or some are texts and others conversations.
    """
    first = examples[0]
    for example in examples:
        if bool(example.messages) != bool(first.messages):
            kinds = [f"{item.origin} is {'a conversation' if item.messages else 'a text'}" for item in (example, first)]
            fix = "reward functions get either texts or messages; write all prompts alike"
            raise BadInput(f"{kinds[0]}, and {kinds[1]}; {fix}")
        if example.columns.keys() != first.columns.keys():
            columns, of_first = (list_names(sorted(item.columns)) for item in (example, first))
            fix = "give all prompts the same columns, also the held-out ones"
            raise BadInput(f"{example.origin}: columns beside the prompt: {columns}; those of {first.origin}: {of_first}; {fix}")
