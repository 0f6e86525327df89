"""Plans beside published times: the statistics, the verdicts, and the command."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plan import target_devices
from benchmarks.published import compare_rows, comparison_page
from benchmarks.published.compare_rows import ComparedRow, Comparison
from benchmarks.published.published_rows import PublishedRow, read_published
from benchmarks.published.run_rules import translate_row
from tests.benchmarks.published.test_translation import BERT, GPT3, LLAMA, T5
from tests.support.commands import printed
from tests.support.processes import ROOT, clean_environment
from zoo.errors import BadInput

ROW = ComparedRow(
    **{"name": "a", "model": "gpt", "target": "h100:8", "chip": "h100", "half": "judge", "measured": 2.0, "bound": 1.0},
    **{"bound_by": "compute", "estimate": 1.6, "fits": True, "planned_bytes": 100, "measured_bytes": None, "remarks": ["r"]},
)


def write_rows(file: Path, *rows: dict[str, str]) -> Path:
    columns = sorted({name for row in rows for name in row})
    with file.open("w", newline="") as stream:
        table = csv.DictWriter(stream, columns)
        table.writeheader()
        table.writerows(rows)
    return file


def test_halves_and_order_follow_from_the_name() -> None:
    rows = [PublishedRow({"row_id": f"row-{number}"}) for number in range(200)]
    assert 80 < sum(row.half == "judge" for row in rows) < 120
    # The first digits of sha256("a") are ca978112, an even number.
    assert PublishedRow({"row_id": "a"}).half == "improve" and PublishedRow({"row_id": "a"}).digest.startswith("ca978112")
    gpus = [T5 | {"row_id": f"t5-{number}", "source_group": "t5x"} for number in range(5)]
    rows = [PublishedRow(row) for row in [*gpus, GPT3 | {"source_group": "tpu"}, LLAMA | {"source_group": "titan"}]]
    ordered = [one.row.name for one in compare_rows.in_rounds([translate_row(row) for row in rows])]
    assert {"gpt3", "llama"} < set(ordered[:3]) and sorted(ordered) == sorted(row.name for row in rows)


@pytest.mark.planted(4)
def test_verdicts_hold_only_for_what_was_predicted() -> None:
    rows = [dataclasses.replace(ROW, name=str(number), measured=2.0 * number, estimate=1.6 * number) for number in range(1, 6)]

    def verdicts(*changed: ComparedRow) -> str:
        return comparison_page.render_comparison(Comparison(rows=list(changed), reasons={}, waiting=0), markdown=True)

    good = verdicts(*rows)
    assert "below the measured time: holds (5 of 5 rows)" in good and "holds (1.000)" in good and "holds (1 of 1 devices)" in good
    assert "no row has comparable memory" in good and "does not fit: 0 of 5 rows." in good
    assert "does not hold for 1 (4 of 5 rows)" in verdicts(dataclasses.replace(rows[0], bound=2.5), *rows[1:])
    assert "does not hold (-1.000)" in verdicts(*(dataclasses.replace(row, estimate=9 - (row.estimate or 0)) for row in rows))
    assert "does not hold for h100 (2.50)" in verdicts(
        *(dataclasses.replace(row, measured=4.0 * (row.estimate or 0) / 1.6) for row in rows)
    )
    over = dataclasses.replace(rows[0], measured_bytes=80.0, fits=False)
    assert "0 of 1 rows" in verdicts(over, *rows[1:]) and "does not fit: 1 of 5 rows (1)" in verdicts(over, *rows[1:])


def test_equal_values_share_a_rank() -> None:
    assert compare_rows.rank_correlation([1.0, 2.0, 2.0, 3.0], [1.0, 5.0, 5.0, 9.0]) == pytest.approx(1.0)
    assert compare_rows.rank_correlation([1.0, 2.0], [1.0, 2.0]) is None
    assert compare_rows.rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None


def test_the_bound_leaves_out_what_only_the_plan_recomputes() -> None:
    plan: Any = tiny_plan()
    same = compare_rows.compare_plan(translate_row(PublishedRow(BERT)), plan)
    other = compare_rows.compare_plan(translate_row(PublishedRow(BERT | {"remat": "selective", "peak_mem_gb": "30"})), plan)
    assert (same.bound, same.bound_by) == (3.0, "compute")
    assert (other.bound, other.bound_by) == (pytest.approx(2.0), "compute") and other.measured_bytes is None
    measured = BERT | {"peak_mem_gb": "30", "notes": "memory in GiB"}
    assert compare_rows.compare_plan(translate_row(PublishedRow(measured)), plan).measured_bytes == 30 << 30
    # A program that the compiler refused has no time for memory and links.
    refused = dataclasses.replace(plan.times, memory=None, memory_least=None, interconnect=None)
    row = compare_rows.compare_plan(translate_row(PublishedRow(BERT)), dataclasses.replace(plan, times=refused))
    assert (row.bound, row.bound_by) == (3.0, "compute")


def tiny_plan() -> Any:
    """Return the plan of a small GPT on a CPU with the times of a device that has published rates."""
    from benchmarks.plan.roofline import Times
    from tests.benchmarks.plan.test_plan import planned

    times = Times(compute=3.0, memory=2.5, interconnect=0.0, memory_least=1.0, estimate=4.0)
    # 156 TFLOP/s is the rate of TF32 on an A100.
    return dataclasses.replace(planned(), times=times, precision="float32", devices=1, model_flops=2 * 156e12)


def test_rows_that_are_not_planned_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [BERT | {"vocab": ""}, T5 | {"vocab": ""}, LLAMA | {"precision": "fp8"}]
    file, page = write_rows(tmp_path / "rows.csv", *rows), tmp_path / "page.html"
    plain = json.loads(printed(capsys, "plan", f"--published={file}", "--json", "--page", str(page)))
    assert plain["not_planned"] == {"no vocab": ["bert", "t5"], "precision fp8": ["llama"]} and plain["rows"] == []
    assert "no vocab" in page.read_text() and compare_rows.RULES_DIGEST in page.read_text()


@pytest.mark.planted(6)
def test_files_that_are_no_table_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(tmp_path / "rows.csv", T5, T5)
    for path, reason in (
        (tmp_path / "none.csv", "cannot be read"),
        (tmp_path, "cannot be read"),
        (file, "row_id t5 is not the name of one row"),
        (write_rows(tmp_path / "empty.csv", {"a": "1"}), "has no column row_id"),
    ):
        with pytest.raises(BadInput, match=reason):
            read_published(path)
    one = write_rows(tmp_path / "one.csv", GPT3)
    message = printed(capsys, "plan", "--published", str(one), "--rows", "zz*", code=2)
    assert f"--rows zz*: no row of {one} has such a name; the first is gpt3" in message
    monkeypatch.setattr(compare_rows, "RULES_DIGEST", "0" * 64)
    with pytest.raises(BadInput, match="was changed after the rows were planned by it"):
        compare_rows.check_rules()


@pytest.mark.aot
def test_a_small_row_is_planned(tmp_path: Path) -> None:
    small = {
        "layers": "2",
        "d_model": "128",
        "heads": "4",
        "ffn": "512",
        "global_batch": "4",
        "grad_accum": "2",
        "micro_batch": "2",
    }
    file = write_rows(tmp_path / "rows.csv", BERT | small, T5 | {"vocab": ""})
    if why := target_devices.unavailable_reason("gpu"):
        pytest.skip(why)
    command = [sys.executable, "-m", "zoo.cli", "plan", "--published", str(file), "--json", "--page", str(tmp_path / "page.md")]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=True)
    (row,) = json.loads(done.stdout)["rows"]
    assert row["target"] == "a100-40gb:1" and 0 < row["bound"] <= row["estimate"] < row["measured"] and row["fits"]
    assert "| bert | bert-large | a100-40gb:1 |" in (tmp_path / "page.md").read_text()
