"""The lines of `auto`: which device has which, what they choose, and what users read about them. CPU is the only one here."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from tests.support.processes import ROOT
from zoo.attention import attention, auto, recorded_calls
from zoo.attention.auto import DeviceLines, Line
from zoo.attention.request import Request


def request(
    *features: str, queries: int = 1024, keys: int | None = None, heads: int = 12, head: int = 64, dtype: str = "bfloat16"
) -> Request:
    shape = (2, queries, queries if keys is None else keys, heads, heads, head)
    return Request(features=frozenset(features), shape=shape, dtype=dtype)


DEVICE_OF_KIND = {
    "TPU v5": "TPU v5p",
    "TPU v5p": "TPU v5p",
    "TPU v6 lite": "TPU v6e",
    "TPU7x": "TPU7x",
    "NVIDIA H100 80GB HBM3": "NVIDIA H100",
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": "NVIDIA H100",
    "Tesla V100-SXM2-16GB": "GPUs before Ampere",
    "AMD Instinct MI300X": "AMD GPUs",
    "TPU v3": "TPU v2 and v3",
}
LINES_OF_NEAREST = {
    "TPU v5 lite": ("TPU v5e", "TPU v5p", "which has the same generation of matrix unit, 128 x 128"),
    "TPU v4": ("TPU v4", "TPU v5p", "which has the same size of matrix unit, 128 x 128"),
    "TPU v9x": ("TPU v9x", "TPU7x", "the newest kind that has figures"),
    "TPU v5x": ("TPU v5x", "TPU7x", "the newest kind that has figures"),
    "NVIDIA A100-SXM4-80GB": ("NVIDIA A100", "NVIDIA H100", "which is the only GPU with figures"),
    "NVIDIA B200": ("NVIDIA B200", "NVIDIA H100", "which is the only GPU with figures"),
    "NVIDIA GeForce RTX 5090": ("NVIDIA GeForce RTX 5090", "NVIDIA H100", "the newest kind that has figures"),
    "": ("gpu", "NVIDIA H100", "the newest kind that has figures"),
}


def platform_of(kind: str) -> str:
    return "tpu" if kind.startswith("TPU") else "gpu"


def check_devices() -> None:
    """Check which lines each kind of device has, and what is said where they are those of another one."""
    for kind, device in DEVICE_OF_KIND.items():
        lines = auto.device_lines(platform_of(kind), kind)
        assert (lines.device, lines.note) == (device, "") and lines.lines, kind
    for kind, (device, nearest, because) in LINES_OF_NEAREST.items():
        lines = auto.device_lines(platform_of(kind), kind)
        assert lines.note == f"there are no figures for {device}: these are the lines of {nearest}, {because}"
        assert lines.lines == next(other.lines for other in auto.DEVICES if other.device == nearest)


def test_every_kind_of_device_has_lines_and_the_nearest_is_named() -> None:
    check_devices()


@pytest.mark.planted
def test_a_kind_that_is_the_beginning_of_another_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TPU v5e calls itself "TPU v5 lite", and a v5p "TPU v5"."""
    without = tuple(device for device in auto.DEVICES if device.device != "TPU v5e")
    monkeypatch.setattr(auto, "DEVICES", without)
    with pytest.raises(AssertionError):
        check_devices()


CHOICES: list[tuple[str, Request, str]] = [
    # A TPU: splash where it can, flash_tpu for what it lacks, dense where it is short or nothing is measured.
    ("TPU v6 lite", request("causal"), "splash"),
    ("TPU v6 lite", request("causal", "segments", "grouped heads", "window"), "splash"),
    ("TPU v5 lite", request("causal", queries=512), "splash"),
    ("TPU v5 lite", request("causal", "sinks", "grouped heads"), "splash"),
    ("TPU7x", request("causal", queries=511), "xla"),
    ("TPU7x", request("causal", queries=520), "flash_tpu"),
    ("TPU v5", request("bucket bias", "segments"), "flash_tpu"),
    ("TPU v5", request("causal", "dropout"), "flash_tpu"),
    ("TPU v5", request("ranks", "relative bias", "dropout", queries=85, keys=512), "flash_tpu"),
    ("TPU v5", request("causal", "positions", queries=1, keys=2048), "xla"),
    ("TPU v5", request("causal", dtype="float32"), "xla"),
    ("TPU7x", request("dense bias"), "xla"),
    ("TPU7x", request("dense bias", queries=4096), "blocked"),
    ("TPU v3", request("causal", queries=8192), "xla"),
    # A GPU: cudnn, and flash_gpu for what it lacks or gets as an array.
    ("NVIDIA H100 80GB HBM3", request("causal"), "cudnn"),
    ("NVIDIA H100 80GB HBM3", request("key lengths", dtype="float16"), "cudnn"),
    ("NVIDIA A100-SXM4-80GB", request("causal"), "cudnn"),
    ("NVIDIA H100 80GB HBM3", request("bucket bias", "key lengths", queries=512), "flash_gpu"),
    ("NVIDIA H100 80GB HBM3", request("bucket bias", head=264), "xla"),
    ("NVIDIA H100 80GB HBM3", request("segments", "causal"), "flash_gpu"),
    ("NVIDIA H100 80GB HBM3", request("causal", "dropout"), "flash_gpu"),
    ("NVIDIA H100 80GB HBM3", request("dense bias", "explicit mask"), "cudnn"),
    ("NVIDIA H100 80GB HBM3", request("relative bias"), "flash_gpu"),
    ("NVIDIA H100 80GB HBM3", request("relative bias", "ranks", "dropout"), "flash_gpu"),
    ("NVIDIA H100 80GB HBM3", request("causal", "sinks", "grouped heads"), "flash_gpu"),
    ("NVIDIA H100 80GB HBM3", request("window"), "flash_gpu"),
    ("NVIDIA H100 80GB HBM3", request("causal", "positions", queries=1, keys=2048), "xla"),
    ("NVIDIA H100 80GB HBM3", request("causal", dtype="float32"), "xla"),
    ("Tesla V100-SXM2-16GB", request("causal"), "xla"),
    # The CPU, as measured by this project.
    ("cpu", request("causal", queries=64), "blocked"),
    ("cpu", request("causal", "positions", queries=63), "xla"),
    ("cpu", request("causal", "sinks", "dropout", queries=2048, dtype="float32"), "blocked"),
]


def test_auto_chooses_by_device_features_and_lengths() -> None:
    for kind, call, name in CHOICES:
        platform = "cpu" if kind == "cpu" else platform_of(kind)
        assert attention.choose("auto", call, platform, kind) == name, (kind, call)


def test_the_lines_are_complete() -> None:
    """Each names an implementation of its platform and says where it is from, and the last one supports every request."""
    for device in (*auto.DEVICES, auto.CPU):
        for line in device.lines:
            row = attention.IMPLEMENTATIONS[line.implementation]
            assert device.platform in row.platforms and line.features <= row.features
            assert line.source or line == device.lines[-1]
            for file in re.findall(r"benchmarks/results/[\w.-]+", line.source):
                assert (ROOT / file).is_file(), file
        assert bool(device.lines) != bool(device.like)
        if device.lines:
            last = dataclasses.replace(device.lines[-1], source="")
            assert last == Line(implementation="xla")
    measured = {device.device for device in auto.DEVICES for line in device.lines if line.time}
    assert measured == {"TPU v5p", "TPU v6e", "TPU7x", "NVIDIA H100"} and set(auto.NEAREST.values()) <= measured


def test_no_line_is_hidden_by_the_lines_before_it() -> None:
    """A line that no request can reach would document a choice that is never made."""
    for device in auto.DEVICES:
        reached = set()
        for _, call, _ in CHOICES:
            for queries in (64, 256, 512, 8192):
                for dtype in ("bfloat16", "float16", "float32"):
                    shaped = dataclasses.replace(call, shape=(2, queries, max(queries, 512), *call.shape[3:]), dtype=dtype)
                    lines = auto.device_lines(device.platform, device.kinds[0]).lines
                    reached.add(lines.index(attention.auto_line(shaped, device.platform, device.kinds[0])))
        assert reached == set(range(len(auto.device_lines(device.platform, device.kinds[0]).lines))), device.device


def abstract_mesh(kind: str) -> AbstractMesh:
    platform = "tpu" if kind.startswith("TPU") else "cuda"
    return AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=AbstractDevice(kind, 1, platform))


def trace_call(kind: str, impl: str, length: int) -> str:
    """Return what a run shows about a call that is traced for another device."""
    shape: Any = jax.ShapeDtypeStruct((2, length, 4, 64), jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(abstract_mesh(kind)), recorded_calls.record_calls() as calls:
        line = attention.auto_line(request("causal", queries=length), platform_of(kind), kind) if impl == "auto" else None
        name = line.implementation if line else impl
        call = Request.of(shape, shape, shape, attention.Mask(causal=True), None, None)
        calls.append(
            recorded_calls.Call(name=name, request=call, mask=attention.Mask(causal=True), scope="attention0", line=line)
        )
        return recorded_calls.describe_calls(calls)


def test_a_run_says_which_line_it_follows_and_why() -> None:
    line = auto.device_lines("tpu", "TPU v6 lite").lines[0]
    assert trace_call("TPU v6 lite", "auto", 1024) == (
        f"splash (auto, from 512 queries and keys on, bfloat16: {line.time} of xla's time ({line.source}))"
    )
    assert trace_call("TPU v6 lite", "flash_tpu", 1024) == "flash_tpu"
    assert trace_call("TPU v5 lite", "auto", 1024).endswith(f"; {auto.device_lines('tpu', 'TPU v5 lite').note}")
    assert trace_call("TPU v5 lite", "auto", 64).startswith(
        "xla (auto, all others: supports every request); there are no figures"
    )


def test_what_auto_does_is_described_for_the_device() -> None:
    assert attention.describe_auto() == "blocked from 64 queries on, else xla" and attention.auto_reasons() == []
    with jax.sharding.use_abstract_mesh(abstract_mesh("NVIDIA H100 80GB HBM3")):
        assert attention.describe_auto() == (
            "flash_gpu from 384 queries and keys on, else cudnn from 384 queries and keys on, "
            "else cudnn from 256 queries and keys on, else xla; used only by name: tokamax"
        )
        reasons = attention.auto_reasons()
        assert [row[0] for row in reasons] == ["flash_gpu", "flash_gpu", "flash_gpu", "cudnn", "cudnn", "flash_gpu", "xla"]
        assert reasons[0][1:] == (
            "bucket bias, from 384 queries and keys on, bfloat16 or float16",
            auto.device_lines("gpu", "NVIDIA H100").lines[0].reason,
        )
    with jax.sharding.use_abstract_mesh(abstract_mesh("TPU v9")):
        assert attention.describe_auto().endswith(
            "there are no figures for TPU v9: these are the lines of TPU7x, the newest kind that has figures"
        )


def test_a_device_has_lines_or_those_of_one_that_has_some() -> None:
    for device in auto.DEVICES:
        assert isinstance(device, DeviceLines)
        assert not device.like or any(other.device == device.like and other.lines for other in auto.DEVICES)
