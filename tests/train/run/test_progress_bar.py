"""Progress on many bytes: a line at a time in a log, one line on a terminal, and the rate of the work done now."""

from typing import TextIO

from tests.support.processes import seen_on_terminal
from train import progress
from train.progress import shown


def test_a_log_gets_a_line_now_and_then_with_the_rate_since_the_start(monkeypatch, tmp_path):
    now = iter([100.0, 105.0, 110.0, 111.0, 121.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with (tmp_path / "log").open("w") as out, shown("tokenizing", out) as report:
        for done in (50_000_000, 60_000_000, 70_000_000, 72_000_000, 92_000_000):
            report(done, 100_000_000)
    # An earlier preparation had done 50 MB: this one did 20 MB in the first ten seconds, and 42 MB in 21.
    assert (tmp_path / "log").read_text().splitlines() == [
        "tokenizing: 70% of 100MB, 2.00 MB/s, 0:15 left",
        "tokenizing: 92% of 100MB, 2.00 MB/s, 0:04 left",
    ]


def test_work_that_follows_other_work_has_its_own_rate(monkeypatch, tmp_path):
    now = iter([100.0, 111.0, 125.0, 130.0, 136.0, 150.0, 161.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with (tmp_path / "log").open("w") as out, shown("tokenizing", out) as report:
        for done, total in ((0, 90), (90, 90), (0, 40), (0, 40), (22, 40), (0, 40), (11, 40)):
            report(done * 1_000_000, total * 1_000_000)
    assert (tmp_path / "log").read_text().splitlines() == [
        "tokenizing: 100% of 90.0MB, 8.18 MB/s, 0:00 left",
        "tokenizing: 55% of 40.0MB, 2.00 MB/s, 0:09 left",
        "tokenizing: 28% of 40.0MB, 1.00 MB/s, 0:29 left",
    ]


def test_a_terminal_gets_one_line_that_goes(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")

    def tokenize(out: TextIO) -> None:
        with shown("tokenizing", out) as report:
            report(0, 1_000_000)
            report(500_000, 1_000_000)

    said = seen_on_terminal(tokenize)
    assert "tokenizing" in said
    assert "0.5/1.0 MB" in said
