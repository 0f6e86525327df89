"""Files of prompts with columns for reward functions, and the rows of prompts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import preferences
from tests.support.labelled_files import put
from train.config.data_options import Data
from train.config.option_groups import Prompts
from train.data import labelled_reader
from train.data.example_types import Prompt
from train.data.prompt_records import check_columns
from train.rows.feedback import prompt_rows
from zoo.errors import BadInput


def read(file: Path) -> list[Any]:
    return labelled_reader.read_labelled_examples("policy_gradient", (str(file),), Data(), Prompts())[0]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "folder"])
def test_prompts_are_read_with_their_columns(tmp_path: Path, name: str):
    first, second = read(put(tmp_path / name, [{"prompt": "1+1=", "answer": "2"}, {"prompt": "", "answer": "0"}]))
    assert (first.prompt, first.columns, first.document) == ("1+1=", {"answer": "2"}, "1+1=")
    assert (second.prompt, second.columns) == ("", {"answer": "0"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, 'no "prompt"; it has "text"'),
        ({"prompt": [{"role": "user"}]}, 'message 1: "content" is missing; write a text'),
        ({"prompt": "a", "ids": [1]}, 'column "ids": reward functions have this argument already; rename the column'),
    ],
)
def test_a_fault_is_one_line_with_its_place(tmp_path: Path, row: Any, message: str):
    file = put(tmp_path / "a.jsonl", [{"prompt": "a"}, row])
    with pytest.raises(BadInput) as error:
        read(file)
    assert str(error.value).startswith(f"{file}:2: {message}")


def test_a_conversation_is_a_prompt_of_messages(tmp_path: Path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1="}]
    (example,) = read(put(tmp_path / "a.jsonl", [{"prompt": messages, "answer": "2"}]))
    assert example.content == messages and (example.prompt, example.columns) == ("", {"answer": "2"})
    assert example.document == json.dumps([list(message.values()) for message in messages])


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(origin=f"p:{number}", prompt=text, columns={}) for number, text in enumerate(texts)]


def test_all_prompts_have_the_same_columns():
    other = Prompt(origin="q:1", prompt="b", columns={"answer": 1})
    with pytest.raises(BadInput, match='q:1: columns beside the prompt: "answer"; those of p:0: none; give all prompts the same'):
        check_columns([*prompts("a"), other])


def rows(family: str, *texts: str, length: int = 9, tokens: int = 4, **options: Any) -> tuple[list[Any], list[str]]:
    net, tokenizer = preferences.net(family), preferences.tokenizer(family)
    return prompt_rows.encode_rows(prompts(*texts), tokenizer, net.config, Prompts(**options), length, tokens)


def test_a_decoder_reads_the_prompt_and_an_empty_one_is_end_of_text():
    tokenizer = preferences.tokenizer("gpt")
    (first, empty), _ = rows("gpt", "a b ", "")
    assert tokenizer.decode(first.prompt) == "a b " and first.prompt.dtype == np.int32
    assert empty.prompt.tolist() == [tokenizer.end_of_text]


def test_an_encoder_decoder_reads_a_source_with_its_end_mark():
    tokenizer = preferences.tokenizer("t5")
    (first, empty), _ = rows("t5", "the", "")
    assert first.prompt.tolist() == [*tokenizer.encode("the").tolist(), tokenizer.end_of_text]
    assert empty.prompt.tolist() == [tokenizer.end_of_text]


def test_a_long_prompt_is_refused_with_both_lengths_left_out_or_cut():
    with pytest.raises(
        BadInput, match=r"p:1: a prompt of 7 tokens, and a row of 9 has room for 5 before --rollout.tokens 4; choose"
    ):
        rows("gpt", "abcde", "abcdefg")
    kept_rows, (message,) = rows("gpt", "abcde", "abcdefg", skip_bad=True)
    assert [row.example for row in kept_rows] == [0] and message.startswith("p:1: a prompt of 7 tokens")
    (_, cut), messages = rows("gpt", "abcde", "abcdefg", truncate=True)
    assert preferences.tokenizer("gpt").decode(cut.prompt) == "cdefg" and not messages
    with pytest.raises(BadInput, match=r"p:0: a prompt of 3 tokens, and a source has 2"):
        rows("transformer", "the the", length=2)
    with pytest.raises(BadInput, match=r"--data.length 4: a row has no room for a prompt"):
        rows("gpt", "a", length=4)
