"""Arrays with a first axis over the layers of a stack, such as the keys of a cache: one array, or an array for each layer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from zoo.mesh_axes import HEADS
from zoo.sharding import BATCH, constrain

LayerIndex = int | Int[Array, ""]
"""The number of a layer: an int where `zoo.nn.layer_stack.run_stack` loops in Python, and an array inside its scan."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SplitLayers:
    """An array with a first axis over layers as an array for each layer; see `zoo.generation.split_layers`."""

    arrays: Any
    """A tuple of arrays, or of their shapes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array with all layers."""
        return (len(self.arrays), *self.arrays[0].shape)

    @property
    def dtype(self) -> Any:
        return self.arrays[0].dtype

    def __getitem__(self, layer: int) -> Any:
        """Return the array of a layer, or its shape."""
        return self.arrays[layer]


LayerArrays = Any
"""An array [L, ...], or `SplitLayers` of arrays [...]."""


def layer_slice(tree: Any, layer: int) -> Any:
    """Return the slices of a layer of the `LayerArrays` in a tree."""
    return jax.tree.map(lambda leaf: leaf[layer], tree, is_leaf=lambda leaf: isinstance(leaf, SplitLayers))


def write_slots(cache: LayerArrays, layer: LayerIndex, slots: Array, at: Int[Array, ""]) -> tuple[LayerArrays, Array]:
    """Return a cache [L, B, K, S, H] with the slots [B, K, T, H] of a layer from `at` on, and all slots of the layer."""
    if isinstance(cache, SplitLayers):
        assert isinstance(layer, int)
        written = jax.lax.dynamic_update_slice(cache[layer], slots, (0, 0, at, 0))
        return SplitLayers((*cache.arrays[:layer], written, *cache.arrays[layer + 1 :])), written
    cache = jax.lax.dynamic_update_slice(cache, slots[None], (layer, 0, 0, at, 0))
    cache = constrain(cache, None, BATCH, HEADS)
    return cache, jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False)


def add_free_slots(cache: LayerArrays, count: int) -> LayerArrays:
    """Return a cache [L, B, K, S, H] with free slots after its own."""
    widths = ((0, 0), (0, 0), (0, count), (0, 0))
    if isinstance(cache, SplitLayers):
        return SplitLayers(tuple(jnp.pad(layer, widths) for layer in cache.arrays))
    return constrain(jnp.pad(cache, ((0, 0), *widths)), None, BATCH, HEADS)
