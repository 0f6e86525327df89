"""Instructions with their responses: a prompt and its completion as plain texts, or the messages of a conversation.

The columns are those of TRL's data sets (`prompt` and `completion`, or `messages`, a list of objects with `role` and `content`),
of ShareGPT (`conversations`, a list of objects with `from` and `value`) or of Alpaca (`instruction`, `input` and `output`).
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from train.data.example_types import ASSISTANT, ROLES, Dialogue, Message, Pair
from train.data.records import Record
from train.data.text_files import check_string, json_type, list_names
from zoo.errors import BadInput

COLUMNS = ("prompt", "completion")
MESSAGES = "messages"
SHAREGPT = "conversations"
INSTRUCTION, INPUT, OUTPUT = "instruction", "input", "output"
SYSTEM = "system"
FORMS = ((MESSAGES,), COLUMNS[1:], (SHAREGPT,), (INSTRUCTION, OUTPUT))
"""Columns by which a form is recognized. A record has those of one form."""
UNSUPPORTED = ("tools", "history", "chat_template_kwargs")
"""Columns that change a conversation or its rendering where they are supported."""


class _Names(NamedTuple):
    """The names in a message."""

    role: str
    content: str
    roles: Mapping[str, str]
    """Role by the value of its field."""


_MESSAGES = _Names("role", "content", dict(zip(ROLES, ROLES, strict=True)))
_SPEAKERS = {SYSTEM: SYSTEM, "human": "user", "user": "user"} | dict.fromkeys(
    ("gpt", ASSISTANT, "chatgpt", "bing", "bard"), ASSISTANT
)
_SHAREGPT = _Names("from", "value", _SPEAKERS)


def is_dialogue(record: Record) -> bool:
    """Return whether a record has the columns of an instruction in one of the forms."""
    return all(name in record.values for name in COLUMNS) or bool({*_forms(record.values)} - {COLUMNS[1]})


def parse_dialogue(record: Record) -> Pair | Dialogue:
    """Return a prompt with its completion as a pair, or a conversation.

    Raises:
        BadInput: the columns are missing, are those of two forms or hold something else, a text is empty, or the messages do not
            alternate.
    """
    where, values = record.where, record.values
    forms = _forms(values)
    if len(forms) > 1:
        raise BadInput(f"{where}: it has both {' and '.join(map(json.dumps, forms[:2]))}; leave one of them out")
    if forms and forms[0] != COLUMNS[1]:
        refuse_unsupported(values, where)
        turns = {MESSAGES: _messages, SHAREGPT: sharegpt_turns, OUTPUT: alpaca_turns}[forms[0]](values, where)
        return Dialogue(origin=where, messages=check_answered(turns, where))
    if missing := [name for name in COLUMNS if name not in values]:
        fix = f'write "prompt" and "completion", or "{MESSAGES}", or "{SHAREGPT}", or "{INSTRUCTION}" with "{OUTPUT}"'
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


def _forms(values: Mapping[str, Any]) -> list[str]:
    """Return the last column of each form whose columns all exist."""
    return [form[-1] for form in FORMS if all(name in values for name in form)]


def _messages(values: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    return parse_turns(values[MESSAGES], where, MESSAGES)


def texts_of(example: Pair | Dialogue) -> Iterator[str]:
    """Yield the texts of an example, on which a tokenizer is trained."""
    yield from (
        (example.source, example.target) if isinstance(example, Pair) else (message.content for message in example.messages)
    )


def sharegpt_turns(values: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    """Return the messages of ShareGPT's column "conversations", after the text of a column "system" if there is one.

    Raises:
        BadInput: see `parse_turns`; also if both columns have a system message.
    """
    turns, system = parse_turns(values[SHAREGPT], where, SHAREGPT, names=_SHAREGPT), _system(values, where)
    if system and turns[0].role == SYSTEM:
        raise BadInput(f'{where}: "{SHAREGPT}" and "{SYSTEM}" both have a system message; remove one of them')
    return system + turns


def alpaca_turns(values: Mapping[str, Any], where: str, *, answered: bool = True) -> tuple[Message, ...]:
    """Return Alpaca's instruction as a turn of the user, with its input after an empty line, and its output as the assistant's.

    Args:
        answered: with the turn of the assistant.

    Raises:
        BadInput: a column is not a text, or the instruction or the output is empty.
    """
    texts = {}
    for name in (INSTRUCTION, INPUT, OUTPUT)[: 3 if answered else 2]:
        value = values.get(name)
        texts[name] = check_string("" if value is None and name == INPUT else value, f"{where}: the {name}")
        if not texts[name].strip() and name != INPUT:
            raise BadInput(f"{where}: the {name} is empty; write one, or remove the example")
    question = texts[INSTRUCTION] + (f"\n\n{texts[INPUT]}" if texts[INPUT].strip() else "")
    answer = (Message(ASSISTANT, texts[OUTPUT]),) if answered else ()
    return (*_system(values, where), Message("user", question), *answer)


def _system(values: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    text = check_string(values.get(SYSTEM) or "", f'{where}: "{SYSTEM}"')
    return (Message(SYSTEM, text),) if text.strip() else ()


def refuse_unsupported(values: Mapping[str, Any], where: str) -> None:
    """Refuse a conversation with tools or another column that is not supported.

    Raises:
        BadInput: names the column.
    """
    if name := next((name for name in UNSUPPORTED if values.get(name)), None):
        raise BadInput(f"{where}: it has {json.dumps(name)}, which is not supported for conversations; remove the column")


def document_of(prompt: str | tuple[Message, ...]) -> str:
    """Return the name by which examples of one prompt are held out together."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt)


def check_answered(messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """Return the messages of a conversation whose last turn is the assistant's.

    Raises:
        BadInput: the last turn is another's.
    """
    if messages[-1].role != ASSISTANT:
        last = f"message {len(messages)}, the last one, is the {messages[-1].role}'s"
        raise BadInput(
            f"{where}: {last}; the last message must be the assistant's, which the model learns: remove the messages after it"
        )
    return messages


def check_unanswered(messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """Return the messages of a prompt, whose last turn is the user's.

    Raises:
        BadInput: the last turn is another's.
    """
    if messages[-1].role != "user":
        last = f"message {len(messages)}, the last one, is the {messages[-1].role}'s"
        raise BadInput(f"{where}: {last}; a response follows a turn of the user: remove the others after it")
    return messages


def parse_turns(value: Any, where: str, column: str, *, first: str = "user", names: _Names = _MESSAGES) -> tuple[Message, ...]:
    """Return the messages in a column: a system message or none, then turns of the user and the assistant.

    Args:
        first: role of the first turn; before the assistant's there is no system message.
        names: names in a message.

    Raises:
        BadInput: a message without a role or a text, an unknown role, or turns that do not alternate; it is named by its number.
    """
    if not isinstance(value, list) or not value:
        problem = "an empty list" if isinstance(value, list) else json_type(value)
        raise BadInput(f'{where}: "{column}" is {problem}; write a list of objects with "{names.role}" and "{names.content}"')
    messages = tuple(_message(item, f"{where}: message {number}", names) for number, item in enumerate(value, 1))
    turns = messages[1:] if messages[0].role == SYSTEM and first == "user" else messages
    for number, message in enumerate(turns):
        expected = ("user", ASSISTANT)[(number + (first == ASSISTANT)) % 2]
        if message.role != expected:
            position = number + 1 + len(messages) - len(turns)
            fix = "turns alternate, and a system message comes first only; join or remove messages"
            raise BadInput(f"{where}: message {position} is the {message.role}'s where the {expected}'s belongs; {fix}")
    return messages


def _message(item: Any, where: str, names: _Names) -> Message:
    if not isinstance(item, dict):
        raise BadInput(f'{where} is {json_type(item)}; write an object with "{names.role}" and "{names.content}"')
    for name in (names.role, names.content):
        if not isinstance(item.get(name), str):
            problem = json_type(item[name]) if name in item else "missing"
            others = (
                f'; with "role" and "content", the column is "{MESSAGES}"' if names.role not in item and "role" in item else ""
            )
            raise BadInput(f'{where}: "{name}" is {problem}; write a text{others}')
    if item[names.role] not in names.roles:
        *others, last = names.roles
        raise BadInput(f"{where}: {names.role} {json.dumps(item[names.role])}; choose {', '.join(others)} or {last}")
    if calls := [name for name, value in item.items() if name not in (names.role, names.content) and value]:
        raise BadInput(f"{where}: it has {json.dumps(calls[0])}, which is not supported; remove it")
    role, content = names.roles[item[names.role]], check_string(item[names.content], f"{where}: its {names.content}")
    if not content.strip():
        raise BadInput(f"{where}: the {role}'s {names.content} is empty; write one, or remove the turn")
    return Message(role, content)
