"""Commands in this process, for the tests of the command line."""

from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.processes import Ended
from zoo import cli

TINY = [*tiny.FLAGS, "--steps", "2", "--data.paths", "book.txt"]


def finished(folder: Path) -> None:
    """A text, and a run on it in `runs/done`; `folder` is the current one."""
    (folder / "book.txt").write_text("".join(f"The {n}th whale is seen, and {n * n} more.\n\n" for n in range(400)))
    assert cli.main(["train", "gpt-nano", *TINY, "--name", "done"]) == 0


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> Ended:
    """A command in this process, which has 8 devices."""
    capsys.readouterr()
    try:
        code = cli.main(argv)
    except SystemExit as end:
        code = end.code
    assert isinstance(code, int)
    return Ended(code, *capsys.readouterr(), seconds=0)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def words(line: str) -> tuple[str, ...]:
    return tuple(line.split())
