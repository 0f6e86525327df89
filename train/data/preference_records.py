"""Parsing of the records of a file as preferences: a prompt with two completions, or with a completion and its label.

Paired: a prompt, the completion that was chosen, and the one that was rejected. Unpaired: a prompt, a completion, and a label.
"""

import json
import math
import re
from typing import Any

from train.config.option_groups import ExampleFileOptions
from train.data.dataset_formats import get_field
from train.data.example_types import Preference, UnpairedPreference
from train.data.records import Record
from train.data.text_files import check_string, json_type
from zoo.errors import BadInput

WORD = re.compile(r"\s*\S+(?:\s+\Z)?")
"""A word with the white space before it, the last word also with that after it."""


def preference(record: Record, options: ExampleFileOptions) -> Preference:
    """Return the preference of a record with "chosen", "rejected" and, optionally, "prompt" and "margin".

    Without a prompt, chosen and rejected are complete texts, and their longest common beginning in whole words is the prompt.

    Raises:
        BadInput: a field is missing or of another type, the two texts are equal or have no common beginning, a completion is
            empty, or the margin is not finite.
    """
    del options
    where, values = record.where, record.values
    chosen, rejected = (_text(values, name, where) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise BadInput(f"{where}: chosen and rejected are the same text; leave the pair out")
    if "prompt" in values:
        prompt = _text(values, "prompt", where)
    else:
        prompt = _common_beginning(chosen, rejected)
        if not prompt:
            first = (json.dumps(text[:40]) for text in (chosen, rejected))
            raise BadInput(f"{where}: chosen and rejected have different prompts: {' and '.join(first)}; {NO_PROMPT}")
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        _check_filled(text, f"{where}: the {name} completion is empty; write one, or leave the pair out")
    # Pairs of one prompt are held out together.
    margin = _margin(values, where)
    return Preference(origin=where, document=prompt, prompt=prompt, chosen=chosen, rejected=rejected, margin=margin)


def unpaired_preference(record: Record, options: ExampleFileOptions) -> UnpairedPreference:
    """Return the example of a record with "prompt", "completion" and "label", true if the completion is desired.

    Raises:
        BadInput: a field is missing or of another type, or the completion is empty.
    """
    del options
    where, values = record.where, record.values
    prompt, completion = (_text(values, name, where) for name in ("prompt", "completion"))
    _check_filled(completion, f"{where}: the completion is empty; write one, or leave the example out")
    if "label" not in values:
        raise BadInput(f'{where}: no "label"; write true if the completion is desired, false if it is not')
    if not isinstance(label := values["label"], bool):
        raise BadInput(f"{where}: the label is {json_type(label)}; write true (desired) or false (undesired)")
    # Examples of one prompt are held out together.
    return UnpairedPreference(origin=where, document=prompt, prompt=prompt, completion=completion, desired=label)


NO_PROMPT = 'add "prompt", which is "" if there is none, or leave the pair out'


def _text(values: dict[str, Any], name: str, where: str) -> str:
    if isinstance(values.get(name), list):
        raise BadInput(f"{where}: {json.dumps(name)} is a list of messages; write the text of the conversation as a string")
    return check_string(get_field(values, name, str, where), f"{where}: {json.dumps(name)}")


def _check_filled(text: str, message: str) -> None:
    if not text.strip():
        raise BadInput(message)


def _margin(values: dict[str, Any], where: str) -> float:
    value = values.get("margin", 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"{where}: the margin is {json_type(value)}; write a finite number, or remove it")
    if not math.isfinite(value):
        raise BadInput(f"{where}: the margin {value} is not finite; write a finite number, or leave the pair out")
    return float(value)


def _common_beginning(chosen: str, rejected: str) -> str:
    """Return the longest common beginning of two texts in whole words that leaves at least a word of each."""
    words = [WORD.findall(text) for text in (chosen, rejected)]
    shared = min(map(len, words)) - 1
    differing = (at for at in range(shared) if words[0][at] != words[1][at])
    return "".join(words[0][: max(next(differing, shared), 0)])
