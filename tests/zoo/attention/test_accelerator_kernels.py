"""Implementations for accelerators only: their refusals, and what they ask of the libraries (`test_accelerator_compilers.py` has
the real ones); where one cannot run, plain arithmetic with the same demands replaces it."""

import dataclasses
import functools
import itertools
import re
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo  # its checks need no GPU, once told of a cuDNN; nothing public asks them
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from benchmarks.attention import conformance
from benchmarks.attention.rounding_error_bounds import rounding_error_bounds
from tests.support import compilation
from tests.support.processes import ROOT
from train.config import run_config
from train.engine import device_mesh
from zoo.attention import attention
from zoo.attention.biases import Buckets, Dense, Relative
from zoo.attention.kernels import _dot_product_attention as dot_product_attention
from zoo.attention.kernels import cudnn, splash, tokamax
from zoo.attention.kernels.reference import reference
from zoo.attention.masks import Mask
from zoo.attention.request import Request
from zoo.errors import BadInput, install_advice
from zoo.ops import tile_sizes
from zoo.sharding import BATCH

ONCE = {"xla_backend_optimization_level": 0, **compilation.OPTIONS}
"""Options of the compiler for programs that run once."""
B, N, H = 2, 4, 8
SCALE = 0.3


def normal(seed, *shape):
    """Return numbers that float32 has exactly."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def masks(t):
    """Return every kind of mask, for `t` queries and keys."""
    segments = np.minimum(np.arange(t)[None] * 3 // t + [[1], [2]], 3) * (np.arange(t) < [[t - 2], [t]])
    places = np.stack([np.arange(t) % 5, np.arange(t)[::-1]])
    ranks = np.stack([np.random.default_rng(1).permutation(t) - 1, np.arange(t)])
    allowed = normal(3, B, 1, t, t) > 0
    allowed[:, :, 2] = False
    made = {
        "full": Mask(),
        "causal": Mask(causal=True),
        "window": Mask(causal=True, window=3),
        "band": Mask(window=2),
        "key lengths": Mask(key_lengths=np.array([4, t])),
        "causal key lengths": Mask(causal=True, window=6, key_lengths=np.array([2, t])),
        "positions": Mask(causal=True, window=3, query_positions=places, key_positions=places),
        "ranks": Mask(query_ranks=ranks, key_ranks=ranks),
        "no keys": Mask(key_lengths=np.array([0, t])),
        "segments": Mask(query_segments=segments, key_segments=segments),
        "causal segments": Mask(causal=True, query_segments=segments, key_segments=segments, key_lengths=np.array([3, t])),
        "strict ranks": Mask(strict=True, query_ranks=ranks, key_ranks=ranks),
        "causal explicit": Mask(causal=True, allowed=allowed & (np.arange(t) != 0)),
    }
    return {name: jax.tree.map(jnp.asarray, mask) for name, mask in made.items()}


EMPTY = ("causal key lengths", "no keys", "segments", "causal segments", "strict ranks", "causal explicit")
"""Masks that have rows with nothing to attend to."""
MASKS = ("full", "causal", "window", "band", "key lengths", "positions", "ranks", *EMPTY)
BIASES = ("none", "dense", "dense of keys", "buckets", "relative")


def biases(t):
    """Return every kind of bias."""
    q_r, r, q_s = normal(5, B, t, N, H), normal(6, N, H, 2 * t), normal(7, B, t, N, 2)
    types = np.arange(t)[None] * [[2], [3]] // t
    return {
        "none": None,
        "dense": Dense(values=normal(4, 1, N, t, t)),
        "dense of keys": Dense(values=normal(4, B, 1, 1, t)),
        "buckets": Buckets(table=normal(8, 32, N)),
        "relative": Relative(q_r=q_r, r=r, first=t, q_s=q_s, query_types=types, key_types=types),
    }


def inputs(dtype, t, groups=N, heads=N, size=H):
    """q, k, v, and the probe whose product with the output has the gradients."""
    return tuple(
        jnp.asarray(normal(seed, B, t, n, size), dtype) for seed, n in ((0, heads), (1, groups), (2, groups), (9, heads))
    )


def value_and_gradients(attend, dtype, t, mask, bias, groups=N, heads=N, size=H):
    """Output, and the gradients of a fixed random projection of it with respect to q, k, v and every number of the bias."""
    *arrays, probe = inputs(dtype, t, groups, heads, size)
    leaves, tree = jax.tree.flatten(bias)
    numbers = {i: jnp.asarray(leaf, dtype) for i, leaf in enumerate(leaves) if np.issubdtype(leaf.dtype, np.floating)}

    def value(q, k, v, numbers):
        whole = jax.tree.unflatten(tree, [numbers.get(i, leaf) for i, leaf in enumerate(leaves)])
        out = attend(q, k, v, mask, whole, None, jnp.arange(heads, dtype=jnp.uint32), scale=SCALE, rate=0.0)
        return (out * probe).sum(), out

    pull = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2, 3), has_aux=True), compiler_options=ONCE)
    (_, out), gradients = pull(*arrays, numbers)
    return jax.tree.map(np.asarray, [out, *jax.tree.leaves(gradients)])


@functools.cache
def exact(t, mask, bias="none", **sizes):
    """Return the same by the definition in float64, of a mask and a bias by their names, and what float32 may be off by."""
    mask, bias = masks(t)[mask], biases(t)[bias]
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64 if x.dtype == np.float32 else None), bias)
        numbers = [] if bias is None else [f"d_{name}" for name, _, _ in wide.differentiable().arrays()]
        by_name = rounding_error_bounds(inputs(jnp.float64, t, **sizes), mask, wide, None, scale=SCALE, rate=0.0, dtype="float32")
        allowed = [by_name[name] for name in ("out", "d_q", "d_k", "d_v", *numbers)]
        results = value_and_gradients(reference, jnp.float64, t, mask, bias, **sizes)
        return list(zip(results, map(np.asarray, allowed), strict=True))


def assert_agrees(got, expected):
    for ours, (theirs, allowed) in zip(got, expected, strict=True):
        assert (np.abs(ours - theirs) <= allowed).all()


def stand_in(q, k, v, *, bias, mask, key_value_seq_lengths, is_causal, local_window_size, even, one_sided, **rest):
    """`jax.nn.dot_product_attention` in plain XLA, asking for what the kernels ask for and as careless about empty rows."""
    t, s = q.shape[1], k.shape[1]
    assert not even or (t % 2 == s % 2 == 0)
    assert local_window_size is None or not one_sided or (is_causal and local_window_size[1] == 0)
    assert all(x is None or (x.shape[2:] == (t, s) and x.shape[0] in (1, B) and x.shape[1] in (1, N)) for x in (bias, mask))
    assert bias is None or bias.dtype == q.dtype
    assert key_value_seq_lengths is None or key_value_seq_lengths.dtype == jnp.int32
    specs = {"is_causal": is_causal, "local_window_size": local_window_size, "key_value_seq_lengths": key_value_seq_lengths}
    out = jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, implementation="xla", **specs, **rest)
    sees = Mask(causal=is_causal, key_lengths=key_value_seq_lengths, allowed=mask).dense(t, s)
    if sees is None:
        return out
    empty = jnp.moveaxis(~sees.any(-1), 1, 2)[..., None]
    return out * jnp.where(empty, jnp.nan, 1)


STAND_INS = {
    "cudnn": functools.partial(stand_in, even=True, one_sided=True),
    "tokamax": functools.partial(stand_in, even=False, one_sided=False),
}


def by_stand_in(impl, q, k, v, mask, bias, seed, heads, *, scale, rate):
    return dot_product_attention.fused(STAND_INS[impl], q, k, v, mask, bias, scale=scale, even=impl == "cudnn")


# Each mask and each bias at an odd length, in pairs that differ in kind, and an even length once. Tokamax differs in two demands.
CALLS = [
    *(("cudnn", 11, mask, bias) for mask, bias in zip(MASKS, itertools.cycle(BIASES)) if mask != "band"),
    *(("cudnn", 11, "no keys", bias) for bias in ("dense", "relative")),
    ("cudnn", 12, "causal segments", "dense"),
    ("tokamax", 11, "band", "none"),
    ("tokamax", 11, "causal explicit", "dense"),
    ("tokamax", 11, "key lengths", "relative"),
]
FAST = ("causal explicit", "band")


@pytest.mark.parametrize(
    ("impl", "t", "mask", "bias"), [call if call[2] in FAST else pytest.param(*call, marks=pytest.mark.full) for call in CALLS]
)
def test_the_calls_of_the_libraries_compute_the_attention(impl, t, mask, bias):
    """A row with nothing to attend to is zero, with zero gradient."""
    got = value_and_gradients(functools.partial(by_stand_in, impl), jnp.float32, t, masks(t)[mask], biases(t)[bias])
    assert_agrees(got, exact(t, mask, bias))
    allowed = masks(t)[mask].dense(t, t)
    empty = np.broadcast_to(allowed is not None and ~np.asarray(allowed.any(-1))[:, 0], (B, t))
    assert empty.any() == (mask in EMPTY)
    assert (got[0][empty] == 0).all() and (got[1][empty] == 0).all()


@pytest.mark.full
def test_grouped_heads():
    attend = functools.partial(by_stand_in, "cudnn")
    mask = masks(11)["causal segments"]
    assert_agrees(value_and_gradients(attend, jnp.float32, 11, mask, None, groups=2), exact(11, "causal segments", groups=2))


@pytest.mark.full
@pytest.mark.planted(4)
def test_the_comparison_catches_wrong_calls_of_the_libraries(monkeypatch):
    """Mutants: lengths that are not padded, a bias or half a mask that gets lost, empty rows left to the kernel."""
    t, mask, bias = 11, masks(11)["causal explicit"], biases(11)["dense"]

    def wrong(mask=mask, bias=bias, even=True):
        def attend(q, k, v, mask, bias, seed, heads, *, scale, rate):
            return dot_product_attention.fused(STAND_INS["cudnn"], q, k, v, mask, bias, scale=scale, even=even)

        return value_and_gradients(attend, jnp.float32, t, mask, bias)

    expected = exact(t, "causal explicit", "dense")
    assert_agrees(wrong(), expected)
    for mutant in ({"even": False}, {"bias": None}, {"mask": dataclasses.replace(mask, causal=False)}):
        with pytest.raises((AssertionError, ValueError)):
            assert_agrees(wrong(**mutant), expected)
    monkeypatch.setattr(Mask, "has_visible_key", lambda *_: None)
    with pytest.raises(AssertionError):
        assert_agrees(wrong(), expected)


@pytest.fixture
def pretend_gpu(monkeypatch):
    monkeypatch.setattr(attention, "target_platform", lambda: "gpu")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 92800)


def lowered(t, mask, bias, groups=N):
    """The program of cuDNN attention and all its gradients, for eight GPUs."""
    mesh = device_mesh.make_mesh(run_config.Mesh(data=2, fsdp=2, tensor=2))
    on_mesh = NamedSharding(mesh, PartitionSpec(BATCH, None, "tensor"))
    q, k = (jax.ShapeDtypeStruct((8, t, heads, H), jnp.bfloat16, sharding=on_mesh) for heads in (N, groups))

    def value(q, k, v, bias):
        return attention.attention(q, k, v, mask=mask, bias=bias, impl="cudnn").astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        pull = jax.jit(jax.grad(value, argnums=(0, 1, 2, 3), allow_int=True))
        return pull.trace(q, k, k, bias).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("t", "name"),
    [pytest.param(11 + n % 2, name, marks=[] if name in FAST else pytest.mark.full) for n, name in enumerate(MASKS)],
)
@pytest.mark.usefixtures("pretend_gpu")
def test_jax_accepts_the_calls_of_cudnn(t, name):
    """JAX's own checks of shapes, dtypes and windows, forward and backward."""
    mask = jax.tree.map(lambda x: jnp.tile(x, (4, *[1] * (x.ndim - 1))), masks(t)[name])
    if name == "band":
        with pytest.raises(BadInput, match="its window needs causal attention"):
            lowered(t, mask, None)
    else:
        program = lowered(t, mask, None, groups=2)
        calls = re.findall(r"custom_call @__cudnn\$(\w+)", program)
        assert len(calls) == 2 and calls[1] == calls[0] + "Backward"


@pytest.mark.full
@pytest.mark.parametrize(
    ("bias", "summed"),
    [
        (None, []),
        (Dense(values=jax.ShapeDtypeStruct((1, N, 12, 12), jnp.float32)), ["1x2x12x12"]),
        (Buckets(table=jax.ShapeDtypeStruct((32, N), jnp.float32)), ["32x2"]),
    ],
    ids=["none", "dense", "buckets"],
)
@pytest.mark.usefixtures("pretend_gpu")
def test_the_gradient_of_a_shared_bias_is_summed_over_the_examples(bias, summed):
    """And nothing else is communicated. JAX's rule for cuDNN says of a local sum that it is the same everywhere: with shard_map's
    check_vma, which believes that, there is no sum over the mesh."""
    program = lowered(12, Mask(causal=True), bias)
    assert not re.findall(r"stablehlo\.(?:all_gather|all_to_all|collective_permute|reduce_scatter)", program)
    assert re.findall(r'"stablehlo\.all_reduce".*?\) : \(tensor<([\dx]+)x\w+>\)', program, re.DOTALL) == summed


SMALL_TILES = dict.fromkeys(tile_sizes.table_sizes(tile_sizes.KernelCall(kernel="splash", dtype="float32"), "TPU"), 128)


@pytest.mark.parametrize(
    ("mask", "groups"),
    [
        *(pytest.param(*case, marks=pytest.mark.full) for case in (("causal", 1), ("band", 2), ("causal segments", 2))),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("window", 2), ("no keys", 2))),
    ],
)
def test_splash_computes_the_attention(mask, groups, monkeypatch):
    """The kernel itself, interpreted, in four blocks of 128."""
    interpreted = functools.partial(splash_attention.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha", interpreted)
    monkeypatch.setitem(tile_sizes.forced, "splash", SMALL_TILES)
    sizes = {"groups": groups, "heads": 2}
    got = value_and_gradients(splash.splash, jnp.float32, 256, masks(256)[mask], None, **sizes)
    assert_agrees(got, exact(256, mask, **sizes))


SPLASH = conformance.Case(
    queries=256,
    keys=256,
    heads=4,
    sinks=True,
    mask=lambda case: Mask(causal=True, window=150, key_lengths=jnp.asarray([0, 200], jnp.int32)),
)
"""Sinks with grouped heads, and an example without a key."""


def check_splash(monkeypatch, dtype):
    """Compare the interpreted kernel with float64."""
    interpreted = functools.partial(splash_attention.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha", interpreted)
    monkeypatch.setitem(tile_sizes.forced, "splash", SMALL_TILES)
    row = dataclasses.replace(attention.IMPLEMENTATIONS["splash"], platforms=attention.EVERYWHERE)
    monkeypatch.setitem(attention.IMPLEMENTATIONS, "splash", row)
    monkeypatch.setattr(conformance, "CASES", {**conformance.CASES, "splash": SPLASH})
    monkeypatch.setattr(conformance, "UNOPTIMIZED", ONCE)
    return conformance.check_implementation("splash", "splash", dtype, options=ONCE)


@pytest.mark.full
@pytest.mark.parametrize("dtype", conformance.DTYPES)
def test_splash_has_sinks(dtype, monkeypatch):
    result = check_splash(monkeypatch, dtype)
    assert result.ok, result


@pytest.mark.full
@pytest.mark.planted
def test_sinks_of_other_heads_in_splash_are_noticed(monkeypatch):
    monkeypatch.setattr(splash, "_with_gradient_of_own_dtype", lambda sinks: sinks[::-1])
    errors = check_splash(monkeypatch, "float32").errors
    assert {"out", "d_q", "d_sinks"} <= {name for name, (error, bound) in errors.items() if not error <= bound}


def test_the_gradient_of_sinks_in_splash_has_their_dtype():
    """The queries have another one; JAX 0.10.2 gives the gradient theirs."""
    q, sinks = jax.ShapeDtypeStruct((B, 128, N, H), jnp.bfloat16), jax.ShapeDtypeStruct((N,), jnp.float32)

    def value(sinks, q):
        attend = functools.partial(splash.splash, scale=SCALE, rate=0.0)
        return attend(q, q, q, Mask(causal=True), None, None, jnp.arange(N, dtype=jnp.uint32), sinks).sum()

    assert jax.eval_shape(jax.grad(value), sinks, q).dtype == jnp.float32


def request(mask=None, bias=None, dropout=None, dtype=jnp.bfloat16, t=256, size=64, sinks=None):
    q = jax.ShapeDtypeStruct((B, t, N, size), dtype)
    return Request.of(q, q, q, mask or Mask(causal=True), bias, dropout, sinks)


DROPOUT = (0.1, jax.ShapeDtypeStruct((B, 2), jnp.uint32))
DENSE = Dense(values=jax.ShapeDtypeStruct((1, N, 256, 256), jnp.float32))
LIMITS = [
    ("cudnn", {"dtype": jnp.float32}, "bfloat16 and float16, and this is float32"),
    ("cudnn", {"size": 20}, "up to 256 on this GPU that are multiples of 8, and this is 20"),
    ("cudnn", {"size": 264}, "up to 256 on this GPU that are multiples of 8, and this is 264"),
    ("cudnn", {"mask": Mask(window=4)}, "its window needs causal attention"),
    ("cudnn", {"dropout": DROPOUT}, "no dropout"),
    ("cudnn", {"t": 255}, None),
    ("cudnn", {"bias": DENSE, "dtype": jnp.float16, "size": 256}, None),
    ("tokamax", {"dtype": jnp.float32}, "bfloat16 and float16, and this is float32"),
    ("tokamax", {"size": 264}, "up to 256 that are multiples of 8, and this is 264"),
    ("tokamax", {"dropout": DROPOUT}, "no dropout"),
    ("tokamax", {"mask": Mask(window=4), "t": 255}, None),
    ("splash", {"dtype": jnp.float16}, "bfloat16 and float32, and this is float16"),
    ("splash", {"t": 200}, "multiples of 128, and these are 200 and 200"),
    ("splash", {"bias": DENSE, "dropout": DROPOUT}, "no dense bias, no dropout"),
    ("splash", {"mask": Mask(window=4), "dtype": jnp.float32, "size": 20}, None),
    ("splash", {"sinks": jax.ShapeDtypeStruct((N,), jnp.float32)}, None),
]


def test_requests_beyond_the_limits_of_an_implementation_are_refused(monkeypatch):
    """On a Hopper GPU or a TPU, with the package that an implementation needs."""
    for module in (cudnn, tokamax):
        monkeypatch.setattr(module, "capability", lambda: 9)
    for impl, asked, reason in LIMITS:
        row = dataclasses.replace(attention.IMPLEMENTATIONS[impl], requires="")
        refusal = row.unsupported_reason(request(**asked), "tpu" if impl == "splash" else "gpu")
        assert refusal is None if reason is None else reason in (refusal or ""), (impl, asked)


def test_the_compute_capability_of_older_gpus_is_read(monkeypatch):
    for capability, major in [("9.0", 9), ("10.3", 10), ("8.6", 8), ("gfx942", 0), (None, 0)]:
        device = type("Device", (), {} if capability is None else {"compute_capability": capability})()
        monkeypatch.setattr(dot_product_attention.backend, "get_default_device", lambda device=device: device)
        assert dot_product_attention.capability() == major
        assert cudnn.unsupported_reason(request(size=128)) is None
        assert (cudnn.unsupported_reason(request(size=136)) is None) == (major >= 9)
        assert (tokamax.unsupported_reason(request()) is None) == (major >= 9)


def test_a_missing_package_is_named_with_how_to_get_it():
    row = dataclasses.replace(attention.IMPLEMENTATIONS["tokamax"], requires="not_there")
    reason = row.unsupported_reason(request(), "gpu") or ""
    assert reason == f"it needs not_there (Python 3.12 or newer): {install_advice('not_there')}"
    # A feature that is missing comes first: installing would not help.
    assert row.unsupported_reason(request(dropout=DROPOUT), "gpu") == "it has no dropout"


def test_every_package_a_row_needs_is_an_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = [row for row in attention.IMPLEMENTATIONS.values() if row.requires]
    assert rows
    for row in rows:
        (needed,) = project["optional-dependencies"][row.requires]
        assert re.fullmatch(rf"{row.requires}>=[\d.]+; python_version >= '{row.python}'", needed)


def test_the_mesh_determines_the_platform_of_a_program():
    """Compiling for devices that are not here chooses by those."""
    assert attention.target_platform() == "cpu"
    for kind, platform, chosen in [("TPU v5 lite", "tpu", "tpu"), ("NVIDIA H100", "cuda", "gpu")]:
        device = AbstractDevice(kind, 1, platform)
        mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            assert attention.target_platform() == chosen
            assert attention.choose("auto", request()) == attention.choose("auto", request(), chosen)
