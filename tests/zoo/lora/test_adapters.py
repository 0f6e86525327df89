"""Adapters as parameters: their sum with the published matrices, their place, and the names that have none."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small import random_params, small, with_head
from train.config import run_config
from train.engine import device_mesh
from zoo import models, published_weights, sharding
from zoo.errors import BadInput
from zoo.lora import adapters
from zoo.lora.adapter_config import Adapters
from zoo.models import Model

MODELS = {**{name: (name, {}) for name in models.families()}, "t5-gated": ("t5", {"gated": True, "activation": "gelu"})}


def all_targets(net: Model) -> tuple[str, ...]:
    leaves = published_weights.present_leaves(net.config, net.names.prefixes[0])
    kernels = [leaf for leaf in leaves if leaf.path.endswith("kernel") and leaf.linear]
    names = {name for leaf in kernels for name in leaf.names[0] if name.endswith("weight")}
    return tuple(sorted({adapters.module_of(name).split(".")[-1] for name in names}))


def random_adapters(net: Model, spec: Adapters) -> dict[str, Any]:
    shapes = jax.eval_shape(lambda: adapters.init(net, spec, jax.random.key(0)))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.float32(0.1 * rng.standard_normal(leaf.shape)), shapes)


def published(net: Model, params: Any) -> dict[str, np.ndarray]:
    """Return every published tensor of parameters, by its name."""
    stored, tensors = adapters.flat(params), {}
    for leaf in published_weights.present_leaves(net.config, net.names.prefixes[0]):
        for layer, names in enumerate(leaf.names):
            array = np.asarray(stored[leaf.path][layer] if leaf.stacked else stored[leaf.path])
            tensors |= {name: leaf.layout.publish(array[: leaf.shape[0]], part) for part, name in enumerate(names)}
    return tensors


def dense_sums(net: Model, params: Any, spec: Adapters, trained: Any, *, mutant: bool = False) -> dict[str, np.ndarray]:
    """Return W + scale B A of every published matrix in float64, one at a time; the mutant has (B A)^T where W is square."""
    tensors, own = {name: tensor.astype(np.float64) for name, tensor in published(net, params).items()}, adapters.flat(trained)
    scale = spec.alpha / (spec.rank**0.5 if spec.rslora else spec.rank)
    for matrix in adapters.matrices(net.config, spec.targets):
        a, b = (np.float64(own[f"{matrix.path}/{name}"]) for name in "ab")
        for layer, names in enumerate(matrix.leaf.names):
            for number, part in enumerate(matrix.parts):
                index = (layer,) * matrix.leaf.stacked + (number,) * matrix.fused
                product = scale * b[index] @ a[index]
                transposed = (net.family == "gpt") != (mutant and len(set(product.shape)) == 1)
                tensors[names[part]] = tensors[names[part]] + (product.T if transposed else product)
    return tensors


@pytest.mark.planted
@pytest.mark.parametrize("name", MODELS)
def test_the_sum_is_the_dense_one_in_float64(name: str) -> None:
    """Of every matrix that can have adapters; a sum with the transposed product is another one."""
    family, changes = MODELS[name]
    net = small(family, **({"task": "masked"} if family == "bert" else {}), **changes)
    spec = Adapters(rank=3, alpha=4.0, targets=all_targets(net), rslora=family == "gpt")
    params, trained = random_params(net), random_adapters(net, spec)
    merged = adapters.merge(net.config, spec, params, trained)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    tensors, expected = published(net, merged), dense_sums(net, params, spec, trained)
    for tensor_name, tensor in tensors.items():
        # Three products and two sums of numbers below 4, each rounded once.
        np.testing.assert_allclose(tensor, expected[tensor_name], atol=6 * 4 * 2**-24, rtol=0)
    wrong = dense_sums(net, params, spec, trained, mutant=True)
    assert family == "xlnet" or max(np.abs(tensor - wrong[name]).max() for name, tensor in tensors.items()) > 0.01


@pytest.mark.parametrize("family", models.families())
def test_every_adapter_has_its_row_in_the_sharding_table(family: str) -> None:
    """Also in ModernBERT and Ettin, whose first layer is a stack of its own, the name of which ends like that of the others."""
    net = small(family)
    spec = Adapters(rank=2, alpha=2.0, targets=all_targets(net))
    shapes = jax.eval_shape(lambda: adapters.init(net, spec, jax.random.key(0)))
    placed = sharding.shardings(
        device_mesh.make_mesh(run_config.Mesh(fsdp=2), jax.devices()[:2]), shapes, adapters.rules(net, spec)
    )
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(placed))


@pytest.mark.parametrize(("family", "task"), [("gpt", "causal"), ("bert", "sequence"), ("t5", "text_to_text")])
def test_new_adapters_change_no_bit(family: str, task: str) -> None:
    net = with_head(family, task)
    spec = Adapters(rank=4, alpha=16.0, targets=adapters.default_targets(net.config))
    params = random_params(net)
    trained = adapters.init(net, spec, jax.random.key(3))
    heads = adapters.head_paths(net.config)
    own = adapters.flat(trained)
    for path in own.keys() - heads:
        if path.endswith("/b"):
            assert not np.asarray(own[path]).any()
        else:
            bound = own[path].shape[-1] ** -0.5
            assert bound > np.abs(own[path]).max() > 0.9 * bound and abs(np.asarray(own[path]).mean()) < 0.2 * bound
    trained = adapters.nested(own | {path: leaf for path, leaf in adapters.flat(params).items() if path in heads})
    base = adapters.base_of(net.config, params)
    merged = adapters.merge(net.config, spec, base, trained)
    for path, leaf in adapters.flat(params).items():
        np.testing.assert_array_equal(leaf, adapters.flat(merged)[path])
    assert heads == ({"classifier/kernel", "classifier/bias"} if task == "sequence" else set())
    assert not heads & adapters.flat(base).keys() and heads <= own.keys()


REFUSED = {
    ("gpt", "wte"): "--lora.targets wte: a table of embeddings; adapters are on matrices; choose from c_attn, c_proj, c_fc",
    ("gpt", "c_atn"): "--lora.targets c_atn: no matrix of a gpt has this name; the nearest is c_attn; choose from",
    ("gpt", "h.0.attn.c_attn"): "--lora.targets h.0.attn.c_attn: it names some of the 2 layers; all of them have adapters",
    ("gpt", "attn"): "--lora.targets attn: no matrix of a gpt has this name",
    ("xlnet", "q"): "--lora.targets q: not the weight of a linear layer, to which alone peft's adapters of modules apply",
    (
        "gpt_oss",
        "router",
    ): "--lora.targets router: not the weight of a linear layer, to which alone peft's adapters of modules apply",
    (
        "gpt_oss",
        "gate_up_proj",
    ): "--lora.targets gate_up_proj: not the weight of a linear layer, to which alone peft's adapters of modules apply",
    (
        "gpt_oss",
        "down_proj",
    ): "--lora.targets down_proj: not the weight of a linear layer, to which alone peft's adapters of modules apply",
}


@pytest.mark.planted(len(REFUSED))
@pytest.mark.parametrize(("family", "target"), REFUSED)
def test_a_target_without_a_matrix_is_refused(family: str, target: str) -> None:
    with pytest.raises(BadInput) as refusal:
        adapters.matrices(small(family).config, (target,))
    assert str(refusal.value).startswith(REFUSED[family, target])
