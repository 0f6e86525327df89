"""Storage of moments between steps: in bfloat16 with stochastic rounding, and in the memory of the host.

Both are wrappers of an optimizer of optax. The moments are the leaves of its state that belong to a parameter, by their path.
"""

import functools
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, BFloat16, Float32, UInt32

from zoo.ops import counter_rng
from zoo.ops.selects import updates_by_layer
from zoo.sharding import path_of

SEEDS = (0x5EED, 0xB16)
"""Constants that the hash of the roundings begins with: a run need not be told apart from another by its roundings."""


class RoundedState(NamedTuple):
    """The state of an optimizer with moments in bfloat16."""

    count: Any
    """Updates so far, an int32 scalar."""
    inner: Any
    """The optimizer's own state."""


def parameter_path(keys: Sequence[Any], paths: Iterable[str]) -> str | None:
    """Return the path, of those of all parameters, whose moment a leaf of an optimizer's state is; None if it is no moment."""
    path = "/" + path_of(keys)
    return max((name for name in paths if path.endswith("/" + name)), key=len, default=None)


def is_offloaded(parameter: str, shape: Sequence[int]) -> bool:
    """Return whether `stream_moments` expects the moments of a parameter in the memory of the host: those of layers' matrices.

    The compiler for TPUs cannot write a layer of an array [L, D] to the host. Moments of embeddings would come to the device at
    once: those of GPT-2 large are 123 MiB of a v5e:2x2, which then needs 58 MiB less.
    """
    return bool(_stack_of(parameter)) and len(shape) > 2


def round_stochastically(x: Float32[Array, "*S"], bits: UInt32[Array, "*S"]) -> BFloat16[Array, "*S"]:
    """Return one of the two bfloat16 neighbours of each value, with the probability that makes the mean equal to the value.

    A bfloat16 is the upper half of a float32, so the lower half decides: the sum with 16 random bits carries into the upper half
    in as many of the 65,536 cases as the lower half counts. Values of bfloat16, subnormal ones, zeros and infinities included,
    remain as they are, and so does NaN. What has no upper neighbour that is finite gets the lower one.

    Args:
        bits: random numbers from 0 to 65,535.
    """
    exponent, quiet = jnp.uint32(0x7F800000), jnp.uint32(0x00400000)
    word = lax.bitcast_convert_type(x, jnp.uint32)
    up = word + bits
    # Infinities and NaN have this exponent too. The bit keeps NaN one if its other bits are in the lower half.
    quieted = jnp.where(jnp.isnan(x), word | quiet, word)
    rounded = jnp.where((word & exponent == exponent) | (up & exponent == exponent), quieted, up)
    return lax.bitcast_convert_type((rounded >> 16).astype(jnp.uint16), jnp.bfloat16)


def round_moments(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer with moments that are bfloat16 between updates; each update computes with float32.

    The random bits of an entry are a function of the number of the update, the leaf and the entry's index alone: they are the
    same on every mesh, and after a restart.
    """

    def init(params: Any) -> RoundedState:
        state = inner.init(params)
        return RoundedState(jnp.int32(0), _map_moments(lambda _, leaf: leaf.astype(jnp.bfloat16), state, params))

    def update(updates: Any, state: Any, params: Any = None, *, first: Any = 0, **_: Any) -> tuple[Any, RoundedState]:
        seeds = counter_rng.fold(jnp.array(SEEDS, jnp.uint32), state.count)

        def store(path: str, leaf: jax.Array) -> jax.Array:
            sizes = [jnp.arange(size, dtype=jnp.uint32) for size in leaf.shape]
            if _stack_of(path):
                sizes[0] += jnp.asarray(first, jnp.uint32)
            return round_stochastically(
                leaf, counter_rng.half_words(counter_rng.fold(seeds, jnp.uint32(zlib.crc32(path.encode()))), *sizes)
            )

        inner_state = _map_moments(lambda _, leaf: leaf.astype(jnp.float32), state.inner, params)
        updates, inner_state = inner.update(updates, inner_state, params)
        return updates, RoundedState(state.count + 1, _map_moments(store, inner_state, params))

    return optax.GradientTransformationExtraArgs(init, update)


def stream_moments(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer for moments in the memory of the host, of which one layer at a time is on the device.

    Each moment has the shape of its parameter, and `is_offloaded` says which are there. `update` takes `accepted`: the moments of
    an update that is not accepted remain as they were, because arrays on the host cannot be operands of a select after it.

    XLA itself moves the moments of many leaves at once: GPT-2 large on a v5e:2x2, in rows of 1,024, then needs 4.5 GiB of a
    device, and 3.8 GiB with its moments on the device.
    """
    extended = optax.with_extra_args_support(inner)

    def update(updates: Any, state: Any, params: Any = None, *, accepted: jax.Array | bool = True, **_: Any) -> tuple[Any, Any]:
        old = state
        for stack in dict.fromkeys(map(_stack_of, _paths(params))):
            part = [_only_stack(tree, stack, params) for tree in (updates, old, params)]
            update_part = _update_layers if stack and updates_by_layer() else _update_at_once
            new = update_part(extended, *part, accepted)
            updates, state = (_replace_stack(tree, changed) for tree, changed in zip((updates, state), new, strict=True))
        return updates, state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _update_at_once(tx: Any, updates: Any, state: Any, params: Any, accepted: Any) -> tuple[Any, Any]:
    """Update leaves with all of their moments on the device at the same time."""
    moments, others, join = _split_moments(state, params)
    old = jax.device_put(moments, jax.memory.Space.Device)
    updates, new_state = tx.update(updates, join(old, others), params)
    new, others, _ = _split_moments(new_state, params)
    return updates, join(list(map(functools.partial(_stored, accepted), moments, old, new)), others)


def _update_layers(tx: Any, updates: Any, state: Any, params: Any, accepted: Any) -> tuple[Any, Any]:
    """Update a stack of layers, all of whose leaves are [L, ...], by a loop over the layers, in place."""
    moments, others, join = _split_moments(state, params)

    def update_layer(index: jax.Array, results: Any) -> Any:
        def layer(leaf: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(leaf, index, 1)  # [1, ...]

        def write(leaf: jax.Array, new: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice_in_dim(leaf, new, index, 0)

        updates, moments, _ = results
        slices = list(map(layer, moments))
        old = jax.device_put(slices, jax.memory.Space.Device)
        # What is no moment, such as the number of updates, is the same for each layer.
        layer_updates, new_state = tx.update(
            jax.tree.map(layer, updates), join(old, others), jax.tree.map(layer, params), first=index
        )
        new, new_others, _ = _split_moments(new_state, params)
        stored = map(functools.partial(_stored, accepted), slices, old, new)
        return jax.tree.map(write, updates, layer_updates), list(map(write, moments, stored)), new_others

    layers = jax.tree.leaves(updates)[0].shape[0]
    updates, moments, others = lax.fori_loop(0, layers, update_layer, (updates, moments, others))
    return updates, join(moments, others)


def _stored(accepted: Any, stored: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    """Return a moment in the memory in which it is stored: `new`, or `old` if the update is not accepted."""
    return jax.device_put(jnp.where(accepted, new, old), jax.typeof(stored).memory_space)


def _split_moments(state: Any, params: Any) -> tuple[list[Any], list[Any], Callable[[list[Any], list[Any]], Any]]:
    """Return the moments of an optimizer's state, its other leaves, and the function that makes a state of both."""
    paths = _paths(params)
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    is_moment = [parameter_path(keys, paths) is not None for keys, _ in leaves]

    def join(moments: list[Any], others: list[Any]) -> Any:
        first, second = iter(moments), iter(others)
        return jax.tree.unflatten(structure, [next(first if moment else second) for moment in is_moment])

    moments, others = (
        [leaf for (_, leaf), moment in zip(leaves, is_moment, strict=True) if moment is kind] for kind in (True, False)
    )
    return moments, others, join


def _map_moments(function: Callable[[str, Any], Any], state: Any, params: Any) -> Any:
    """Return an optimizer's state with `function(path of the leaf, leaf)` for each moment."""
    paths = _paths(params)

    def apply(keys: Any, leaf: Any) -> Any:
        return leaf if parameter_path(keys, paths) is None else function(path_of(keys), leaf)

    return jax.tree_util.tree_map_with_path(apply, state)


def _only_stack(tree: Any, stack: str, params: Any) -> Any:
    """Return a tree of parameters or of an optimizer's state without the leaves of parameters of other stacks."""
    paths = _paths(params)

    def select(keys: Any, leaf: Any) -> Any:
        parameter = parameter_path(keys, paths)
        return leaf if parameter is None or _stack_of(parameter) == stack else optax.MaskedNode()

    return jax.tree_util.tree_map_with_path(select, tree)


def _replace_stack(tree: Any, changed: Any) -> Any:
    """Return a tree with the leaves of a result of `_only_stack` in place of its own."""
    return jax.tree.map(lambda leaf, new: leaf if isinstance(new, optax.MaskedNode) else new, tree, changed)


def _stack_of(path: str) -> str:
    """Return the path of the stack of layers that a leaf is a part of; "" if it is of no layer."""
    before, layers, _ = f"/{path}".rpartition("/layers/")
    return before + layers


def _paths(params: Any) -> list[str]:
    return [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]
