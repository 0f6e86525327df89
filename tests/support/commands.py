"""Commands in this process, for the tests of the command line."""

import contextlib
import functools
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.support import published, tiny
from tests.support.environment import SCRATCH
from tests.support.hard_texts import HARD
from tests.support.processes import Ended
from train.run import metrics_file
from train.tokenizers import hf_files
from train.tokenizers.tokenizer import Tokenizer
from zoo.cli import main

BOOK = "".join(f"The {n}th whale is seen, and {n * n} more.\n\n" for n in range(400))
GPT2 = dict(model_type="gpt2", vocab_size=300, n_positions=32, n_layer=2, n_embd=32, n_head=4, n_inner=64)
"""The config.json of a model with the shape of `tests.support.tiny`."""
TINY = [*tiny.FLAGS, "--steps", "2", "--data.paths", "book.txt"]


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Make a folder the current one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


@functools.cache
def _finished(*flags: str) -> Path:
    folder = SCRATCH / "-".join(("finished", *flags))
    folder.mkdir()
    (folder / "book.txt").write_text(BOOK)
    with in_folder(folder):
        assert main.main(["train", "gpt-nano", *TINY, *flags, "--name", "done"]) == 0
    return folder


def finished(folder: Path, *flags: str) -> None:
    """Put into a folder a text, and a run on it in `runs/done`, which is trained once with the same flags."""
    shutil.copytree(_finished(*flags), folder, dirs_exist_ok=True)


def write_gpt2(folder: Path) -> None:
    """Write a text, and the published model `gpt2` with a tokenizer that was trained on it."""
    (folder / "book.txt").write_text(BOOK)
    published.write(folder / "gpt2", GPT2)
    hf_files.write_tokenizer(folder / "gpt2", Tokenizer.train([BOOK, HARD], 300), longest=32)


def trained(name: str, argv: Sequence[str]) -> Path:
    """Return the folder of a run in the current folder; the first call trains it, by `zoo train` with these arguments."""
    run = Path("runs", name).absolute()
    if not run.exists():
        assert main.main(["train", *argv, "--name", name]) == 0
    return run


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> Ended:
    capsys.readouterr()
    try:
        code = main.main(argv)
    except SystemExit as end:
        code = end.code
    assert isinstance(code, int)
    return Ended(code, *capsys.readouterr())


def printed(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    """Return what a command prints; what a command that ends with 2 prints is one line on stderr."""
    ended = call(capsys, *argv)
    assert ended.code == code, ended
    assert code == 0 or (ended.stdout == "" and ended.stderr.count("\n") == 1)
    return ended.stderr if code else ended.stdout


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def words(line: str) -> tuple[str, ...]:
    return tuple(line.split())


def losses(run: Path) -> list[float]:
    values = [row["loss"] for row in metrics_file.read_rows(run / "metrics.jsonl") if row["kind"] == "train"]
    assert len(values) == len(set(values)) > 1
    return values


def assert_same_losses(run: Path, other: Path, most: int = 5) -> None:
    """Assert that the first losses of two runs differ by rounding alone: later ones are magnified by Adam."""
    np.testing.assert_allclose(losses(run)[:most], losses(other)[:most], rtol=1e-5)


def assert_evaluates_alike(capsys: pytest.CaptureFixture[str], run: Path, tolerance: float = 1e-6) -> dict[str, float]:
    """Assert that `zoo eval` at another batch size gives a run's own scores and writes nothing but notices; return them."""
    before = snapshot(run)
    ended = call(capsys, "eval", str(run), "--batch", "5")
    assert ended.code == 0 and all(line.startswith("! ") for line in ended.stderr.splitlines()), ended
    printed = {key: float(value.replace(",", "")) for key, value in map(str.split, ended.stdout.splitlines())}
    scores = json.loads((run / "scores.json").read_text())
    expected = {key: scores[key] for key in scores.keys() - {"stride", "step"}}
    assert printed == pytest.approx(expected, rel=1e-6, abs=tolerance)
    assert snapshot(run) == before
    return scores


def assert_refused(capsys: pytest.CaptureFixture[str], folder: Path, cases: Mapping[str, tuple[Sequence[str], str]]) -> None:
    """Assert that each command, {name: (arguments, pattern)}, ends with 2 and a matching line, and changes no file."""
    before, failures = snapshot(folder), {}
    for name, (argv, pattern) in cases.items():
        ended = call(capsys, *argv)
        one_line = ended.stderr.count("\n") == 1 and "Traceback" not in ended.stderr
        if (ended.code, ended.stdout) != (2, "") or not one_line or not re.match(f"zoo: (?:{pattern})", ended.stderr.strip()):
            failures[name] = ended
        elif snapshot(folder) != before:
            failures[name] = "files were changed"
    assert failures == {}, failures
