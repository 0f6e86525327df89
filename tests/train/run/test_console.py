"""What a person sees of a run, and of work on many bytes: on a terminal and in a log file."""

import contextlib
import errno
import io
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import pytest

from tests.support.processes import seen_on_terminal
from train.run import console as console_module
from train.run import progress_display
from train.run.console import Console
from train.run.metrics_file import train_row, valid_row
from train.run.progress_display import BYTES, EVERY, PieceProgress, ProgressBar
from zoo.errors import BadInput


def train(step: int) -> dict:
    numbers = dict(loss=3.25, grad_norm=0.5, lr=1e-3, tokens=step * 64, skipped=0, seconds=0.1, tokens_per_s=12345.6, mfu=0.412)
    return train_row(step=step, **numbers)


def play(console: Console, steps: int = 50) -> None:
    with console:
        console.header("nano [/bold]", {"model": "gpt, 4 layers", "data": "a[red].txt"})
        console.doing("compiling the step")
        for step in range(1, steps + 1):
            console.step(step)
            if step % 10 == 0:
                console.row(train(step))
            if step % 50 == 0:
                console.row(valid_row(step=step, loss=2.0, bits_per_byte=2.481, seconds=3.0))
        console.notice("skipped step 7: its gradient is not finite [/red]")
        console.finish("finished: 2.214 bits per byte")


def on_terminal(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[Console], None], steps: int = 50, term: str = "xterm", width: int = 120
) -> str:
    """Return what reaches a terminal."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": term, "COLUMNS": str(width), "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    return seen_on_terminal(lambda stream: act(Console(steps=steps, stream=stream)))


def lines(seen: str) -> list[str]:
    """Return the lines ever drawn, without control sequences and repeated spaces."""
    drawn = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen))
    return [" ".join(line.split()) for line in drawn if line.strip()]


def test_a_log_file_gets_a_line_of_plain_text_for_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without control codes even where colour is forced; processes other than 0 print nothing."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    for process in (0, 1):
        with (tmp_path / f"log{process}").open("w") as stream:
            play(Console(steps=50, process=process, stream=stream))
    assert (tmp_path / "log1").read_text() == ""
    logged = (tmp_path / "log0").read_text()
    assert "\x1b" not in logged
    assert [re.sub(r"ETA [\d:]+ ", "", line) for line in lines(logged)] == [
        *("nano [/bold]", "model gpt, 4 layers", "data a[red].txt", "compiling the step ..."),
        *(f"{step}/50 loss 3.250 12.3k tok/s MFU 41%" for step in (10, 20, 30, 40, 50)),
        "50/50 valid 2.4810 bits/byte",
        "! skipped step 7: its gradient is not finite [/red]",
        "finished: 2.214 bits per byte",
    ]


class Lost(io.TextIOWrapper):
    """Takes so many texts, and then fails."""

    mode, name = "w", "lost"  # without them it is no IO[str]

    def __init__(self, texts: int, code: int) -> None:
        super().__init__(io.BytesIO())
        self.texts, self.code = texts, code

    def flush(self) -> None:
        self.texts -= 1
        if self.texts < 0:
            raise OSError(self.code, os.strerror(self.code))

    def close(self) -> None:
        pass  # it would flush


@pytest.mark.parametrize(("texts", "code"), [(0, errno.EPIPE), (3, errno.EPIPE), (3, errno.ENOSPC), (3, errno.EIO)])
def test_a_run_outlives_what_it_writes_to(texts: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A reader that leaves, a disk that becomes full, a terminal that is closed."""
    stream = Lost(texts, code)
    play(Console(steps=50, stream=stream))
    assert stream.texts == -1
    assert capsys.readouterr().err == f"zoo: standard output is lost ({os.strerror(code)}); the run continues without it\n"


def test_a_measurement_outlives_the_stream_of_its_progress() -> None:
    stream = Lost(1, errno.EPIPE)
    progress = PieceProgress(3, stream)
    for piece in ("first", "second", "third"):
        progress.begin(piece)
        progress.done(1, "measured")
    progress.close()
    # After the error of the second line nothing is written.
    assert stream.texts == -1


def test_a_run_that_can_say_nothing_from_the_start_is_refused() -> None:
    with pytest.raises(BadInput, match=r"standard output cannot be written \(No space left on device\); make room"):
        play(Console(steps=50, stream=Lost(0, errno.ENOSPC)))


@pytest.mark.parametrize("width", [30, 120])
def test_a_terminal_shows_the_newest_numbers_and_keeps_what_matters(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow one has fewer numbers, a wide one a bar too, and a dumb one plain lines."""
    monkeypatch.setattr(console_module, "REDRAW", 0.0)
    drawn = lines(on_terminal(monkeypatch, play, width=width))
    assert drawn[0] == "nano [/bold]" and "a[red].txt" in " ".join(drawn[:6])
    numbers = [line for line in drawn if line.startswith("50/50")]
    assert numbers and all("loss 3.250" in line for line in numbers)
    assert any("valid 2.4810 bits/byte" in line for line in numbers) == (width > 100)
    assert "! skipped step 7: its gradient is not finite [/red]" in drawn
    assert drawn[-1] == "finished: 2.214 bits per byte"
    assert "\x1b" not in on_terminal(monkeypatch, play, term="dumb")


def test_drawing_is_rare_and_an_error_gives_the_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2,000 steps of a millisecond each, those every 0.2 seconds are drawn."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(console_module, "time", SimpleNamespace(perf_counter=lambda: now.seconds))

    def act(console: Console) -> None:
        with contextlib.suppress(KeyError), console:
            for step in range(2_000):
                now.seconds += 0.001
                console.step(step)
            raise KeyError

    seen = on_terminal(monkeypatch, act, steps=2_000)
    # Ten, with what clearing the line in the end draws once more.
    assert 5 <= len(lines(seen)) <= 15
    assert seen.rfind("\x1b[?25h") > seen.rfind("\x1b[?25l") >= 0


def test_a_log_gets_the_share_the_rate_and_the_time_left_of_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Seconds, bytes done and in all: an earlier preparation did 50 MB, so that this one has done 20 MB after ten seconds.
    calls = [(100, 50, 100), (105, 60, 100), (110, 70, 100), (111, 72, 100), (121, 92, 100)]
    # Work that follows other work has its own rate.
    calls += [(125, 0, 40), (130, 0, 40), (136, 22, 40), (150, 0, 40), (161, 11, 40)]
    now = iter([seconds for seconds, _, _ in calls])
    monkeypatch.setattr(progress_display, "time", SimpleNamespace(monotonic=lambda: next(now)))
    with (tmp_path / "log").open("w") as out, ProgressBar("tokenizing", BYTES, every=EVERY, stream=out) as report:
        for _, done, total in calls:
            report(done * 1_000_000, total * 1_000_000)
    pattern = r"tokenizing: (\d+%) of [\d.]+MB, ([\d.]+) MB/s, ([\d:]+) left"
    logged = [re.fullmatch(pattern, line) for line in (tmp_path / "log").read_text().splitlines()]
    shown_now = [line and " ".join(line.groups()) for line in logged]
    assert shown_now == ["70% 2.00 0:15", "92% 2.00 0:04", "55% 2.00 0:09", "28% 1.00 0:29"]


def test_a_terminal_gets_one_line_that_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    def tokenize(out: TextIO) -> None:
        with ProgressBar("tokenizing", BYTES, late=True, stream=out) as report:
            report(0, 1_000_000)
            report(500_000, 1_000_000)

    for name, value in {"TERM": "xterm", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    assert {"tokenizing", "0.5/1.0", "MB"} <= {*re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen_on_terminal(tokenize)).split()}


def test_a_score_says_that_it_compiles_and_then_how_many_batches_are_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a log file there is the announcement alone; if it is quiet, nothing."""

    def score(out: TextIO, **options: Any) -> None:
        with ProgressBar("scoring", "batches", before="compiling", announce=True, stream=out, **options) as report:
            report(0, 120)
            report(3, 120)

    for name, value in {"TERM": "xterm", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    drawn = " ".join(lines(seen_on_terminal(score)))
    assert 0 <= drawn.find("scoring (compiling)") < drawn.find("3 of 120 batches")
    for quiet, logged in ((False, "scoring ...\n"), (True, "")):
        with (tmp_path / "log").open("w") as out:
            score(out, quiet=quiet)
        assert (tmp_path / "log").read_text() == logged


def test_an_activity_before_the_first_step_is_shown_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def prepare(console: Console) -> None:
        with console:
            console.progress("reading the data", now=True)
            console.header("nano", {"model": "gpt"})
            console.finish("done")

    assert "reading the data ..." in lines(on_terminal(monkeypatch, prepare))
    with (tmp_path / "log").open("w") as stream:
        prepare(Console(steps=50, stream=stream))
    assert lines((tmp_path / "log").read_text()) == ["nano", "model gpt", "done"]


def test_a_slow_activity_shows_its_time_until_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "LINE", 0.01)
    log = tmp_path / "log"
    with log.open("w") as stream, Console(steps=50, stream=stream) as console:
        console.doing("compiling the step")
        clock = next(thread for thread in threading.enumerate() if thread.name == "clock")
        while len(lines(log.read_text())) < 3:
            time.sleep(0.01)
        console.step(1)
        assert not clock.is_alive()
    first, *times = lines(log.read_text())
    assert first == "compiling the step ..." and all(re.fullmatch(r"compiling the step \.\.\. \d+:\d\d", line) for line in times)
