"""Learning rates by depth and frozen parts: what moves, by how much, and what the optimizer sees of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small import random_params, small
from train.checkpoints.manifest import by_path
from train.config.run_config import Optim
from train.engine import optim
from train.weights.frozen_layers import join_params, split_params
from zoo.errors import BadInput
from zoo.sharding import path_of


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


PARAMS = {
    "embed": {"tokens": {"embedding": ones(5, 2)}},
    "layers": {"mlp": {"up": {"kernel": ones(3, 2, 2), "bias": ones(3, 2)}}},
    "classifier": {"kernel": ones(2, 2)},
}


def moved(cfg: Optim, grads: Any = None) -> dict[str, np.ndarray]:
    """The first update of each trained leaf."""
    params, _ = split_params(cfg, PARAMS)
    grads = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), params) if grads is None else grads
    tx = optim.make_optimizer(cfg)
    updates = jax.jit(lambda grads, params: tx.update(grads, tx.init(params), params)[0])(grads, params)
    return {path_of(keys): np.asarray(leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(updates)}


@pytest.mark.full
@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_layer_decay_multiplies_the_rate_of_each_layer(name: Any) -> None:
    plain, decayed = (moved(Optim(name=name, clip=0.0, layer_decay=rate)) for rate in (1.0, 0.5))
    shares = {"classifier/kernel": 1.0, "embed/tokens/embedding": 0.125}
    for path, share in shares.items():
        np.testing.assert_allclose(decayed[path], share * plain[path], rtol=1e-6)
    for path in ("layers/mlp/up/kernel", "layers/mlp/up/bias"):
        for layer, share in enumerate((0.25, 0.5, 1.0)):
            np.testing.assert_allclose(decayed[path][layer], share * plain[path][layer], rtol=1e-6)
            assert plain[path][layer].any()


APART = {**PARAMS, "first": {"layers": {"mlp": {"up": {"kernel": ones(1, 2, 2), "bias": ones(1, 2)}}}}}


@pytest.mark.planted
def test_layers_that_are_held_apart_are_the_first_ones() -> None:
    """They are below the other stack, in decay and in freezing; under another name they would be a part of the head."""

    def shares(params: Any, cfg: Optim) -> list[float]:
        """The share of the rate that each layer has; 0 = it is frozen."""
        trained, base = split_params(cfg, params)
        scaled = join_params(jax.tree.map(jnp.zeros_like, base), jax.jit(lambda tree: optim._scale_updates(tree, cfg))(trained))
        stacks = (scaled["first"]["layers"] if "first" in scaled else scaled["head"]["layers"], scaled["layers"])
        return [float(share) for stack in stacks for share in stack["mlp"]["up"]["bias"][:, 0]]

    assert shares(APART, Optim(layer_decay=0.5)) == [0.125, 0.25, 0.5, 1.0]
    assert shares(APART, Optim(freeze_layers=2)) == [0.0, 0.0, 1.0, 1.0]
    assert shares(APART, Optim(freeze_layers=1, layer_decay=0.5)) == [0.0, 0.25, 0.5, 1.0]
    assert shares({**PARAMS, "head": APART["first"]}, Optim(freeze_layers=2))[0] == 1.0


@pytest.mark.parametrize("frozen", range(4))
def test_frozen_layers_count_in_the_rates_of_others(frozen: int) -> None:
    """The embeddings are below all three layers, however many of them are trained."""
    cfg = Optim(clip=0.0, weight_decay=0.0, layer_decay=0.5, freeze_layers=frozen)
    decayed, plain = moved(cfg), moved(Optim(clip=0.0, weight_decay=0.0))
    np.testing.assert_allclose(decayed["embed/tokens/embedding"], 0.125 * plain["embed/tokens/embedding"], rtol=1e-6)
    for layer in range(3 - frozen):
        share = 0.5 ** (2 - frozen - layer)
        np.testing.assert_allclose(decayed["layers/mlp/up/bias"][layer], share * plain["layers/mlp/up/bias"][0], rtol=1e-6)
    assert ("layers/mlp/up/bias" in decayed) == (frozen < 3)


@pytest.mark.parametrize("family", ["bert", "distilbert", "ettin_decoder", "gpt", "gpt_oss", "llama", "modernbert", "xlnet"])
def test_both_parts_of_a_model_are_its_parameters(family: str) -> None:
    """Each entry is in one of them, and no leaf is empty, whatever number of layers is frozen."""
    net = small(family)
    params, join = jax.device_get(random_params(net)), jax.jit(join_params)
    for layers in range(net.config.layers + 1):
        for embeddings in (False, True):
            cfg = Optim(freeze_layers=layers, freeze_embeddings=embeddings)
            trained, base = split_params(cfg, params)
            assert all(leaf.size for leaf in jax.tree.leaves((trained, base)))
            sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (trained, base, params)]
            assert sizes[0] + sizes[1] == sizes[2]
            stacks = {path: leaf for path, leaf in by_path(trained).items() if path.endswith("out/kernel")}
            assert sum(len(leaf) for leaf in stacks.values()) == net.config.layers - layers
            assert ("embed" in trained, "embed" in base) == (not embeddings, embeddings)
            jax.tree.map(np.testing.assert_array_equal, join(base, trained), params)


def test_a_model_of_two_stacks_has_no_rates_by_layer() -> None:
    for cfg in (Optim(layer_decay=0.5), Optim(freeze_layers=1), Optim(freeze_embeddings=True)):
        optim.check_optimizer(cfg, small("gpt"))
        with pytest.raises(BadInput, match=r"^--optim\.layer-decay, .*: need a model with one stack of layers, and a tr"):
            optim.check_optimizer(cfg, small("transformer"))


def test_frozen_parameters_are_not_seen_by_the_optimizer() -> None:
    """Not even if their gradient would be no number: there is none."""
    cfg = Optim(freeze_layers=2, freeze_embeddings=True, weight_decay=0.1, clip=1.0)
    params = jax.tree.map(np.copy, PARAMS)
    params["layers"]["mlp"]["up"]["kernel"][0] = 0.0

    def loss(params: Any) -> jax.Array:
        undefined = 0.0 * jnp.sqrt(params["layers"]["mlp"]["up"]["kernel"][0]).sum()
        return undefined + 0.5 * sum(leaf.sum() for leaf in jax.tree.leaves(params))

    assert np.isnan(jax.jit(jax.grad(loss))(params)["layers"]["mlp"]["up"]["kernel"][0]).all()
    trained, base = split_params(cfg, params)
    grads = jax.jit(jax.grad(lambda trained: loss(join_params(base, trained))))(trained)
    assert {path: leaf.shape for path, leaf in by_path(grads).items()} == {
        "layers/mlp/up/kernel": (1, 2, 2),
        "layers/mlp/up/bias": (1, 2),
        "classifier/kernel": (2, 2),
    }
    # 10 entries of 0.5 are left: the norm is what they alone have, and Adam's first step does not depend on it.
    np.testing.assert_allclose(optim.gradient_norm(grads), 0.5 * 10**0.5, rtol=1e-6)
    clipped, alone = moved(cfg, grads), moved(Optim(weight_decay=0.1, clip=0.0))
    np.testing.assert_allclose(clipped["layers/mlp/up/kernel"][0], alone["layers/mlp/up/kernel"][2], rtol=1e-5)
    np.testing.assert_allclose(clipped["classifier/kernel"], alone["classifier/kernel"], rtol=1e-5)
    assert moved(Optim(weight_decay=0.1))["embed/tokens/embedding"].any()
