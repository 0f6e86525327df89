"""What native code writes to descriptor 2: it goes to a log, is printed with an error, and is never lost."""

import re
import signal
from pathlib import Path

import pytest

from tests.support import compilation, tiny
from tests.support.processes import Ended, run_python

PROGRAM = """
import ctypes, os, sys
from zoo.cli import main
from zoo.cli.commands import models
from zoo.runtime import jax_setup, native_log

LINE = b"F0000 sample.cc:7] Check failed: a == b\\n"

def act(words):
    jax_setup.prepare_jax(1)
    ctypes.CDLL(None).write(2, LINE, len(LINE))
    print("a message of Python", file=sys.stderr)
    {act}
    return 0

{before}
models.models = act
main.run()
"""
LINE = "F0000 sample.cc:7] Check failed: a == b\n"
PYTHON = "a message of Python\n"
TRACEBACK = r"Traceback \(most recent call last\):\n(  .*\n)+ZeroDivisionError: division by zero\n"


def call(place: Path, act: str = "pass", before: str = "", **environment: str | None) -> tuple[Ended, str]:
    """Return how a command ended that writes natively, and the content of the log in the cache."""
    env = {"ZOO_CACHE": str(place / "cache"), "ZOO_PROCESS": None} | environment
    ended = run_python("-P", "-c", PROGRAM.replace("{act}", act).replace("{before}", before), "models", env=env, cwd=place)
    log = place / "cache" / "native.txt"
    return ended, log.read_text() if log.exists() else ""


def test_native_messages_go_to_the_log(tmp_path: Path) -> None:
    assert call(tmp_path) == (Ended(0, "", PYTHON), LINE)
    assert call(tmp_path) == (Ended(0, "", PYTHON), LINE * 2)


@pytest.mark.planted
def test_without_the_log_they_reach_the_user(tmp_path: Path) -> None:
    assert call(tmp_path, before="native_log.native_log.separate = lambda: None") == (Ended(0, "", LINE + PYTHON), "")


def test_an_error_prints_the_messages_of_its_own_process(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cache" / "native.txt").write_text(LINE)
    ended, log = call(tmp_path, "1 / 0")
    place = re.escape(str(tmp_path / "cache" / "native.txt"))
    tail = rf"The last messages of native code \(all of them: {place}\):\n{re.escape(LINE)}"
    assert (ended.code, log) == (1, LINE * 2)
    assert re.fullmatch(f"{PYTHON}{TRACEBACK}{tail}", ended.stderr)


SIGNALS = [("os.abort()", signal.SIGABRT), pytest.param("ctypes.string_at(0)", signal.SIGSEGV, marks=pytest.mark.full)]


@pytest.mark.parametrize(("act", "number"), SIGNALS)
def test_a_process_that_a_signal_ends_names_the_log(act: str, number: int, tmp_path: Path) -> None:
    ended, log = call(tmp_path, act)
    assert (ended.code, log) == (-number, LINE)
    assert ended.stderr.startswith(f"{PYTHON}Fatal Python error: ")
    assert f'File "native code has written messages to {tmp_path / "cache" / "native.txt"}"' in ended.stderr
    assert ' in act\n  File "' in ended.stderr


def test_a_cache_that_cannot_be_written_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "native.txt").mkdir()
    env = {"ZOO_CACHE": str(tmp_path / "cache")}
    ended = run_python("-P", "-c", PROGRAM.replace("{act}", "pass").replace("{before}", ""), "models", env=env, cwd=tmp_path)
    assert ended == Ended(0, "", LINE + PYTHON)


@pytest.mark.full
def test_other_processes_of_a_launcher_keep_their_stderr(tmp_path: Path) -> None:
    """The launcher prints the end of what they write."""
    assert call(tmp_path, ZOO_PROCESS="1") == (Ended(0, "", LINE + PYTHON), "")
    assert call(tmp_path, ZOO_PROCESS="0") == (Ended(0, "", PYTHON), LINE)


@pytest.mark.full
def test_the_log_is_bounded(tmp_path: Path) -> None:
    before = "native_log.LARGEST, native_log.PERIOD = 1 << 10, 0.05"
    act = 'import time; os.write(2, b"x" * 5000); time.sleep(1); os.write(2, b"the end\\n")'
    assert call(tmp_path, act, before) == (Ended(0, "", PYTHON), "(earlier messages were removed: more than 0 MiB)\nthe end\n")


TRAINING = """
import os
from train.run.console import Console
from zoo.cli import main

step = Console.step

def write_and_step(self, number):
    os.write(2, b"a line\\n" * {lines})
    step(self, number)

Console.step = write_and_step
main.run()
"""


@pytest.mark.parametrize("lines", [pytest.param(0, marks=pytest.mark.full), 1])
def test_a_run_has_its_own_log(lines: int, tmp_path: Path) -> None:
    """A run without such messages has no file."""
    (tmp_path / "book.txt").write_text("".join(f"The {n}th whale is seen.\n\n" for n in range(400)))
    flags = [*tiny.FLAGS, "--steps", "2", "--data.paths", "book.txt", "--devices", "1", "--name", "a"]
    program = TRAINING.replace("{lines}", str(lines))
    env = compilation.FLAGS | {"ZOO_CACHE": str(tmp_path / "cache")}
    ended = run_python("-P", "-c", program, "train", "gpt-nano", *flags, cwd=tmp_path, env=env)
    assert ended.code == 0 and "a line" not in ended.stderr + ended.stdout, ended
    log = tmp_path / "runs" / "a" / "native.txt"
    assert (log.read_text() if log.exists() else "") == "a line\n" * 2 * lines
    assert log.exists() == (lines > 0)
    assert (tmp_path / "cache" / "native.txt").read_text() == ""


def test_python_keeps_its_stderr(tmp_path: Path) -> None:
    program = "import os; from zoo.runtime import jax_setup; jax_setup.prepare_jax(1); os.write(2, b'a line\\n')"
    assert run_python("-P", "-c", program, env={"ZOO_CACHE": str(tmp_path)}) == Ended(0, "", "a line\n")
    assert not (tmp_path / "native.txt").exists()
