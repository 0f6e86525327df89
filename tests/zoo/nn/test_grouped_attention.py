"""Self-attention with grouped heads against float64 loops over its heads, whole and token by token."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo import sharding
from zoo.attention.masks import Mask
from zoo.configs import Compute
from zoo.nn.grouped_attention import GroupedSelfAttention
from zoo.nn.kv_cache import Cache, view_of
from zoo.nn.layers import params_of
from zoo.ops import positions

ROWS, LENGTH, WIDTH, HEADS, KV_HEADS, HEAD, EPS = 2, 5, 12, 4, 2, 6, 1e-5


def module(*, biases: bool, norms: bool) -> GroupedSelfAttention:
    """A module whose parameters are all random, scales and biases too."""
    init, rngs = jax.nn.initializers.normal(0.5), nnx.Rngs(0)
    options: dict[str, Any] = {"qkv_biases": biases, "out_bias": biases, "norm_eps": EPS if norms else None}
    layer = GroupedSelfAttention(WIDTH, HEADS, KV_HEADS, HEAD, init, init, rngs, **options)
    rng = np.random.default_rng(1)
    leaves = jax.tree.map(lambda leaf: leaf + jnp.float32(0.3 * rng.standard_normal(leaf.shape)), params_of(layer))
    return nnx.merge(nnx.graphdef(layer), leaves)


def by_loops(layer: GroupedSelfAttention, x: np.ndarray, rotate: Any) -> np.ndarray:
    """Return the output in float64: one query, one head after the other."""
    leaves: Any = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params_of(layer))

    def heads(name: str) -> np.ndarray:
        y = np.einsum("btd,dnh->btnh", x, leaves[name]["kernel"]) + leaves[name].get("bias", 0)
        if f"{name}_norm" in leaves:
            y = y / np.sqrt((y**2).mean(-1, keepdims=True) + EPS) * leaves[f"{name}_norm"]["scale"]
        return y

    q, k, v = rotate(heads("q")), rotate(heads("k")), heads("v")
    mixed = np.zeros((*x.shape[:2], HEADS, HEAD))
    for b, t, n in np.ndindex(*mixed.shape[:3]):
        group = n // (HEADS // KV_HEADS)
        scores = np.exp(k[b, : t + 1, group] @ q[b, t, n] / np.sqrt(HEAD))
        mixed[b, t, n] = scores @ v[b, : t + 1, group] / scores.sum()
    return np.einsum("btnh,nhd->btd", mixed, leaves["out"]["kernel"]) + leaves["out"].get("bias", 0)


@pytest.mark.parametrize(("biases", "norms"), [(False, False), (True, True)])
def test_output_and_decoding(biases: bool, norms: bool) -> None:
    """Equal to the loops; and with a cache, of as many heads as keys have, five tokens one by one are those of the row."""
    layer = module(biases=biases, norms=norms)
    x = np.random.default_rng(2).standard_normal((ROWS, LENGTH, WIDTH)).astype(np.float32)
    at = jnp.asarray([[0, 1, 2, 3, 4], [3, 5, 6, 9, 10]])
    rotation = positions.rotation(at, HEAD)
    rotate = functools.partial(positions.rotate, rotation=rotation)
    options: dict[str, Any] = {"dropout": 0.0, "seeds": None, "compute": Compute(attention="reference")}
    y, _ = layer(jnp.asarray(x), Mask(causal=True), rotate=rotate, **options)
    cos, sin = (np.asarray(part, np.float64) for part in rotation)
    halves = lambda z: np.split(z, 2, -1)  # noqa: E731
    exact = by_loops(
        layer, x, lambda z: np.concatenate([halves(z)[0] * cos - halves(z)[1] * sin, halves(z)[1] * cos + halves(z)[0] * sin], -1)
    )
    # A sum of 24 products of numbers up to 10, whose factors have a few roundings each.
    np.testing.assert_allclose(y, exact, rtol=0, atol=24 * 100 * 2.0**-24)

    past, columns = view_of(Cache.empty(1, ROWS, LENGTH, KV_HEADS, HEAD, jnp.float32)), []
    for t in range(LENGTH):
        keys = jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))
        mask = Mask(causal=True, query_positions=keys[:, t : t + 1], key_positions=keys)
        turn = functools.partial(positions.rotate, rotation=(rotation[0][:, t : t + 1], rotation[1][:, t : t + 1]))
        assert past is not None
        view = dataclasses.replace(past, at=jnp.int32(t))
        column, past = layer(jnp.asarray(x[:, t : t + 1]), mask, view, jnp.int32(0), rotate=turn, **options)
        columns.append(column)
    np.testing.assert_allclose(np.concatenate(columns, 1), y, rtol=0, atol=24 * 100 * 2.0**-24)


def test_leaves_and_their_sharding() -> None:
    """Heads are split over the tensor axis, norms of heads over none."""
    paths = {
        sharding.path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params_of(module(biases=True, norms=True)))
    }
    kernels, biases = {f"{name}/kernel" for name in ("q", "k", "v", "out")}, {f"{name}/bias" for name in ("q", "k", "v", "out")}
    assert paths == kernels | biases | {"q_norm/scale", "k_norm/scale"}
    axes = {path: tuple(sharding.leaf_spec(f"attention/{path}", sharding.RULES)) for path in paths}
    assert axes["k/kernel"] == ("fsdp", "tensor", None) and axes["v/bias"] == ("tensor", None) and axes["q_norm/scale"] == (None,)
