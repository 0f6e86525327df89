"""Options of `zoo bench` that are refused in a line, before anything is measured."""

import re
from pathlib import Path

import pytest

from tests.support import benchmark_steps as steps
from tests.support.commands import call

REFUSED = {
    "attention --shape 1,8,8,2,2,0": "--shape 1,8,8,2,2,0: every number must be 1 or more",
    "attention --shape 1,8,8,4,3,8": "--shape 1,8,8,4,3,8: 3 key/value heads do not divide 4 heads",
    "attention --shape 1,8,8,2,2,8 --lengths 8": "--shape with --lengths: .*; leave one of them out",
    "attention --rounds 3 --budget 1": "--rounds with --budget 1.0: .*; leave one of them out",
    "attention --lengths 0": "--lengths 0: choose 1 or more",
    "attention --budget nan": "--budget nan: must be above 0",
    "step": "bench step: name a model, such as gpt2; zoo models lists them",
    "step gpt-nano --mesh": "--mesh: has no value; name one or more, or leave the option out",
    "step bert-nano --mode decode": "--mode decode: bert-nano does not generate text; these families do: ettin_decoder, gpt,",
    "step gpt-nano --source-length 8": "--source-length 8: gpt-nano is not an encoder-decoder.*; leave it out",
    "step gpt-nano --mesh tensor=4": "--mesh.tensor 4: it does not divide the 2 heads",
    "step gpt-nano --batch 3 --mesh data=2": "--data.batch 3: 3 rows",
    "step gpt-nano --mode decode --mesh data=2": "--mesh data=2: one token is decoded on one device",
    "growth gpt-nano --layers 3": "--layers 3: growth needs two different values or more",
    "growth gpt-nano --width 32 50": "--width 50: choose multiples of 32, the size of a head",
    "growth gpt-nano --batch 4 --device-counts 1 3": "--device-counts 3: it does not divide the 4 rows of --batch",
}
"""Arguments -> the message that they end with: one for each check."""


def test_wrong_options_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    steps.shrink(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for line, message in REFUSED.items():
        ended = call(capsys, "bench", *line.split())
        assert (ended.code, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), (line, ended)
        assert re.match(f"zoo: {message}", ended.stderr), (line, ended)
    assert not list(tmp_path.iterdir())
