"""Prompts from the records of a file, with the columns that reward functions read."""

import json
from collections.abc import Sequence

from train.config.objective_options import Reading
from train.data.dataset_formats import get
from train.data.example_types import Prompt
from train.data.records import Record
from train.data.text_files import check_string, listed
from zoo.errors import BadInput

RESERVED = ("prompts", "completions", "ids")
"""Names of the arguments of a reward function that are not columns."""


def prompt(record: Record, options: Reading) -> Prompt:
    """Return the prompt of a record with "prompt" and any other columns.

    Raises:
        BadInput: there is no prompt, it is not a text, or a column has the name of another argument of a reward function.
    """
    del options
    where, values = record.where, record.values
    if isinstance(values.get("prompt"), list):
        raise BadInput(f'{where}: "prompt" is a list of messages; conversations are not read yet, write a text')
    text = check_string(get(values, "prompt", str, where), f'{where}: "prompt"')
    columns = {name: value for name, value in values.items() if name != "prompt"}
    if taken := [name for name in columns if name in RESERVED]:
        raise BadInput(f"{where}: column {json.dumps(taken[0])}: reward functions have this argument already; rename the column")
    # Equal prompts are held out together.
    return Prompt(origin=where, document=text, prompt=text, columns=columns)


def check_columns(examples: Sequence[Prompt]) -> None:
    """Refuse prompts that do not all have the same columns, since reward functions read them as lists of equal lengths.

    Raises:
        BadInput: names the first prompt that differs, and both sets of columns.
    """
    first = examples[0]
    for example in examples:
        if example.columns.keys() != first.columns.keys():
            columns, of_first = (listed(sorted(item.columns)) for item in (example, first))
            fix = "give all prompts the same columns, also the held-out ones"
            raise BadInput(f"{example.origin}: columns beside the prompt: {columns}; those of {first.origin}: {of_first}; {fix}")
