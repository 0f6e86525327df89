"""What the compilers for GPU make of the kernels of `flash_gpu`, by `zoo bench attention --compiled`; run with --aot.

No device tells when a change makes a kernel slower. The compilers do: a kernel spills registers, needs more of them, so that a
multiprocessor holds fewer programs, no longer uses the matrix units, or takes more temporaries. Atomic additions would make the
gradient of a table differ from run to run.
"""

import functools
import json
from typing import Any

import pytest

from benchmarks.plan import target_devices
from tests.support.processes import ROOT, run_python

NAMES = ["flash_forward", "flash_backward_queries", "flash_backward_keys"]
BIAS = "flash_backward_bias"
PRODUCTS = {"h100": "wgmma", "a100": "mma.sync"}
REGISTERS = {
    "h100": {"flash_forward": 136, "flash_backward_queries": 168, "flash_backward_keys": 216, BIAS: 128},
    "a100": dict.fromkeys([*NAMES, BIAS], 255),
}
"""Most registers of a thread, as ptxas states them for heads of 64 in bfloat16; dropout needs most in the kernel for keys."""
PROGRAMS = {
    "h100": {"flash_forward": 3, "flash_backward_queries": 3, "flash_backward_keys": 2, BIAS: 3},
    "a100": dict.fromkeys([*NAMES, BIAS], 2),
}
"""Fewest programs of four warps that a multiprocessor holds at once."""
FEATURES = ("causal", "packed", "t5", "dropout", "sinks")
QUERIES = 2048
Table = dict[tuple[str, int], dict[str, Any]]


@functools.cache
def cells(chip: str, features: tuple[str, ...], shapes: tuple[str, ...]) -> Table:
    """Return what the compilers say, by feature and number of queries; in a process of its own, which asks them for files."""
    if why := target_devices.unavailable_reason("gpu"):
        pytest.skip(why)
    command = "import sys; from zoo.cli.main import main; sys.exit(main(sys.argv[1:]))"
    argv = ["bench", "attention", "--compiled", chip, "--json", "--impl", "flash_gpu", "--feature", *features, "--shape", *shapes]
    ended = run_python("-c", command, *argv, env={"JAX_PLATFORMS": None, "PYTHONPATH": str(ROOT)}, timeout=1800)
    assert ended.code == 0, ended.stdout + ended.stderr
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    return {(row["feature"], row["queries"]): row for row in rows if row["implementation"] == "flash_gpu"}


def check_kernels(table: Table, chip: str, features: tuple[str, ...]) -> None:
    """Compare the kernels with what they may need; the table has these features, all of them compiled."""
    assert {key: cell["state"] for key, cell in table.items()} == {(feature, QUERIES): "compiled" for feature in features}
    for (feature, _), cell in table.items():
        kernels = {kernel["name"]: kernel for kernel in cell["kernels"]}
        assert sorted(kernels) == sorted([*NAMES, *([BIAS] if feature == "t5" else [])]), feature
        for name, kernel in kernels.items():
            check_kernel(kernel, chip, feature)
            assert kernel["registers"] <= REGISTERS[chip][name], (feature, name, kernel["registers"])
            assert kernel["programs"] >= PROGRAMS[chip][name], (feature, name, kernel["programs"])


def check_kernel(kernel: dict[str, Any], chip: str, feature: str) -> None:
    """Compare a kernel with what holds for all features and sizes of a head."""
    assert kernel["spilled"] == 0, (feature, kernel["name"], kernel["spilled"])
    assert kernel["matrix"] == PRODUCTS[chip], (feature, kernel["name"])
    assert not kernel["serialized"], (feature, kernel["name"])
    assert kernel["atomics"] == 0, (feature, kernel["name"])


@pytest.mark.aot
@pytest.mark.parametrize(
    ("chip", "features"), [("h100", ("t5", "dropout", "sinks")), pytest.param("a100", FEATURES, marks=pytest.mark.slow)]
)
def test_the_kernels_spill_nothing_and_leave_room_for_several_programs(chip: str, features: tuple[str, ...]) -> None:
    check_kernels(cells(chip, features, (f"4,{QUERIES},{QUERIES},12,12,64",)), chip, features)


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize(
    ("features", "shape"),
    [
        (("xlnet",), "4,1024,1024,12,12,64"),
        (("xlnet",), "4,1024,1024,6,6,128"),
        (("causal", "packed", "t5", "dropout", "sinks"), "4,2048,2048,4,4,256"),
    ],
)
def test_the_kernels_of_a_dense_bias_and_of_large_heads_spill_nothing(features: tuple[str, ...], shape: str) -> None:
    """XLA adds a scatter with atomic sums to XLNet's scattered queries, in the gradient of moving their rows."""
    for (feature, _), cell in cells("h100", features, (shape,)).items():
        kernels = [kernel for kernel in cell["kernels"] if kernel["name"] in (*NAMES, BIAS)]
        assert {kernel["name"] for kernel in kernels} >= set(NAMES), feature
        for kernel in kernels:
            check_kernel(kernel, "h100", feature)


# --- the checks themselves ------------------------------------------------------------------------------------------------------


def table(**changes: Any) -> Table:
    """Return a table of the kernels of a bias, the first of which is changed."""
    kernel = {"spilled": 0, "registers": 120, "programs": 4, "matrix": "wgmma", "serialized": False, "atomics": 0}
    kernels = [{**kernel, "name": name} for name in (*NAMES, BIAS)]
    return {("t5", QUERIES): {"state": "compiled", "kernels": [{**kernels[0], **changes}, *kernels[1:]]}}


def test_kernels_within_their_limits_pass() -> None:
    check_kernels(table(), "h100", ("t5",))


@pytest.mark.planted
@pytest.mark.parametrize(
    "incomplete", [{}, {("causal", QUERIES): table()["t5", QUERIES]}, {("t5", QUERIES): {"state": "refused", "reason": ""}}]
)
def test_a_table_without_the_features_is_noticed(incomplete: Table) -> None:
    with pytest.raises(AssertionError):
        check_kernels(incomplete, "h100", ("t5",))


@pytest.mark.planted
@pytest.mark.parametrize(
    "change",
    [
        {"spilled": 8},
        {"registers": 256},
        {"programs": 0},
        {"matrix": "mma.sync"},
        {"serialized": True},
        {"atomics": 1},
        {"name": "scatter"},
    ],
)
def test_a_kernel_beyond_its_limits_is_noticed(change: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check_kernels(table(**change), "h100", ("t5",))
