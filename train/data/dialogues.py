"""Instructions with their responses: a prompt and its completion as plain texts, or the messages of a conversation.

The columns are those of TRL's data sets: `prompt` and `completion`, or `messages`, a list of objects with `role` and `content`.
"""

import json
from collections.abc import Iterator
from typing import Any

from train.data.example_types import ASSISTANT, ROLES, Dialogue, Message, Pair
from train.data.records import Record
from train.data.text_files import check_string, json_type, list_names
from zoo.errors import BadInput

COLUMNS = ("prompt", "completion")
MESSAGES = "messages"


def is_dialogue(record: Record) -> bool:
    """Return whether a record has the columns of an instruction: messages, or a prompt and a completion."""
    return MESSAGES in record.values or all(name in record.values for name in COLUMNS)


def parse_dialogue(record: Record) -> Pair | Dialogue:
    """Return a prompt with its completion as a pair, or a conversation.

    Raises:
        BadInput: the columns are missing or hold something else, a text is empty, or the messages do not alternate.
    """
    where, values = record.where, record.values
    if MESSAGES in values:
        if "completion" in values:
            raise BadInput(f'{where}: it has both "{MESSAGES}" and "completion"; leave one of them out')
        return Dialogue(origin=where, messages=parse_messages(values[MESSAGES], where))
    if missing := [name for name in COLUMNS if name not in values]:
        fix = f"write {json.dumps(COLUMNS[0])} and {json.dumps(COLUMNS[1])}, or {json.dumps(MESSAGES)}"
        raise BadInput(f"{where}: no column {json.dumps(missing[0])}; it has {list_names(list(values))}: {fix}")
    texts = {}
    for name in COLUMNS:
        if isinstance(values[name], list):
            fix = f'write the messages of both as one list, "{MESSAGES}"'
            raise BadInput(f"{where}: the {name} is a list; {fix}")
        texts[name] = check_string(values[name], f"{where}: the {name}")
        if not texts[name].strip():
            raise BadInput(f"{where}: the {name} is empty; write one, or remove the example")
    return Pair(origin=where, source=texts["prompt"], target=texts["completion"])


def texts_of(example: Pair | Dialogue) -> Iterator[str]:
    """Yield the texts of an example, on which a tokenizer is trained."""
    yield from (
        (example.source, example.target) if isinstance(example, Pair) else (message.content for message in example.messages)
    )


def parse_messages(value: Any, where: str) -> tuple[Message, ...]:
    """Return the messages of a conversation whose last turn is the assistant's.

    Raises:
        BadInput: see `parse_turns`; also if the last turn is not the assistant's.
    """
    messages = parse_turns(value, where, MESSAGES)
    if messages[-1].role != ASSISTANT:
        last = f"message {len(messages)}, the last one, is the {messages[-1].role}'s"
        raise BadInput(
            f"{where}: {last}; the last message must be the assistant's, which the model learns: remove the messages after it"
        )
    return messages


def parse_turns(value: Any, where: str, column: str) -> tuple[Message, ...]:
    """Return the messages in a column: a system message or none, then turns of the user and the assistant.

    Raises:
        BadInput: a message without a role or a text, an unknown role, or turns that do not alternate; it is named by its number.
    """
    if not isinstance(value, list) or not value:
        problem = "an empty list" if isinstance(value, list) else json_type(value)
        raise BadInput(f'{where}: "{column}" is {problem}; write a list of objects with "role" and "content"')
    messages = tuple(_message(item, f"{where}: message {number}") for number, item in enumerate(value, 1))
    turns = messages[1:] if messages[0].role == "system" else messages
    for number, message in enumerate(turns, 1 + len(messages) - len(turns)):
        expected = "user" if (number - len(messages) + len(turns)) % 2 else ASSISTANT
        if message.role != expected:
            fix = "turns alternate, and a system message comes first only; join or remove messages"
            raise BadInput(f"{where}: message {number} is the {message.role}'s where the {expected}'s belongs; {fix}")
    return messages


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise BadInput(f'{where} is {json_type(item)}; write an object with "role" and "content"')
    for name in ("role", "content"):
        if not isinstance(item.get(name), str):
            problem = json_type(item[name]) if name in item else "missing"
            raise BadInput(f'{where}: "{name}" is {problem}; write a text')
    if item["role"] not in ROLES:
        raise BadInput(f"{where}: role {json.dumps(item['role'])}; choose {', '.join(ROLES[:-1])} or {ROLES[-1]}")
    if calls := [name for name, value in item.items() if name not in ("role", "content") and value]:
        raise BadInput(f"{where}: it has {json.dumps(calls[0])}, which is not supported; remove it")
    content = check_string(item["content"], f"{where}: its content")
    if not content.strip():
        raise BadInput(f"{where}: the {item['role']}'s content is empty; write one, or remove the turn")
    return Message(item["role"], content)
