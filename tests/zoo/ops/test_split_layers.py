"""Parameters and caches that are split into layers, on one CPU device, and are not elsewhere."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.config.run_config import Mesh
from train.engine import device_mesh
from zoo.nn.kv_cache import Cache, split_cache
from zoo.ops import split_layers

PARAMS = {"layers": {"up": {"kernel": jnp.arange(24.0).reshape(2, 3, 4), "bias": jnp.ones((2, 4))}}, "embed": jnp.ones(2)}
K = jnp.arange(120.0).reshape(2, 3, 1, 5, 4)
CACHE = dataclasses.replace(Cache.empty(2, 3, 5, 1, 4, jnp.float32), k=K)


@pytest.mark.planted
def test_parameters_are_split_on_one_cpu_device_only() -> None:
    """Layers in another order are noticed."""
    split = jax.jit(split_layers.split_layers)(PARAMS)

    def check(layers: tuple[Any, ...]) -> None:
        for index, layer in enumerate(layers):
            np.testing.assert_array_equal(layer["up"]["kernel"].array.T, PARAMS["layers"]["up"]["kernel"][index])
            np.testing.assert_array_equal(layer["up"]["bias"], PARAMS["layers"]["up"]["bias"][index])

    check(split["layers"])
    with pytest.raises(AssertionError):
        check(split["layers"][::-1])
    with jax.set_mesh(device_mesh.make_mesh(Mesh(fsdp=2, tensor=4))):
        assert jax.tree.structure(jax.eval_shape(split_layers.split_layers, PARAMS)) == jax.tree.structure(PARAMS)


@pytest.mark.planted
def test_a_cache_is_split_as_its_parameters_are() -> None:
    """Layers in another order are noticed."""
    assert split_cache(CACHE, PARAMS) is CACHE
    params = split_layers.split_layers(PARAMS)
    cache = split_cache(CACHE, params)
    k = cache.k
    assert isinstance(k, split_layers.SplitLayers) and (k.shape, k.dtype) == (CACHE.k.shape, jnp.float32)

    def check(k: split_layers.SplitLayers) -> None:
        for layer in range(2):
            np.testing.assert_array_equal(k[layer], CACHE.k[layer])

    check(k)
    with pytest.raises(AssertionError):
        check(split_layers.SplitLayers(k.arrays[::-1]))
    for layer in range(2):
        for array in split_layers.layer_slice((k, CACHE.k), layer):
            np.testing.assert_array_equal(array, CACHE.k[layer])
    changed = k.replaced(1, jnp.zeros(3)).map(lambda array: array + 1)
    np.testing.assert_array_equal(changed[0], CACHE.k[0] + 1)
    np.testing.assert_array_equal(changed[1], jnp.ones(3))
    # A cache that is split remains as it is.
    assert split_cache(cache, params).k is k
