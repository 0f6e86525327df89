"""The layer stack: every per-layer leaf is stacked on axis 0; scan, unroll and remat do not change this layout of parameters."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from zoo.configs import Compute
from zoo.nn.layer_arrays import LayerIndex, layer_slice
from zoo.nn.layers import params_of

_ATTENTION = frozenset({"attention", "attention_lse"})
SAVED: dict[str, frozenset[str]] = {
    "full": frozenset(),
    "attention": _ATTENTION,
    "save_out": _ATTENTION | {"out"},
    "save_qkv": _ATTENTION | {"out", "qkv"},
    "save_mlp": _ATTENTION | {"out", "mlp"},
    "save_dots": _ATTENTION | {"out", "qkv", "mlp", "down"},
}
"""Remat policies by name: the values that the forward pass saves for the backward pass, by their `checkpoint_name`."""

# The sums of attention's weights are a small part of its output, and stay on the device.
_OFFLOADED = jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=["attention_lse"],
    names_which_can_be_offloaded=sorted(SAVED["save_dots"] - {"attention_lse"}),
    offload_src="device",
    offload_dst="pinned_host",
)
POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    **{name: jax.checkpoint_policies.save_only_these_names(*names) for name, names in SAVED.items()},
    "offload": _OFFLOADED,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """The number, kind and inputs of a layer of a stack."""

    index: LayerIndex
    """Its number in the model."""
    kind: Any
    """Its entry of the static pattern."""
    inputs: Any
    """Its slices of the stack's `per_layer`; None if there are none."""


def init_stack(layer: Callable[[nnx.Rngs], nnx.Module], key: Array, layers: int) -> dict[str, Any]:
    """Return the parameters of `layers` independently initialized layers, each leaf [L, ...]."""
    return jax.vmap(lambda k: params_of(layer(nnx.Rngs(k))))(jax.random.split(key, layers))


def select_layer_parts(params: Any, names: Sequence[str]) -> Any:
    """Return the parameters of a stack with only these parts of each layer."""
    if isinstance(params, tuple):
        return tuple(select_layer_parts(layer, names) for layer in params)
    return {name: params[name] for name in names}


def run_stack(
    module: Callable[[nnx.Rngs], nnx.Module],
    params: dict[str, Any] | tuple[dict[str, Any], ...],
    body: Callable[[Any, Any, Layer], tuple[Any, Any]],
    carry: Any,
    per_layer: Any = None,
    *,
    compute: Compute,
    pattern: Sequence[Any] = (None,),
    first: int = 0,
) -> tuple[Any, Any]:
    """Scan `body(module, carry, layer) -> (carry, y)` over the layers; `layer` is a `Layer`.

    `params` and `per_layer` (for example XLNet's memory) have a slice for each layer and are scanned; or `params` are those of
    `zoo.generation.split_layers`, over which this function loops. `body` closes over values that all layers share. `carry`
    has the values that are updated in place, such as a KV cache. The static `pattern` repeats over the layers; its length must
    divide their number. The number of the first layer is `first`, after those of another stack.

    Returns the final carry and the ys, stacked on axis 0.
    """
    graph = nnx.graphdef(nnx.eval_shape(lambda: module(nnx.Rngs(0))))

    def run_layer(carry: Any, slices: Any, kind: Any) -> tuple[Any, Any]:
        params, inputs, index = slices
        layer = Layer(index=first + index if first else index, kind=kind, inputs=inputs)
        return body(nnx.merge(graph, params), carry, layer)

    if isinstance(params, tuple):
        ys = []
        for index, leaves in enumerate(params):
            carry, y = run_layer(carry, (leaves, layer_slice(per_layer, index), index), pattern[index % len(pattern)])
            ys.append(y)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)
    layers = jax.tree.leaves(params)[0].shape[0]
    period = len(pattern)
    periods = (params, per_layer, jnp.arange(layers))
    if period > 1:
        periods = jax.tree.map(lambda leaf: leaf.reshape(layers // period, period, *leaf.shape[1:]), periods)  # [L/P, P, ...]

    def run_period(carry: Any, leaves: Any) -> tuple[Any, Any]:
        if period == 1:
            return run_layer(carry, leaves, pattern[0])
        ys = []
        for i, kind in enumerate(pattern):
            carry, y = run_layer(carry, jax.tree.map(lambda leaf, i=i: leaf[i], leaves), kind)
            ys.append(y)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)

    if (policy := POLICIES[compute.remat]) is not None:
        run_period = jax.checkpoint(run_period, policy=policy, prevent_cse=False)
    carry, ys = jax.lax.scan(run_period, carry, periods, unroll=compute.unroll)
    return carry, ys if period == 1 else jax.tree.map(lambda leaf: leaf.reshape(layers, *leaf.shape[2:]), ys)
