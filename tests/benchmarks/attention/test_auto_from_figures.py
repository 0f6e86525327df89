"""The script that makes the lines of `auto` from published times, on a small table with times that follow from a rule."""

import csv
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.attention import auto_from_figures as script
from benchmarks.attention.published_attention import DEVICES, NEEDED, Case, read_cases
from zoo.attention import auto
from zoo.attention.auto import Line
from zoo.errors import BadInput

PUBLISHED = {
    "tpu": ("dot_product_attention", "xla_chunked_dot_product_attention", "pallas_mosaic_tpu_flash_attention"),
    "gpu": (
        "dot_product_attention",
        "jax_nn_dot_product_attention",
        "pallas_triton_flash_attention",
        "pallas_mosaic_gpu_flash_attention",
    ),
}
LENGTHS = (256, 512, 1024, 2048, 4096)
Times = Callable[[str, str, int], float]


def fused_from_1024(name: str, direction: str, length: int) -> float:
    """Return a time: a Pallas kernel has a cost of its own, so that it pays from 1,024 tokens on; the loop over keys never."""
    dense = length**2 / 100.0
    if name in ("dot_product_attention", "jax_nn_dot_product_attention"):
        return dense if name == "dot_product_attention" else 0.75 * dense
    return 1.2 * dense if "chunked" in name else 6000 + dense / 5


def write_table(path: Path, times: Times) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, NEEDED)
        table.writeheader()
        for device, (platform, _) in DEVICES.items():
            for length in LENGTHS:
                for batch in (1, 2, 4, 8):
                    for bias in ("", f"bf16[1,4,{length},{length}]") if platform == "gpu" else ("",):
                        shape = f"{batch}x{length}x4x64"
                        row: dict[Any, str] = {
                            "device": device,
                            "q_shape": shape,
                            "k_shape": shape,
                            "dtype": "bf16",
                            "causal": "0",
                            "bool_mask": bias and f"bool[{batch},1,1,{length}]",
                            "bias": bias,
                            "logits_dtype": "float32",
                            "precision": "DEFAULT",
                            "return_residuals": "0",
                            "direction": "forward",
                            "at_head": "1",
                        }
                        for name in PUBLISHED[platform]:
                            time = times(name, "forward", length)
                            table.writerow({**row, "implementation": name, "time_us_median": f"{time:.3f}"})
    return path


def lines_and_verdicts(path: Path) -> tuple[dict[str, tuple[Line, ...]], list[script.Verdict]]:
    cases, by_device, verdicts = read_cases(path), {}, []
    for device in script.FOLDERS:
        own = [case for case in cases if case.device == device]
        by_device[device] = script.fit_lines(device, [case for case in own if not case.is_held_out])
        verdicts += script.judge(by_device[device], [case for case in own if case.is_held_out])
    return by_device, verdicts


def test_lengths_and_times_follow_from_the_figures(tmp_path: Path) -> None:
    by_device, verdicts = lines_and_verdicts(write_table(tmp_path / "times.csv", fused_from_1024))
    splash, *derived, last = by_device["TPU v6e"]
    assert (splash.implementation, splash.queries, splash.keys) == ("splash", 1024, 1024)
    # 6,000 of 10,486 and of 167,772, and a fifth.
    assert splash.time == "0.29 (0.24 to 0.77) forward"
    assert {line.implementation for line in derived} == {"flash_tpu"} and last == Line(implementation="xla")
    bias, _, _, array, plain, _, _ = by_device["NVIDIA H100"]
    assert [line.implementation for line in (bias, array, plain)] == ["flash_gpu", "cudnn", "cudnn"]
    assert (bias.queries, array.queries, plain.queries) == (1024, 256, 256)
    shares = [v.in_zoo for v in verdicts if v.in_zoo is not None and v.form != "no bias"]
    assert shares and max(shares) <= script.NEAR


def check_held_out(verdicts: list[script.Verdict]) -> None:
    on_tpu = [v.in_zoo for v in verdicts if v.case.platform == "tpu"]
    right, _, judged, *_ = script.share(on_tpu).split()
    assert int(judged) == len(on_tpu) > 10 and int(right) >= 0.95 * len(on_tpu)


def test_choices_are_judged_by_cases_that_did_not_decide_them(tmp_path: Path) -> None:
    path = write_table(tmp_path / "times.csv", fused_from_1024)
    cases = read_cases(path)
    of_device: dict[str, set[bool]] = {}
    for case in cases:
        of_device.setdefault("|".join((case.direction, *case.arguments)), set()).add(case.is_held_out)
    assert all(len(halves) == 1 for halves in of_device.values())
    assert 0.3 < sum(case.is_held_out for case in cases) / len(cases) < 0.7
    check_held_out(lines_and_verdicts(path)[1])


@pytest.mark.planted
def test_lines_that_hold_for_one_half_alone_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that do not follow from the length fit one half of the cases, and fail on the other."""
    path = write_table(tmp_path / "times.csv", fused_from_1024)
    cases = read_cases(path)

    def reversed_times(case: Case) -> Case:
        names, times = zip(*case.times.items(), strict=True)
        return dataclasses.replace(case, times=dict(zip(names, reversed(times), strict=True))) if case.is_held_out else case

    monkeypatch.setitem(globals(), "read_cases", lambda path: [reversed_times(case) for case in cases])
    with pytest.raises(AssertionError):
        check_held_out(lines_and_verdicts(path)[1])


def test_the_page_lists_shares_and_misses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def slow_at_2048(name: str, direction: str, length: int) -> float:
        slow = name != "dot_product_attention" and length == 2048
        return (5 if slow else 1) * fused_from_1024(name, direction, length)

    path = write_table(tmp_path / "times.csv", slow_at_2048)
    assert script.main([str(path), "--lines", str(tmp_path / "lines.json")]) == 0
    page = capsys.readouterr().out
    assert "| TPU v6e | no bias | forward | " in page and "| all |  |  | " in page
    misses = [line for line in page.splitlines() if line.startswith("- TPU v6e")]
    # No length is right for all: from 1,024 on the line is wrong at 2,048, and from 4,096 on at 1,024.
    assert misses and all(re.search(r"(1024|2048)x4x64 .*: \w+, \d\.\d\d times the fastest$", line) for line in misses)
    written = json.loads((tmp_path / "lines.json").read_text())
    assert [device["device"] for device in written["devices"]] == [device.device for device in auto.DEVICES]


def test_the_file_of_lines_is_what_the_script_writes() -> None:
    """Times and lengths are read back from the file; an edit by hand of anything else is noticed."""
    by_device = {device.device: device.lines for device in auto.DEVICES if device.device in script.FOLDERS}
    assert script.lines_json(by_device) == auto.FILE.read_text()
    for device, lines in by_device.items():
        crossing = lines[0].queries
        for line in lines[:-1]:
            planned = [plan.line for plan in script.plans(device, crossing, []) if plan.line.features == line.features]
            assert line.implementation in {other.implementation for other in planned}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("device,", "machine,"), "it has no column device; give the path of the published table"),
        (
            lambda text: text.replace("tpu_v5,", "tpu_v1,", 1),
            "times.csv:2: the device, the implementation or the time is unknown",
        ),
        (lambda text: text.replace("655.360", "fast", 1), "the device, the implementation or the time is unknown"),
        (lambda text: "", "it has no column"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(change: Callable[[str], str], message: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / "times.csv", fused_from_1024)
    path.write_text(change(path.read_text()))
    with pytest.raises(BadInput, match=message.replace("(", r"\(")):
        read_cases(path)
    with pytest.raises(BadInput, match="there is no such file"):
        read_cases(tmp_path / "absent.csv")
