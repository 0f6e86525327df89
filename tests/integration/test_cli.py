"""The command line: help imports no JAX, closed pipes cause no traceback, Ctrl-C ends generation, doctor and eval answer."""

import contextlib
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import assert_evaluates_alike, call, finished, in_folder, snapshot, words
from tests.support.processes import clean_environment, run_python
from zoo.attention import attention


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("place")
    finished(folder)
    with in_folder(folder):
        yield folder


WITHOUT_JAX = {
    "--help": [0, "zoo doctor"],
    "train --help": [0, "gpt-nano"],
    "train gpt-nano --help": [0, "--optim.weight-decay FLOAT"],
    "train bert-nano --help": [0, "Train a BERT of"],
    "eval --help": [0, "--stride INT"],
    "bench attention --help": [0, "--cell-seconds FLOAT"],
    "train gpt-nano --stpes 3": [2, "the nearest is --steps"],
    "train gpt-nona": [2, "'gpt-nano'"],
    "models gpt2-lrage": [2, "'gpt2-large'"],
    "models": [0, "124,439,808"],
    "data --help": [0, "decoded, with loss weights"],
    "doctor --help": [0, "check that it computes correct numbers"],
    "--version": [0, "transformer-zoo "],
    "plan gpt2 --help": [0, "--target STR"],
    "plan gpt2 --target v5q:2": [2, "v5p:16x16x16"],
}
GENERATE = "generate runs/done --prompt whale --limit 20"
CLOSED = ["train gpt-nano --help", *(pytest.param(line, marks=pytest.mark.full) for line in ("doctor", GENERATE))]
PROGRAM = """
import contextlib, io, json, sys
from zoo.cli import main
for line in json.loads(sys.argv[1]):
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = main.main(line.split())
        except SystemExit as end:
            code = end.code
    print(json.dumps([line, code, output.getvalue(), sorted({"jax", "flax", "numpy", "optax", "matplotlib"} & set(sys.modules))]))
"""


def test_help_and_wrong_names_import_no_jax() -> None:
    """One process answers all of them, so that a module which one imports is also seen after the next ones."""
    ended = run_python("-P", "-c", PROGRAM, json.dumps(list(WITHOUT_JAX)))
    answers = {line: rest for line, *rest in map(json.loads, ended.stdout.splitlines())}
    assert answers.keys() == WITHOUT_JAX.keys(), ended
    for line, (code, output, heavy) in answers.items():
        assert (line, heavy, code) == (line, [], WITHOUT_JAX[line][0])
        assert WITHOUT_JAX[line][1] in output


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    listing, page = call(capsys, "models"), call(capsys, "models", "gpt2")
    assert (listing.code, page.code) == (0, 0)
    assert re.search(r"^gpt2\b", listing.stdout, re.MULTILINE) and "124,439,808" in page.stdout
    assert json.loads(call(capsys, "models", "gpt2", "--json").stdout)["parameters"] == 124_439_808
    assert json.loads(call(capsys, "models", "--json").stdout)[0]["name"] == "bert-nano"


def zoo(line: str) -> list[str]:
    return [sys.executable, "-P", "-m", "zoo.cli", *words(line)]


@pytest.mark.parametrize("line", CLOSED)
def test_a_closed_pipe_causes_no_traceback(line: str, place: Path) -> None:
    """The reader leaves as `| head -1` does, but surely before anything is written."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(zoo(line), stdout=closed, stderr=subprocess.PIPE, env=clean_environment(), cwd=place, timeout=300)
    assert done.stderr == b""
    assert done.returncode == 0


FULL = r"standard output or a file cannot be written \(No space left on device\); make room, .*"
OUTPUTS = {
    "models | head -c 1; exit ${PIPESTATUS[0]}": (0, ""),
    "models gpt2 > /dev/full": (2, FULL),
    "--help >&-": (2, "standard output is closed; redirect it to a file or to /dev/null"),
    "train gpt-nona 2>&-": (2, ""),
    "eval 2> /dev/full": (2, ""),
}


@pytest.mark.parametrize("line", OUTPUTS)
def test_output_that_cannot_be_written_is_one_line(line: str, tmp_path: Path) -> None:
    program = f"{shlex.quote(sys.executable)} -P -m zoo.cli {line}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, env=clean_environment(), cwd=tmp_path)
    code, message = OUTPUTS[line]
    assert done.returncode == code
    assert re.fullmatch(f"zoo: {message}\n" if message else "", done.stderr)


@pytest.mark.parametrize(("locale", "plain"), [("C", True), ("POSIX", True), ("C.UTF-8", False)])
def test_the_c_locale_gets_plain_ascii(locale: str, plain: bool) -> None:
    environment = {"LC_ALL": locale, "PYTHONUTF8": None}
    help_text = run_python("-P", "-m", "zoo.cli", "train", "gpt-nano", "--help", env=environment).stdout
    assert "--steps INT" in help_text
    assert help_text.isascii() == plain
    assert "\\u" not in help_text


@pytest.mark.full
def test_interrupted_while_generating(place: Path) -> None:
    command, environment = zoo(f"{GENERATE} --samples 200000"), clean_environment() | {"TERM": "xterm"}
    terminal, end = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=end, env=environment, cwd=place) as process:
        os.close(end)
        shown = b""
        while b" of 200,000 texts" not in shown:
            shown += os.read(terminal, 1000)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=300) == 130
        finally:
            process.kill()
    with contextlib.suppress(OSError):  # a terminal that nobody writes to any more ends so
        while more := os.read(terminal, 1000):
            shown += more
    os.close(terminal)
    assert b"Traceback" not in shown and b"200,000 of 200,000" not in shown


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    ended = call(capsys, "doctor")
    assert ended.code == 0 and attention.describe_auto() in ended.stdout
    assert re.search(
        r"^logits +all at once if they take at most [\d.]+ GiB, 1/4 of a device's\s+memory", ended.stdout, re.MULTILINE
    )
    for name, row in attention.IMPLEMENTATIONS.items():
        here = r"yes" if "cpu" in row.platforms else rf"no +it runs on {', '.join(sorted(row.platforms))}, and this is cpu"
        assert re.search(rf"^{name} +{here}", ended.stdout, re.MULTILINE)


def test_a_run_is_evaluated(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(place)
    assert "bits_per_byte" in assert_evaluates_alike(capsys, place / "runs" / "done")
    assert snapshot(place) == before
