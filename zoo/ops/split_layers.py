"""Parameters and caches as an array for each layer, which XLA's CPU compiler reads in place, instead of a stack of all layers.

`zoo.nn.layer_stack.run_stack` takes both. Docstrings follow the rules in `zoo.ops.xla_cpu_workarounds`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from zoo.ops.xla_cpu_workarounds import OutputMajor
from zoo.sharding import single_cpu


def split_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Return parameters for products with few rows: each stack "layers" as a tuple of the layers' own, kernels as `OutputMajor`.

    Elsewhere than on one CPU device the parameters are returned unchanged.

    XLA on CPU copies each layer's slice out of a stack before it reads it. With few rows that costs more than the
    product: with gpt2's layers split, a token of one text takes 0.5 of the time.
    Remove when a product reads a slice in place.
    """

    def own(path: Any, leaf: Array, index: int) -> Any:
        # A token is multiplied with few of the experts' kernels, each by itself: they stay as they are.
        is_linear = path[-1].key == "kernel" and leaf.ndim > 2 and all(entry.key != "experts" for entry in path)
        return OutputMajor(leaf[index].T) if is_linear else leaf[index]

    def split(name: str, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        if name != "layers":
            return {key: split(key, value) for key, value in tree.items()}
        count = len(jax.tree.leaves(tree)[0])
        return tuple(jax.tree_util.tree_map_with_path(functools.partial(own, index=index), tree) for index in range(count))

    return split("", params) if single_cpu() else params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SplitLayers:
    """An array with a first axis over layers, such as the keys of a cache, as an array for each layer."""

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

    def replaced(self, layer: int, array: Array) -> "SplitLayers":
        """Return the object with another array of a layer."""
        return SplitLayers((*self.arrays[:layer], array, *self.arrays[layer + 1 :]))

    def map(self, change: Callable[[Array], Array]) -> "SplitLayers":
        """Return the object with the array of every layer changed."""
        return SplitLayers(tuple(map(change, self.arrays)))


def is_split(params: Any) -> bool:
    """Return whether parameters are those of `split_layers`, and their stacks are split."""
    paths = (path for path, _ in jax.tree_util.tree_leaves_with_path(params))
    return any(isinstance(entry, jax.tree_util.SequenceKey) for path in paths for entry in path)


def split_array(array: Array | SplitLayers) -> SplitLayers:
    """Return an array with a first axis over layers as an array for each of them."""
    return array if isinstance(array, SplitLayers) else SplitLayers(tuple(array[layer] for layer in range(len(array))))


def layer_slice(tree: Any, layer: int) -> Any:
    """Return the slices of a layer of the arrays in a tree, whose first axes are over layers or which are `SplitLayers`."""
    return jax.tree.map(lambda leaf: leaf[layer], tree, is_leaf=lambda leaf: isinstance(leaf, SplitLayers))
