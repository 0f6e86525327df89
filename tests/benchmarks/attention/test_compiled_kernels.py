"""`zoo bench attention --compiled`: what is read of the TPU compiler's files, and what is refused."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from benchmarks.attention import compiled_kernels, tpu_schedule
from benchmarks.core.options import AttentionOptions, Output
from benchmarks.plan import target_devices
from eval.pages.html_page import Table
from zoo.errors import BadInput, install_advice

BUNDLES = """= control target key start
LB: loop body

     0   :  { %s1 = smov 0 }
   0x1   :  { %p2 = scmp.eq 0, %s1 }
   0x2   :  { %3 = sbr.rel (%p2) target bundleno = 6 }
   0x3   :  { %v4 = vld [vmem:[0]] }
   0x4   :  { %v5 = vadd.f32 %v4, %v4 }
   0x5   :  { %v6 = vmul.f32 %v5, %v5 }
   0x6   :  { %7 = vst [vmem:[0]] %v6 }
   0x7 LB: > { %s8 = sadd.s32 1, %s1 }
   0x8   : > { %9 = sbr.rel (%p2) target bundleno = 7 }
"""
SLOTS = """== CAPACITY:
MXU, VALU
    4     2
== UTILIZATION:
0 0
0 0
0 0
0 2
4 2
4 1
0 2
0 0
0 0
"""


def write_program(folder: Path, label: str, operation: str = 'custom-call(), custom_call_target="tpu_custom_call"') -> None:
    files = {
        "01-" + tpu_schedule.SLOTS: SLOTS,
        "02-" + tpu_schedule.ANALYSIS: f"Schedule analysis:\n {operation}\n",
        "03-" + tpu_schedule.BUNDLES: BUNDLES,
    }
    for name, text in files.items():
        (folder / f"17-{label}-{name}").write_text(text)


def test_the_longest_straight_part_of_each_kernel_is_read(tmp_path: Path) -> None:
    write_program(tmp_path, "flash_forward.1")
    write_program(tmp_path, "fusion.2", "fusion()")
    assert tpu_schedule.take_kernels(tmp_path, "", "v5e") == [
        tpu_schedule.Kernel("flash_forward", bundles=4, slots={"VALU": 7 / 8, "MXU": 8 / 16})
    ]
    assert not list(tmp_path.iterdir()), "the next program's files are apart"


@pytest.mark.planted
def test_a_part_that_goes_on_after_a_branch_would_be_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpu_schedule, "_straight_parts", lambda text: iter([(0, text.count("{"))]))
    with pytest.raises(AssertionError):
        test_the_longest_straight_part_of_each_kernel_is_read(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (AttentionOptions(compiled="h300"), "h300: choose a TPU or GPU: v4, v5e, v5p, v6e, tpu7x, a100, h100"),
        (AttentionOptions(compiled="v5e", rounds=3), "--rounds with --compiled: nothing is timed"),
        (AttentionOptions(compiled="v5e", repeats=3), "--repeats with --compiled: nothing is timed"),
        (AttentionOptions(compiled="v5e", cell_seconds=3.0), "--cell-seconds with --compiled: nothing is timed"),
        (AttentionOptions(compiled="v5e", output=Output(out="results")), "--out with --compiled: it writes no folder"),
        (AttentionOptions(compiled="v5e", output=Output(resume=True)), "--resume with --compiled: it writes no folder"),
    ],
)
def test_other_devices_and_options_of_measurements_are_refused(options: AttentionOptions, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        compiled_kernels.report_compilation(options)


@pytest.mark.parametrize(("chip", "platform", "extra"), [("v5e", "tpu", "tpu"), ("h100", "gpu", "cuda13")])
def test_a_missing_compiler_is_named_with_its_extra(
    chip: str, platform: Any, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(target_devices.PLUGINS, platform, (("an_absent_compiler",), extra))
    message = f"^--compiled {chip}: compiling for {platform} needs the extra {extra}: {re.escape(install_advice(extra))}"
    with pytest.raises(BadInput, match=message):
        compiled_kernels.report_compilation(AttentionOptions(compiled=chip))


def test_a_kernel_that_does_not_fit_is_named() -> None:
    message = (
        "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:\n"
        "Ran out of memory in memory space vmem while allocating on stack for %flash_backward.1 = (f32[1,8]) custom-call()"
    )
    expected = "the tiles of flash_backward do not fit the vector memory; choose shorter rows or smaller heads"
    assert compiled_kernels._failure(message) == {"state": "failed", "reason": expected}
    failure = compiled_kernels._failure("INTERNAL: Mosaic failed\nat line 3")
    assert failure == {"state": "failed", "reason": "INTERNAL: Mosaic failed"}


def test_a_missing_library_is_not_a_failure_of_the_kernel() -> None:
    expected = {"state": "refused", "reason": f"it needs cuDNN: {install_advice('cuda13')}"}
    assert compiled_kernels._failure("cuDNN not found.") == expected


def cell(head: int, **changes: Any) -> dict[str, Any]:
    sizes = {"batch": 1, "queries": 128, "keys": 128, "heads": 2, "groups": 2, "head": head, "dtype": "bfloat16"}
    result = {"state": "compiled", "kernels": [], "temporaries": 0, "compile_seconds": 1.0}
    return {**sizes, "feature": "full", "direction": "both", "implementation": "flash_tpu", **result, **changes}


@pytest.mark.parametrize(("head", "is_padded"), [(64, True), (128, False), (152, True)])
def test_padded_heads_are_stated(head: int, is_padded: bool) -> None:
    text = str(compiled_kernels._blocks(target_devices.parse_target("v5e:2x2"), [cell(head)])[1])
    assert (f"Heads of {head} take the lanes of a multiple of 128." in text) == is_padded


def test_each_shape_has_a_table_and_what_was_not_compiled_a_reason() -> None:
    kernel = {"name": "flash_forward", "bundles": 1234, "slots": {"MXU": 0.8, "VALU": 0.5, "SALU": 0.1}, "grid": [2, 0]}
    cells = [
        cell(64, kernels=[kernel], temporaries=3 << 20),
        cell(128, direction="forward"),
        cell(128, implementation="splash", state="refused", reason="it has no bucket bias"),
    ]
    heading, _, *blocks, notes = compiled_kernels._blocks(target_devices.parse_target("v5e:2x2"), cells)
    assert heading == "Attention as the compiler for TPU v5e schedules it"
    assert [block.rows if isinstance(block, Table) else block for block in blocks] == [
        "1 x 128 tokens, 2 heads of 64, bfloat16, forward and backward:",
        [
            ["full", "flash_tpu", "", "", "", "3", "1"],
            ["full", "  flash_forward", "2 x ?", "MXU 80%, VALU 50%", "1,234", "", ""],
        ],
        "1 x 128 tokens, 2 heads of 128, bfloat16, forward:",
        [["full", "flash_tpu", "", "", "", "0", "1"]],
    ]
    shape = "1 x 128 tokens, 2 heads of 128, bfloat16, forward and backward"
    assert notes == [f"splash, full of {shape}: refused: it has no bucket bias"]


def test_features_that_are_refused_for_one_reason_share_a_note() -> None:
    refused = {"implementation": "splash", "state": "refused", "reason": "it needs more"}
    cells = [cell(64, feature=feature, **refused) for feature in ("t5", "dropout")] + [cell(64)]
    assert compiled_kernels._notes(cells) == ["splash, t5, dropout: refused: it needs more"]


def copy_kernel(x: Any, y: Any) -> None:
    y[...] = x[...]


def copied(x: Any, grid: tuple[int, ...], name: str) -> Any:
    block = pl.BlockSpec((8, 128), lambda *_: (0, 0))
    return pl.pallas_call(copy_kernel, grid=grid, in_specs=[block], out_specs=block, out_shape=x, name=name)(x)


def test_the_grid_of_each_kernel_is_read() -> None:
    """Also in a loop, a branch and a recomputed function."""

    def program(x: Any) -> Any:
        x, _ = jax.lax.scan(lambda x, _: (copied(x, (2, 3), "in_loop"), None), x, None, length=2)
        x = jax.lax.cond(x.sum() > 0, lambda x: copied(x, (4,), "in_branch"), lambda x: x, x)
        return jax.checkpoint(lambda x: copied(x, (), "recomputed"))(x)

    jaxpr = jax.jit(program).trace(jax.ShapeDtypeStruct((8, 128), jnp.float32)).jaxpr.jaxpr
    assert dict(compiled_kernels._grids(jaxpr)) == {"in_loop": [2, 3], "in_branch": [4], "recomputed": []}
