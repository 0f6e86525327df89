"""Result files: what a kill leaves, what is refused, and how times become numbers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import records, timing
from benchmarks.records import Writer, read
from tests.support.processes import ROOT, clean_environment
from zoo.errors import BadInput

MACHINE = {"backend": "cpu", "device": "cpu", "devices": 1, "cpu": "A (R) CPU", "cores": 2, "versions": {"jax": "1"}}
ASKED = {"lengths": (128, 512), "dtype": "float32"}
UNIT = {"implementation": "xla"}


def writer(path: Path, resume: bool = True, **changes: Any) -> Writer:
    asked = {"what": "attention", "environment": MACHINE, "asked": ASKED, "unit": UNIT} | changes
    return Writer(path / "cells.jsonl", asked["what"], asked["environment"], asked["asked"], resume, asked["unit"])


def cell(number: int, process: int = 0, **more: Any) -> dict[str, Any]:
    known = {"state": "timed", "reason": "", "seconds": 0.5}
    return {"key": {"length": number, "implementation": "xla"}, "process": process, **known, **more}


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    one = writer(tmp_path / "new", resume=False)
    one.write(cell(1, seconds=np.float32(0.5), n=np.int64(3)))
    one.write(cell(1, process=1))
    one.write(cell(2, state="skipped", reason="too large"))
    one.close()
    for path in (tmp_path / "new", tmp_path / "new" / "cells.jsonl"):
        found = read(path)
        assert (found.what, found.unit, found.asked) == ("attention", UNIT, {"lengths": [128, 512], "dtype": "float32"})
        assert found.environment == MACHINE
        assert found.cells == [cell(1, seconds=0.5, n=3), cell(1, process=1), cell(2, state="skipped", reason="too large")]
    assert (tmp_path / "new" / "cells.jsonl").read_text().count("\n") == 4


@pytest.mark.planted(3)
def test_a_cell_is_known_by_its_key_and_process(tmp_path: Path) -> None:
    one = writer(tmp_path)
    one.write(cell(1))
    assert one.has({"implementation": "xla", "length": 1}, 0)
    assert not one.has(cell(1)["key"], 1) and not one.has(cell(2)["key"], 0)
    with pytest.raises(ValueError, match="measured already"):
        one.write(cell(1, seconds=2.0))
    for wrong in ({"state": "done"}, {"state": "skipped"}):
        with pytest.raises(ValueError, match="state"):
            one.write(cell(3, **wrong))
    one.close()
    assert read(tmp_path).cells == [cell(1)]


@pytest.mark.planted
@pytest.mark.parametrize("torn", range(1, 100, 7))
def test_a_torn_line_is_ignored_and_dropped(torn: int, tmp_path: Path) -> None:
    """Wherever a kill cut the file: in the header, in a cell, between the two."""
    one = writer(tmp_path)
    one.write(cell(1))
    one.write(cell(2))
    one.close()
    path = tmp_path / "cells.jsonl"
    content = path.read_bytes()
    left = content[: len(content) * torn // 100]
    path.write_bytes(left)
    kept = max(0, left.count(b"\n") - 1)
    if b"\n" in left:
        assert read(path).cells == [cell(1), cell(2)][:kept]
    else:
        with pytest.raises(BadInput, match="no header"):
            read(path)
    again = writer(tmp_path)
    for number in (1, 2):
        assert again.has(cell(number)["key"], 0) == (number <= kept)
        if number > kept:
            again.write(cell(number))
    again.close()
    assert path.read_bytes() == content


def test_killed_in_the_middle(tmp_path: Path) -> None:
    """kill -9 while cells are written: those that were told of are there."""
    program = f"""
import pathlib, sys
from tests.benchmarks.core.test_results import writer, cell
one = writer(pathlib.Path({str(tmp_path)!r}))
for number in range(100000):
    one.write(cell(number))
    print(number, flush=True)
"""
    root = str(ROOT)
    environment = clean_environment() | {"PYTHONPATH": f"{root}:{root}/tests"}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout
        told = [int(next(process.stdout)) for _ in range(20)]
        os.kill(process.pid, signal.SIGKILL)
        told += [int(line) for line in process.stdout if line.endswith("\n")]
    again = writer(tmp_path)
    assert all(again.has(cell(number)["key"], 0) for number in told)
    again.close()
    assert [each["key"]["length"] for each in read(tmp_path).cells][: len(told)] == told


ONE, TWO = {"length": 1, "implementation": "xla"}, {"length": 2, "implementation": "xla"}


def abandoned(one: Writer) -> None:
    """What a kill leaves of a writer."""
    one._file.close()


def test_what_a_process_died_of_twice_is_failed(tmp_path: Path) -> None:
    """What it was at last, and had not ended; of the same process by number. What was begun before that is measured again."""
    for _ in range(2):
        one = writer(tmp_path)
        assert not one.has(ONE, 0) and not one.died(ONE, 0)
        one.begin([ONE, TWO], 0)
        one.begin([TWO], 0)
        one.begin([ONE], 0)
        abandoned(one)
    one = writer(tmp_path)
    assert one.has(ONE, 0) and one.died(ONE, 0)
    assert not any((one.has(key, process), one.died(key, process)) != (False, False) for key, process in ((TWO, 0), (ONE, 1)))
    one.begin([TWO], 0)
    one.write(cell(2))
    abandoned(one)
    again = writer(tmp_path)
    assert again.died(ONE, 0) and not again.died(TWO, 0)
    again.close()
    assert read(tmp_path).cells == [{"key": ONE, "process": 0, "state": "failed", "reason": records.DIED}, cell(2)]


def test_beside_another_it_may_be_died_of_though_it_has_a_cell(tmp_path: Path) -> None:
    """A unit is measured again for those of its row that lack. A kill after its end is none of its deaths."""
    one = writer(tmp_path)
    one.begin([ONE], 0)
    one.write(cell(1))
    abandoned(one)
    for _ in range(2):
        one = writer(tmp_path)
        assert not one.died(ONE, 0)
        one.begin([ONE], 0)
        abandoned(one)
    one = writer(tmp_path)
    assert one.died(ONE, 0)
    one.close()
    assert read(tmp_path).cells == [cell(1)]


def test_nobody_dies_of_what_is_left_in_order(tmp_path: Path) -> None:
    for _ in range(3):
        one = writer(tmp_path)
        one.begin([ONE], 0)
        one.close()
        one.close()
    one = writer(tmp_path)
    assert not one.has(ONE, 0) and not one.died(ONE, 0)
    one.close()


def test_killed_twice_at_the_same(tmp_path: Path) -> None:
    """kill -9 of a process: what it had begun is on the disk before it is at it."""
    program = f"""
import os, pathlib, signal
from tests.benchmarks.core.test_results import writer, ONE
writer(pathlib.Path({str(tmp_path)!r})).begin([ONE], 0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = str(ROOT)
    environment = clean_environment() | {"PYTHONPATH": f"{root}:{root}/tests"}
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == -signal.SIGKILL
    one = writer(tmp_path)
    assert one.has(ONE, 0)
    one.close()


def test_results_without_attempts_are_read_and_not_gone_on_with(tmp_path: Path) -> None:
    """A reader of that schema would not take what is added."""
    path = tmp_path / "cells.jsonl"
    old = {"schema": 1, "what": "attention", "environment": MACHINE, "asked": {**ASKED, "lengths": [128, 512]}, "unit": UNIT}
    path.write_text(f"{json.dumps(old)}\n{json.dumps(cell(1))}\n")
    assert read(tmp_path).cells == [cell(1)]
    with pytest.raises(BadInput, match="cannot be resumed: schema: 1 before, 2 now; choose another --out"):
        writer(tmp_path)


def test_a_folder_with_results_is_not_written_over(tmp_path: Path) -> None:
    writer(tmp_path).close()
    with pytest.raises(BadInput, match="has results already; --resume completes them, --out chooses another folder"):
        writer(tmp_path, resume=False)
    one = writer(tmp_path)
    with pytest.raises(BadInput, match="being written by another process"):
        writer(tmp_path)
    one.close()
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be written"):
        writer(tmp_path / "file")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"asked": {"lengths": [128], "dtype": "float32"}}, r"lengths: \[128, 512\] before, \[128\] now"),
        ({"asked": {**ASKED, "peers": True}}, "peers: None before, True now"),
        ({"what": "step"}, "what: attention before, step now"),
        ({"unit": {}}, "unit: {'implementation': 'xla'} before, {} now"),
        ({"environment": MACHINE | {"cores": 4}}, "cores: 2 before, 4 now"),
        ({"environment": MACHINE | {"versions": {"jax": "2"}}}, "jax: 1 before, 2 now"),
    ],
)
def test_another_question_is_not_resumed(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    one = writer(tmp_path)
    one.write(cell(1))
    one.close()
    before = (tmp_path / "cells.jsonl").read_bytes()
    with pytest.raises(BadInput, match=f"cannot be resumed: {told}; choose another --out"):
        writer(tmp_path, **changes)
    assert (tmp_path / "cells.jsonl").read_bytes() == before
    writer(tmp_path, environment=MACHINE | {"load": 5.0}).close()


HEADER = {"schema": 2, "what": "attention", "environment": {}, "asked": {}, "unit": {}}


@pytest.mark.planted
@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], "it has no header"),
        (["hello"], ":1 is no line of a result file: it is not a JSON object"),
        (["[1]"], ":1 is no line"),
        (['{"step": 1}'], "is no result file of zoo bench: its first line has no schema"),
        ([json.dumps(HEADER | {"schema": 3})], "has schema 3, and this version reads 1 and 2; measure again"),
        ([json.dumps(HEADER | {"what": "tea"})], ":1 is no header of zoo bench: what is missing"),
        ([json.dumps(HEADER | {"asked": 1})], ":1 is no header of zoo bench: asked is missing"),
        ([json.dumps(HEADER), "{}"], ":2 is no cell: it needs a key, a process, and a state of timed,"),
        ([json.dumps(HEADER), json.dumps(cell(1)), "{"], ":3 is no line"),
        ([json.dumps(HEADER), json.dumps(cell(1, state="ok"))], ":2 is no cell"),
        ([json.dumps(HEADER), '{"attempt": [1], "process": 0}'], ":2 is no attempt: it needs a list of keys, and a process"),
        ([json.dumps(HEADER), '{"death": [{}]}'], ":2 is no death: it needs a list of keys, and a process"),
        ([json.dumps(HEADER), json.dumps(cell(1, seconds=None))], ":2 is no timed cell: it has no number above 0 as seconds"),
        ([json.dumps(HEADER), json.dumps(cell(1, ratio=1.0))], ":2 is no timed cell: .* as ratio_p20 and ratio_p80"),
    ],
)
def test_what_is_no_result_file(lines: list[str], told: str, tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(BadInput, match=told):
        read(path)
    with pytest.raises(BadInput, match="cannot be read"):
        read(tmp_path / "nowhere")


def test_an_environment_is_told_and_names_a_folder() -> None:
    found = records.environment()
    assert found["backend"] == "cpu" and found["devices"] == 8
    assert found["matrix_rate"]["float32"] > 1e9 and found["copy_rate"] > 1e8
    assert found["versions"]["jax"] and "XLA_FLAGS" in found["versions"]
    json.dumps(found, allow_nan=False)
    assert records.hardware(MACHINE) == "a-r-cpu-2-cores"
    gpu = {"backend": "gpu", "device": "NVIDIA H100 80GB HBM3", "devices": 8, "cpu": "", "cores": 2}
    assert records.hardware(gpu) == "nvidia-h100-80gb-hbm3-x8"
    assert records.default_folder("step", MACHINE).name.startswith("step_a-r-cpu-2-cores_2")


def test_what_is_resumed_is_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it was begun before midnight."""
    monkeypatch.chdir(tmp_path)
    today = records.default_folder("step", MACHINE)
    assert records.default_folder("step", MACHINE, newest=True) == today
    for name in ("step_a-r-cpu-2-cores_2026-01-01", "step_a-r-cpu-2-cores_2026-01-02", "step_a-r-cpu-2-cores-x_2026-01-03"):
        writer(tmp_path / "runs" / "bench" / name).close()
    assert records.default_folder("step", MACHINE, newest=True).name == "step_a-r-cpu-2-cores_2026-01-02"
    assert records.default_folder("step", MACHINE) == today


@pytest.mark.planted(3)
def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """However short; a header of ours that a kill tore off is begun anew."""
    path = tmp_path / "cells.jsonl"
    path.write_text("my notes")
    with pytest.raises(BadInput, match="is no result file of zoo bench; choose another --out"):
        writer(tmp_path)
    assert path.read_text() == "my notes"
    for torn in ("", "{", '{"schema":1,"what'):
        path.write_text(torn)
        writer(tmp_path).close()
        assert read(tmp_path).cells == []


# --- timing ---------------------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that programs move on."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, ""

    def program(self, name: str, *seconds: float) -> timing.Program:
        """Takes each of these seconds in turn, the last one from then on."""
        left = list(seconds)

        def run() -> None:
            self.calls += name
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.now)
    return made


def test_quantiles_are_numpys(rng: np.random.Generator) -> None:
    seconds = rng.random(11)
    found = timing.Quantiles.of(seconds)
    assert (found.p20, found.median, found.p80) == pytest.approx(tuple(np.percentile(seconds, [20, 50, 80])))
    assert (found.least, found.n) == (seconds.min(), 11)
    assert timing.Quantiles.of([2.0]).uncertainty == 0
    assert timing.Quantiles(1.0, 0.9, 1.1, 0.8, 25).uncertainty == pytest.approx(0.02)


def test_ratios_are_of_the_same_rounds() -> None:
    """A round that is slow for both says nothing of either."""
    found = timing.columns([1.0, 20.0, 3.0], [2.0, 40.0, 1.5])
    assert (found["ratio"], found["ratio_p20"], found["ratio_p80"]) == pytest.approx((0.5, 0.5, 1.4))
    assert (found["seconds"], found["seconds_least"], found["n"]) == (3.0, 1.0, 3)
    assert timing.columns([1.0])["ratio"] is None


@pytest.mark.parametrize(
    ("seconds", "calls"),
    [((1.0, 0.1, 0.1), 3), ((0.1,), 2), ((0.1, 0.2, 0.1, 0.2, 0.1, 0.2, 0.1, 0.2, 0.1, 0.2, 0.1), 10), ((4.0, 1.0), 1)],
)
def test_warm_until_two_calls_agree(seconds: tuple[float, ...], calls: int, clock: Clock) -> None:
    assert len(timing.warm(clock.program("a", *seconds))) == calls


def test_no_program_always_follows_the_same_one(clock: Clock) -> None:
    programs = {name: clock.program(name, 1.0) for name in "abc"}
    found = timing.interleaved(programs, 6)
    assert clock.calls == "aabbcc" + "abc" + "cba" + "bca" + "acb" + "cab" + "bac"
    assert all(list(each) == [1.0] * 6 for each in found.values())


@pytest.mark.parametrize(
    ("seconds", "budget", "rounds"),
    [
        ((0.1,), 100.0, 5),  # calm: the fewest
        ((0.1, 0.1, 3.0), 0.0, 5),  # no budget: the fewest
        ((2.5,), 100.0, 3),  # slow and calm
        ((0.1, 0.3) * 500, 2.05, 11),  # restless: until the budget is used up
        ((0.1, 0.3) * 500, 1e6, 200),  # bounded
    ],
)
def test_rounds_end(seconds: tuple[float, ...], budget: float, rounds: int, clock: Clock) -> None:
    found = timing.measured({"a": clock.program("a", *seconds)}, budget=budget)
    assert len(found["a"]) == rounds


def test_rounds_as_told(clock: Clock) -> None:
    assert len(timing.measured({"a": clock.program("a", 1.0)}, rounds=2)["a"]) == 2


def test_the_copy_rate_counts_what_is_read_and_what_is_written(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of 0.25 s a call: 512 MiB in and 512 MiB out."""

    def add(x: Any) -> Any:
        clock.now += 0.25
        return x

    monkeypatch.setattr(timing.jax, "jit", lambda *_, **__: add)
    assert timing.copy_rate() == 2 * 2**29 / 0.25
