"""What a person sees while a run goes, on a terminal and in a log file."""

import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import seen_on_terminal
from train.console import Console, clock, short
from train.metrics import train_row, valid_row


def train(step: int, loss: float = 3.25) -> dict:
    return train_row(
        step=step, loss=loss, grad_norm=0.5, lr=1e-3, tokens=step * 64, skipped=0, seconds=0.1, tokens_per_s=12345.6, mfu=0.412
    )


def valid(step: int) -> dict:
    return valid_row(step=step, loss=2.0, bits_per_byte=2.481, seconds=3.0)


def play(console: Console, steps: int, pause: float = 0.0) -> None:
    with console:
        console.header("nano [/bold]", {"model": "gpt, 4 layers", "data": "a[red].txt"})
        console.doing("compiling the step")
        for step in range(1, steps + 1):
            time.sleep(pause)
            console.step(step)
            if step % 10 == 0:
                console.row(train(step))
            if step % 50 == 0:
                console.row(valid(step))
        console.notice("skipped step 7: its gradient is not finite [/red]")
        console.finish("finished: 2.214 bits per byte")


def on_terminal(
    monkeypatch: pytest.MonkeyPatch, width: int, act: Callable[[Console], None], steps: int, term: str = "xterm-256color"
) -> str:
    """What reaches a terminal of `width` columns."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", "24")
    return seen_on_terminal(lambda stream: act(Console(steps=steps, stream=stream)))


def lines(seen: str) -> list[str]:
    """The lines ever drawn, without control sequences."""
    return [line.rstrip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)) if line.strip()]


def in_a_file(path: Path, process: int = 0) -> str:
    """What reaches a log file."""
    with path.open("w") as stream:
        play(Console(steps=50, process=process, stream=stream), 50)
    return path.read_text()


def test_elsewhere_than_on_a_terminal_each_row_is_a_line_of_plain_text(tmp_path: Path) -> None:
    shown = re.sub(r"ETA \d+:\d\d", "ETA 0:07", in_a_file(tmp_path / "log")).splitlines()
    assert shown == [
        "nano [/bold]",
        "  model  gpt, 4 layers",
        "  data   a[red].txt",
        "compiling the step ...",
        "10/50  loss 3.250  12.3k tok/s  MFU 41%",
        *(f"{step}/50  ETA 0:07  loss 3.250  12.3k tok/s  MFU 41%" for step in (20, 30, 40, 50)),
        "50/50  valid 2.4810 bits/byte",
        "! skipped step 7: its gradient is not finite [/red]",
        "finished: 2.214 bits per byte",
    ]


def test_a_file_gets_no_control_codes_even_where_colour_is_forced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in in_a_file(tmp_path / "log")


def test_processes_other_than_0_print_nothing(tmp_path: Path) -> None:
    assert in_a_file(tmp_path / "log", process=1) == ""


def test_on_a_terminal_one_line_is_redrawn_within_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = lines(on_terminal(monkeypatch, 80, lambda console: play(console, 200, pause=0.004), 200))
    assert max(map(len, shown)) <= 80
    assert shown[:3] == ["nano [/bold]", "  model  gpt, 4 layers", "  data   a[red].txt"]
    assert any(
        re.fullmatch(r" +\d+/200  ETA 0:0\d  loss 3.250  valid 2.4810 bits/byte  12.3k tok/s  MFU 41%", line) for line in shown
    )
    assert "! skipped step 7: its gradient is not finite [/red]" in shown
    assert shown[-1] == "finished: 2.214 bits per byte"


@pytest.mark.parametrize("width", [20, 40, 79, 120])
def test_columns_that_do_not_fit_are_left_out_rather_than_wrapped(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(console: Console) -> None:
        with console:
            console.row(train(600_000))
            time.sleep(0.21)
            console.row(valid(600_000))
            console.doing("x" * 200)

    shown = lines(on_terminal(monkeypatch, width, act, 600_000))
    assert max(map(len, shown)) <= width
    numbers = [line for line in shown if "xx" not in line]
    assert len(numbers) == 2
    assert all(line.startswith(" 600000/600000") and "…" not in line for line in numbers)
    assert shown[-1].endswith("x…")


def test_a_rate_that_is_not_known_is_left_out(tmp_path: Path) -> None:
    unknown = train(1) | {"time": {"tokens_per_s": math.nan, "mfu": math.nan}}
    with (tmp_path / "log").open("w") as stream, Console(steps=10, stream=stream) as console:
        console.row(unknown)
        console.row(train(2) | {"time": {"tokens_per_s": 10.0, "mfu": None}})
    assert re.sub(r"ETA [\d:]+", "ETA 0:07", (tmp_path / "log").read_text()) == (
        " 1/10  loss 3.250\n 2/10  ETA 0:07  loss 3.250  10 tok/s\n"
    )


def test_drawing_is_rare_however_fast_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def act(console: Console) -> None:
        with console:
            began = time.perf_counter()
            for step in range(20_000):
                console.step(step)
            spent.append(time.perf_counter() - began)

    spent: list[float] = []
    seen = on_terminal(monkeypatch, 80, act, 20_000)
    assert len(lines(seen)) <= 2 + spent[0] / 0.2
    assert spent[0] / 20_000 < 1e-3


def test_the_terminal_is_given_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def act(console: Console) -> None:
        with console:
            console.row(train(1))
            raise KeyError

    def caught(console: Console) -> None:
        with pytest.raises(KeyError):
            act(console)

    seen = on_terminal(monkeypatch, 80, caught, 10)
    assert seen.rfind("\x1b[?25h") > seen.rfind("\x1b[?25l") >= 0


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def act(console: Console) -> None:
        play(console, 50)

    assert "\x1b" not in on_terminal(monkeypatch, 80, act, 50, term="dumb")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1.00k"),
        (1234, "1.23k"),
        (12345.6, "12.3k"),
        (99_960, "100k"),
        (999_600, "1.00M"),
        (4_560_000, "4.56M"),
        (175e9, "175B"),
        (2e13, "20000B"),
    ],
)
def test_short_numbers(number: float, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3600, "1:00:00"), (172_799, "47:59:59"), (259_200, "3.0 days")]
)
def test_durations(seconds: float, text: str) -> None:
    assert clock(seconds) == text
