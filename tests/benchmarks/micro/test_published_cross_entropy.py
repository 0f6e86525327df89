"""`python -m benchmarks.micro.published_cross_entropy`, on a small table with times that follow from a rule."""

import csv
from pathlib import Path
from typing import Any

import pytest

from benchmarks.micro import published_cross_entropy as script
from zoo.errors import BadInput

PER_TOKEN = {"forward": {"chunked_xla_": 2.0, "": 1.0}, "vjp": {"chunked_xla_": 5.0, "": 3.0}}
"""Microseconds of a token."""


def write_table(path: Path, **changes: str) -> Path:
    """Write the rows of two sizes, and older ones that took no time."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, script.NEEDED)
        table.writeheader()
        for direction, by_form in PER_TOKEN.items():
            for form, time in by_form.items():
                for tokens in (1024, 4096):
                    for newest in ("0", "1"):
                        row: dict[Any, str] = dict.fromkeys(script.NEEDED, "") | {
                            "device": "tpu_v6_lite",
                            "implementation": form + script.DENSE,
                            "direction": direction,
                            "tokens": str(tokens),
                            "vocab": "1000",
                            "at_head": newest,
                            "time_us_median": f"{time * tokens * int(newest) + 1:.3f}",
                            "peak_memory_mb": str(tokens * 1000 * (8 if form == "" else 2) / 1e6),
                        }
                        table.writerow(row | changes)
    return path


def test_ratios_are_those_of_the_same_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([str(write_table(tmp_path / "times.csv"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    memory = "0.25 (0.25 to 0.25) | 8.00 (8.00 to 8.00)"
    assert f"| TPU v6e | forward | chunks, XLA | all | 2 | 2.00 (2.00 to 2.00) | {memory} |" in lines
    assert f"| TPU v6e | vjp | chunks, XLA | 1,024 | 1 | 1.67 (1.67 to 1.67) | {memory} |" in lines
    # (2 + 5) / (1 + 3), and / (1 + 2) where the logits are kept.
    assert lines[-1] == "| TPU v6e | chunks, XLA | 2 | 1.75 (1.75 to 1.75) | 2.33 (2.33 to 2.33) | 3.00 (3.00 to 3.00) |"


@pytest.mark.parametrize(
    "changes",
    [{"device": "tpu_v1"}, {"implementation": "fast"}, {"tokens": "many"}, {"time_us_median": ""}, {"peak_memory_mb": "x"}],
)
def test_a_row_that_cannot_be_read_is_refused(changes: dict[str, str], tmp_path: Path) -> None:
    path = write_table(tmp_path / "times.csv", **changes)
    with pytest.raises(BadInput, match=r"times.csv:[23]: the device, .* is unknown; leave the row out"):
        script.main([str(path)])
    with pytest.raises(BadInput, match="there is no such file"):
        script.main([str(tmp_path / "absent.csv")])
