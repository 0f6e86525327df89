"""The sums of the recipe arithmetic-nano: complete, right, and written to files that nothing else overwrites."""

import json
from pathlib import Path

import pytest

from train.data import arithmetic
from zoo.cli.main import main


def test_each_sum_is_in_one_file_with_its_digits_reversed() -> None:
    counted = set()
    for name, content in arithmetic.arithmetic_sums().items():
        lines = content.splitlines()
        assert len(lines) == arithmetic.SHARES[name]
        for example in map(json.loads, lines):
            a, b = map(int, example["prompt"].removesuffix("=").split("+"))
            assert int(example["completion"][::-1]) == a + b
            assert len(example["prompt"]) == 6 and len(example["completion"]) == 3
            counted.add((a, b))
    assert len(counted) == arithmetic.NUMBERS**2


def test_the_command_writes_the_files_and_does_not_overwrite_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a" / "sums"
    for _ in range(2):
        assert main(["data", "arithmetic", str(folder)]) == 0
    assert sorted(file.name for file in folder.iterdir()) == sorted(arithmetic.SHARES)
    (folder / "prompts.jsonl").write_text("mine")
    assert main(["data", "arithmetic", str(folder)]) == 2
    assert f"{folder / 'prompts.jsonl'}: it has other content than the sums" in capsys.readouterr().err
    assert (folder / "prompts.jsonl").read_text() == "mine"
    assert main(["data", "arithmetic", str(folder / "prompts.jsonl" / "inner")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("args", ["arithmetic a b", "arithmetic --dir", "sums", ""])
def test_other_arguments_are_refused(args: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *args.split()]) == 2
    assert capsys.readouterr().err.count("\n") == 1
