"""Words of folders and data files reach the terminal and pages without terminal commands and without rich's markup."""

import contextlib
import io
import json
import os
import re
import sys
import threading
import tty
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.core import result_tables
from eval.commands import run_task
from eval.comparison import comparison_table, seed_statistics
from eval.experiments.run_progress import RunProgress
from eval.pages.html_page import Plots, render_page
from eval.report import run_charts
from eval.tasks.task import Result
from tests.support import commands
from tests.support.finished_runs import make
from tests.support.small_experiment import small_grid
from train.run.console import Console
from train.run.progress_display import PieceProgress
from train.weights import load
from zoo import plugins
from zoo.cli import main, models_table
from zoo.errors import printable_lines
from zoo.runtime import stdio

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e[bold][link=a]x"
"""Clears the screen, sets the title, and turns around the direction of text; the rest is markup of rich."""
ESCAPED = r"\x1b[2J\x1b]0;owned\x07\x9b31m\u202e[bold][link=a]x"
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


def compared(folder: Path) -> str:
    other = folder / "other"
    paths = [make(folder / "a", recipe=EVIL), make(other, recipe="gpt-nano", seed=3)]
    entry = {"metrics": {EVIL: 1.0}, "examples": 3, "step": 20, "fingerprint": {"files": "f"}, "tokenizer": "t"}
    for path in paths:
        (Path(path) / "evaluations.json").write_text(json.dumps({"blimp": entry}))
    comparison = seed_statistics.compare_runs(paths, unequal=True, metric=[f"blimp/{EVIL}"])
    return comparison_table.render_comparison(comparison, 400)


def of_console(folder: Path, act: Callable[[Console], None]) -> str:
    file = folder / "log"
    with file.open("w") as stream, Console(steps=3, stream=stream) as console:
        act(console)
    return file.read_text()


def of_progress(folder: Path) -> str:
    stream, grid = io.StringIO(), small_grid()
    with RunProgress(grid, folder, 1, stream) as bar:
        bar.ended(grid.nodes[0], False, EVIL)
        bar.waiting(grid.nodes[0], EVIL)
    return stream.getvalue()


def of_bench(piece: str) -> str:
    stream = io.StringIO()
    bar = PieceProgress(1, stream)
    bar.begin(piece)
    bar.done(1, piece)
    bar.close()
    return stream.getvalue()


@pytest.mark.planted(5)
def test_words_of_a_run_or_an_experiment_are_escaped(tmp_path: Path) -> None:
    texts = {
        "compare": compared(tmp_path),
        "header": of_console(tmp_path, lambda console: console.header("a", {"recipe": EVIL})),
        "sample": of_console(tmp_path, lambda console: console.sample(EVIL)),
        "experiment": of_progress(tmp_path),
        "benchmark": of_bench(EVIL),
    }
    for name, text in texts.items():
        assert ESCAPED in text and not COMMANDS.search(text), name


@pytest.mark.planted(3)
def test_lines_on_stdout_and_stderr_are_escaped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    load._print_error(EVIL)
    stdio.write_error(EVIL)
    result_tables.print_blocks([result_tables.Heading(EVIL), result_tables.Table(("a", EVIL), [(EVIL, EVIL)], words=2), EVIL])
    plugin = SimpleNamespace(name=EVIL, origin=EVIL, group="zoo.models")
    monkeypatch.setattr(plugins, "installed_plugins", lambda group: [plugin] if group == "zoo.models" else [])
    monkeypatch.setenv("COLUMNS", "400")
    print(models_table.render_models(), end="")
    out, err = capsys.readouterr()
    for text in (out, err):
        assert text.count(ESCAPED) >= 2 and not COMMANDS.search(text)


def test_a_table_of_a_task_has_its_line_ends_and_no_commands() -> None:
    result = Result(metrics={"accuracy": 0.5}, examples=2, details={EVIL: {EVIL: {EVIL: 1.0}}})
    lines = printable_lines(run_task.task_result_text(result)).splitlines()
    assert len(lines) > 4 and not COMMANDS.search("".join(lines)) and ESCAPED in lines[0]


@pytest.mark.planted
def test_charts_show_control_characters_as_replacements() -> None:
    attention = {"source": [f"<{EVIL}"], "text": [f"<{EVIL}"], "weights": [[1.0]]}
    figure = run_charts._figure(f"<{EVIL}", [EVIL], lambda axes: None, run_charts.MarkedSteps())
    for block in (run_charts.attention_chart(attention), Plots([figure])):
        page = render_page("", "", {"Drawn": [block]})
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", page) and "&lt;\ufffd[2J" in page and "<\x1b" not in page


def written_to_terminal(act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what an action writes to stdout if that is a terminal."""
    master, slave = os.openpty()
    tty.setraw(slave)
    chunks: list[bytes] = []

    def collect() -> None:
        # A terminal without a writer is an error on Linux.
        with contextlib.suppress(OSError):
            while chunk := os.read(master, 1 << 16):
                chunks.append(chunk)

    reader = threading.Thread(target=collect)
    with open(slave, "w", encoding="utf-8", newline="") as stream, monkeypatch.context() as patch:
        reader.start()
        patch.setattr(sys, "stdout", stream)
        act()
    reader.join()
    os.close(master)
    return b"".join(chunks).decode()


@pytest.mark.planted
def test_generated_commands_reach_a_pipe_and_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that has learned little writes any byte of its vocabulary, ESC among them; the terminal gets each token at once."""
    commands.finished(tmp_path)
    monkeypatch.chdir(tmp_path)
    sampled = ("--limit", "22", "--temperature", "3", "--seed", "1")
    argv = ("generate", "runs/done", "--prompt", "é\x1b[2J", *sampled)
    piped = commands.call(capsys, *argv).stdout
    assert piped.startswith("é\x1b[2J") and len(COMMANDS.findall(piped)) > 1
    shown = written_to_terminal(lambda: main.main(argv), monkeypatch)
    assert shown == printable_lines(piped) and not COMMANDS.search(shown)
    as_json = commands.call(capsys, *argv, "--json").stdout
    assert "\x1b" not in as_json and json.loads(as_json)["text"] in piped
