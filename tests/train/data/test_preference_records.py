"""Files of preferences: the formats that are read, and a line for each fault."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.labelled_files import Content, put
from train.config.data_options import Data
from train.config.option_groups import Preferences
from train.data import labelled_reader
from zoo.errors import BadInput

ROWS = [
    {"prompt": "Who?", "chosen": " Anna", "rejected": " Bo", "margin": 1},
    {"prompt": "", "chosen": "The cats sleep.", "rejected": "The cats sleeps."},
]


def read(file: Path, **options: Any) -> list[Any]:
    return labelled_reader.read_labelled_examples("preference", (str(file),), Data(), Preferences(**options))[0]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "folder"])
def test_preferences_are_read_from_every_format(tmp_path: Path, name: str):
    content = [{"margin": 0.0} | row for row in ROWS] if name in ("a.parquet", "folder") else ROWS
    file = put(tmp_path / name, content if not name.endswith("gz") else "".join(f"{row}\n" for row in content).replace("'", '"'))
    first, second = read(file)
    assert (first.prompt, first.chosen, first.rejected, first.margin) == ("Who?", " Anna", " Bo", 1.0)
    assert (second.prompt, second.margin) == ("", 0.0)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Q: a b\nA: yes", "Q: a b\nA: no", "Q: a b\nA:"),
        ("one two", "one two three", "one"),
        ("one twofold", "one two", "one"),
        ("a b ", "a b c", "a"),
    ],
)
def test_without_a_prompt_it_is_the_common_beginning_in_words(tmp_path: Path, chosen: str, rejected: str, prompt: str):
    (example,) = read(put(tmp_path / "a.jsonl", [{"chosen": chosen, "rejected": rejected}]))
    assert example.prompt == prompt
    assert (example.prompt + example.chosen, example.prompt + example.rejected) == (chosen, rejected)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"rejected": " Anna"}, "chosen and rejected are the same text; leave the pair out"),
        ({"rejected": "\n "}, "the rejected completion is empty; write one"),
        ({"margin": float("inf")}, "the margin inf is not finite; write a finite number"),
        ({"margin": 10**400}, "the margin 1000000000000000000000000000000000000000 is not finite; write a finite number"),
        ({"margin": "1"}, "the margin is a string; write a finite number"),
        ({"prompt": None}, '"prompt" holds null, not a string'),
        ({"chosen": [{"role": "user", "content": "a"}]}, '"chosen" is a list of messages, and "prompt" is not; write'),
    ],
)
def test_a_fault_is_one_line_with_its_place(tmp_path: Path, row: Any, message: str):
    file = put(tmp_path / "a.jsonl", [ROWS[1], ROWS[0] | row])
    with pytest.raises(BadInput) as refusal:
        read(file)
    assert str(refusal.value).startswith(f"{file}:2: {message}") and "\n" not in str(refusal.value)
    assert len(read(file, skip_bad=True)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"chosen": "a b", "rejected": "c d"}], ':1: chosen and rejected have different prompts: "a b" and "c d"; add "prompt"'),
        ([{"prompt": "a", "chosen": "b"}], ':1: no "rejected"; it has '),
        ("", ": holds no examples"),
    ],
)
def test_texts_without_a_prompt_need_a_common_beginning(tmp_path: Path, content: Content, message: str):
    with pytest.raises(BadInput, match=message):
        read(put(tmp_path / "a.jsonl", content))
    with pytest.raises(BadInput, match=r"choose --labelled\.format jsonl or json$"):
        read(put(tmp_path / "a.tsv", "a\tb"))


LABELLED = [{"prompt": "Who?", "completion": " Anna", "label": True}, {"prompt": "", "completion": "No.", "label": False}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "folder"])
def test_labelled_completions_are_read_from_every_format(tmp_path: Path, name: str):
    examples, _ = labelled_reader.read_labelled_examples("kto", (str(put(tmp_path / name, LABELLED)),), Data(), Preferences())
    assert [(item.prompt, item.completion, item.desired) for item in examples] == [tuple(row.values()) for row in LABELLED]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": 1}, "the label is a number; write true (desired) or false (undesired)"),
        ({"label": "true"}, "the label is a string; write true"),
        ({"completion": " "}, "the completion is empty; write one, or leave the example out"),
        ({"prompt": [{"role": "user", "content": "a"}]}, '"prompt" is a list of messages, and "completion" is not; write'),
    ],
)
def test_a_fault_of_a_labelled_completion_is_one_line(tmp_path: Path, row: Any, message: str):
    file = put(tmp_path / "a.jsonl", [LABELLED[1], LABELLED[0] | row])
    for content, text in (
        (file, message),
        (put(tmp_path / "b.jsonl", [LABELLED[0], {"prompt": "", "completion": "a"}]), 'no "lab'),
    ):
        with pytest.raises(BadInput) as refusal:
            labelled_reader.read_labelled_examples("kto", (str(content),), Data(), Preferences())
        assert str(refusal.value).startswith(f"{content}:2: {text}") and "\n" not in str(refusal.value)


def test_pairs_of_one_prompt_are_held_out_together(tmp_path: Path):
    rows = [{"prompt": f"{n // 3}", "chosen": f"{n}", "rejected": "x"} for n in range(12)]
    data = Data(paths=(str(put(tmp_path / "a.jsonl", rows)),), valid_fraction=0.3)
    training, held_out = labelled_reader.split_examples("preference", data, Preferences())
    assert len(held_out) == 3 and not {item.document for item in training} & {item.document for item in held_out}
