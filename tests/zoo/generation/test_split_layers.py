"""Parameters and caches that are split into layers, on one CPU device, and are not elsewhere."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.config.run_config import Mesh
from train.engine import device_mesh
from zoo.generation.split_layers import split_cache, split_layers
from zoo.nn.kv_cache import Cache
from zoo.nn.layer_arrays import SplitLayers, add_free_slots, layer_slice, write_slots

PARAMS = {"layers": {"up": {"kernel": jnp.arange(24.0).reshape(2, 3, 4), "bias": jnp.ones((2, 4))}}, "embed": jnp.ones(2)}
K = jnp.arange(120.0).reshape(2, 3, 1, 5, 4)
CACHE = dataclasses.replace(Cache.empty(2, 3, 5, 1, 4, jnp.float32), k=K)


@pytest.mark.planted
def test_parameters_are_split_on_one_cpu_device_only() -> None:
    """Layers in another order are noticed."""
    split = jax.jit(split_layers)(PARAMS)

    def check(layers: tuple[Any, ...]) -> None:
        for index, layer in enumerate(layers):
            np.testing.assert_array_equal(layer["up"]["kernel"].array.T, PARAMS["layers"]["up"]["kernel"][index])
            np.testing.assert_array_equal(layer["up"]["bias"], PARAMS["layers"]["up"]["bias"][index])

    check(split["layers"])
    with pytest.raises(AssertionError):
        check(split["layers"][::-1])
    with jax.set_mesh(device_mesh.make_mesh(Mesh(fsdp=2, tensor=4))):
        assert jax.tree.structure(jax.eval_shape(split_layers, PARAMS)) == jax.tree.structure(PARAMS)


@pytest.mark.planted
def test_a_cache_is_split_as_its_parameters_are() -> None:
    """Layers in another order are noticed."""
    assert split_cache(CACHE, PARAMS) is CACHE
    params = split_layers(PARAMS)
    cache = split_cache(CACHE, params)
    k = cache.k
    assert isinstance(k, SplitLayers) and (k.shape, k.dtype) == (CACHE.k.shape, jnp.float32)

    def check(k: SplitLayers) -> None:
        for layer in range(2):
            np.testing.assert_array_equal(k[layer], CACHE.k[layer])

    check(k)
    with pytest.raises(AssertionError):
        check(SplitLayers(k.arrays[::-1]))
    for layer in range(2):
        for array in layer_slice((k, CACHE.k), layer):
            np.testing.assert_array_equal(array, CACHE.k[layer])
    new = -jnp.ones((3, 1, 2, 4))
    stack, stack_layer = write_slots(CACHE.k, 1, new, jnp.int32(2))
    split, split_layer = write_slots(k, 1, new, jnp.int32(2))
    np.testing.assert_array_equal(stack[1, :, :, 2:4], new)
    np.testing.assert_array_equal(stack_layer, split_layer)
    for layer, array in enumerate(add_free_slots(stack, 3)):
        np.testing.assert_array_equal(add_free_slots(split, 3)[layer], array)
        np.testing.assert_array_equal(array[:, :, 5:], 0)
    # A cache that is split remains as it is.
    assert split_cache(cache, params).k is k
