"""Attention: the definition against plain loops, and what is refused. Implementations are in `test_conformance.py`."""

import dataclasses
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.attention import attention as dispatch
from zoo.attention import biases
from zoo.attention import request as requests
from zoo.attention.attention import attention
from zoo.attention.biases import Buckets, ByDistance, Dense, Relative
from zoo.attention.kernels import Kernel
from zoo.attention.masks import Mask
from zoo.attention.request import Request
from zoo.errors import BadInput
from zoo.ops import counter_rng

B, T, S, N, H = 2, 7, 7, 4, 8


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def loops(q, k, v, allowed, bias, scale, kept, rate, sinks=None):
    """The definition in plain float64 loops: an independent reference for `reference` itself."""
    out = np.zeros_like(q)
    groups = q.shape[2] // k.shape[2]
    for b, t, n in itertools.product(*map(range, q.shape[:3])):
        keys = [s for s in range(k.shape[1]) if allowed(b, n, t, s)]
        scores = [scale * q[b, t, n] @ k[b, s, n // groups] + bias(b, n, t, s) for s in keys]
        top = max(scores, default=0)
        weights, sink = np.exp(np.array(scores) - top), 0 if sinks is None else np.exp(sinks[n] - top)
        for s, weight in zip(keys, weights / max(weights.sum() + sink, 1e-300), strict=True):
            out[b, t, n] += (weight / (1 - rate) if kept(b, n, t, s) else 0) * v[b, s, n // groups]
    return out


LENGTHS = np.array([4, 7])
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 3, 3, 3]])
POSITIONS = np.array([[0, 1, 2, 0, 1, 2, 3], [6, 5, 4, 3, 2, 1, 0]])
RANKS = np.array([[3, -1, 0, 5, 2, 4, 1], [0, 1, 2, 3, 4, 5, 6]])
EXPLICIT = normal(3, B, 1, T, S) > 0

MASKS = {
    "full": (Mask(), lambda b, n, t, s: True),
    "causal": (Mask(causal=True), lambda b, n, t, s: s <= t),
    "window": (Mask(causal=True, window=3), lambda b, n, t, s: t - 2 <= s <= t),
    "band": (Mask(window=2), lambda b, n, t, s: abs(t - s) <= 1),
    "key lengths": (Mask(key_lengths=LENGTHS), lambda b, n, t, s: s < LENGTHS[b]),
    "segments": (
        Mask(query_segments=SEGMENTS, key_segments=SEGMENTS, causal=True),
        lambda b, n, t, s: SEGMENTS[b, t] == SEGMENTS[b, s] != 0 and s <= t,
    ),
    "positions": (
        Mask(causal=True, query_positions=POSITIONS, key_positions=POSITIONS),
        lambda b, n, t, s: POSITIONS[b, s] <= POSITIONS[b, t],
    ),
    "content ranks": (Mask(query_ranks=RANKS, key_ranks=RANKS), lambda b, n, t, s: RANKS[b, s] <= RANKS[b, t]),
    "query ranks": (Mask(query_ranks=RANKS, key_ranks=RANKS, strict=True), lambda b, n, t, s: RANKS[b, s] < RANKS[b, t]),
    "explicit": (Mask(allowed=EXPLICIT), lambda b, n, t, s: EXPLICIT[b, 0, t, s]),
    "nothing": (Mask(allowed=np.zeros((1, 1, T, S), bool)), lambda b, n, t, s: False),
}

DENSE = normal(4, 1, N, T, S)
Q_R, R, Q_S, TYPES = normal(5, B, T, N, H), normal(6, N, H, T + S), normal(7, B, T, N, 2), np.array([[0, 0, 0, 1, 1, 1, 2]] * B)
BIASES = {
    "none": (None, lambda b, n, t, s: 0.0),
    "dense": (Dense(values=DENSE), lambda b, n, t, s: DENSE[0, n, t, s]),
    "relative": (
        Relative(q_r=Q_R, r=R, first=S, q_s=Q_S, query_types=TYPES, key_types=TYPES),
        lambda b, n, t, s: H**-0.5 * (Q_R[b, t, n] @ R[n, :, S - (t - s)] + Q_S[b, t, n, int(TYPES[b, t] != TYPES[b, s])]),
    ),
}


def arrays(dtype, groups=N):
    q, k, v = normal(0, B, T, N, H), normal(1, B, S, groups, H), normal(2, B, S, groups, H)
    return [jnp.asarray(x, dtype) for x in (q, k, v)]


def as_type(tree, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if np.issubdtype(x.dtype, np.floating) else jnp.asarray(x), tree)


def assert_is_the_definition(mask, bias, groups=N, dropout=None, kept=lambda *_: True, sinks=None):
    """Compare in float64: at most 7 + 8 products are summed, of numbers below 2^5, so that 2^-53 grows to less than 1e-12."""
    with jax.enable_x64(True):
        q, k, v = arrays(jnp.float64, groups)
        mask_spec, bias_spec = jax.tree.map(jnp.asarray, MASKS[mask][0]), as_type(BIASES[bias][0], jnp.float64)
        out = attention(
            q,
            k,
            v,
            mask=mask_spec,
            bias=bias_spec,
            dropout=dropout,
            sinks=sinks if sinks is None else jnp.asarray(sinks),
            impl="reference",
        )
        rate = 0.0 if dropout is None else dropout[0]
        expected = loops(*map(np.asarray, (q, k, v)), MASKS[mask][1], BIASES[bias][1], H**-0.5, kept, rate, sinks)
        np.testing.assert_allclose(out, expected, atol=1e-12)


# Masks and biases are added up by two lines that do not know each other: each mask with one bias, each bias with several masks.
@pytest.mark.parametrize(("mask", "bias"), list(zip(MASKS, itertools.cycle(BIASES))))
def test_reference_is_the_definition(mask, bias):
    assert_is_the_definition(mask, bias)


def test_reference_drops_what_the_hash_says():
    seed = jnp.array([[1, 2], [3, 4]], jnp.uint32)
    kept = np.asarray(counter_rng.keep(seed, 0.3, *(jnp.arange(n, dtype=jnp.uint32) for n in (N, T, S))))
    assert_is_the_definition("causal", "none", dropout=(0.3, seed), kept=lambda *at: kept[at])


def test_reference_groups_heads():
    for groups in (1, 2):
        assert_is_the_definition("causal", "none", groups)


def test_reference_has_sinks():
    for mask in ("causal", "segments"):  # the latter has queries without a key
        assert_is_the_definition(mask, "dense", 2, sinks=normal(8, N))


def test_tiles_have_no_two_equal_slices_of_an_array():
    """XLA on CPU makes one function of two cuts that are alike, and calls it for every entry of the scores."""
    bias = as_type(BIASES["relative"][0], jnp.float32)
    for spec, of_queries, of_keys in [
        (MASKS["segments"][0], "query_segments", "key_segments"),
        (MASKS["content ranks"][0], "query_ranks", "key_ranks"),
        (bias, "query_types", "key_types"),
    ]:
        tiled = jax.tree.map(jnp.asarray, spec).for_tiles(T, T, S)
        assert getattr(tiled, of_queries).dtype != getattr(tiled, of_keys).dtype
    # What has a gradient is still what had one.
    assert [name for name, _, _ in bias.differentiable().arrays()] == [
        name for name, _, _ in bias.for_tiles(T, T, S).differentiable().arrays()
    ]


STATIC = {"causal": True, "window": 3, "strict": None}
"""Field of a mask without an array -> a value that needs a feature; `strict` only changes what ranks mean."""


def test_every_field_of_a_mask_or_bias_is_a_feature_that_an_implementation_must_have():
    for kind in (Mask, *requests._BIASES):
        arrays = {field.name for field in dataclasses.fields(kind) if "axes" in field.metadata}
        assert arrays and arrays <= requests._FEATURES.keys(), kind
        assert {feature for name in arrays for feature in requests._FEATURES[name]} <= dispatch.ALL_FEATURES
    fields = {field.name for field in dataclasses.fields(Mask)}
    assert fields == STATIC.keys() | {name for name in fields if requests._FEATURES.get(name)}
    for name, value in STATIC.items():
        q = ones(B, S, N, H)
        request = Request.of(q, q, q, Mask(**({} if value is None else {name: value})), None, None)
        assert request.features == (set() if value is None else {name})


@pytest.mark.planted
def test_a_mask_field_that_nobody_registered_is_not_ignored(monkeypatch):
    monkeypatch.delitem(requests._FEATURES, "key_lengths")
    q = ones(B, S, N, H)
    with pytest.raises(KeyError, match="key_lengths"):
        Request.of(q, q, q, Mask(key_lengths=np.array([1, 2])), None, None)


def ones(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


DROPOUT = (0.1, ones(B, 2, dtype=jnp.uint32))
REFUSED = [
    ({"impl": "flash"}, "'flash'; choose auto, reference, xla, blocked, cudnn"),
    ({"impl": "cudnn"}, "'cudnn' .* runs on gpu, and this is cpu; these can: reference, xla, blocked"),
    ({"k": ones(B, S, 3, H), "v": ones(B, S, 3, H)}, "3 key/value heads do not divide 4 query heads"),
    ({"k": ones(B, S, N, H, dtype=jnp.bfloat16)}, "bfloat16.* cast them to one"),
    ({"v": ones(B, S + 1, N, H)}, "do not fit q"),
    ({"mask": None}, r"the mask is of type NoneType; pass a Mask: Mask\(\) is full attention"),
    ({"mask": ones(B, N, T, S, dtype=bool)}, r"the mask is of type ShapeDtypeStruct; .* Mask\(allowed=array\)"),
    ({"q": ones(B, T, N * H)}, r"q has shape \(2, 7, .*\) and k \(2, 7, .*; expected \[B, T, N, H\]"),
    ({"mask": Mask(window=0)}, "window 0: choose 1 or more"),
    ({"mask": Mask(query_segments=SEGMENTS)}, "query_segments and key_segments"),
    ({"mask": Mask(query_segments=SEGMENTS, key_segments=SEGMENTS[:, 1:])}, r"key_segments has shape \(2, 6\)"),
    ({"mask": Mask(key_lengths=np.array([1, 2, 3]))}, r"key_lengths has shape \(3,\); expected \[B\]"),
    ({"bias": Dense(values=ones(1, N, T, S + 1))}, "values has shape"),
    ({"bias": Dense(values=ones(3, N, T, S))}, "values has shape"),
    ({"bias": ByDistance(values=ones(12, N), first=T - 1)}, r"distances 6 \.\. -6, and has 6 \.\. -5"),
    ({"bias": ByDistance(values=ones(20, N), first=T - 2)}, r"distances 6 \.\. -6, and has 5 \.\. -14"),
    ({"bias": Relative(q_r=ones(B, T, N, H), r=ones(N, H, T + S - 1), first=S)}, r"distances .*, and has 7 \.\. -5"),
    (
        {"bias": Relative(q_r=ones(B, T, N, H), r=ones(N, H, S - 1), first=S, query_positions=ones(B, T, dtype=jnp.int32))},
        "a bias over 7 keys needs 7 distances or more for each query, and has 6",
    ),
    ({"dropout": (0.1, None)}, r"dropout needs seeds uint32\[2, 2\], \[B, 2\], and these are None"),
    ({"dropout": (0.1, ones(B, dtype=jnp.uint32))}, r"dropout needs seeds .*, and these are uint32\[2\]"),
    ({"dropout": (0.1, ones(B, 2, dtype=jnp.int32))}, r"dropout needs seeds .*, and these are int32\[2, 2\]"),
    ({"dropout": (1.0, DROPOUT[1])}, "dropout 1.0: choose a rate of at least 0 and below 1"),
    ({"dropout": (-0.1, DROPOUT[1])}, "dropout -0.1: choose a rate of at least 0 and below 1"),
    ({"dropout": (float("nan"), DROPOUT[1])}, "dropout nan: choose a rate of at least 0 and below 1"),
    ({"sinks": ones(N + 1)}, r"sinks has shape \(5,\); expected one number for each of the 4 query heads"),
    ({"q": ones(B, 3, N, H), "mask": Mask(causal=True)}, "3 queries over 7 keys needs query_positions"),
    # One platform further: a feature that is missing is named with those who have it.
    (
        {"impl": "cudnn", "platform": "gpu", "dropout": DROPOUT},
        "'cudnn' .* no dropout; these can: reference, xla, blocked, flash_gpu",
    ),
    *(
        (
            {"impl": impl, "platform": "gpu", "sinks": ones(N)},
            f"'{impl}' .* no sinks; these can: reference, xla, blocked, flash_gpu",
        )
        for impl in ("cudnn", "tokamax")
    ),
]


def test_unsupported_and_malformed_requests_are_refused():
    for change, message in REFUSED:
        call = {"q": ones(B, T, N, H), "k": ones(B, S, N, H), "v": ones(B, S, N, H), "mask": Mask(), **change}
        request = [call.get(name) for name in ("q", "k", "v", "mask", "bias", "dropout", "sinks")]
        with pytest.raises(BadInput, match=message):
            dispatch.choose(call.get("impl", "auto"), Request.of(*request), call.get("platform"))


def test_every_kernel_has_the_same_signature() -> None:
    expected = list(inspect.signature(Kernel.__call__).parameters)[1:]
    for name, row in dispatch.IMPLEMENTATIONS.items():
        takes = [parameter for parameter in expected if parameter != "sinks" or "sinks" in row.features]
        takes += ["return_totals", "totals"] if dispatch.RING in row.features else []
        assert list(inspect.signature(row.load()).parameters) == takes, name


def check_table_gradient() -> None:
    """Compare the gradient of a table with sums over its distances, one after the other."""
    table, d_values = (normal(seed, rows, N).astype(np.float32) for seed, rows in ((1, 8), (2, T + S)))
    bias = Buckets(max_distance=10)
    values, pull = jax.vjp(lambda table: dataclasses.replace(bias, table=table).prepare(T, S).values, jnp.asarray(table))
    buckets = np.asarray([int(np.argmax((table == row).all(1))) for row in np.asarray(values)])
    expected = np.zeros_like(table)
    np.add.at(expected, buckets, d_values)
    np.testing.assert_allclose(np.asarray(pull(jnp.asarray(d_values))[0]), expected, rtol=1e-5, atol=1e-6)


def check_look_up() -> None:
    """Compare a look-up with indexing, bit for bit."""
    bucket = jnp.asarray([3, 0, 7, 3])
    for dtype in (jnp.float32, jnp.bfloat16):
        table = jnp.asarray(normal(1, 8, N), dtype)
        values = biases._look_up(table, bucket)
        assert values.dtype == dtype and (values == table[bucket]).all()


def test_the_look_up_is_exact():
    check_look_up()


@pytest.mark.planted
def test_a_look_up_of_rounded_numbers_is_noticed(monkeypatch):
    """Matrix units round float32 to bfloat16 unless the precision is highest."""
    look_up = biases._look_up
    monkeypatch.setattr(biases, "_look_up", lambda table, bucket: look_up(jax.lax.reduce_precision(table, 8, 7), bucket))
    with pytest.raises(AssertionError):
        check_look_up()


def test_the_gradient_of_a_table_is_the_sum_over_its_distances():
    check_table_gradient()


@pytest.mark.planted
def test_a_gradient_of_the_first_distance_alone_is_noticed(monkeypatch):
    def first_row_alone(table, bucket):
        is_first = jnp.arange(len(bucket))[:, None] == 0
        return jnp.where(is_first, table[bucket], jax.lax.stop_gradient(table)[bucket])

    monkeypatch.setattr(biases, "_look_up", first_row_alone)
    with pytest.raises(AssertionError):
        check_table_gradient()


def test_the_gradient_of_a_table_has_no_scatter():
    """XLA compiles a scatter for GPUs with atomic additions, whose order differs from run to run."""

    def total(table):
        return Buckets(table=table).prepare(T, S).values.sum()

    assert "scatter" not in jax.jit(jax.grad(total)).lower(ones(32, N)).as_text()
