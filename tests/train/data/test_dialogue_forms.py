"""ShareGPT and Alpaca as conversations and prompts, and records that are refused because their form is not certain."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.labelled_files import put
from train.config.data_options import Data
from train.config.option_groups import ExampleFileOptions, PairTables, Prompts
from train.data import labelled_reader
from train.data.example_types import Message
from zoo.errors import BadInput

SYSTEM, USER, ANSWER = Message("system", "Be brief."), Message("user", "Who?"), Message("assistant", "Anna.")


def said(**turns: str) -> list[dict[str, str]]:
    return [{"from": speaker, "value": value} for speaker, value in turns.items()]


def read(folder: Path, record: dict[str, Any], objective: str = "instruction") -> Any:
    options: Any = {"text_to_text": PairTables(), "policy_gradient": Prompts()}.get(objective, ExampleFileOptions())
    file = put(
        folder / "a.jsonl",
        [{"prompt": "a", "completion": "b"}, record] if objective != "policy_gradient" else [{"prompt": "a"}, record],
    )
    return labelled_reader.read_labelled_examples(objective, (str(file),), Data(), options)[0][1]


CONVERSATIONS: dict[str, tuple[dict[str, Any], tuple[Message, ...]]] = {
    "sharegpt": ({"conversations": said(human="Who?", gpt="Anna."), "id": "7"}, (USER, ANSWER)),
    "other names": ({"conversations": said(system="Be brief.", user="Who?", chatgpt="Anna.")}, (SYSTEM, USER, ANSWER)),
    "a column of the system": (
        {"conversations": said(human="Who?", assistant="Anna."), "system": "Be brief."},
        (SYSTEM, USER, ANSWER),
    ),
    "empty columns": ({"conversations": said(human="Who?", bing="Anna."), "system": "", "tools": None}, (USER, ANSWER)),
    "alpaca": ({"instruction": "Who?", "input": "", "output": "Anna.", "text": "Below is"}, (USER, ANSWER)),
    "alpaca without input": ({"instruction": "Who?", "output": "Anna.", "system": "Be brief."}, (SYSTEM, USER, ANSWER)),
    "alpaca with input": (
        {"instruction": "Who?", "input": "Anna sails.", "output": "Anna."},
        (Message("user", "Who?\n\nAnna sails."), ANSWER),
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("objective", ["instruction", "text_to_text"])
def test_other_forms_become_messages(name: str, objective: str, tmp_path: Path) -> None:
    record, messages = CONVERSATIONS[name]
    assert read(tmp_path, record, objective).messages == messages


def test_prompts_leave_out_the_answer_and_keep_the_other_columns(tmp_path: Path) -> None:
    alpaca = read(tmp_path, {"instruction": "Who?", "input": "a", "output": "Anna.", "system": "Be brief."}, "policy_gradient")
    assert (alpaca.messages, alpaca.columns) == ((SYSTEM, Message("user", "Who?\n\na")), {"output": "Anna."})
    sharegpt = read(tmp_path, {"conversations": said(human="Who?"), "answer": 3}, "policy_gradient")
    assert (sharegpt.messages, sharegpt.columns, sharegpt.document) == ((USER,), {"answer": 3}, json.dumps((USER,)))
    prompt = read(tmp_path, {"prompt": "a", "instruction": "b", "conversations": []}, "policy_gradient")
    assert (prompt.prompt, prompt.messages, sorted(prompt.columns)) == ("a", (), ["conversations", "instruction"])


SHAREGPT, ALPACA = CONVERSATIONS["sharegpt"][0], CONVERSATIONS["alpaca"][0]
MESSAGES = {"messages": [USER._asdict(), ANSWER._asdict()]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a tool": (
        {"conversations": said(human="Who?", observation="x")},
        'message 2: from "observation"; choose system, human, user, gpt,',
    ),
    "sharegpt and alpaca": (SHAREGPT | ALPACA, 'it has both "conversations" and "output"; leave one of them out'),
    "messages and sharegpt": (SHAREGPT | MESSAGES, 'it has both "messages" and "conversations"; leave one of them out'),
    "alpaca and a completion": (ALPACA | {"completion": "c"}, 'it has both "completion" and "output"; leave one of them out'),
    "an instruction alone": (
        {"instruction": "Who?"},
        'no column "prompt"; it has "instruction": write "prompt" and "completion", or',
    ),
    "roles": (
        {"conversations": MESSAGES["messages"]},
        'message 1: "from" is missing; write a text; with "role" and "content", the',
    ),
    "no list": ({"conversations": "Who?"}, '"conversations" is a string; write a list of objects with "from" and "value"'),
    "the assistant first": ({"conversations": said(gpt="A", human="B")}, "message 1 is the assistant's where the user's belongs"),
    "no answer": ({"conversations": said(human="Who?")}, "message 1, the last one, is the user's; the last message must be the"),
    "an empty value": (
        {"conversations": said(human=" ", gpt="A")},
        "message 1: the user's value is empty; write one, or remove the turn",
    ),
    "two system messages": (
        {"conversations": said(system="a", human="b", gpt="c"), "system": "d"},
        '"conversations" and "system" both have a system message; remove one of them',
    ),
    "a history": (ALPACA | {"history": [["a", "b"]]}, 'it has "history", which is not supported for conversations; remove the'),
    "tools": (MESSAGES | {"tools": "[{}]"}, 'it has "tools", which is not supported for conversations; remove the column'),
    "an empty output": (ALPACA | {"output": " "}, "the output is empty; write one, or remove the example"),
    "an input of numbers": (ALPACA | {"input": 3}, "the input holds a number, not a string; write a string"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_record_whose_form_is_not_certain_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    record, message = REFUSED[name]
    with pytest.raises(BadInput) as refusal:
        read(tmp_path, record)
    assert str(refusal.value).startswith(f"{tmp_path / 'a.jsonl'}:2: {message}") and "\n" not in str(refusal.value)


def test_prompts_of_two_forms_or_with_an_answer_are_refused(tmp_path: Path) -> None:
    for record, message in (
        (SHAREGPT | ALPACA, 'it has both "conversations" and "instruction"; leave one of them out, or write "prompt"'),
        (SHAREGPT, "message 2, the last one, is the assistant's; a response follows a turn of the user: remove the others"),
        ({"text": "a"}, 'no "prompt"; it has "text"'),
    ):
        with pytest.raises(BadInput) as refusal:
            read(tmp_path, record, "policy_gradient")
        assert f"a.jsonl:2: {message}" in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(ALPACA), "a.json: an object; write one array of objects"),
        (json.dumps([ALPACA, "b"]), "a.json: record 2: a string; write an object"),
        (
            json.dumps(ALPACA) + "\n" + json.dumps(ALPACA),
            "a.json: invalid JSON at line 2, .*; write one array of objects, or name",
        ),
        ("[]", "a.json: holds no examples"),
    ],
)
def test_an_array_has_objects(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        labelled_reader.read_labelled_examples(
            "instruction", (str(put(tmp_path / "a.json", content)),), Data(), ExampleFileOptions()
        )
    renamed = put(tmp_path / "a.txt", json.dumps([ALPACA]))
    examples, _ = labelled_reader.read_labelled_examples(
        "instruction", (str(renamed),), Data(), ExampleFileOptions(format="json")
    )
    assert len(examples) == 1
