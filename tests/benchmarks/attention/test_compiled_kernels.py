"""`zoo bench attention --compiled`: what is read of the TPU compiler's files, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.attention import compiled_kernels, tpu_schedule
from benchmarks.core.options import AttentionOptions
from benchmarks.plan import target_devices
from zoo.errors import BadInput

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
    ],
)
def test_other_devices_and_options_of_measurements_are_refused(options: AttentionOptions, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        compiled_kernels.main(options)


@pytest.mark.parametrize(("chip", "platform", "extra"), [("v5e", "tpu", "tpu"), ("h100", "gpu", "cuda13")])
def test_a_missing_compiler_is_named_with_its_extra(
    chip: str, platform: Any, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(target_devices.PLUGINS, platform, (("an_absent_compiler",), extra))
    message = rf"^--compiled {chip}: compiling for {platform} needs the extra {extra}: pip install 'transformer-zoo\[{extra}\]'"
    with pytest.raises(BadInput, match=message):
        compiled_kernels.main(AttentionOptions(compiled=chip))


def test_a_kernel_that_does_not_fit_is_named() -> None:
    message = (
        "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:\n"
        "Ran out of memory in memory space vmem while allocating on stack for %flash_backward.1 = (f32[1,8]) custom-call()"
    )
    expected = "the tiles of flash_backward do not fit the vector memory; choose shorter rows or smaller heads"
    assert compiled_kernels._failure(message) == expected
    assert compiled_kernels._failure("INTERNAL: Mosaic failed\nat line 3") == "INTERNAL: Mosaic failed"
    expected = "cuDNN is not installed: pip install 'transformer-zoo[cuda13]'"
    assert compiled_kernels._failure("cuDNN not found.") == expected


def cell(head: int) -> dict[str, Any]:
    sizes = {"batch": 1, "queries": 128, "heads": 2, "head": head, "dtype": "bfloat16", "feature": "full", "direction": "both"}
    return {**sizes, "implementation": "flash_tpu", "state": "compiled", "kernels": [], "temporaries": 0, "compile_seconds": 1.0}


@pytest.mark.parametrize(("head", "is_padded"), [(64, True), (128, False), (152, True)])
def test_padded_heads_are_stated(head: int, is_padded: bool) -> None:
    text = str(compiled_kernels._blocks(target_devices.parse_target("v5e:2x2"), [cell(head)])[1])
    assert (f"Heads of {head} take the lanes of a multiple of 128." in text) == is_padded
