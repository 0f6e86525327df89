"""Attention in a ring of devices: equal to that of one device, balanced, and sending what the formulas say."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.hlo import hlo_parser
from benchmarks.plan import collectives
from train.config import run_config
from train.engine import device_mesh
from zoo.attention import attention as dispatch
from zoo.attention.attention import attention
from zoo.attention.biases import Buckets, Dense
from zoo.attention.kernels.blocked import blocked
from zoo.attention.masks import Mask
from zoo.attention.recorded_calls import record_calls
from zoo.attention.ring import Queries, Ring
from zoo.attention.ring_layout import Division
from zoo.errors import BadInput

B, T, N, K, H, DEVICES = 2, 32, 2, 1, 8, 4
RNG = np.random.default_rng(0)
SEGMENTS = jnp.asarray(np.repeat([[1] * 14 + [2] * 12 + [0] * 6], B, 0))
RANKS = jnp.asarray(np.stack([RNG.permutation(T) for _ in range(B)]))
LENGTHS = jnp.asarray([20, 3])
PACKED: dict[str, Any] = {"query_segments": SEGMENTS, "key_segments": SEGMENTS}
ALLOWED = jnp.asarray(RNG.random((1, N, T, T)) > 0.3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A call of attention."""

    mask: Mask = Mask()
    bias: str = ""
    rate: float = 0.0
    has_sinks: bool = False
    impl: str = "blocked"
    length: int = T
    tolerance: float = 1e-5


CASES = {
    "full": Case(),
    "causal, packed, dropout, sinks": Case(mask=Mask(causal=True, **PACKED), rate=0.3, has_sinks=True),
    "causal, buckets, dropout": Case(mask=Mask(causal=True), bias="buckets", rate=0.3),
    "causal, lengths": Case(mask=Mask(causal=True, key_lengths=LENGTHS)),
    "window, packed, dropout": Case(mask=Mask(window=4, **PACKED), rate=0.3),
    "causal window, lengths, sinks": Case(mask=Mask(causal=True, window=5, key_lengths=LENGTHS), has_sinks=True),
    "window of one": Case(mask=Mask(window=1)),
    "window over several devices": Case(mask=Mask(window=20)),
    "causal window over several devices": Case(mask=Mask(causal=True, window=20), rate=0.3),
    "window and bias": Case(mask=Mask(window=4), bias="buckets"),
    "ranks": Case(mask=Mask(query_ranks=RANKS, key_ranks=RANKS, strict=True), rate=0.3),
    "positions": Case(mask=Mask(causal=True, query_positions=RANKS, key_positions=RANKS)),
    "explicit mask, dense bias": Case(mask=Mask(allowed=ALLOWED), bias="dense"),
    "causal, length not divided": Case(mask=Mask(causal=True), bias="buckets", rate=0.3, has_sinks=True, length=25),
    "window, length not divided": Case(mask=Mask(window=4), rate=0.3, length=25),
    "padded tiles with a large bias": Case(mask=Mask(causal=True), bias="large buckets", length=25, tolerance=1e-4),
    "causal, packed, flash_tpu": Case(mask=Mask(causal=True, **PACKED), bias="buckets", rate=0.3, impl="flash_tpu"),
    "causal, packed, flash_gpu": Case(mask=Mask(causal=True, **PACKED), bias="buckets", rate=0.3, impl="flash_gpu"),
    "window, flash_tpu": Case(mask=Mask(window=4), rate=0.3, has_sinks=True, impl="flash_tpu"),
    "window, flash_gpu": Case(mask=Mask(window=4), rate=0.3, has_sinks=True, impl="flash_gpu"),
}
FAST = ("window, packed, dropout", "ranks")


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def results(case: Case, devices: int) -> Any:
    """Return the output and the gradients of a call, in a ring or on one device."""
    length = case.length
    inputs: dict[str, Any] = {"q": normal(0, B, length, N, H), "k": normal(1, B, length, K, H), "v": normal(2, B, length, K, H)}
    inputs |= {"sinks": normal(3, N)} if case.has_sinks else {}
    inputs |= {"bias": normal(4, B, N, length, length) if case.bias == "dense" else normal(4, 32, N)} if case.bias else {}
    dropout = (case.rate, jnp.asarray([[1, 2], [3, 4]], jnp.uint32)) if case.rate else None

    def value(inputs: dict[str, Any]) -> jax.Array:
        table: Any = inputs.get("bias")
        bias = None
        if case.bias:
            bias = Dense(values=table) if case.bias == "dense" else Buckets(table=table + 200 * (case.bias == "large buckets"))
        options = {"bias": bias, "sinks": inputs.get("sinks"), "dropout": dropout, "mask": case.mask}
        return attention(inputs["q"], inputs["k"], inputs["v"], impl=case.impl, sequence="ring", **options)

    @jax.jit
    def both(inputs: dict[str, Any], cotangent: jax.Array) -> Any:
        out, pull = jax.vjp(value, inputs)
        return out, pull(cotangent)

    mesh = device_mesh.make_mesh(run_config.Mesh(data=1, sequence=devices), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        return jax.device_get(both(inputs, normal(5, B, length, N, H)))


def check(case: Case) -> None:
    if case.impl == "blocked":
        computed, expected = results(case, DEVICES), results(case, 1)
    else:
        with dispatch.interpreted(case.impl):
            computed, expected = results(case, 2), results(case, 1)
    # In float32, scores above 128 are rounded to 1.5e-5.
    compare = functools.partial(np.testing.assert_allclose, rtol=case.tolerance, atol=case.tolerance)
    jax.tree.map(compare, computed, expected)


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CASES])
def test_outputs_and_gradients_are_those_of_one_device(name: str) -> None:
    check(CASES[name])


@pytest.mark.planted
def test_the_comparison_catches_keys_of_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake: the keys that arrive are taken for those of the next device, not of the one before."""
    original = Ring.keys_of
    monkeypatch.setattr(Ring, "keys_of", lambda self, device, arrays: original(self, (2 - device) % DEVICES, arrays))
    with pytest.raises(AssertionError):
        check(CASES["ranks"])


# --- balance --------------------------------------------------------------------------------------------------------------------


def pairs_of_devices(division: Division, mask: Mask) -> list[float]:
    """Return the number of pairs of positions that each device computes."""
    devices, count = division.devices, division.num_chunks
    length = division.queries // count
    part: Any = jnp.zeros((1, length, 1, 1))
    one = Ring(kernel=blocked, division=division, scale=1.0, rate=0.0, scope=lambda *_, **__: "")
    counts = []
    for device in range(devices):
        starts = [key.start for key in one.keys_of(device, [(part, part)] * count)]
        queries = [Queries(part, mask, None, start) for start in starts]
        pairs = one.own_pairs(queries, one.keys_of(device, [(part, part)] * count))
        for source in {*range(devices)} - {device}:
            pairs += one.pairs(queries, one.keys_of(source, [(part, part)] * count), device, source)
        dense = [pair.mask.dense(length, length) for pair in pairs]
        counts.append(sum(length**2 if allowed is None else int(allowed.sum()) for allowed in dense))
    return counts


def test_causal_work_is_balanced() -> None:
    mask, length = Mask(causal=True), 128
    counts = pairs_of_devices(Division.of(8, length, length, mask, None), mask)
    assert sum(counts) == length * (length + 1) / 2 and max(counts) == min(counts)


@pytest.mark.planted
def test_without_the_balanced_layout_the_last_device_does_most() -> None:
    mask, length = Mask(causal=True), 128
    division = Division(layout="contiguous", devices=8, queries=length // 8, keys=length // 8)
    counts = pairs_of_devices(division, mask)
    assert sum(counts) == length * (length + 1) / 2 and max(counts) > 1.8 * np.mean(counts)


# --- what is sent ---------------------------------------------------------------------------------------------------------------


def bytes_sent(mask: Mask, shape: tuple[int, int, int, int, int], devices: int) -> float:
    """Return the bytes that a device sends in a forward and a backward pass, of float32 [B, T, N, H] with K key/value heads."""
    (b, t, n, k, h), layers = shape, 3
    mesh = device_mesh.make_mesh(run_config.Mesh(data=1, sequence=devices), jax.devices()[:devices])
    place, places = (jax.NamedSharding(mesh, jax.P(*axes, None, "sequence")) for axes in ((), (None,)))
    q = jax.ShapeDtypeStruct((b, t, n, h), jnp.float32, sharding=place)
    kv = jax.ShapeDtypeStruct((layers, b, t, k, h), jnp.float32, sharding=places)

    def stack(q: Any, k: Any, v: Any) -> Any:
        """Compute layers in a loop, as models do. Of one call, the backward pass would use what the forward pass received."""

        def layer(q: Any, kv: Any) -> Any:
            return attention(q, *kv, mask=mask, impl="blocked", sequence="ring"), None

        return jax.lax.scan(layer, q, (k, v))[0]

    def both(q: Any, k: Any, v: Any, cotangent: Any) -> Any:
        out, pull = jax.vjp(stack, q, k, v)
        return out, pull(cotangent)

    with jax.set_mesh(mesh):
        program = jax.jit(both).lower(q, kv, kv, q).compile()
    sent = collectives.find_collectives(hlo_parser.parse_program(program.as_text() or ""), dict(mesh.shape))
    assert {one.kind for one in sent} == {"collective-permute"}
    return sum(one.run.times * one.bytes_sent for one in sent) / layers


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
@pytest.mark.parametrize("mask", [Mask(), Mask(causal=True)], ids=["full", "causal"])
def test_bytes_follow_the_formula(mask: Mask, devices: int) -> None:
    """Keys and values go round twice, their gradients once. Causal: q, k, v, the output and their gradients change places too."""
    b, t, n, k, h = shape = 1, 64 * devices, 4, 2, 8
    of_keys, of_queries = (4 * b * t // devices * heads * h for heads in (k, n))
    expected = 2 * of_keys * (2 * (devices - 1) + devices)
    if mask.causal:
        # Two devices keep the chunk that is in its place: the first its first one, and one of the others its first or second.
        expected += 2 * (2 * of_queries + 2 * of_keys) * (1 - 1 / devices)
    assert bytes_sent(mask, shape, devices) == pytest.approx(expected, rel=0.05)


def test_a_short_window_sends_at_most_the_neighbour_s_part() -> None:
    b, t, n, k, h = 1, 8192, 1, 1, 8
    part = 4 * b * t // 8 * k * h
    # Keys and values of 128 positions to each side, and their gradients back.
    assert bytes_sent(Mask(window=128), (b, t, n, k, h), 8) == 2 * 2 * 2 * part * 128 / 1024


# --- requests -------------------------------------------------------------------------------------------------------------------


def test_a_kernel_without_chunks_is_refused() -> None:
    with pytest.raises(BadInput, match="attention 'xla' cannot do this: it has no ring form; these can: blocked"):
        results(dataclasses.replace(CASES["full"], impl="xla"), DEVICES)


def test_an_unknown_form_is_refused() -> None:
    x = normal(0, B, T, N, H)
    with pytest.raises(BadInput, match="no form 'circle' of the sequence axis; choose auto, all_to_all, ring"):
        attention(x, x, x, mask=Mask(), sequence="circle")


def test_heads_that_the_devices_do_not_divide_are_not_exchanged() -> None:
    x = normal(0, B, T, N, H)
    mesh = device_mesh.make_mesh(run_config.Mesh(data=1, sequence=DEVICES), jax.devices()[:DEVICES])
    with jax.set_mesh(mesh), pytest.raises(BadInput, match="does not divide 2 heads and 2 key/value heads; choose ring"):
        attention(x, x, x, mask=Mask(), sequence="all_to_all")


@pytest.mark.parametrize(("heads", "ring_of"), [(4, 0), (3, 4)])
def test_auto_is_a_ring_where_the_devices_do_not_divide_the_heads(heads: int, ring_of: int) -> None:
    x = jax.ShapeDtypeStruct((B, T, heads, H), jnp.float32)
    mesh = device_mesh.make_mesh(run_config.Mesh(data=1, sequence=DEVICES), jax.devices()[:DEVICES])
    with jax.set_mesh(mesh), record_calls() as calls:
        jax.eval_shape(lambda x: attention(x, x, x, mask=Mask()), x)
    assert {call.ring for call in calls} == {ring_of}


def test_one_query_is_computed_on_all_devices() -> None:
    """Decoding does so, here with heads that the devices do not divide."""
    q, k, v = normal(0, B, 1, 3, H), normal(1, B, T, 3, H), normal(2, B, T, 3, H)
    mask = Mask(causal=True, query_positions=jnp.full((B, 1), 20))
    mesh = device_mesh.make_mesh(run_config.Mesh(data=1, sequence=DEVICES), jax.devices()[:DEVICES])
    expected = attention(q, k, v, mask=mask)
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(jax.jit(lambda q, k, v: attention(q, k, v, mask=mask))(q, k, v), expected, atol=1e-5)


@pytest.mark.parametrize("mask", [Mask(causal=True), Mask(causal=True, window=100)], ids=["causal", "causal, long window"])
def test_the_flops_of_recorded_calls_are_those_of_the_whole(mask: Mask) -> None:
    """A plan counts kernels, and the pairs that masks leave out, by them."""
    x = jax.ShapeDtypeStruct((B, 8 * T, N, H), jnp.float32)
    mesh = device_mesh.make_mesh(run_config.Mesh(data=1, sequence=DEVICES), jax.devices()[:DEVICES])
    with record_calls() as alone:
        jax.eval_shape(lambda x: attention(x, x, x, mask=mask), x)
    with jax.set_mesh(mesh), record_calls() as calls:
        jax.eval_shape(lambda x: attention(x, x, x, mask=mask, sequence="ring"), x)
    # Three calls for the device's own keys, two in the loop of DEVICES - 2 steps, and two for the last keys.
    own, step, last = calls[:3], calls[3:5], calls[5:7]
    for kind in ("flops", "dense_flops"):
        total = sum(getattr(call, kind) for call in (*own, *last, *((DEVICES - 2) * step)))
        assert total == pytest.approx(getattr(alone[0], kind))
