"""References for the layer stack: the same computation by a plain loop, and its FLOPs counted in the jaxpr."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tests.support.rounding import over_products
from zoo.nn.layer_stack import Layer


def loop(layer: Callable, params: Any, body: Callable, carry: Any, per_layer: Any = None, **options: Any) -> tuple[Any, Any]:
    """Compute what `zoo.nn.layer_stack.run_stack` computes, by a Python loop over the layers."""
    graph, ys = nnx.graphdef(nnx.eval_shape(lambda: layer(nnx.Rngs(0)))), []
    for index in range(jax.tree.leaves(params)[0].shape[0]):
        mine, x = (jax.tree.map(lambda leaf, index=index: leaf[index], tree) for tree in (params, per_layer))
        pattern = options.get("pattern", (None,))
        kind = pattern[index % len(pattern)]
        number = jnp.int32(index + options.get("first", 0))
        carry, y = body(nnx.merge(graph, mine), carry, Layer(index=number, kind=kind, inputs=x))
        ys.append(y)
    return carry, jax.tree.map(lambda *each: jnp.stack(each), *ys)


def dot_flops(function: Callable, *arguments: Any) -> int:
    """Count the FLOPs of a function's matrix products in its jaxpr: 2 for each multiply-add, loops times their length."""
    return over_products(lambda equation, terms: 2 * equation.outvars[0].aval.size * terms, function, *arguments)
