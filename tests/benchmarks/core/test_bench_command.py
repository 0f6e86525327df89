"""Two benchmarks that are started at once with one folder: the second one does not append to the results of the first one."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.core import bench_command, result_files
from benchmarks.core.bench_command import Benchmark
from benchmarks.core.options import AttentionOptions, Output
from benchmarks.core.result_page import Report
from zoo.errors import BadInput
from zoo.runtime import local_group

BENCHMARK = Benchmark(
    what="attention",
    title="Attention",
    resolve=lambda options, backend: options,
    groups=lambda options, environment: [],
    report=lambda results, form: Report(lead="", sections={}),
    one_line=lambda cells: "",
)
RECORDS_ITS_ARGUMENTS = """
import json, sys
with open(sys.argv[1], "a") as file:
    print(json.dumps(sys.argv[3:]), file=file)
sys.exit(int(sys.argv[2]))
"""


def environment(*_: object) -> dict[str, object]:
    return {"backend": "cpu", "device": "cpu", "devices": 1, "cpu": "a", "cores": 2, "load": 0, "clock_mhz": None}


def test_results_that_another_process_wrote_in_the_meantime_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --resume they are completed."""
    monkeypatch.setattr(result_files, "describe_environment", environment)
    new, resumed = AttentionOptions(), AttentionOptions(output=Output(resume=True))
    BENCHMARK._measure(new, tmp_path, 0)
    content = (tmp_path / result_files.CELLS).read_bytes()
    with pytest.raises(BadInput, match="has results already; --resume completes them, --out chooses another folder"):
        BENCHMARK._measure(new, tmp_path, 0)
    assert (tmp_path / result_files.CELLS).read_bytes() == content
    BENCHMARK._measure(resumed, tmp_path, 0)


@pytest.mark.parametrize(("code", "resumed"), [(0, [False, True, True]), (1, [False, True, True]), (2, [False])])
def test_the_first_of_several_processes_does_not_resume(
    code: int, resumed: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that refuses is the last one: the others would resume what it refused."""
    record = tmp_path / "arguments"
    monkeypatch.setattr(local_group, "PROGRAM", (sys.executable, "-c", RECORDS_ITS_ARGUMENTS, str(record), str(code)))
    assert bench_command._repeat(3, tmp_path, ["bench", "attention"]) == code
    assert ["--resume" in json.loads(line) for line in record.read_text().splitlines()] == resumed
