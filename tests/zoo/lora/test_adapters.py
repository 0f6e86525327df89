"""Adapters as parameters: their sum with the published matrices, their place, and the names that have none."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small import random_params, row, seeds, small, with_head, with_source
from train.config import run_config
from train.engine import device_mesh
from zoo import models, published_weights, sharding
from zoo.errors import BadInput
from zoo.hf.param_name_types import Layout
from zoo.lora import adapters
from zoo.lora.adapter_config import Adapters
from zoo.lora.adapters import Matrix
from zoo.models import Model
from zoo.ops import counter_rng
from zoo.ops.adapted_kernel import AdaptedKernel, linear, with_seeds
from zoo.published_weights import Leaf

MODELS = {**{name: (name, {}) for name in models.families()}, "t5-gated": ("t5", {"gated": True, "activation": "gelu"})}


def all_targets(net: Model) -> tuple[str, ...]:
    leaves = published_weights.present_leaves(net.config, net.names.prefixes[0])
    kernels = [leaf for leaf in leaves if leaf.path.endswith("kernel") and leaf.linear]
    names = {name for leaf in kernels for name in leaf.names[0] if name.endswith("weight")}
    return tuple(sorted({adapters.module_of(name).split(".")[-1] for name in names}))


def random_adapters(net: Model, spec: Adapters) -> dict[str, Any]:
    shapes = jax.eval_shape(lambda: adapters.init_adapters(net, spec, jax.random.key(0)))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.float32(0.1 * rng.standard_normal(leaf.shape)), shapes)


def published(net: Model, params: Any) -> dict[str, np.ndarray]:
    """Return every published tensor of parameters, by its name."""
    stored, tensors = adapters.flatten_tree(params), {}
    for leaf in published_weights.present_leaves(net.config, net.names.prefixes[0]):
        for layer, names in enumerate(leaf.names):
            array = np.asarray(stored[leaf.path][layer] if leaf.stacked else stored[leaf.path])
            tensors |= {name: leaf.layout.publish(array[: leaf.shape[0]], part) for part, name in enumerate(names)}
    return tensors


def dense_sums(net: Model, params: Any, spec: Adapters, trained: Any, *, mutant: bool = False) -> dict[str, np.ndarray]:
    """Return W + scale B A of every published matrix in float64, one at a time; the mutant has (B A)^T where W is square."""
    tensors, own = (
        {name: tensor.astype(np.float64) for name, tensor in published(net, params).items()},
        adapters.flatten_tree(trained),
    )
    scale = spec.alpha / (spec.rank**0.5 if spec.rslora else spec.rank)
    for matrix in adapters.adapted_matrices(net.config, spec.targets):
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
    merged = adapters.merge_adapters(net.config, spec, params, trained)
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
    shapes = jax.eval_shape(lambda: adapters.init_adapters(net, spec, jax.random.key(0)))
    placed = sharding.shardings(
        device_mesh.make_mesh(run_config.Mesh(fsdp=2), jax.devices()[:2]), shapes, adapters.adapter_sharding_rules(net, spec)
    )
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(placed))


@pytest.mark.parametrize(("family", "task"), [("gpt", "causal"), ("bert", "sequence"), ("t5", "text_to_text")])
def test_new_adapters_change_no_bit(family: str, task: str) -> None:
    net = with_head(family, task)
    spec = Adapters(rank=4, alpha=16.0, targets=adapters.default_targets(net.config))
    params = random_params(net)
    trained = adapters.init_adapters(net, spec, jax.random.key(3))
    heads = adapters.head_paths(net.config)
    own = adapters.flatten_tree(trained)
    for path in own.keys() - heads:
        if path.endswith("/b"):
            assert not np.asarray(own[path]).any()
        else:
            bound = own[path].shape[-1] ** -0.5
            assert bound > np.abs(own[path]).max() > 0.9 * bound and abs(np.asarray(own[path]).mean()) < 0.2 * bound
    trained = adapters.unflatten_tree(own | {path: leaf for path, leaf in adapters.flatten_tree(params).items() if path in heads})
    base = adapters.base_of(net.config, params)
    merged = adapters.merge_adapters(net.config, spec, base, trained)
    for path, leaf in adapters.flatten_tree(params).items():
        np.testing.assert_array_equal(leaf, adapters.flatten_tree(merged)[path])
    assert heads == ({"classifier/kernel", "classifier/bias"} if task == "sequence" else set())
    assert not heads & adapters.flatten_tree(base).keys() and heads <= own.keys()


@pytest.mark.planted
@pytest.mark.parametrize("name", MODELS)
def test_dropout_is_on_the_input_of_the_adapters_in_every_family(name: str) -> None:
    """Without seeds the model computes what it computes with the sum; with seeds it does not."""
    family, changes = MODELS[name]
    net = small(family, **changes)
    spec = Adapters(rank=3, alpha=4.0, targets=all_targets(net), dropout=0.5)
    params, trained, batch = random_params(net), random_adapters(net, spec), with_source(net, row(8, 2))
    merged = adapters.merge_adapters(net.config, spec, params, trained)
    adapted = adapters.with_adapters(net.config, spec, params, trained)
    hidden = jax.jit(lambda params, seeds: net.apply(params, batch, seeds=seeds).hidden)
    expected = np.asarray(hidden(merged, None))
    bound = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(hidden(adapted, None), expected, atol=bound, rtol=0)
    assert np.abs(np.asarray(hidden(adapted, seeds(2))) - expected).max() > 20 * bound
    none = dataclasses.replace(spec, dropout=0.0)
    same = adapters.with_adapters(net.config, none, params, trained)
    jax.tree.map(np.testing.assert_array_equal, same, merged)


def dense_product(
    matrix: Matrix, index: Any, x: Any, leaves: Any, masks: Any, *, factor: float, all_input: bool = False
) -> np.ndarray:
    """Return W x + B A (mask x factor) of each part in float64; with `all_input` also the input of W is masked."""
    kernel, a, b = (array[index] for array in leaves)
    summed = x.ndim - 2
    masked = masks[0] * factor * x if all_input else x
    y = np.tensordot(masked, kernel, summed)
    for number, part in enumerate(matrix.parts):
        one_a, one_b = (a[number], b[number]) if matrix.fused else (a, b)
        added = (masks[number] * factor * x).reshape(*x.shape[:2], -1) @ one_a.T @ one_b.T
        target = y[:, :, part] if matrix.fused else y
        target += added.reshape(target.shape)
    return y


LAYOUTS = {"d (c n h) -> d c n h": 1, "(n h) d -> d c n h": 3, "d (n h) -> n h d": 1}
"""Layout of a kernel -> the number of published matrices that it consists of."""


@pytest.mark.planted(3)
@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_product_is_that_of_peft_with_the_same_masks(layout: str, stacked: bool) -> None:
    """Each published matrix has a mask of its own. Three wrong products: without the factor, with one mask for all, and with the
    input of W dropped out as well."""
    parsed, rng, rate = Layout.parse(layout, 2), np.random.default_rng(0), 0.4
    sizes = {"d": 5, "c": 3, "n": 2, "h": 4}
    shape = tuple(sizes[axis] for axis in parsed.axes)
    summed = 2 if shape[-1] == sizes["d"] else 1
    names = tuple(f"{number}.weight" for number in range(LAYOUTS[layout]))
    lead = (2,) * stacked
    by_layer = (names,) * (2 if stacked else 1)
    leaf = Leaf(path="layers/x/kernel", stacked=stacked, shape=shape, padding=0, layout=parsed, linear=True, names=by_layer)
    matrix = Matrix(leaf=leaf, parts=(0, 2) if len(names) == 3 else (0,), input_first="(c n h)" in layout)
    leaves = [rng.standard_normal(size) for size in ((*lead, *shape), *matrix.shapes(rank=2).values())]
    x = rng.standard_normal((2, 7, *shape[:summed]))
    kernel, a, b = map(jnp.float32, leaves)
    adapted = with_seeds(matrix.adapted(kernel, a, b, rate), seeds(2))
    for index in [(layer,) * stacked for layer in range(2 if stacked else 1)]:
        one = jax.tree.map(lambda array, index=index: array[index], adapted)
        result = np.asarray(linear(jnp.float32(x), one, summed))
        coordinates = [jnp.arange(size, dtype=jnp.uint32) for size in x.shape[1:]]
        masks = [np.asarray(counter_rng.keep(counter_rng.fold(one.seeds, part), rate, *coordinates)) for part in matrix.parts]
        expected = dense_product(matrix, index, x, leaves, masks, factor=1 / (1 - rate))
        np.testing.assert_allclose(result, expected, atol=1e-4, rtol=0)
        wrong = [
            dense_product(matrix, index, x, leaves, masks, factor=1.0),
            dense_product(matrix, index, x, leaves, masks[:1] * 2 if matrix.fused else [~masks[0]], factor=1 / (1 - rate)),
            dense_product(matrix, index, x, leaves, masks, factor=1 / (1 - rate), all_input=True),
        ]
        assert min(np.abs(result - other).max() for other in wrong) > 0.1


def test_every_kernel_layer_and_example_has_its_own_mask() -> None:
    net = small("llama")
    spec = Adapters(rank=3, alpha=4.0, targets=all_targets(net)[:-1], dropout=0.5)
    base, trained = random_params(net), random_adapters(net, spec)
    leaves = jax.tree.leaves(
        with_seeds(adapters.with_adapters(net.config, spec, base, trained), seeds(2)),
        is_leaf=lambda x: isinstance(x, AdaptedKernel),
    )
    own = np.concatenate([np.reshape(leaf.seeds, (-1, 2)) for leaf in leaves if isinstance(leaf, AdaptedKernel)])
    assert len(np.unique(own, axis=0)) == len(own) > 8


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
        adapters.adapted_matrices(small(family).config, (target,))
    assert str(refusal.value).startswith(REFUSED[family, target])
