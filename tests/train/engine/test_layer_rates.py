"""Learning rates by depth and frozen parts: what moves, by how much, and what the rest of the optimizer sees of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small import small
from train.config.run_config import Optim
from train.engine import optim
from zoo.errors import BadInput
from zoo.sharding import path_of

PARAMS = {
    "embed": {"tokens": {"embedding": jnp.ones((5, 2))}},
    "layers": {"mlp": {"up": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2))}}},
    "classifier": {"kernel": jnp.ones((2, 2))},
}


def moved(cfg: Optim, grads: Any = None) -> dict[str, np.ndarray]:
    """The first update of each leaf."""
    grads = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), PARAMS) if grads is None else grads
    tx = optim.optimizer(cfg)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
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


APART = {**PARAMS, "first": {"layers": {"mlp": {"up": {"kernel": jnp.ones((1, 2, 2)), "bias": jnp.ones((1, 2))}}}}}


@pytest.mark.planted
def test_layers_that_are_held_apart_are_the_first_ones() -> None:
    """They are below the other stack, in decay and in freezing; under another name they would be a part of the head."""

    def shares(params: Any, cfg: Optim, rate: float) -> list[float]:
        scaled = optim._scale_updates(params, cfg, rate)
        stacks = (scaled["first"]["layers"] if "first" in scaled else scaled["head"]["layers"], scaled["layers"])
        return [float(share) for stack in stacks for share in stack["mlp"]["up"]["bias"][:, 0]]

    assert shares(APART, Optim(), 0.5) == [0.125, 0.25, 0.5, 1.0]
    assert shares(APART, Optim(freeze_layers=2), 1.0) == [0.0, 0.0, 1.0, 1.0]
    assert shares({**PARAMS, "head": APART["first"]}, Optim(freeze_layers=2), 1.0)[0] == 1.0


def test_a_model_of_two_stacks_has_no_rates_by_layer() -> None:
    for cfg in (Optim(layer_decay=0.5), Optim(freeze_layers=1), Optim(freeze_embeddings=True)):
        optim.check(cfg, small("gpt"))
        with pytest.raises(BadInput, match=r"^--optim\.layer-decay, .*: need a model with one stack of layers, and a tr"):
            optim.check(cfg, small("transformer"))


def test_frozen_parameters_do_not_change_and_their_gradients_are_ignored() -> None:
    """Not even by weight decay; and a gradient there that is no number reaches neither the norm nor anything else."""
    cfg = Optim(freeze_layers=2, freeze_embeddings=True, weight_decay=0.1, clip=1.0)
    grads = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), PARAMS)
    grads["embed"]["tokens"]["embedding"] = jnp.full((5, 2), 1e30)
    grads["layers"]["mlp"]["up"]["kernel"] = grads["layers"]["mlp"]["up"]["kernel"].at[0].set(jnp.nan)
    found = moved(cfg, grads)
    assert not found["embed/tokens/embedding"].any()
    assert not found["layers/mlp/up/kernel"][:2].any() and not found["layers/mlp/up/bias"][:2].any()
    alone = moved(Optim(weight_decay=0.1, clip=0.0))
    # 10 entries of 0.5 are left: the norm is what they alone have, and Adam's first step does not depend on it.
    np.testing.assert_allclose(found["layers/mlp/up/kernel"][2], alone["layers/mlp/up/kernel"][2], rtol=1e-5)
    np.testing.assert_allclose(found["classifier/kernel"], alone["classifier/kernel"], rtol=1e-5)
    assert moved(Optim(weight_decay=0.1))["embed/tokens/embedding"].any()
