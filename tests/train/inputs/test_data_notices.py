"""A run says so where much of what it trains on is padding or unknown to its tokenizer."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.support import finetuned
from tests.support.encoders import tokenizer
from tests.support.labelled_files import put
from train.config import run_config
from train.config.data_options import LabelledData
from train.data.example_types import Tagged, Text
from train.inputs import run_inputs
from train.inputs.data_notices import labels_seen_once, notices, padding_share, unknown_share
from train.run.run_dir import RunDir


def lines(folder: Path, text: str, length: int, goal: str = "classification", **options: Any) -> tuple[list[str], Any, Any]:
    """Return the notices of a run on ten examples of a text, the run and its inputs."""
    tokenizer("wordpiece").save(folder)
    words = "".join(f"{word}\tO\n" for word in text.split()) + "x\tB\n\n"
    content = words * 10 if goal == "tagging" else "text\tlabel\n" + f"{text}\ta\n{text}\tb\n" * 5
    file = put(folder / ("a.conll" if goal == "tagging" else "a.tsv"), content)
    cfg = finetuned.run(goal, labels=(), data=LabelledData(paths=(str(file),), length=length, batch=2), **options)
    cfg = dataclasses.replace(cfg, tokenizer=run_config.Tokenizer(path=str(folder)))
    cfg = run_inputs.resolve_config(cfg)
    data = run_inputs.read_inputs(cfg, RunDir(folder), folder)
    return notices(cfg, data), cfg, data


def test_padding_is_noticed_above_one_half(tmp_path: Path) -> None:
    # Five tokens with the special ones.
    assert lines(tmp_path, "the old whale", 10)[0] == []
    (line,), cfg, data = lines(tmp_path, "the old whale", 11)
    assert padding_share(cfg, data.rows.components[0].rows) == pytest.approx(6 / 11)
    assert line == "54.5% of the training rows are padding; choose --data.length 5, which the longest of them needs"


@pytest.mark.parametrize("goal", ["classification", "tagging"])
def test_unknown_tokens_are_noticed_above_one_in_twenty(goal: str, tmp_path: Path) -> None:
    unknown = "\N{SNOWMAN} \N{SNOWMAN}"
    (line,), _, data = lines(tmp_path, f"the old {unknown}", 8, goal)
    # An x, which the tokenizer knows or not, ends each sentence of tags.
    share = unknown_share(data)
    assert share >= 2 / 5 and line.startswith(f"{share:.1%} of the training tokens are unknown to the tokenizer; choose")
    assert lines(tmp_path, "the old whale sleeps of", 8)[0] == []


@pytest.mark.planted
def test_a_label_that_occurs_once_is_noticed(tmp_path: Path) -> None:
    """A misspelled label in the middle of a table, and a misspelled tag."""
    examples = [Text(origin=f"a.tsv:{n + 2}", text="the whale", label="ab"[n % 2]) for n in range(40)]
    cfg = finetuned.run("classification", labels=("a", "b", "bb"))
    assert labels_seen_once(cfg, examples) == ""
    examples[7] = dataclasses.replace(examples[7], label="bb")
    assert labels_seen_once(cfg, examples) == (
        "1 label occurs once, such as by a misspelling: bb (a.tsv:9); correct the file, or refuse other labels by "
        "--model.labels NAME ..."
    )
    # Of few examples every label may have one.
    assert labels_seen_once(cfg, examples[:20]) == ""
    tagged = [Tagged(origin=f"a.conll:{n}", words=("a", "whale"), tags=("O", "B" if n else "BB")) for n in range(40)]
    assert "BB (a.conll:0)" in labels_seen_once(finetuned.run("tagging", labels=("B", "BB", "O")), tagged)
