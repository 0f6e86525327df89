"""Rows of metrics survive a kill, and a step's speed is stated against a rate that is real."""

import itertools
import json
import math
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.runs import small_files
from train.run import matmul_rate, metrics_file
from train.run.matmul_rate import PeakRate
from train.run.metrics_file import Metrics, mfu, read_rows, train_row, valid_row
from train.run.run_dir import RunDir
from zoo.errors import BadInput

MEASURE = matmul_rate.measure_matmul_rate
"""The measurement itself, which takes place once in each process of the tests (`tests/conftest.py`)."""


def row(step: int) -> dict:
    numbers = dict(loss=3.0, grad_norm=0.5, lr=1e-3, tokens=step * 64, skipped=0, seconds=0.1, tokens_per_s=640.0, mfu=0.4)
    return train_row(step=step, **numbers)


def test_a_run_that_starts_anew_has_its_rows_on_disk_as_soon_as_they_are_written(tmp_path: Path) -> None:
    path, written = tmp_path / "metrics.jsonl", [row(10), valid_row(step=10, loss=2.0, bits_per_byte=1.5, seconds=3.0)]
    path.write_text(json.dumps(row(1)) + "\nrubbish\n")
    file = Metrics(path)
    for each in written:
        file.write(each)
    assert read_rows(path) == written
    file.sync()
    file.close()


def test_a_file_with_numbers_that_are_not_finite_is_strict_json_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    values = {"step": 1, "a": math.inf, "b": [-math.inf, np.float32(0.1)], "c": {"d": np.arange(3)}, "e": "text", "f": math.nan}
    file = Metrics(path)
    file.write(values)
    file.close()
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (back,) = read_rows(path)
    assert math.isnan(back.pop("f"))
    assert back == {"step": 1, "a": math.inf, "b": [-math.inf, float(np.float32(0.1))], "c": {"d": [0, 1, 2]}, "e": "text"}


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.integers(0, 30), max_size=12), resume_at=st.integers(0, 30), torn=st.integers(0, 60))
def test_a_resumed_run_keeps_the_rows_up_to_its_checkpoint(
    steps: list[int], resume_at: int, torn: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    lines = [json.dumps(row(step)) for step in sorted(steps)]
    path.write_text("".join(f"{line}\n" for line in lines) + json.dumps(row(31))[:torn])
    file = Metrics(path, resume_at=resume_at)
    file.write(row(99))
    file.close()
    assert [each["step"] for each in read_rows(path)] == [step for step in sorted(steps) if step <= resume_at] + [99]


def test_lost_and_changed_rows_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    file = Metrics(path)
    for step in range(1, 7):
        file.write(row(step))
    file.close()
    saved, lines = file.summary(), path.read_bytes().splitlines(keepends=True)

    def noticed(content: bytes | None) -> str:
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        again = Metrics(path, resume_at=6)
        again.close()
        return again.lost(saved)

    assert noticed(b"".join(lines) + json.dumps(row(7)).encode()) == ""
    assert "ledger.jsonl: 2 of 6 rows are missing" in noticed(b"".join(lines[2:]))
    assert "6 of 6 rows are missing" in noticed(None)
    assert "1 rows were added" in noticed(b"".join([lines[0], *lines]))
    assert "rows were changed" in noticed(b"".join(lines).replace(b"3.0", b"3.5"))


def test_a_full_disk_is_one_line_and_costs_no_earlier_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = Metrics(path)
    file.write(row(1))
    too_large = r"metrics.jsonl cannot be written \(File too large\)"
    with small_files(path.stat().st_size + 9), pytest.raises(BadInput, match=too_large):
        file.write(row(2))
    file.close()
    again = Metrics(path, resume_at=2)
    assert [each["step"] for each in read_rows(path)] == [1] and again.summary()["rows"] == 1
    again.close()
    with small_files(0), pytest.raises(BadInput, match=r"metrics.jsonl cannot be written"):
        Metrics(path, resume_at=2)
    assert [each["step"] for each in read_rows(path)] == [1]


GOOD = b'{"step": 1}'
DAMAGED = {
    "not JSON": b'{"step"\n',
    "no object": b"[1]\n",
    "no step": b"{}\n",
    "step not whole": b'{"step": 1.5}\n',
    "not UTF-8": b'{"step": 1, "a": "\xff"}\n',
    "zeros, as a full disk leaves them": b"\0\0\0\n",
    "empty line": b"\n",
}


@pytest.mark.planted
@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_is_named_unless_it_is_the_torn_last_one(line: bytes, tmp_path: Path) -> None:
    path, content = tmp_path / "metrics.jsonl", GOOD + b"\n" + line + GOOD + b"\n"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"metrics.jsonl:2 is not a valid row: .*; remove the line"):
        read_rows(path)
    with pytest.raises(BadInput, match=r"metrics.jsonl:2"):
        Metrics(path, resume_at=1)
    assert path.read_bytes() == content
    path.write_bytes(GOOD + b"\n" + line.removesuffix(b"\n"))
    assert read_rows(path) == [{"step": 1}]


def test_a_last_row_without_a_line_end_counts_and_an_absent_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(GOOD)
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1}]
    with pytest.raises(BadInput, match=r"absent.jsonl cannot be read \(No such file or directory\)"):
        read_rows(tmp_path / "absent.jsonl")


def test_every_start_of_a_run_is_noted(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    metrics_file.record_start(folder, 0, {"devices": "1 x cpu", "precision": "float32"}, 1e9, 5e10)
    with folder.starts.open("a") as file:
        file.write('{"step": 5, "at')
    metrics_file.record_start(folder, 400, {"devices": "8 x cpu", "precision": "float32"}, 2e9, 7e10)
    first, second = read_rows(folder.starts)
    assert (first["step"], second["step"], second["facts"]) == (0, 400, {"devices": "8 x cpu", "precision": "float32"})
    assert (first["flops"], second["flops"]) == (1e9, 2e9)
    assert second["versions"]["jax"] == jax.__version__
    assert "individual_dot" in second["versions"]["XLA_FLAGS"]
    assert (second["provenance"]["devices"], second["provenance"]["host"]) == (8, socket.gethostname())
    metrics_file.record_usage(folder, 3.5, 7e10)
    metrics_file.record_usage(folder, 4.5, 9e10)
    unchanged, used = read_rows(folder.starts)
    assert unchanged == first and used == second | {"seconds": 4.5, "rate": 9e10, "peak_bytes": used["peak_bytes"]}
    assert used["peak_bytes"] > 1 << 20
    # A run that continues knows the best rate of its earlier starts, but not of those on other machines or in another precision.
    assert metrics_file.best_rate(folder, "float32") == 9e10
    assert metrics_file.best_rate(folder, "bfloat16") == 0.0
    folder.starts.write_text(folder.starts.read_text().replace(f'"host":"{socket.gethostname()}"', '"host":"another"'))
    assert metrics_file.best_rate(folder, "float32") == 0.0


def test_rates_are_the_operations_of_one_device_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The eight simulated devices share the cores of one; the mesh that is current makes no difference."""
    seconds = itertools.count()
    monkeypatch.setattr(matmul_rate, "time", SimpleNamespace(perf_counter=lambda: float(next(seconds))))
    assert jax.device_count() == 8
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
        # Each burst takes a second by this clock, and is of as many products as fit into a tenth of the time, at least one.
        assert MEASURE("float32", seconds=2.5) == 2 * 1024**3
        assert MEASURE("bfloat16", seconds=16.0) == 2 * 2 * 1024**3
    assert mfu(2 * 10**12, 0.5, 8e12) == pytest.approx(0.5)


class Machine:
    """A machine whose rate of products, and the time of its processors that others use, are set by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rate, self.others, self.now = 1e9, 0.0, 0.0
        monkeypatch.setattr(matmul_rate, "measure_matmul_rate", self.measure)
        monkeypatch.setattr(matmul_rate, "_processor_times", lambda: self.others)
        monkeypatch.setattr(matmul_rate, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(matmul_rate.os, "cpu_count", lambda: 2)
        self.lines: list[str] = []

    def measure(self, dtype: str, seconds: float) -> float:
        self.now += seconds
        return self.rate

    def update(self, peak: PeakRate, *, rate: float, others: float) -> float | None:
        """Let 100 seconds pass, of which others use a share, and return the MFU of a step of 1 GFLOP and 4 seconds."""
        self.rate, self.now = rate, self.now + 100
        self.others += others * 2 * 100
        peak.update()
        return peak.mfu(1e9, 4.0)


def test_mfu_is_relative_to_the_best_rate_and_left_out_while_others_use_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    peak = PeakRate("float32", notify=machine.lines.append)
    assert peak.mfu(1e9, 4.0) == 0.25 and peak.source == "matrix products measured here, 1 GFLOP/s"
    # A first rate that other work had lowered is replaced, and a lower one later does not replace the best.
    assert machine.update(peak, rate=2e9, others=0.0) == 0.125
    assert machine.update(peak, rate=1.5e9, others=0.2) == 0.125
    assert machine.update(peak, rate=0.9e9, others=0.0) is None
    assert machine.update(peak, rate=2e9, others=0.5) is None
    assert machine.update(peak, rate=2e9, others=0.1) == 0.125
    first, last = machine.lines
    assert first.startswith("other work slows this machine (load average ") and first.endswith(
        ", 2 processors, others use 0% of them; 1 of at best 2 GFLOP/s); MFU is not shown until it ends"
    )
    assert last.startswith("other work no longer slows this machine (") and last.endswith("; MFU is shown again")
    assert PeakRate("float32", best=8e9).mfu(1e9, 4.0) is None  # a fast start before, and a slow one now


def test_the_time_of_other_programs_is_counted() -> None:
    before = matmul_rate._processor_times()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 1: pass"], check=True)
    after = matmul_rate._processor_times()
    assert (before is None) == (not Path("/proc/stat").exists())
    assert before is None or (after is not None and after - before > 0.9)
