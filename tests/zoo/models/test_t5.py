"""T5 beyond what every family keeps: its architectures, a prefix, packed examples, decoding, and how it begins."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.gradients import assert_equal_gradients
from tests.support.small import decode, random_params, reversed_layers, row, sees, shapes, small, with_source
from zoo.batch import Batch
from zoo.configs.t5 import Architecture
from zoo.models import Model
from zoo.nn import layers


def of(architecture: Architecture, **changes: Any) -> Model:
    return small("t5", architecture=architecture, **changes)


def test_a_prefix_is_read_in_both_directions() -> None:
    """By ranks: 0 for the prefix; and by another segment's nobody."""
    net = of("decoder")
    order = jnp.array([[0, 0, 0, 1, 2, 0, 0, 1]])
    segments = jnp.array([[1] * 5 + [2] * 3])
    batch = row(8, order=order, segments=segments)
    ranks, own = np.asarray(order[0]), np.asarray(segments[0])
    expected = (ranks[None] <= ranks[:, None]) & (own[None] == own[:, None])
    np.testing.assert_array_equal(sees(net, random_params(net), batch), expected)


@pytest.mark.full
@pytest.mark.planted
def test_a_prefix_distinguishes_distances_in_both_directions() -> None:
    """The buckets of both directions: to one layer it is all the same how two tokens ahead are ordered only if a bias is."""
    net = of("decoder", layers=1, decoder_layers=1)
    params, order = random_params(net), jnp.zeros((1, 4), jnp.int32)
    tokens = jnp.array([[1, 2, 3, 4], [1, 3, 2, 4]])

    def first(params: Any) -> np.ndarray:
        hidden = jax.jit(net.apply)(params, Batch(tokens=tokens, order=jnp.tile(order, (2, 1)))).hidden
        return np.abs(hidden[0, 0] - hidden[1, 0]).max()

    assert first(params) > 1e-2
    blind = {**params["decoder"], "relative": {"embedding": jnp.ones_like(params["decoder"]["relative"]["embedding"])}}
    assert first({**params, "decoder": blind}) < 1e-5


@pytest.mark.full
def test_packed_examples_have_the_loss_and_the_gradients_of_rows_of_their_own() -> None:
    """Two examples in a row, of other lengths on either side, against each alone."""
    net, rng = of("encoder_decoder"), np.random.default_rng(0)
    params = random_params(net)
    sizes = {"source": (7, 4), "target": (3, 5)}
    parts = {side: [rng.integers(1, 300, size) for size in of_both] for side, of_both in sizes.items()}

    def packed(side: str) -> Batch:
        tokens = jnp.array([[*np.concatenate(parts[side]), 0, 0]], jnp.int32)
        segments = jnp.array([[number for number, size in enumerate(sizes[side], 1) for _ in range(size)] + [0, 0]])
        return Batch(tokens=tokens, segments=segments)

    def loss(params: Any, batch: Batch) -> jax.Array:
        logits = net.unembed(params, net.apply(params, batch).hidden)
        counted = 1 if batch.segments is None else batch.segments > 0
        return -(jax.nn.log_softmax(logits)[..., 7] * counted).sum()

    step = jax.jit(jax.value_and_grad(loss))
    value, gradient = step(params, dataclasses.replace(packed("target"), source=packed("source")))
    alone = [
        step(params, Batch(tokens=jnp.int32(target[None]), source=Batch(tokens=jnp.int32(source[None]))))
        for source, target in zip(parts["source"], parts["target"], strict=True)
    ]
    assert float(value) == pytest.approx(sum(float(each) for each, _ in alone), rel=1e-6)
    assert_equal_gradients(gradient, jax.tree.map(jnp.add, alone[0][1], alone[1][1]))


@pytest.mark.full
def test_shared_stacks_equal_two_stacks_with_equal_parameters() -> None:
    """The same hidden states; and a shared leaf's gradient is the sum of those that its two copies have."""
    shared, apart = of("shared"), of("encoder_decoder")
    params = random_params(shared)
    both = {name: params["decoder"]["layers"][name] for name in ("norm1", "attention", "norm2", "mlp")}
    copied = {**params, "encoder": {**params["encoder"], "layers": both, "norm": params["decoder"]["norm"]}}
    assert jax.tree.map(jnp.shape, copied) == jax.tree.map(lambda leaf: leaf.shape, shapes(apart))
    batch = with_source(shared, row(8, 2))

    def loss(params: Any, net: Model) -> tuple[jax.Array, jax.Array]:
        hidden = net.apply(params, batch).hidden
        return jax.nn.log_softmax(net.unembed(params, hidden))[..., 7].mean(), hidden

    (_, ours), gradient = jax.jit(jax.value_and_grad(functools.partial(loss, net=shared), has_aux=True))(params)
    (_, theirs), expected = jax.jit(jax.value_and_grad(functools.partial(loss, net=apart), has_aux=True))(copied)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    encoder, decoder = expected["encoder"], expected["decoder"]
    summed = {**decoder["layers"], **jax.tree.map(jnp.add, encoder["layers"], {name: decoder["layers"][name] for name in both})}
    joined = {**decoder, "layers": summed, "norm": jax.tree.map(jnp.add, encoder["norm"], decoder["norm"])}
    assert_equal_gradients(gradient, {**expected, "encoder": {"relative": encoder["relative"]}, "decoder": joined})


def test_equal_tables_in_all_layers_are_one_table() -> None:
    """The same hidden states as umT5; and the gradient of the one table is the sum of those of the layers' tables."""
    one, many = of("encoder_decoder"), of("encoder_decoder", bias_per_layer=True)
    params, batch = random_params(one), with_source(one, row(8, 2))
    copied: dict[str, Any] = dict(params)
    for side, layers_of_side in (("encoder", one.config.layers), ("decoder", one.config.decoder_layers)):
        tables = jax.tree.map(lambda leaf, count=layers_of_side: jnp.stack([leaf] * count), params[side]["relative"])
        rest = {name: leaf for name, leaf in params[side].items() if name != "relative"}
        copied[side] = {**rest, "layers": {**params[side]["layers"], "relative": tables}}
    assert jax.tree.map(jnp.shape, copied) == jax.tree.map(lambda leaf: leaf.shape, shapes(many))

    def loss(params: Any, net: Model) -> tuple[jax.Array, jax.Array]:
        hidden = net.apply(params, batch).hidden
        return jax.nn.log_softmax(net.unembed(params, hidden))[..., 7].mean(), hidden

    (_, ours), gradient = jax.jit(jax.value_and_grad(functools.partial(loss, net=one), has_aux=True))(params)
    (_, theirs), apart = jax.jit(jax.value_and_grad(functools.partial(loss, net=many), has_aux=True))(copied)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    for side in ("encoder", "decoder"):
        summed = apart[side]["layers"]["relative"]["embedding"].sum(0)
        np.testing.assert_allclose(gradient[side]["relative"]["embedding"], summed, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize(
    ("architecture", "prefix", "per_layer"),
    [("encoder_decoder", False, False), ("encoder_decoder", False, True), ("shared", False, False), ("decoder", True, False)],
)
def test_decoding_equals_applying(architecture: Architecture, prefix: bool, per_layer: bool) -> None:
    """Prompts padded in front, two examples packed into a source, the rest token by token; a prefix at once."""
    net = of(architecture, gated=False, tied=False, bias_per_layer=per_layer)
    params, rows, length, given_at_once = random_params(net), 3, 8, 5
    rng = np.random.default_rng(0)
    tokens = jnp.int32(rng.integers(1, 300, (rows, length)))
    segments = jnp.int32(np.arange(length) >= np.array([0, 2, 4])[:, None])
    order = jnp.maximum(jnp.arange(length) - given_at_once + 1, 0) * jnp.ones((rows, 1), jnp.int32) if prefix else None
    source = None
    if architecture != "decoder":
        kinds = jnp.int32(np.array([[1] * 9, [1] * 4 + [0] * 5, [2] * 4 + [1] * 5]))
        source = Batch(tokens=jnp.int32(rng.integers(1, 300, (rows, 9))), segments=kinds)
    batch = Batch(tokens=tokens, segments=segments, order=order, source=source)
    expected = jax.jit(net.apply)(params, batch).hidden
    step, cache, found = jax.jit(functools.partial(decode, net)), net.init_cache(rows, 10, jnp.float32), []
    for first, last in ((0, given_at_once), *((at, at + 1) for at in range(given_at_once, length))):
        cut = Batch(
            tokens=tokens[:, first:last],
            segments=segments[:, first:last],
            # What comes after a prefix needs no ranks.
            order=None if order is None or first else order[:, :last],
            source=None if first else source,
        )
        hidden, cache = step(params, cut, cache)
        found.append(hidden)
    real = np.asarray(segments, bool)
    np.testing.assert_allclose(np.concatenate(found, 1)[real], np.asarray(expected)[real], atol=2e-5, rtol=0)


def test_root_mean_square_norm() -> None:
    """Against float64; no mean is taken out, and in bfloat16 the statistics are float32."""
    rng = np.random.default_rng(0)
    x, scale = rng.standard_normal((3, 64)) + 2, rng.standard_normal(64)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(layers.rms_norm(jnp.float32(x), jnp.float32(scale), 1e-6), expected, rtol=2e-6)
    short = layers.rms_norm(jnp.bfloat16(x), jnp.ones(64, jnp.bfloat16), 1e-6)
    rounded = np.float64(jnp.bfloat16(x))
    assert short.dtype == jnp.bfloat16
    # Its own rounding alone, half a unit of 2^-7.
    np.testing.assert_allclose(np.float64(short), rounded / np.sqrt((rounded**2).mean(-1, keepdims=True) + 1e-6), rtol=2**-8)


@pytest.mark.full
def test_what_fresh_parameters_are_like() -> None:
    """Within 4 deviations of the estimate: normal, queries the narrower, the table wide."""
    net = of("encoder_decoder", gated=False, tied=False, width=64, heads=4, head=16, ffn=160)
    params = jax.jit(net.init)(jax.random.key(0))
    kernels = params["decoder"]["layers"]
    drawn = {
        "table": (params["embed"]["tokens"]["embedding"][:300], 1.0),
        "unembed": (params["unembed"]["embedding"][:300], 1.0),
        "q": (kernels["attention"]["qkv"]["kernel"][:, :, 0], (64 * 16) ** -0.5),
        "k": (kernels["attention"]["qkv"]["kernel"][:, :, 1], 64**-0.5),
        "v": (kernels["attention"]["qkv"]["kernel"][:, :, 2], 64**-0.5),
        "cross q": (kernels["cross"]["q"]["kernel"], (64 * 16) ** -0.5),
        "cross kv": (kernels["cross"]["kv"]["kernel"], 64**-0.5),
        "out": (kernels["attention"]["out"]["kernel"], 64**-0.5),
        "up": (kernels["mlp"]["up"]["kernel"], 64**-0.5),
        "down": (kernels["mlp"]["down"]["kernel"], 160**-0.5),
        "relative": (params["encoder"]["relative"]["embedding"], 64**-0.5),
    }
    for name, (leaf, deviation) in drawn.items():
        assert np.std(leaf) == pytest.approx(deviation, rel=4 / np.sqrt(2 * leaf.size)), name
    assert (params["encoder"]["norm"]["scale"] == 1).all() and (kernels["norm3"]["scale"] == 1).all()


@pytest.mark.full
@pytest.mark.planted
def test_the_layers_are_applied_in_their_order() -> None:
    net = of("encoder_decoder")
    params, batch = random_params(net), with_source(net, row(8))
    assert (
        np.abs(jax.jit(net.apply)(params, batch).hidden - jax.jit(net.apply)(reversed_layers(params), batch).hidden).max() > 1e-2
    )
