"""The layer stack: ONE layout of parameters, every per-layer leaf stacked on axis 0; scan, unroll and remat only compute it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

# Remat policies by name: what the backward pass may keep. None: keep everything.
POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("attention", "attention_lse"),
}


def init_stack(layer: Callable[[nnx.Rngs], nnx.Module], key: Array, layers: int) -> dict[str, Any]:
    """Parameters of `layers` independently drawn layers, each leaf [L, ...]."""
    return jax.vmap(lambda k: nnx.to_pure_dict(nnx.state(layer(nnx.Rngs(k)))))(jax.random.split(key, layers))


def run_stack(
    layer: Callable[[nnx.Rngs], nnx.Module],
    params: dict[str, Any],
    body: Callable[..., tuple[Any, Any]],
    carry: Any,
    per_layer: Any = None,
    *,
    pattern: Sequence[Any] = (None,),
    remat: str = "none",
    unroll: int = 1,
) -> tuple[Any, Any]:
    """Scan `body(module, carry, x, index, kind) -> (carry, y)` over the layers.

    What differs by layer (`params`, `per_layer`: XLNet's memory, say) is scanned; what all layers share is closed over by
    `body`; what is updated in place (a KV cache) is `carry`. `index` is the layer's number, `kind` the entry of the static
    `pattern`, which repeats over the layers and must divide them.

    Returns the final carry and the ys, stacked on axis 0.
    """
    graph = nnx.graphdef(nnx.eval_shape(lambda: layer(nnx.Rngs(0))))
    layers = jax.tree.leaves(params)[0].shape[0]
    period = len(pattern)
    periods = (params, per_layer, jnp.arange(layers))
    if period > 1:
        # Not of a period of one: XLA on CPU copies donated parameters that a loop takes reshaped.
        periods = jax.tree.map(lambda leaf: leaf.reshape(layers // period, period, *leaf.shape[1:]), periods)

    def one(carry: Any, leaves: Any, kind: Any) -> tuple[Any, Any]:
        params, x, index = leaves
        return body(nnx.merge(graph, params), carry, x, index, kind)

    def run_period(carry: Any, leaves: Any) -> tuple[Any, Any]:
        if period == 1:
            return one(carry, leaves, pattern[0])
        ys = []
        for i, kind in enumerate(pattern):
            carry, y = one(carry, jax.tree.map(lambda leaf, i=i: leaf[i], leaves), kind)
            ys.append(y)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)

    if POLICIES[remat] is not None:
        run_period = jax.checkpoint(run_period, policy=POLICIES[remat], prevent_cse=False)
    carry, ys = jax.lax.scan(run_period, carry, periods, unroll=unroll)
    return carry, ys if period == 1 else jax.tree.map(lambda leaf: leaf.reshape(layers, *leaf.shape[2:]), ys)
