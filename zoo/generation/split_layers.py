"""Parameters and caches as an array for each layer instead of a stack of all layers: the form that decoding reads in place.

Both functions change nothing where a program reads a slice of a stack in place, which XLA on one CPU device does not: see
`zoo.ops.cpu_forms`.
"""

import dataclasses
import functools
from typing import Any

import jax
from jaxtyping import Array

from zoo.nn.kv_cache import Cache
from zoo.nn.layer_arrays import SplitLayers
from zoo.ops.cpu_forms import with_cpu_form
from zoo.ops.products import OutputMajor


@with_cpu_form
def split_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Return parameters for products with few rows."""
    return params


@split_layers.on_one_cpu
def _as_tuples_of_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Return parameters with each stack "layers" as a tuple of the layers' own, and their kernels as `OutputMajor`.

    XLA on CPU copies each layer's slice out of a stack before it reads it. With few rows that costs more than the product: with
    gpt2's layers split, a token of one text takes 0.5 of the time.
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

    return split("", params)


def split_cache(cache: Cache, params: Any) -> Cache:
    """Return the cache with an array for each layer (`SplitLayers`), if the parameters are split in this way.

    XLA on CPU copies each layer's slice out of a cache before it reads it. With 32 texts of 64 + 64 tokens those copies take a
    fifth of the time of a token of gpt2.
    Remove when a product reads a slice in place.
    """
    paths = (path for path, _ in jax.tree_util.tree_leaves_with_path(params))
    if not any(isinstance(entry, jax.tree_util.SequenceKey) for path in paths for entry in path):
        return cache

    def split(array: Any) -> SplitLayers:
        return array if isinstance(array, SplitLayers) else SplitLayers(tuple(array[layer] for layer in range(len(array))))

    source = cache.source
    if source is not None:
        source = dataclasses.replace(source, k=split(source.k), v=split(source.v))
    return dataclasses.replace(cache, k=split(cache.k), v=split(cache.v), source=source)
