"""What the compilers for GPU make of the products of experts at the shapes of gpt-oss; run with --aot.

No device tells when a change makes a kernel slower. The compilers do: a kernel spills registers, no longer uses the matrix units,
needs more shared memory than there is, or has atomic additions, whose sums differ from run to run.
"""

import json
from typing import Any

import pytest

from benchmarks.plan import target_devices
from tests.support.processes import ROOT, run_python

PRODUCTS = {"h100": "wgmma", "a100": "mma.sync", "b200": "tcgen05"}
"""The instructions of the products, in both dtypes."""
PASSES = {"rows": "grouped_product_rows", "transposed": "grouped_product_rows", "weights": "grouped_product_weights"}


def rows(chip: str, dtype: str) -> list[dict[str, Any]]:
    """Return what the compilers say of each pass; in a process of its own, which asks them for files."""
    if why := target_devices.unavailable_reason("gpu"):
        pytest.skip(why)
    argv = ["-m", "benchmarks.micro.grouped_product_kernels", chip, "--json", "--dtype", dtype, "--shape", "32,65536,2880,5760"]
    ended = run_python(*argv, env={"JAX_PLATFORMS": None, "PYTHONPATH": str(ROOT)}, timeout=600)
    assert ended.code == 0, ended.stdout + ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def check_kernels(table: list[dict[str, Any]], matrix: str) -> None:
    """Compare the kernels with what they may need."""
    assert {row["pass"]: row["name"] for row in table} == PASSES and len(table) == len(PASSES)
    for row in table:
        assert row["spilled"] == 0, row
        assert row["programs"] >= 1, row
        assert row["matrix"] == matrix, row
        assert not row["serialized"], row
        assert row["atomics"] == 0, row


@pytest.mark.aot
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("chip", PRODUCTS)
def test_the_kernels_use_the_matrix_units_and_spill_nothing(chip: str, dtype: str) -> None:
    check_kernels(rows(chip, dtype), PRODUCTS[chip])


# --- the checks themselves ------------------------------------------------------------------------------------------------------


def table(**changes: Any) -> list[dict[str, Any]]:
    """Return a table of the kernels, the first of which is changed."""
    kernel = {"spilled": 0, "programs": 2, "matrix": "wgmma", "serialized": False, "atomics": 0}
    kernels = [{**kernel, "pass": name, "name": kernel_name} for name, kernel_name in PASSES.items()]
    return [{**kernels[0], **changes}, *kernels[1:]]


def test_kernels_within_their_limits_pass() -> None:
    check_kernels(table(), "wgmma")


@pytest.mark.planted
@pytest.mark.parametrize(
    "change",
    [
        {"spilled": 8},
        {"programs": 0},
        {"matrix": ""},
        {"serialized": True},
        {"atomics": 1},
        {"name": "scatter"},
        {"pass": "weights"},
    ],
)
def test_a_kernel_beyond_its_limits_is_noticed(change: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check_kernels(table(**change), "wgmma")
