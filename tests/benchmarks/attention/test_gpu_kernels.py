"""`zoo bench attention --compiled h100`: what is read of the files of XLA and of the report of NVIDIA's assembler."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.attention import compiled_kernels, gpu_kernels
from benchmarks.plan import target_devices
from eval.pages.html_page import Table
from zoo.errors import BadInput, install_advice

PTX = """//
.version 8.7
.target sm_90a
.visible .entry flash_forward(
  wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {};
  ex2.approx.ftz.f32 %f1, %f2;
.visible .entry loop_fusion(
  st.shared.f32 [%rd1], %f1;
  bar.red.popc.u32 %r1, 0, %p1;
.visible .entry scatter_fusion(
  red.global.add.f32 [%rd1], %f1;
.visible .entry flash_backward(
  mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {};
  atom.global.add.f32 %f1, [%rd1], %f2;
"""
REPORT = """ptxas info    : (C7515) Potential Performance Loss: wgmma.mma_async instructions are serialized due to non wgmma \
instructions defining accumulator registers in the function 'flash_forward' in line 9
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'flash_forward' for 'sm_90a'
ptxas info    : Function properties for flash_forward
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 129 registers, used 1 barriers
ptxas info    : Compiling entry function 'loop_fusion' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers
ptxas info    : Compiling entry function 'scatter_fusion' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers
ptxas info    : Compiling entry function 'flash_backward' for 'sm_90a'
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
"""
LAUNCHES = """000: kKernel
001: kCustomKernel flash_forward grid: [8, 12, 4] threads: [128, 1, 1] shared_memory: 49152
002: kKernel loop_fusion grid: [8, 1, 1] threads: [256, 1, 1] shared_memory: 0
003: kKernel scatter_fusion grid: [8, 1, 1] threads: [1024, 1, 1] shared_memory: 0
004: kCustomKernel flash_backward grid: [8, 12, 4] threads: [256, 1, 1] shared_memory: 0
"""
PROGRAM = """
%1 = stablehlo.custom_call @__gpu$xla.gpu.triton(%0) {mhlo.backend_config = {ir = "..", name = "flash_forward", x = 1}}
%2 = stablehlo.custom_call @__gpu$xla.gpu.triton(%1) {mhlo.backend_config = {ir = "..", name = "flash_backward", x = 1}}
"""
FORWARD = gpu_kernels.Kernel("flash_forward", 129, 0, 128, 49152, programs=3, matrix="wgmma", serialized=True, atomics=0)
SCATTER = gpu_kernels.Kernel("scatter_fusion", 8, 0, 1024, 0, programs=2, matrix="", serialized=False, atomics=1)
BACKWARD = gpu_kernels.Kernel("flash_backward", 255, 20, 256, 0, programs=1, matrix="mma.sync", serialized=False, atomics=1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the files of a program whose assembler is not called."""
    (tmp_path / "module.0.ptx").write_text("")
    (tmp_path / "module.1.ptx").write_text(PTX)
    (tmp_path / "module").mkdir()
    (tmp_path / "module.thunk_sequence.txt").write_text(LAUNCHES)
    monkeypatch.setattr(gpu_kernels, "find_ptxas", lambda: "ptxas")
    (tmp_path / "report").write_text(REPORT)

    def run(*args: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess((), 0, stdout="", stderr=(tmp_path / "report").read_text())

    monkeypatch.setattr(gpu_kernels.subprocess, "run", run)
    return tmp_path


def test_the_kernels_of_pallas_and_those_with_atomic_sums_are_read(folder: Path) -> None:
    assert gpu_kernels.take_kernels(folder, PROGRAM, "h100") == [FORWARD, SCATTER, BACKWARD]
    assert not list(folder.iterdir()), "the next program's files are apart"


@pytest.mark.planted
def test_atomic_operations_of_another_kernel_would_be_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("flash_forward", "scatter_fusion", "flash_backward")
    monkeypatch.setattr(gpu_kernels, "_entries", lambda ptx: dict.fromkeys(names, ptx) if ptx else {})
    with pytest.raises(AssertionError):
        test_the_kernels_of_pallas_and_those_with_atomic_sums_are_read(folder)


@pytest.mark.planted
def test_a_barrier_with_a_reduction_would_be_seen_as_atomic(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "_ATOMIC", re.compile(r"\b(?:atom|red)\."))
    with pytest.raises(AssertionError):
        test_the_kernels_of_pallas_and_those_with_atomic_sums_are_read(folder)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("module.1.ptx", ".target sm_90a", "", r"XLA .* \(no target in module.1.ptx\)"),
        ("module.thunk_sequence.txt", "threads: [", "block: [", r"XLA .* \(no threads of flash_forward\)"),
        ("report", "Compiling entry function", "Compiling", r"ptxas .* \(nothing about flash_forward\)"),
        ("report", " registers", " regs", r"ptxas .* \(no registers of flash_forward\)"),
        ("report", "spill stores", "spilled", r"ptxas .* \(no spills of flash_forward\)"),
    ],
)
def test_another_form_of_the_files_is_named(folder: Path, file: str, old: str, new: str, message: str) -> None:
    path = folder / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(BadInput, match=rf"^--compiled: {message}; use the versions in constraints.txt$"):
        gpu_kernels.take_kernels(folder, PROGRAM, "h100")


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "programs"),
    [
        (128, 128, 49152, 4),  # 65536 / (128 * 128) by registers; shared memory for 4.6
        (129, 128, 49152, 3),  # 129 are allocated as 136
        (32, 128, 0, 16),  # 2048 threads
        (32, 32, 0, 32),
        (32, 128, 233472, 0),
    ],
)
def test_the_programs_of_a_multiprocessor(registers: int, threads: int, shared: int, programs: int) -> None:
    assert gpu_kernels.programs_per_multiprocessor(registers, threads, shared, target_devices.GPUS["h100"].shared) == programs


def test_a_missing_assembler_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(gpu_kernels.shutil, "which", lambda name: None)
    with pytest.raises(BadInput, match=f"^--compiled: ptxas, .* is not installed: {re.escape(install_advice('cuda13'))}$"):
        gpu_kernels.find_ptxas()


def test_an_assembler_that_is_too_old_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess((), 255, stdout="", stderr="ptxas fatal : Unsupported .version 9.4\n")
    monkeypatch.setattr(gpu_kernels.subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(BadInput, match=r"does not read the program \(ptxas fatal : Unsupported .version 9.4\)"):
        gpu_kernels.take_kernels(folder, PROGRAM, "h100")


def test_the_table_says_that_nothing_ran() -> None:
    sizes = {"batch": 1, "queries": 128, "keys": 256, "heads": 4, "groups": 2, "head": 64, "dtype": "bfloat16"}
    kernels = [{**FORWARD._asdict(), "grid": [2, 4, 1]}, {**SCATTER._asdict(), "grid": []}]
    numbers = {"state": "compiled", "kernels": kernels, "temporaries": 2**20, "compile_seconds": 8.2}
    cell: dict[str, Any] = {**sizes, "feature": "t5", "direction": "both", "implementation": "flash_gpu", **numbers}
    heading, paragraph, shape, table, _ = compiled_kernels._blocks(target_devices.parse_target("h100:1"), [cell])
    assert "NVIDIA H100" in str(heading) and "Nothing ran." in str(paragraph) and "do not determine a time" in str(paragraph)
    text = "1 x 128 queries and 256 keys, 4 heads of 64 (2 for keys and values), bfloat16, forward and backward:"
    assert shape == text
    assert isinstance(table, Table)
    assert list(table.rows) == [
        ["t5", "flash_gpu", "", "", "", "", "", "", "1", "8"],
        ["t5", "  flash_forward", "2 x 4 x 1", "wgmma, serialized", "129", "0", "48", "3 x 4", "", ""],
        ["t5", "  scatter_fusion", "", "atomic sums", "8", "0", "0", "2 x 32", "", ""],
    ]


def test_xla_is_asked_for_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--one=1")
    compiled_kernels.write_programs(gpu_kernels, tmp_path)
    assert os.environ["XLA_FLAGS"].split() == ["--one=1", f"--xla_dump_to={tmp_path}", "--xla_dump_emitter_re=^[^-]*$"]
