"""What `zoo plan` compiles for: which targets there are, and what happens where a compiler is not there or fails."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies

from benchmarks.core.source_paths import ROOT
from benchmarks.plan import compile_program, plan_cache, target_devices
from zoo.errors import BadInput


def test_every_target_has_published_rates() -> None:
    for name in ("v4:2x2x1", "v5e:2x2", "v5p:8x8x8", "v6e:2x2", "tpu7x:2x2x1", "a100:8", "h100:64", "h200:8", "b200:8"):
        device = target_devices.parse_target(name).published
        assert device is not None and device.memory and device.bandwidth and device.links and "bfloat16" in device.peak, name
    assert target_devices.parse_target("cpu:8").published is None
    assert "device_memory_size: 80000000000" in target_devices.gpu_target_config(target_devices.parse_target("h100:8"))


def test_a_missing_compiler_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_devices.importlib.util, "find_spec", lambda name: None)
    for name, extra in (("v5e:2x2", "tpu"), ("h100:8", "cuda13")):
        with pytest.raises(BadInput, match=rf"--target {name}: compiling for \w+ needs the extra {extra}: "):
            target_devices.prepare_target(target_devices.parse_target(name))


def test_devices_that_are_not_available_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler that answers, one that knows no such slice, and more CPU devices than this process has."""
    monkeypatch.setattr(target_devices, "unavailable_reason", lambda platform: None)
    for name, error, reason in (
        ("a100:8", NotImplementedError("none"), r"the compiler could not be loaded \(none\).*(--extra cuda13|\[cuda13\])"),
        (
            "tpu7x:2x2x1",
            RuntimeError("ABORTED: lockfile\nand more"),
            r"the compiler could not be loaded .*(--extra tpu|\[tpu\])",
        ),
        ("a100:24", RuntimeError("INVALID_ARGUMENT: no"), "no such devices .*; known are a100:1 to a100:8, and multiples of 8"),
        ("tpu7x:9x9x9", RuntimeError("INVALID_ARGUMENT: not divisible"), "; known are tpu7x:2x2x1, "),
    ):

        def describe(error: Exception = error, **_: object) -> None:
            raise error

        monkeypatch.setattr(topologies, "get_topology_desc", describe)
        with pytest.raises(BadInput, match=f"--target {name}: .*{reason}"):
            target_devices.devices_of_target(target_devices.parse_target(name))
    with pytest.raises(BadInput, match="--target cpu:16: this process has 8; start a new one"):
        target_devices.devices_of_target(target_devices.parse_target("cpu:16"))


def test_a_slice_of_one_chip_has_a_host_of_one_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler refuses it with its default of four; that it accepts this one is tested with the compiler."""
    requests: list[dict[str, Any]] = []

    def describe(**options: Any) -> Any:
        requests.append(options)
        raise RuntimeError("INVALID_ARGUMENT: no")

    monkeypatch.setattr(target_devices, "unavailable_reason", lambda platform: None)
    monkeypatch.setattr(topologies, "get_topology_desc", describe)
    for name in ("v5e:1x1", "v6e:1x1", "v5e:2x2"):
        with pytest.raises(BadInput):
            target_devices.devices_of_target(target_devices.parse_target(name))
    assert [options.get("chips_per_host_bounds") for options in requests] == [(1, 1, 1), (1, 1, 1), None]


def test_libraries_find_the_targets_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX has cuDNN take heads of more than 128 (Turing-NLG's are 152) from Hopper on, and asks the GPU that is here."""
    heads = jax.ShapeDtypeStruct((1, 128, 2, 152), "bfloat16")

    def check() -> None:
        jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), heads, heads, heads)

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 92800)
    monkeypatch.setattr(target_devices, "devices_of_target", lambda target: jax.devices())
    for name in ("h100:8", "b200:8"):
        with target_devices.simulate_target(target_devices.parse_target(name)):
            check()
    for name in ("a100:8", "cpu:8"):
        with (
            target_devices.simulate_target(target_devices.parse_target(name)),
            pytest.raises(NotImplementedError, match="must be <= 128"),
        ):
            check()
    with pytest.raises(NotImplementedError, match="must be <= 128"):
        check()


def test_a_product_that_xla_has_no_tiles_for_is_left_to_cublas() -> None:
    """As XLA says it of a base T5 for H100 (test_accelerator_compilers.py has the real one); another error stays one."""

    class Lowered:
        says = "INTERNAL: Couldn't find output tile sizes that satisfy hlo: %dot.222 = f32[456,768]"

        def compile(self, compiler_options: dict[str, Any] | None = None) -> dict[str, Any]:
            if compiler_options is None:
                raise jax.errors.JaxRuntimeError(self.says)
            return compiler_options

    compiled, remarks = compile_program.compile_lowered(Lowered())
    assert compiled == {"xla_gpu_enable_triton_gemm": False} and "all products by cuBLAS" in remarks[0]
    other = Lowered()
    other.says = "INTERNAL: something else"
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        compile_program.compile_lowered(other)


def imported_files(file: Path) -> Iterator[Path]:
    """Yield the modules of `benchmarks` that a module imports, except for types alone."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("benchmarks"):
            folder = ROOT / str(node.module).replace(".", "/")
            names = [folder / f"{alias.name}.py" for alias in node.names]
            yield from (path for path in [*names, folder.with_suffix(".py")] if path.is_file())


def test_a_cached_plan_depends_on_all_code_that_makes_it() -> None:
    waiting, files = [ROOT / "benchmarks/plan/plan_record.py"], set[Path]()
    while waiting:
        if (file := waiting.pop()) not in files:
            files.add(file)
            waiting += imported_files(file)
    assert {"flops", "hlo", "plan"} <= {file.parent.name for file in files}
    left_out = [file for file in files if not any(file.is_relative_to(ROOT / source) for source in plan_cache.SOURCES)]
    assert left_out == []
