"""Every implementation for accelerators, compiled by the real compilers for devices that are not here; run with --aot. It shows
neither that a kernel computes the right numbers nor that cuDNN has a plan for the shape: it is asked on a GPU only."""

import contextlib
import dataclasses
import functools
import importlib.util
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from benchmarks.core import timing
from benchmarks.plan import target_devices
from zoo.attention import attention
from zoo.attention.biases import Buckets, Dense, Relative
from zoo.attention.masks import Mask
from zoo.attention.request import Request
from zoo.sharding import AXES, BATCH

pytestmark = pytest.mark.aot

# data=2 and fsdp=2 split the batch, tensor=2 the heads.
B, T, N, H = 4, 8192, 8, 64
SCORES = B // 4 * N // 2 * T * T
"""Entries of the scores [B, N, T, S] on one device."""

TARGETS = {"gpu": target_devices.parse_target("h100:8"), "tpu": target_devices.parse_target("v5e:2x4")}

KERNELS = {
    "cudnn": [r"__cudnn\$fmha\w*Softmax", r"__cudnn\$fmha\w*SoftmaxBackward"],
    "tokamax": ["mosaic_gpu_v2"] * 3,
    "splash": ["tpu_custom_call"] * 3,
    "flash_tpu": ["tpu_custom_call"] * 2,
    "flash_gpu": [r"__gpu\$xla\.gpu\.triton"] * 3,
}
"""Custom calls of a forward and backward pass, the first alone that of a forward pass; a row of ours has none."""

FOR_BUCKETS = {"flash_gpu": 1}
"""How many more the gradient of T5's bias needs; they are of the same kind."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One use of attention; `length` queries and keys, `groups` key and value heads."""

    mask: Any = Mask(causal=True)
    bias: Any = None
    length: int = T
    groups: int = N
    rate: float = 0.0
    has_sinks: bool = False
    summed: int = 0
    """Collectives that the gradients need: a bias or sinks that several devices share are summed over them."""

    @property
    def sinks(self) -> Any:
        """Return the shape of the sinks; None without them."""
        return jax.ShapeDtypeStruct((N,), jnp.float32) if self.has_sinks else None

    @property
    def dropout(self) -> Any:
        """Return the rate of dropout and the shape of its seeds; None without dropout."""
        return (self.rate, jax.ShapeDtypeStruct((B, 2), jnp.uint32)) if self.rate else None


def ids(length: int = T) -> dict[str, Any]:
    segments = jax.ShapeDtypeStruct((B, length), jnp.int32)
    return {"query_segments": segments, "key_segments": segments}


LENGTHS = jax.ShapeDtypeStruct((B,), jnp.int32)
CASES = {
    "full": Case(mask=Mask()),
    "causal": Case(),
    "key lengths": Case(mask=Mask(key_lengths=LENGTHS)),
    "causal key lengths": Case(mask=Mask(causal=True, key_lengths=LENGTHS)),
    "segments": Case(mask=Mask(causal=True, **ids())),
    "window": Case(mask=Mask(causal=True, window=256)),
    "band": Case(mask=Mask(window=256)),
    "grouped heads": Case(groups=2),
    "grouped heads, segments": Case(mask=Mask(**ids(), key_lengths=LENGTHS), groups=2),
    "odd": Case(length=T - 1),
    "odd, segments": Case(mask=Mask(causal=True, **ids(T - 1)), length=T - 1),
    "dense bias": Case(bias=Dense(values=jax.ShapeDtypeStruct((1, N, T, T), jnp.float32)), summed=1),
    "bias of examples": Case(bias=Dense(values=jax.ShapeDtypeStruct((B, 1, T, T), jnp.float32)), summed=1),
    "odd, dense bias": Case(bias=Dense(values=jax.ShapeDtypeStruct((1, N, T - 1, T - 1), jnp.float32)), length=T - 1, summed=1),
    "dropout": Case(mask=Mask(causal=True, **ids()), rate=0.1),
    "sinks": Case(groups=2, has_sinks=True, summed=1),
    "sinks, window": Case(mask=Mask(causal=True, window=128), groups=2, has_sinks=True, summed=1),
    # Shorter: for TPU, XLA pads the heads of the gathered [T, S, N] to 128, which is 34 GB at the full length.
    "bucket bias": Case(mask=Mask(), bias=Buckets(table=jax.ShapeDtypeStruct((32, N), jnp.float32)), length=2048, summed=1),
    "one-directional bucket bias, dropout": Case(
        bias=Buckets(table=jax.ShapeDtypeStruct((32, N), jnp.float32), bidirectional=False), length=2048, rate=0.1, summed=1
    ),
    "relative bias": Case(
        mask=Mask(),
        bias=Relative(
            q_r=jax.ShapeDtypeStruct((B, 2048, N, H), jnp.bfloat16),
            r=jax.ShapeDtypeStruct((N, H, 4096), jnp.bfloat16),
            first=2048,
        ),
        length=2048,
        summed=1,
    ),
}

REFUSED = {
    ("cudnn", "band"): "its window needs causal attention",
    ("splash", "odd"): "it takes lengths that are multiples of 128",
    ("splash", "odd, segments"): "it takes lengths that are multiples of 128",
}
"""What a row refuses although it has all the features."""

QUADRATIC = {("xla", None), ("cudnn", "segments"), ("tokamax", "segments")}
"""Rows that hold something of size T x S, by feature: None for always. Every row may do so with a bias."""

COPIED = {("blocked", "odd, dense bias")}
"""Rows that need more than `xla`, by case: a bias as large as the scores is padded to whole tiles, and so is its gradient."""


def features(case: Case) -> frozenset[str]:
    q, k = operands(case)
    return Request.of(q, k, k, case.mask, case.bias, case.dropout, case.sinks).features


def operands(case: Case) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((B, case.length, heads, H), jnp.bfloat16) for heads in (N, case.groups)]


CALLS = [
    pytest.param(platform, impl, name, marks=[] if name == "causal" or (impl, name) in REFUSED else pytest.mark.slow)
    for platform in TARGETS
    for impl, row in attention.IMPLEMENTATIONS.items()
    for name, case in CASES.items()
    if platform in row.platforms and impl != "reference" and features(case) <= row.features
]


def missing() -> dict[str, str]:
    """Why targets cannot be compiled for here."""
    found = {name: target_devices.unavailable_reason(target.platform) for name, target in TARGETS.items()}
    return {name: why for name, why in found.items() if why}


@contextlib.contextmanager
def aimed(platform: str) -> Iterator[Mesh]:
    """With eight devices of a platform as the context mesh, and as what libraries find when they ask JAX for its device."""
    why = missing()
    if len(why) == len(TARGETS):
        pytest.fail("; ".join(why.values()), pytrace=False)
    if platform in why:
        pytest.skip(why[platform])
    devices = np.array(target_devices.devices_of_target(TARGETS[platform]))
    mesh = Mesh(devices.reshape(2, 2, 2, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    # JAX's cache stores a program for absent devices, and cannot load it again.
    with timing.without_compilation_cache(), jax.set_mesh(mesh), jax.default_device(mesh.devices.flat[0]):
        yield mesh


@functools.cache
def compiled(platform: str, impl: str, name: str, backward: bool) -> tuple[str, int]:
    """The compiled program of a case, and the bytes of its temporaries on one device."""
    case = CASES[name]
    with aimed(platform) as mesh:

        def placed(value: Any, letters: str) -> Any:
            axes = [
                {"B": BATCH, "N": "tensor"}.get(letter) if size > 1 else None
                for letter, size in zip(letters, value.shape, strict=True)
            ]
            return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

        def spec(value: Any) -> Any:
            fields = {field.name: field.metadata.get("axes") for field in dataclasses.fields(value)} if value else {}
            changes = {
                key: placed(getattr(value, key), axes) for key, axes in fields.items() if axes and getattr(value, key) is not None
            }
            return dataclasses.replace(value, **changes) if value else None

        q, k = (placed(x, "BTNH") for x in operands(case))

        def attend(q: Any, k: Any, v: Any, bias: Any, sinks: Any, mask: Any, seeds: Any) -> Any:
            dropout = None if seeds is None else (case.rate, seeds)
            return attention.attention(q, k, v, mask=mask, bias=bias, dropout=dropout, sinks=sinks, impl=impl)

        def pull(*args: Any) -> Any:
            *trained, mask, seeds, cotangent = args
            return jax.vjp(lambda *numbers: attend(*numbers, mask, seeds), *trained)[1](cotangent)

        seeds = None if case.dropout is None else placed(case.dropout[1], "B-")
        sinks = None if case.sinks is None else placed(case.sinks, "N")
        args = (q, k, k, spec(case.bias), sinks, spec(case.mask), seeds)
        run = jax.jit(pull).trace(*args, q) if backward else jax.jit(attend).trace(*args)
        program = run.lower(lowering_platforms=(TARGETS[platform].lowering,)).compile()
    return program.as_text(), program.memory_analysis().temp_size_in_bytes


def collectives(program: str) -> int:
    return len(re.findall(r"(?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", program))


def kernels(program: str) -> list[str]:
    return sorted(
        re.findall(r'custom_call_target="(__cudnn\$\w+|__gpu\$xla\.gpu\.triton|mosaic_gpu\w*|tpu_custom_call)"', program)
    )


@pytest.mark.parametrize(("platform", "impl", "name"), CALLS)
def test_implementations_compile_without_communication(platform: str, impl: str, name: str) -> None:
    """Forward, and with backward: the row's kernel is there, nothing is communicated, temporaries are linear if they can be."""
    case, row = CASES[name], attention.IMPLEMENTATIONS[impl]
    if row.requires and importlib.util.find_spec(row.requires) is None:
        pytest.skip(f"{impl} needs {row.requires}, of the extra {row.requires}: Python {row.python} or newer")
    if (impl, name) in REFUSED:
        with pytest.raises(attention.BadInput, match=REFUSED[impl, name]):
            compiled(platform, impl, name, backward=True)
        return
    forward, _ = compiled(platform, impl, name, backward=False)
    program, temporaries = compiled(platform, impl, name, backward=True)
    calls = KERNELS.get(impl, [])
    more = calls[:1] * FOR_BUCKETS.get(impl, 0) if isinstance(case.bias, Buckets) else []
    for calls_in_program, expected in ((kernels(forward), calls[:1]), (kernels(program), [*calls, *more])):
        assert len(calls_in_program) == len(expected)
        assert all(re.fullmatch(pattern, call) for pattern, call in zip(expected, calls_in_program, strict=True))
    assert (collectives(forward), collectives(program)) == (0, case.summed)
    if impl != "xla" and (impl, name) not in COPIED:
        assert temporaries < compiled(platform, "xla", name, backward=True)[1]
    if case.bias is None and not {(impl, None), *((impl, feature) for feature in features(case))} & QUADRATIC:
        # Less than a mask of bytes [T, S] would take alone, as 16 arrays like q do; the scores are 256 of those.
        assert temporaries < T * T


@pytest.mark.parametrize("platform", TARGETS)
def test_memory_that_is_not_linear_is_caught(platform: str) -> None:
    """The bound above is worth something: `xla`, which holds the scores, breaks it."""
    for name in ("full", "causal", "window"):
        assert compiled(platform, "xla", name, backward=True)[1] > SCORES
