"""Parsing of the records of a file as preferences: a prompt with two completions, or with a completion and its label.

Paired: a prompt, the completion that was chosen, and the one that was rejected. Unpaired: a prompt, a completion, and a label.
Prompts and completions are texts, or messages that a chat template renders.
"""

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

from train.config.option_groups import ExampleFileOptions
from train.data.dataset_formats import get_field
from train.data.dialogues import check_answered, check_unanswered, document_of, parse_turns, refuse_unsupported
from train.data.example_types import ASSISTANT, Content, Message, Preference, UnpairedPreference
from train.data.records import Record
from train.data.text_files import check_string, json_type
from zoo.errors import BadInput
from zoo.json_shapes import is_usable_number

WORD = re.compile(r"\s*\S+(?:\s+\Z)?")
"""A word with the white space before it, the last word also with that after it."""
NO_PROMPT = 'add "prompt", which is "" if there is none, or leave the pair out'


def preference_of_record(record: Record, options: ExampleFileOptions) -> Preference:
    """Return the preference of a record with "chosen", "rejected" and, optionally, "prompt" and "margin".

    Without a prompt, chosen and rejected are complete, and what they both begin with, in whole words or messages, is the prompt.

    Raises:
        BadInput: see `parse_completions`; also if chosen and rejected are equal, or the margin is not finite.
    """
    del options
    where, values = record.where, record.values
    if "chosen" in values and values["chosen"] == values.get("rejected"):
        raise BadInput(f"{where}: chosen and rejected are the same text; leave the pair out")
    prompt, (chosen, rejected) = parse_completions(values, ("chosen", "rejected"), where)
    # Pairs of one prompt are held out together.
    document, margin = document_of(prompt), _margin(values, where)
    return Preference(origin=where, document=document, prompt=prompt, chosen=chosen, rejected=rejected, margin=margin)


def unpaired_preference(record: Record, options: ExampleFileOptions) -> UnpairedPreference:
    """Return the example of a record with "prompt", "completion" and "label", true if the completion is desired.

    Raises:
        BadInput: see `parse_completions`; also if there is no label, or it is not a boolean.
    """
    del options
    where, values = record.where, record.values
    prompt, (completion,) = parse_completions(values, ("completion",), where)
    if "label" not in values:
        raise BadInput(f'{where}: no "label"; write true if the completion is desired, false if it is not')
    if not isinstance(label := values["label"], bool):
        raise BadInput(f"{where}: the label is {json_type(label)}; write true (desired) or false (undesired)")
    # Examples of one prompt are held out together.
    return UnpairedPreference(origin=where, document=document_of(prompt), prompt=prompt, completion=completion, desired=label)


def parse_completions(values: dict[str, Any], names: Sequence[str], where: str) -> tuple[Content, tuple[Content, ...]]:
    """Return the prompt and the completions of a record, all as texts or all as messages.

    The prompt is the column "prompt". Of two completions it may be missing: then both begin with it.

    Args:
        names: columns of the completions.

    Raises:
        BadInput: a column is missing or of another type, some are texts and others messages, two completions have no common
            prompt, a prompt does not end with a turn of the user or a completion with the assistant's, or a completion is empty.
    """
    columns = ["prompt"] * ("prompt" in values or len(names) == 1) + [*names]
    lists = [name for name in columns if isinstance(values.get(name), list)]
    if lists and (others := [name for name in columns if name not in lists]):
        fix = "write messages in all of them"
        if others == ["prompt"]:
            fix += f", or leave out the prompt if {' and '.join(names)} begin with it" if len(names) > 1 else ""
        raise BadInput(f'{where}: "{lists[0]}" is a list of messages, and "{others[0]}" is not; {fix}')
    if lists:
        refuse_unsupported(values, where)
        return _message_completions(values, names, where)
    completions = [_text(values, name, where) for name in names]
    if "prompt" in columns:
        prompt = _text(values, "prompt", where)
    else:
        prompt = _common_beginning(*completions)
        if not prompt:
            first = (json.dumps(text[:40]) for text in completions)
            raise BadInput(f"{where}: chosen and rejected have different prompts: {' and '.join(first)}; {NO_PROMPT}")
        completions = [text[len(prompt) :] for text in completions]
    for name, text in zip(names, completions, strict=True):
        if not text.strip():
            what = "completion" if name == "completion" else f"{name} completion"
            raise BadInput(f"{where}: the {what} is empty; write one, or leave the example out")
    return prompt, tuple(completions)


def _message_completions(
    values: dict[str, Any], names: Sequence[str], where: str
) -> tuple[tuple[Message, ...], tuple[tuple[Message, ...], ...]]:
    """Return the messages of the prompt and of each completion."""
    if "prompt" in values:
        prompt = check_unanswered(parse_turns(values["prompt"], f"{where}: prompt", "prompt"), f"{where}: prompt")
        return prompt, tuple(_continuation(values[name], f"{where}: {name}", name) for name in names)
    chosen, rejected = (parse_turns(values[name], f"{where}: {name}", name) for name in names)
    for name, turns in zip(names, (chosen, rejected), strict=True):
        check_answered(turns, f"{where}: {name}")
    # At least one message of each is its completion.
    shared = min(len(chosen), len(rejected)) - 1
    size = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen[:shared], rejected, strict=False)))
    if not size or chosen[size - 1].role != "user":
        what = f"chosen and rejected differ from message {size + 1} on, before an answer, so that they have different prompts"
        raise BadInput(f"{where}: {what}; both must begin with the same messages up to a turn of the user, or leave the pair out")
    return chosen[:size], (chosen[size:], rejected[size:])


def _continuation(value: Any, where: str, column: str) -> tuple[Message, ...]:
    """Return the messages of a completion, which follow those of the column "prompt"."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and value[0].get("role") in ("system", "user"):
        what = f"message 1 is the {value[0]['role']}'s, and a completion begins with the assistant's"
        raise BadInput(
            f'{where}: {what}; remove the messages that are in "prompt", or leave out "prompt" if both sides begin with it'
        )
    return check_answered(parse_turns(value, where, column, first=ASSISTANT), where)


def _text(values: dict[str, Any], name: str, where: str) -> str:
    return check_string(get_field(values, name, str, where), f"{where}: {json.dumps(name)}")


def _margin(values: dict[str, Any], where: str) -> float:
    value = values.get("margin", 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"{where}: the margin is {json_type(value)}; write a finite number, or remove it")
    if not is_usable_number(value):
        raise BadInput(f"{where}: the margin {str(value)[:40]} is not finite; write a finite number, or leave the pair out")
    return float(value)


def _common_beginning(chosen: str, rejected: str) -> str:
    """Return the longest common beginning of two texts in whole words that leaves at least a word of each."""
    words = [WORD.findall(text) for text in (chosen, rejected)]
    shared = min(map(len, words)) - 1
    differing = (at for at in range(shared) if words[0][at] != words[1][at])
    return "".join(words[0][: max(next(differing, shared), 0)])
