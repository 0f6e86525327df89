"""XLNet: its two streams against a plain reference, what each sees, what is remembered, and which way a row runs."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import xlnet_reference as two_streams
from tests.support.gradients import assert_equal_gradients
from tests.support.layer_stack import dot_flops
from tests.support.small import random_params, seeds, shapes, small
from tests.support.xlnet_reference import Seen, tiny
from train.config import run_config
from train.engine import device_mesh
from zoo import sharding
from zoo.attention.masks import Mask
from zoo.batch import Batch
from zoo.configs import Compute
from zoo.models import Model
from zoo.models import xlnet as arithmetic


def orders(rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
    return np.stack([rng.permutation(length) for _ in range(rows)])


def everything(rng: np.random.Generator, *, rows: int = 2, length: int = 6) -> Batch:
    """Two texts and padding in a row, types, an order with tokens that all see, scattered targets; a row that runs backwards."""
    order = np.maximum(orders(rng, rows, length) - 2, -1)
    at = np.stack([rng.permutation(np.flatnonzero(each >= 0))[:3] for each in order])
    fields = {
        "tokens": 1 + np.arange(rows * length).reshape(rows, length),
        "segments": np.tile([1] * (length - 2) + [2, 0], (rows, 1)),
        "types": rng.integers(0, 3, (rows, length)),
        "order": order,
        "query_at": at,
    }
    backward = jnp.arange(rows) % 2 == 1
    return Batch(**{name: jnp.asarray(each, jnp.int32) for name, each in fields.items()}, backward=backward)


def remembering(net: Model, rng: np.random.Generator, filled: tuple[int, ...]) -> dict[str, jax.Array]:
    """A carry with so many positions remembered in each row, and something in all slots."""
    empty = net.init_carry(len(filled))
    return {"hidden": jnp.float32(rng.standard_normal(empty["hidden"].shape)), "filled": jnp.asarray(filled, jnp.int32)}


def seen(batch: Batch, row: int, memory: int, filled: int) -> tuple[Seen, Seen]:
    """Return what the two streams of a row see, by the paper's rules and one pair at a time."""
    part = {name: np.asarray(getattr(batch, name)[row]) for name in ("segments", "order", "types", "query_at", "backward")}
    length = len(part["order"])
    shape = (length, memory + length)
    pairs: dict[str, np.ndarray] = {name: np.zeros(shape) for name in ("distance", "different")}
    lower, equal = np.zeros(shape, bool), np.zeros(shape, bool)
    for t, s in itertools.product(range(length), range(-memory, length)):
        there = part["segments"][s] if s >= 0 else int(s >= -filled)
        visible = there == part["segments"][t] and there > 0
        lower[t, s] = visible and (part["order"][s] if s >= 0 else -1) < part["order"][t]
        equal[t, s] = visible and (part["order"][s] if s >= 0 else -1) <= part["order"][t]
        pairs["distance"][t, s] = (s - t) if part["backward"] else (t - s)
        pairs["different"][t, s] = (part["types"][s] if s >= 0 else 0) != part["types"][t]
    # The pairs above were counted from the row's first token; a key of memory has a negative number and so lies at the end.
    turned = {name: np.roll(each, memory, axis=1) for name, each in (*pairs.items(), ("lower", lower), ("equal", equal))}
    at, different = part["query_at"], turned["different"].astype(bool)
    content = Seen(allowed=turned["equal"], distance=turned["distance"], different=different)
    return content, Seen(allowed=turned["lower"][at], distance=turned["distance"][at], different=different[at])


@functools.cache
def compiled(net: Model) -> Any:
    return jax.jit(net.apply)


@pytest.mark.parametrize(("impl", "memory"), [("xla", 5), pytest.param("blocked", 0, marks=pytest.mark.full)])
def test_both_streams_equal_a_float64_reference(impl: Any, memory: int, rng: np.random.Generator) -> None:
    """In float64, with segments, padding, types, an order, memory not yet full, and a row that runs backwards."""
    net = tiny(memory=memory, compute=Compute(attention=impl))
    params, batch = random_params(net), everything(rng)
    carry = remembering(net, rng, (5, 3)) if memory else {}
    out = compiled(net)(params, batch, carry=carry)
    real = np.asarray(batch.segments) > 0
    for row, filled in enumerate((5, 3)):
        content, query = seen(batch, row, memory, filled)
        before = np.asarray(carry["hidden"][row]) if carry else None
        tokens = np.asarray(batch.tokens[row])
        hidden, predicted, inputs = two_streams.forward(net.config, params, tokens, content, query, before)
        np.testing.assert_allclose(out.hidden[row][real[row]], hidden[real[row]], atol=2e-5, rtol=0)
        np.testing.assert_allclose(out.predicted[row], predicted, atol=2e-5, rtol=0)
        if before is not None:
            # The whole row of 6 is kept, of which the last 5 have a slot.
            np.testing.assert_allclose(out.carry["hidden"][row], np.stack(inputs)[:, 1:], atol=2e-5, rtol=0)


def test_without_query_positions_nothing_is_predicted_and_without_an_order_they_are_refused(rng: np.random.Generator) -> None:
    net, whole = tiny(), everything(rng)
    assert net.apply(random_params(net), dataclasses.replace(whole, query_at=None)).predicted is None
    with pytest.raises(ValueError, match="they would see what they are to predict"):
        net.apply(random_params(net), dataclasses.replace(whole, order=None))


def reached(net: Model, params: Any, batch: Batch, carry: Any = None) -> np.ndarray:
    """bool[B, P, T]: whether what is predicted depends on a token of its row, by derivatives that are exactly 0 or not."""
    probe = jnp.float32(np.random.default_rng(0).standard_normal(net.config.vocab))

    def said(table: Any) -> jax.Array:
        embed = {**params["embed"], "tokens": {"embedding": table}}
        out = net.apply({**params, "embed": embed}, batch, carry=carry)
        assert out.predicted is not None
        # By the table as it is: its use for the logits is no leak.
        return net.unembed(params, out.predicted)[..., : net.config.vocab] @ probe

    jacobian = np.asarray(jax.jit(jax.jacrev(said))(params["embed"]["tokens"]["embedding"]))
    rows = np.arange(len(batch.tokens))[:, None, None]
    places = np.arange(jacobian.shape[1])[None, :, None]
    return (jacobian[rows, places, np.asarray(batch.tokens)[:, None]] != 0).any(-1)


def visible(batch: Batch) -> np.ndarray:
    """bool[B, P, T]: tokens of the target's segment that come before it in the order."""
    order, at = np.asarray(batch.order), np.asarray(batch.query_at)
    earlier = order[:, None] < np.take_along_axis(order, at, 1)[..., None]
    if batch.segments is None:
        return earlier
    segments = np.asarray(batch.segments)
    return earlier & (segments[:, None] == np.take_along_axis(segments, at, 1)[..., None]) & (segments[:, None] > 0)


def targets(rng: np.random.Generator, **fields: Any) -> Batch:
    """Three rows of six tokens, all of them predicted in an order of their own."""
    order = jnp.asarray(orders(rng, 3, 6), jnp.int32)
    at = jnp.tile(jnp.arange(6), (3, 1))
    return Batch(tokens=1 + jnp.arange(18).reshape(3, 6), order=order, query_at=at, **fields)


@pytest.mark.full
@pytest.mark.parametrize("memory", [0, pytest.param(4, marks=pytest.mark.full)])
def test_a_target_depends_only_on_tokens_before_it_in_the_order(memory: int, rng: np.random.Generator) -> None:
    net = tiny(memory=memory)
    batch = targets(rng, segments=jnp.tile(jnp.array([1, 1, 1, 2, 2, 0]), (3, 1)) if memory else None)
    found = reached(net, random_params(net), batch, remembering(net, rng, (4, 2, 0)) if memory else None)
    np.testing.assert_array_equal(found, visible(batch))


@pytest.mark.parametrize(
    "leak",
    [{"strict": False}, pytest.param({"query_ranks": None, "key_ranks": None}, marks=pytest.mark.full)],
    ids=["itself", "the future"],
)
@pytest.mark.planted
def test_a_leak_is_caught(leak: dict[str, Any], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query stream that sees its own token; a content stream that sees later ones, which reaches targets by two layers."""
    net, batch = tiny(), targets(rng)
    strict = "strict" in leak

    def leaky(**given: Any) -> Mask:
        return Mask(**{**given, **(leak if given.get("strict", False) == strict else {})})

    monkeypatch.setattr(arithmetic, "Mask", leaky)
    found = reached(net, random_params(net), batch)
    assert (found & ~visible(batch)).any(-1).any(-1).all()
    if strict:
        assert found[:, np.arange(6), np.arange(6)].all()


@pytest.mark.full
def test_along_every_order_the_likelihood_is_the_chain_rules(rng: np.random.Generator) -> None:
    """All 120 orders of five words: each conditional computed alone in float64 from the words before it, the others absent."""
    net = tiny(vocab=7, layers=2)
    params, tokens = random_params(net), rng.integers(0, 7, 5)
    order = np.array(list(itertools.permutations(range(5))))
    ranks, places = np.argsort(order, axis=1), jnp.tile(jnp.arange(5), (120, 1))
    batch = Batch(tokens=jnp.tile(tokens, (120, 1)), order=jnp.asarray(ranks), query_at=places)
    predicted = jax.jit(net.apply)(params, batch).predicted
    logs = np.asarray(jax.nn.log_softmax(net.unembed(params, predicted)))[..., :7]
    found = logs[:, np.arange(5), tokens].sum(1)
    brute = np.zeros(120)
    for number, along in enumerate(order):
        for step, target in enumerate(along):
            before = along[:step]
            content = Seen(allowed=np.tri(step, dtype=bool), distance=before[:, None] - before)
            query = Seen(allowed=np.ones((1, step), bool), distance=target - before[None])
            _, predicted, _ = two_streams.forward(net.config, params, tokens[before], content, query)
            assert predicted is not None
            brute[number] += two_streams.log_probabilities(net.config, params, predicted)[0, tokens[target]]
    np.testing.assert_allclose(found, brute, atol=1e-4, rtol=0)
    assert np.ptp(brute) > 0.1, "orders that do not differ would show nothing"


@pytest.mark.full
@pytest.mark.planted
def test_rows_with_memory_equal_one_long_row(rng: np.random.Generator) -> None:
    """Three rows of four, each ordered in itself and behind the one before; no gradient reaches what is remembered."""
    net = tiny(memory=8)
    params, apply = random_params(net), jax.jit(net.apply)
    tokens = jnp.asarray(1 + np.arange(24).reshape(2, 12))
    order = np.stack([orders(rng, 2, 4) for _ in range(3)], 1)
    at = jnp.tile(jnp.arange(4), (2, 1))
    whole = (order + 4 * np.arange(3)[:, None]).reshape(2, 12)
    expected = apply(params, Batch(tokens=tokens, order=jnp.asarray(whole), query_at=jnp.tile(jnp.arange(12), (2, 1))))
    carry, found = net.init_carry(2), []
    rows = [Batch(tokens=tokens[:, 4 * n : 4 * n + 4], order=jnp.asarray(order[:, n]), query_at=at) for n in range(3)]
    for batch in rows:
        out = apply(params, batch, carry=carry)
        carry = out.carry
        found.append(out)
    for field in ("hidden", "predicted"):
        joined = np.concatenate([getattr(out, field) for out in found], 1)
        np.testing.assert_allclose(joined, getattr(expected, field), atol=2e-5, rtol=0)
    assert carry["filled"].tolist() == [8, 8]
    forgetful = apply(params, rows[2], carry=net.init_carry(2)).predicted
    assert np.abs(forgetful - found[2].predicted).max() > 1e-2

    def score(table: Any) -> jax.Array:
        given = {**params, "embed": {**params["embed"], "tokens": {"embedding": table}}}
        before = net.apply(given, rows[0], carry=net.init_carry(2)).carry
        predicted = net.apply(given, rows[1], carry=before).predicted
        assert predicted is not None
        return (predicted[..., 0] ** 2).sum()

    gradient = np.asarray(jax.jit(jax.grad(score))(params["embed"]["tokens"]["embedding"]))
    read = (gradient != 0).any(-1)
    assert not read[np.asarray(rows[0].tokens)].any() and read[np.asarray(rows[1].tokens)].any(-1).all()


@pytest.mark.full
@pytest.mark.parametrize(("memory", "reuse", "kept"), [(5, 2, 2), (3, 9, 4)])
def test_the_memory_has_the_inputs_of_a_rows_first_positions(
    memory: int, reuse: int, kept: int, rng: np.random.Generator
) -> None:
    """The inputs of its first positions, behind what was there; of the first layer, they are the embeddings."""
    net = tiny(memory=memory, reuse=reuse)
    params, carry = random_params(net), remembering(net, rng, (0, 2))
    batch = Batch(tokens=jnp.asarray(1 + np.arange(8).reshape(2, 4)))
    after = jax.jit(net.apply)(params, batch, carry=carry).carry
    embedded = params["embed"]["tokens"]["embedding"][batch.tokens]
    expected = np.concatenate([carry["hidden"][:, 0], embedded[:, :kept]], 1)[:, -memory:]
    np.testing.assert_array_equal(after["hidden"][:, 0], expected)
    assert after["filled"].tolist() == [min(memory, kept), min(memory, 2 + kept)]


@pytest.mark.full
@pytest.mark.planted
def test_unfilled_memory_slots_have_no_effect(rng: np.random.Generator) -> None:
    """Nor does an empty memory: it is as none. And whose memory is not asked for gives none back."""
    net = tiny(memory=5, compute=Compute(attention="xla"))
    params, apply, batch = random_params(net), compiled(net), everything(rng)
    carry = remembering(net, rng, (0, 2))
    other = {**carry, "hidden": carry["hidden"].at[0].set(99.0).at[1, :, :3].set(-99.0)}
    one, same, none = (apply(params, batch, carry=each) for each in (carry, other, {}))
    for field in ("hidden", "predicted"):
        np.testing.assert_array_equal(getattr(one, field), getattr(same, field))
        np.testing.assert_allclose(getattr(one, field)[0], getattr(none, field)[0], atol=1e-5)
        assert np.abs(getattr(one, field)[1] - getattr(none, field)[1]).max() > 1e-2
    assert none.carry == {} and net.apply(params, batch).carry == {}


def test_only_pretraining_has_memory_and_it_is_float32() -> None:
    """Pretraining with a memory; elsewhere rows do not continue each other. In bfloat16 the memory stays float32."""
    assert tiny(memory=0).init_carry(2) == {}
    assert tiny(memory=4, task="tokens", labels=("a", "b")).init_carry(2) == {}
    net = tiny(memory=4)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params(net))

    def shaped() -> tuple[jax.Array, Any]:
        out = net.apply(narrow, Batch(tokens=jnp.ones((2, 6), jnp.int32)), carry=net.init_carry(2))
        return out.hidden, out.carry

    hidden, carry = jax.eval_shape(shaped)
    assert (hidden.dtype, carry["hidden"].dtype, carry["filled"].dtype) == (jnp.bfloat16, jnp.float32, jnp.int32)


@pytest.mark.full
@pytest.mark.planted
def test_a_backward_row_is_its_text_read_from_the_other_end(rng: np.random.Generator) -> None:
    """Turned around, with what is said of its tokens; a forward row beside it is as without any backward one."""
    net = tiny(memory=5, compute=Compute(attention="xla"))
    params, apply = random_params(net), functools.partial(compiled(net), carry={})
    batch = dataclasses.replace(everything(rng), backward=None)
    mixed = apply(params, dataclasses.replace(batch, backward=jnp.array([False, True])))
    turned = {name: getattr(batch, name)[:, ::-1] for name in ("tokens", "segments", "types", "order")}
    forward = apply(params, batch)
    turned = apply(params, Batch(**turned, query_at=5 - batch.query_at))
    np.testing.assert_allclose(mixed.hidden[0], forward.hidden[0], atol=1e-5)
    np.testing.assert_allclose(mixed.predicted[0], forward.predicted[0], atol=1e-5)
    np.testing.assert_allclose(mixed.hidden[1], turned.hidden[1, ::-1], atol=1e-5)
    np.testing.assert_allclose(mixed.predicted[1], turned.predicted[1], atol=1e-5)
    assert np.abs(mixed.predicted[1] - forward.predicted[1]).max() > 1e-2


@pytest.mark.full
def test_the_two_streams_have_different_dropout() -> None:
    """Where nothing is read, and tokens are as the unknown one, both streams are alike but for what they drop."""
    net, rows = tiny(dropout=0.25), 64
    params = jax.tree_util.tree_map_with_path(
        lambda keys, leaf: jnp.full(leaf.shape, float(sharding.path_of(keys).endswith(("scale", "down/bias")))), shapes(net)
    )
    both = jnp.float32(np.random.default_rng(0).standard_normal(16))
    params["embed"] = {"tokens": {"embedding": jnp.tile(both, (128, 1))}, "mask": {"embedding": both}}
    order = jnp.tile(jnp.arange(8), (rows, 1))
    batch = Batch(tokens=jnp.zeros((rows, 8), jnp.int32), order=order, query_at=order)
    apply = jax.jit(net.apply)
    out, calm = apply(params, batch, seeds=seeds(rows)), apply(params, batch)
    np.testing.assert_array_equal(calm.hidden, calm.predicted)
    # The last dropout leaves zeros, and no other does.
    content, query = (np.asarray(each == 0).ravel() for each in (out.hidden, out.predicted))
    assert abs(content.mean() - 0.25) < 4 * np.sqrt(0.1875 / content.size) > abs(query.mean() - 0.25)
    assert abs(np.corrcoef(content, query)[0, 1]) < 4 / np.sqrt(content.size)
    # Of entries that both kept, what was dropped before differs.
    kept = ~content & ~query
    assert (np.asarray(out.hidden).ravel()[kept] != np.asarray(out.predicted).ravel()[kept]).mean() > 0.5
    # What is predicted does not change what is read.
    alone = apply(params, dataclasses.replace(batch, query_at=None), seeds=seeds(rows))
    np.testing.assert_allclose(alone.hidden, out.hidden, atol=1e-6)


@pytest.mark.full
def test_outputs_memory_and_gradients_are_the_same_on_a_mesh(rng: np.random.Generator) -> None:
    """Rows over data and fsdp, heads and vocabulary over tensor; and every gradient."""
    net, mesh = tiny(memory=4), device_mesh.make_mesh(run_config.Mesh(data=2, fsdp=2, tensor=2))
    params, batch, carry = random_params(net), everything(rng, rows=4), remembering(net, rng, (4, 2, 0, 4))

    def score(params: Any, batch: Batch, carry: Any) -> tuple[jax.Array, Any]:
        out = net.apply(params, batch, carry=carry)
        assert out.predicted is not None
        return jax.nn.log_softmax(net.unembed(params, out.predicted))[..., 7].mean(), (out.predicted, out.carry)

    step = jax.jit(jax.grad(score, has_aux=True))
    expected, said = step(params, batch, carry)
    placed = jax.device_put(params, sharding.shardings(mesh, params, net.definition.sharding))
    rows = jax.device_put((batch, carry), device_mesh.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        gradient, found = step(placed, *rows)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-5), found, said)
    assert_equal_gradients(jax.device_get(gradient), jax.device_get(expected))


@pytest.mark.full
def test_flops_of_pretraining(rng: np.random.Generator) -> None:
    """Both streams, memory, types and rows that run backwards; what is not there is not counted."""
    net = tiny(vocab=128, memory=4, compute=Compute(attention="xla"))
    whole, carry = everything(rng), net.init_carry(2)

    def said(params: Any, batch: Batch, carry: Any) -> Any:
        out = net.apply(params, batch, carry=carry)
        return net.unembed(params, out.hidden if out.predicted is None else out.predicted)

    for batch, given in (
        (whole, carry),
        (dataclasses.replace(whole, backward=None), carry),
        (dataclasses.replace(whole, types=None), carry),
        (dataclasses.replace(whole, order=None, query_at=None), {}),
    ):
        assert net.flops(batch) == dot_flops(lambda p, b=batch, c=given: said(p, b, c), shapes(net))


def temporary_bytes(impl: str, length: int) -> int:
    """Return the bytes that the compiled gradient of both streams needs beside its arguments and results, for 16 targets."""
    net = small("xlnet", task="permutation", layers=1, compute=Compute(attention=impl))  # pyright: ignore[reportArgumentType]
    whole, some = jax.ShapeDtypeStruct((1, length), jnp.int32), jax.ShapeDtypeStruct((1, 16), jnp.int32)
    batch = Batch(tokens=whole, types=whole, order=whole, query_at=some)  # pyright: ignore[reportArgumentType]
    gradient = jax.jit(jax.grad(lambda params, batch: net.apply(params, batch).predicted.sum()))
    return gradient.lower(shapes(net), batch).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.planted
@pytest.mark.slow
def test_memory_of_both_streams_is_linear_in_length() -> None:
    """At a fixed number of targets nothing of size T x T is stored; by `xla` it is, and that is noticed."""
    stored = {(impl, length): temporary_bytes(impl, length) for impl in ("blocked", "xla") for length in (512, 2048)}
    assert stored["blocked", 2048] < 4.5 * stored["blocked", 512]
    assert stored["xla", 2048] > 10 * stored["xla", 512]
    assert stored["blocked", 2048] < stored["xla", 2048] / 10
