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
from train.inputs import run_inputs
from train.inputs.data_notices import notices, padding_share, unknown_share
from train.run.run_dir import RunDir


def lines(folder: Path, text: str, length: int, goal: str = "classification", **options: Any) -> tuple[list[str], Any, Any]:
    """Return the notices of a run on ten examples of a text, the run and its inputs."""
    tokenizer("wordpiece").save(folder)
    words = "".join(f"{word}\tO\n" for word in text.split()) + "x\tB\n\n"
    content = words * 10 if goal == "tagging" else "text\tlabel\n" + f"{text}\ta\n{text}\tb\n" * 5
    file = put(folder / ("a.conll" if goal == "tagging" else "a.tsv"), content)
    cfg = finetuned.run(goal, labels=(), data=LabelledData(paths=(str(file),), length=length, batch=2), **options)
    cfg = dataclasses.replace(cfg, tokenizer=run_config.Tokenizer(path=str(folder)))
    cfg = run_inputs.resolve_config(cfg, RunDir(folder))
    data = run_inputs.read(cfg, RunDir(folder), folder)
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
