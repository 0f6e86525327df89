"""Devices to compile for: TPU slices, GPUs on hosts of eight, and simulated CPU devices; only the last need be present."""

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from zoo.errors import BadInput, install_advice
from zoo.runtime.hardware import DEVICES, Device

Platform = Literal["cpu", "gpu", "tpu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A kind and number of devices that a program is compiled for."""

    name: str
    """The name in the request: v5p:8x8x8, v5p:8x8x8*4, h100:64, cpu:8."""
    platform: Platform
    kind: str
    """JAX's `device_kind` of the devices."""
    chip: str
    """Part of the name before the colon."""
    size: str
    """Part of the name after the colon: the devices of a slice."""
    slices: int = 1
    """Number of slices, after an asterisk in the name."""

    @property
    def published(self) -> Device | None:
        """Return the published rates of a device; None for a CPU."""
        return DEVICES.get(self.kind)

    @property
    def cache(self) -> float:
        """Return the bytes of the cache between a device and its memory: L2 of a GPU, none of a TPU."""
        return float(GPUS[self.chip].cache) if self.platform == "gpu" else 0.0

    @property
    def lowering(self) -> str:
        """Return JAX's name of the platform for lowering."""
        return {"gpu": "cuda"}.get(self.platform, self.platform)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tpu:
    kind: str
    slices: tuple[str, ...]
    """Available slices, by the Cloud TPU documentation; the compiler may know more."""


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
TPUS = {
    "v4": _Tpu(kind="TPU v4", slices=_DEEP),
    "v5e": _Tpu(kind="TPU v5e", slices=_FLAT),
    "v5p": _Tpu(kind="TPU v5p", slices=_DEEP),
    "v6e": _Tpu(kind="TPU v6e", slices=_FLAT),
    "tpu7x": _Tpu(kind="TPU7x", slices=_DEEP),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Gpu:
    """Properties of a GPU that XLA's compiler needs and `zoo.runtime.hardware` does not have."""

    kind: str
    name: str
    capability: tuple[int, int]
    cores: int
    lanes: int
    """Scalar float32 units of a core."""
    clock: float
    """GHz."""
    cache: int
    """L2, bytes."""
    shared: int
    """Shared memory of a core, bytes; a block can have 1 KiB less."""


# Data sheets of H100 and H200 (132 SMs, 50 MB L2) and A100 (108 SMs, 40 MB); "Hopper Tuning Guide" (228 KiB shared memory an SM);
# the tables of compute capability 8.0, 9.0 and 10.0 in the CUDA programming guide; for B200, whose SMs no data sheet counts,
# XLA's own description (openxla/xla, xla/backends/gpu/target_config/specs/b200.txtpb).
_AMPERE: dict[str, Any] = {"capability": (8, 0), "cores": 108, "lanes": 64, "clock": 1.41, "cache": 41943040, "shared": 167936}
_HOPPER: dict[str, Any] = {"capability": (9, 0), "cores": 132, "lanes": 128, "clock": 1.98, "cache": 52428800, "shared": 233472}
_BLACKWELL: dict[str, Any] = {**_HOPPER, "capability": (10, 0), "cores": 148, "clock": 1.965, "cache": 132644864}
GPUS = {
    "a100": _Gpu(kind="NVIDIA A100-SXM4-80GB", name="NVIDIA A100-SXM4-80GB", **_AMPERE),
    "h100": _Gpu(kind="NVIDIA H100", name="NVIDIA H100 80GB HBM3", **_HOPPER),
    "h200": _Gpu(kind="NVIDIA H200", name="NVIDIA H200", **_HOPPER),
    "b200": _Gpu(kind="NVIDIA B200", name="NVIDIA B200", **_BLACKWELL),
    "a100-40gb": _Gpu(kind="NVIDIA A100", name="NVIDIA A100-SXM4-40GB", **_AMPERE),
}

PLUGINS: Mapping[Platform, tuple[tuple[str, ...], str]] = {
    "tpu": (("libtpu",), "tpu"),
    "gpu": (("jax_cuda13_plugin", "jax_cuda12_plugin"), "cuda13"),
}
"""Platform -> packages that contain its compiler, any of which is enough, and the extra that installs one."""


def parse_target(name: str) -> Target:
    """Return the target of a name; imports no JAX.

    Raises:
        BadInput: no such target, or none of that shape; lists the known ones.
    """
    chip, _, rest = name.partition(":")
    size, several, number = rest.partition("*")
    if several and not re.fullmatch(r"[1-9]\d{0,2}", number):
        raise BadInput(f"--target {name}: write the number of slices after *, 1 to 999, for example {chip}:{size}*2")
    slices = int(number or 1)
    if chip in TPUS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", size):
        return Target(name=name, platform="tpu", kind=TPUS[chip].kind, chip=chip, size=size, slices=slices)
    if chip in TPUS:
        raise BadInput(
            f"--target {name}: say the slice of a {chip}, one of {', '.join(f'{chip}:{s}' for s in TPUS[chip].slices)}"
        )
    count = int(size) if re.fullmatch(r"[1-9]\d{0,5}", size) else 0
    if chip in GPUS:
        host = DEVICES[GPUS[chip].kind].host
        if count and (count <= host or count % host == 0):
            return Target(name=name, platform="gpu", kind=GPUS[chip].kind, chip=chip, size=size, slices=slices)
        raise BadInput(f"--target {name}: say how many, 1 to {host} or a multiple of it (hosts of {host}), for example {chip}:64")
    if chip == "cpu" and 1 <= count * slices <= 4096:
        return Target(name=name, platform="cpu", kind="cpu", chip=chip, size=size, slices=slices)
    if chip == "cpu":
        raise BadInput(f"--target {name}: say how many devices to simulate, 1 to 4,096, for example cpu:8")
    examples = [*(f"{tpu}:{spec.slices[-1]}" for tpu, spec in TPUS.items()), *(f"{gpu}:64" for gpu in GPUS), "cpu:8"]
    raise BadInput(f"--target {name or '(none)'}: there is no such target; choose one like {', '.join(examples)}")


def prepare_target(target: Target) -> None:
    """Set this process up before JAX starts, so that it does not look for devices that are not here.

    Raises:
        BadInput: the extra with the target's compiler is not installed.
    """
    from zoo.runtime import jax_setup

    if why := unavailable_reason(target.platform):
        raise BadInput(f"--target {target.name}: {why}")
    jax_setup.prepare_jax(int(target.size) * target.slices if target.platform == "cpu" else 1)
    import jax

    # A plan reports the time of compilation and is cached itself.
    jax.config.update("jax_enable_compilation_cache", False)


def unavailable_reason(platform: Platform) -> str | None:
    """Return why this process cannot compile for a platform; None if it can."""
    plugins, extra = PLUGINS.get(platform, ((), ""))
    if not plugins or any(importlib.util.find_spec(plugin) for plugin in plugins):
        return None
    return f"compiling for {platform} needs the extra {extra}: {install_advice(extra)}"


@functools.cache
def devices_of_target(target: Target) -> tuple[Any, ...]:
    """Return the target's devices, to make a mesh of; call `prepare_target` first.

    Raises:
        BadInput: the compiler is missing or does not know such a slice; or more CPU devices than this process simulates.
    """
    import jax
    from jax.experimental import topologies

    if why := unavailable_reason(target.platform):
        raise BadInput(f"--target {target.name}: {why}")
    if target.platform == "cpu":
        here, count = jax.devices("cpu"), int(target.size) * target.slices
        if len(here) < count:
            raise BadInput(f"--target {target.name}: this process has {len(here)}; start a new one with prepare(target)")
        return tuple(here[:count])
    # Without these variables libtpu looks for a TPU and asks the cloud's metadata server for it.
    variables = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost"}
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        return tuple(topologies.get_topology_desc(**_description(target)).devices)
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        # A compiler refuses a shape with this error; any other error means that it is missing or used by another process.
        if not why.startswith("INVALID_ARGUMENT"):
            fix = f"stop what else uses it, or install it again: {install_advice(PLUGINS[target.platform][1])}"
            raise BadInput(f"--target {target.name}: the compiler could not be loaded ({why}); {fix}") from None
        if target.chip in TPUS:
            choices = ", ".join(f"{target.chip}:{size}" for size in TPUS[target.chip].slices)
        else:
            host = DEVICES[target.kind].host
            choices = f"{target.chip}:1 to {target.chip}:{host}, and multiples of {host}"
        raise BadInput(f"--target {target.name}: the compiler has no such devices ({why}); known are {choices}") from None
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})


@contextlib.contextmanager
def simulate_target(target: Target) -> Iterator[None]:
    """Make libraries that ask JAX for the current device see the target's, within the context."""
    import jax
    from jax._src.cudnn import fused_attention_stablehlo as cudnn  # there is no public way to set an absent GPU

    before = cudnn.check_compute_capability, cudnn.is_cuda_compute_capability_equal
    if target.platform == "gpu":
        have = GPUS[target.chip].capability
        cudnn.check_compute_capability = lambda least: have >= _capability(least)
        cudnn.is_cuda_compute_capability_equal = lambda other: have == _capability(other)
    try:
        with jax.default_device(devices_of_target(target)[0]):
            yield
    finally:
        cudnn.check_compute_capability, cudnn.is_cuda_compute_capability_equal = before


def _capability(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def _description(target: Target) -> dict[str, Any]:
    if target.platform == "tpu":
        # Hosts have four chips by default, which do not divide a slice of one.
        host = {"chips_per_host_bounds": (1, 1, 1)} if target.size == "1x1" else {}
        several = {"num_slices": target.slices} if target.slices > 1 else {}
        return {"platform": "tpu", "topology_name": f"{target.chip}:{target.size}", **host, **several}
    count, host = int(target.size), DEVICES[target.kind].host
    # Partitions, hosts of each, devices of each.
    shape = f"{target.slices}x{math.ceil(count / host)}x{min(count, host)}"
    return {"platform": "cuda", "topology_name": shape, "topology": shape, "target_config": gpu_target_config(target)}


def gpu_target_config(target: Target) -> str:
    """Return a GPU as XLA's GpuTargetConfig; the cuDNN version is the one in constraints.txt."""
    gpu, published = GPUS[target.chip], DEVICES[target.kind]
    assert published.memory is not None and published.bandwidth is not None
    major, minor = gpu.capability
    return f"""
platform_name: "CUDA"
device_description_str: "{gpu.name}"
dnn_version_info {{ major: 9 minor: 28 patch: 1 }}
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.lanes}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {published.memory:.0f}
  memory_bandwidth: {published.bandwidth * 1e9:.0f}
  l2_cache_size: {gpu.cache}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {gpu.shared - 1024}
  shared_memory_per_core: {gpu.shared}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
"""
