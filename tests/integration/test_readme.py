"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import pytest

from tests.support import published
from tests.support.processes import ROOT
from train import tokenizer_files
from train.tokenizer import Tokenizer
from zoo import cli

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    folder = tmp_path / "runs" / "gpt-nano"
    folder.parent.mkdir()
    published.write(folder, dict(model_type="gpt2", vocab_size=300, n_positions=32, n_layer=2, n_embd=32, n_head=4))
    tokenizer_files.write(folder, Tokenizer.train(["The white whale. " * 40], 300), longest=32)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert capsys.readouterr().out


def test_every_command_it_names_exists():
    named = set(re.findall(r"`zoo ([a-z-]+)", README))
    assert {"train", "generate", "import"} <= named <= cli.COMMANDS.keys()
