"""What the TPU compiler makes of the kernels of `flash_tpu`, by `zoo bench attention --compiled`; run with --aot.

No device tells when a change makes a kernel slower. The compiler does: a tile has more bundles in comparison with `splash`, which
is compiled in the same process; a kernel does not fit the vector memory; temporaries grow faster than the rows.
"""

import functools
import importlib.metadata
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plan import target_devices
from tests.support.example_plugin import write_example
from tests.support.processes import ROOT, run_python
from zoo.ops import tile_sizes

ALL = ("forward", "backward")
LIMITS: dict[str, tuple[float, float]] = {"t5": (1.25, 1.1), "dropout": (1.5, 1.1), "causal": (1.1, 1.1)}
"""Feature -> the largest ratio of the bundles of a tile of 512 x 512 to those of `splash` without a bias and without dropout:
forward, and backward to both of its kernels."""
RECORDED: dict[str, tuple[float, float]] = {"t5": (0.928, 0.705), "dropout": (1.240, 0.898), "causal": (0.91, 0.73)}
"""The same ratios as the compiler of RECORDED_WITH states them; a change that exceeds one by more than 3 % is a regression."""
RECORDED_WITH = "0.0.42.1"
SINKS = 1.05
"""The largest ratio of the bundles of a tile with sinks to those without: they are one more key only where a row begins."""
RELATIVE = (2.0, 1.7)
"""The ratios for XLNet's content stream: its position terms are two more products of a tile forward, and six backward."""
KERNELS = {
    "xlnet": [f"flash_{stream}_{direction}" for direction in ALL for stream in ("relative", "scattered")],
    None: [f"flash_{direction}" for direction in ALL],
}


@functools.cache
def cells(chip: str, *options: str, plugins: str = "", flags: str = "") -> dict[tuple[str, str, int], dict[str, Any]]:
    """Return what the compiler says, by feature, implementation and number of queries; in a process of its own."""
    if why := target_devices.unavailable_reason("tpu"):
        pytest.skip(why)
    # The files of the compiler are asked for when it is loaded, so this process cannot do it.
    forced = dict.fromkeys(tile_sizes.table_sizes(tile_sizes.KernelCall(kernel="splash", dtype="float32"), "TPU"), 512)
    command = f"""
import sys
from zoo.cli.main import main
from zoo.ops import tile_sizes
tile_sizes.forced["splash"] = {forced}  # as many scores in a tile as `flash_tpu` has
sys.exit(main(sys.argv[1:]))
"""
    argv = ["bench", "attention", "--compiled", chip, "--json", *options]
    path = os.pathsep.join(filter(None, [str(ROOT), plugins]))
    env = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": None, "PYTHONPATH": path, "LIBTPU_INIT_ARGS": flags}
    ended = run_python("-c", command, *argv, env=env, timeout=1800)
    assert ended.code == 0, ended.stdout + ended.stderr
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    return {(row["feature"], row["implementation"], row["queries"]): row for row in rows}


def at_2048(chip: str, features: Sequence[str]) -> dict[tuple[str, str, int], dict[str, Any]]:
    return cells(chip, "--impl", "splash", "flash_tpu", "--feature", *features, "--shape", "4,2048,2048,12,12,64")


def bundles(cell: dict[str, Any]) -> tuple[int, int]:
    """Return the bundles of a tile, forward and backward; those of all backward kernels together."""
    by_name = {kernel["name"]: kernel["bundles"] for kernel in cell["kernels"] if "scattered" not in kernel["name"]}
    forward = sum(count for name, count in by_name.items() if "forward" in name or "fwd" in name)
    return forward, sum(by_name.values()) - forward


def check_ratios(table: dict[tuple[str, str, int], dict[str, Any]], limits: dict[str, tuple[float, float]]) -> None:
    unit = bundles(table["causal", "splash", 2048])
    for feature, limit in limits.items():
        counts = bundles(table[feature, "flash_tpu", 2048])
        ratios = tuple(count / one for count, one in zip(counts, unit, strict=True))
        assert all(ratio <= largest for ratio, largest in zip(ratios, limit, strict=True)), (feature, ratios, limit)


def check_sinks(table: dict[tuple[str, str, int], dict[str, Any]]) -> None:
    for name in ("splash", "flash_tpu"):
        counts, without = (bundles(table[feature, name, 2048]) for feature in ("sinks", "causal"))
        assert all(count <= SINKS * one for count, one in zip(counts, without, strict=True)), (name, counts, without)


def check_kernels(table: dict[tuple[str, str, int], dict[str, Any]]) -> None:
    for (feature, name, _), cell in table.items():
        if name == "flash_tpu":
            expected = KERNELS.get(feature, KERNELS[None])
            assert [kernel["name"] for kernel in cell["kernels"]] == expected, feature


@pytest.mark.aot
def test_a_tile_has_few_more_bundles_than_that_of_splash() -> None:
    table = at_2048("v5e", ("causal", "t5", "dropout"))
    check_ratios(table, LIMITS)
    if importlib.metadata.version("libtpu") == RECORDED_WITH:
        check_ratios(table, {feature: (a * 1.03, b * 1.03) for feature, (a, b) in RECORDED.items()})


@pytest.mark.aot
def test_a_tile_with_sinks_has_as_many_bundles_as_one_without() -> None:
    check_sinks(at_2048("v5e", ("causal", "sinks")))


@pytest.mark.aot
def test_every_kernel_is_compiled_once() -> None:
    check_kernels(at_2048("v5e", ("causal", "t5", "dropout")))


@pytest.mark.aot
def test_the_kernel_of_a_plugin_is_compiled_too(tmp_path: Path) -> None:
    site = str(write_example(tmp_path / "site"))
    table = cells("v5e", "--impl", "row-softmax", "--feature", "causal", "t5", "--shape", "2,512,512,2,2,64", plugins=site)
    (kernel,) = table["causal", "row-softmax", 512]["kernels"]
    assert kernel["name"] == "row_softmax" and kernel["bundles"] > 0
    assert table["t5", "row-softmax", 512]["reason"] == "it has no bucket bias"


@pytest.mark.aot
@pytest.mark.slow
def test_a_tile_of_xlnet_has_few_more_bundles_than_its_products() -> None:
    table = at_2048("v5e", ("causal", "xlnet"))
    check_ratios(table, {"xlnet": RELATIVE})
    check_kernels(table)


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5p", "v6e"])
def test_the_kernels_fit_the_memory_of_other_chips(chip: str) -> None:
    """Compiling proves it: the compiler refuses a kernel that needs more vector memory than its default of 16 MiB."""
    check_kernels(at_2048(chip, ("causal", "t5", "dropout", "xlnet")))


@pytest.mark.aot
@pytest.mark.slow
def test_temporaries_grow_with_the_rows() -> None:
    """XLA counts only what is in the main memory, so the growth is that of programs that keep no array in the vector memory.

    They have 352 MiB at 4,096 and 592 at 8,192. By default it is 225 and 489: up to 127 MiB are in the vector memory of 128.
    """
    options = ("v5e", "--impl", "flash_tpu", "--feature", "t5", "--shape")
    shapes = [f"4,{length},{length},8,8,64" for length in (4096, 8192)]
    assert cells(*options, shapes[1])["t5", "flash_tpu", 8192]["temporaries"] < 640 * 2**20
    table = cells(*options, *shapes, flags="--xla_vf_vmem_memory_space_assignment=false")
    short, long = (table["t5", "flash_tpu", length]["temporaries"] for length in (4096, 8192))
    assert long <= 2.1 * short


# --- the checks themselves ------------------------------------------------------------------------------------------------------


def cell_of(*kernels: tuple[str, int]) -> dict[str, Any]:
    return {"kernels": [{"name": kernel, "bundles": count} for kernel, count in kernels]}


TABLE = {
    ("causal", "splash", 2048): cell_of(("splash_mha_fwd", 1000), ("splash_mha_dq", 1000), ("splash_mha_dkv", 2000)),
    ("t5", "flash_tpu", 2048): cell_of(("flash_forward", 1200), ("flash_backward", 3200)),
    ("causal", "flash_tpu", 2048): cell_of(("flash_forward", 1000), ("flash_backward", 3000)),
    ("sinks", "flash_tpu", 2048): cell_of(("flash_forward", 1040), ("flash_backward", 3000)),
    ("sinks", "splash", 2048): cell_of(("splash_mha_fwd", 1000), ("splash_mha_dq", 1000), ("splash_mha_dkv", 2000)),
}


def test_the_ratios_are_those_of_the_kernels() -> None:
    check_ratios(TABLE, {"t5": (1.25, 1.1)})
    check_sinks(TABLE)
    check_kernels(TABLE)


@pytest.mark.planted
@pytest.mark.parametrize(
    ("check", "feature", "kernels"),
    [
        (lambda table: check_ratios(table, {"t5": (1.25, 1.1)}), "t5", (("flash_forward", 1300), ("flash_backward", 3200))),
        (lambda table: check_ratios(table, {"t5": (1.25, 1.1)}), "t5", (("flash_forward", 1200), ("flash_backward", 3400))),
        (check_sinks, "sinks", (("flash_forward", 1060), ("flash_backward", 3000))),
        (check_kernels, "t5", (("flash_forward", 1200),)),
    ],
)
def test_a_slower_or_missing_kernel_is_noticed(
    check: Callable[[Any], None], feature: str, kernels: tuple[tuple[str, int], ...]
) -> None:
    with pytest.raises(AssertionError):
        check(TABLE | {(feature, "flash_tpu", 2048): cell_of(*kernels)})
