"""Tests that T5 and the Transformer have in common: a source, meshes, operations, and where they drop."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.gradients import assert_equal_gradients
from tests.support.layer_stack import dot_flops, loop
from tests.support.small import decode, home, loss, random_params, row, seeds, shapes, small, with_source
from train.config import run_config
from train.engine import device_mesh
from zoo import sharding
from zoo.configs import Compute
from zoo.nn import layers

PLAIN: dict[str, Any] = {"gated": False, "tied": False, "activation": "relu"}


@pytest.mark.full
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *(("t5", {"architecture": name}) for name in ("encoder_decoder", "shared", "decoder")),
        *(("t5", {"architecture": name, **PLAIN}) for name in ("encoder_decoder", "shared", "decoder")),
        ("transformer", {}),
        ("transformer", {"attention_bias": False, "output_bias": False, "sinusoids": "interleaved"}),
    ],
)
def test_flops_are_those_of_the_matrix_products(family: str, changes: dict[str, Any]) -> None:
    net = small(family, vocab=384, compute=Compute(attention="xla"), **changes)
    batch = row(20, 3)
    if changes.get("architecture") != "decoder":
        batch = dataclasses.replace(batch, source=row(12, 3))
    assert net.flops(batch) == dot_flops(lambda p: net.unembed(p, net.apply(p, batch).hidden), shapes(net))


@pytest.mark.full
@pytest.mark.parametrize(("family", "changes"), [("t5", PLAIN), ("transformer", {})])
def test_gradients_on_a_mesh_are_those_on_one_device(family: str, changes: dict[str, Any]) -> None:
    """Rows over data and fsdp, heads and vocabulary over tensor."""
    net, mesh = small(family, **changes), device_mesh.make_mesh(run_config.Mesh(data=2, fsdp=2, tensor=2))
    params, batch = random_params(net), with_source(net, row(8, 4))
    gradient = jax.grad(lambda params: loss(net, params, batch))
    expected = jax.jit(gradient)(params)
    placed = jax.device_put(params, sharding.shardings(mesh, params, net.definition.sharding))
    with jax.set_mesh(mesh):
        found = jax.jit(gradient)(placed)
    assert_equal_gradients(jax.device_get(found), jax.device_get(expected))


@pytest.mark.full
@pytest.mark.parametrize(("family", "places"), [("t5", 2 * 2 + 2 * 4 + 2 * 6), ("transformer", 2 + 2 * 2 + 2 * 3)])
def test_no_two_places_have_the_same_dropout(family: str, places: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of dropout, and of attention, gets seeds of its own: sides, layers and places of a layer all differ.

    T5 drops on each side embeddings and the last norm, and in each layer attention, its output, inner and outer feed-forward
    states, and cross-attention; the Transformer embeddings and the outputs of sub-layers alone.
    """
    net = small(family, dropout=0.1, compute=Compute(unroll=2))
    params, batch, sampled = random_params(net), with_source(net, row(4)), []

    def record(x: Any, rate: float, given: Any, site: int) -> Any:
        sampled.append((rate, layers.counter_rng.fold(given, site)))
        return x

    def record_attention(q: Any, k: Any, v: Any, **options: Any) -> Any:
        if options["dropout"] is not None:
            sampled.append(options["dropout"])
        return q

    monkeypatch.setattr(home(net, "dropout"), "dropout", record)
    monkeypatch.setattr(layers, "attention", record_attention)
    monkeypatch.setattr(home(net, "run_stack"), "run_stack", loop)
    monkeypatch.setattr(layers, "recomputed", lambda function: function)
    net.apply(params, batch, seeds=seeds(1))
    assert len(sampled) == places
    assert all(rate == 0.1 for rate, _ in sampled)
    assert len({tuple(np.asarray(each).ravel().tolist()) for _, each in sampled}) == len(sampled)


@pytest.mark.parametrize("family", ["t5", "transformer"])
def test_only_the_lookup_of_the_source_is_that_of_a_list(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = small(family)
    batch, sizes = dataclasses.replace(row(20), source=row(12)), []

    def record(table: jax.Array, ids: jax.Array) -> jax.Array:
        sizes.append(ids.shape[1])
        return table[ids]

    monkeypatch.setattr(layers, "lookup_of_two", record)
    jax.eval_shape(lambda params: net.apply(params, batch).hidden, shapes(net))
    assert sizes == [12]


def test_a_missing_or_needless_source_is_refused() -> None:
    shared, decoder, transformer = small("t5", architecture="shared"), small("t5", architecture="decoder"), small("transformer")
    for net, batch, message in (
        (shared, row(4), "an encoder-decoder takes a batch with a source"),
        (decoder, with_source(shared, row(4)), "a T5 of architecture decoder takes a batch without source"),
        (transformer, row(4), "an encoder-decoder takes a batch with a source"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(net.apply, shapes(net), batch)
    for net in (shared, transformer):
        cache = net.init_cache(1, 8, jnp.float32)
        with pytest.raises(ValueError, match=r"the first call of an encoder-decoder needs batch\.source"):
            jax.eval_shape(functools.partial(decode, net), shapes(net), row(4), cache)
