"""Width transfer: constants by which a model trains at the learning rate of a narrower one, its base.

The rules are those of the maximal update parametrization, muP (Yang and Hu 2021, table 3), and for depth those of CompleteP (Dey
et al. 2025, alpha = 1). Let r be the number of inputs of a kernel over that in the base, and m the number of layers over
that in the base. Relative to the base, with an optimizer such as Adam,

| leaf | standard deviation | learning rate |
|---|---|---|
| kernel whose inputs and outputs grow | r^-1/2 | 1/r |
| kernel whose outputs do not grow: heads of tasks, untied LM heads, routers, scores | 1/r | 1/r |
| tables, biases, norms, vectors | 1 | 1 |

and logits of a tied table are multiplied by 1/r, and what a layer adds to the residual stream by 1/m.

The optimizer keeps its rates. An update of Adam does not depend on the size of the gradient, so a leaf that is its trained value
times a constant has the rate of that constant. The weight decay, a share of the trained value, is that of the base. One constant
for each leaf therefore makes a pure function from trained parameters to those of the model, whose forward pass and exports know
nothing of it. The multiplier of tied logits is that of the last norm before them, which nothing else reads.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import random as jax_random

from train.config.optim_options import Optim
from train.config.run_config import Run
from train.config.width_base import base_config
from train.engine.matrix_axes import is_matrix, kernel_axes, matrix_sizes
from train.engine.optimizers import muon_scale
from zoo import models
from zoo.errors import BadInput
from zoo.models import Model
from zoo.sharding import path_of

TABLE = "embed/tokens/embedding"
LAST_NORMS = {
    "gpt": "norm/",
    "llama": "norm/",
    "ettin_decoder": "unembed/dense/norm/",
    "bert": "masked/norm/",
    "roberta": "masked/norm/",
    "distilbert": "masked/norm/",
    "modernbert": "masked/norm/",
    "t5": "decoder/norm/",
    "transformer": "decoder/layers/norm2/",
    "xlnet": "layers/norm2/",
}
"""Family that may have a tied table -> beginning of the paths of the norm before its logits, in a stack the last one."""
TABLE_POWERS = {"transformer": 0.5}
"""Family -> power of the width with which its forward pass multiplies the rows of the table; others do not."""
LOGIT_POWERS = {"t5": -0.5}
"""Family -> power of the width with which its forward pass multiplies the states before a tied table; others do not."""
RESIDUAL = re.compile(r"layers/((attention|cross)/out|mlp/(experts/)?down)/")
"""Leaves whose products are added to the residual stream."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeafFactors:
    """The constants of a leaf; an array has one for each layer of a stack. All are 1 at the base's sizes."""

    multiplier: Any = 1.0
    """Parameter of the model / trained parameter."""
    initial: float = 1.0
    """Initial trained parameter / that of the family's own initializer."""
    gradient: float = 1.0
    """Factor of the gradient before the moments: its entries then have the size that they have in the base, beside Adam's eps."""


def width_factors(model: Model, base: Any, optim: Optim) -> dict[str, LeafFactors]:
    """Return the constants of all leaves of a model by path.

    Args:
        base: the configuration of the base, of `train.config.width_base.base_config`.
        optim: the optimizer, of those in `train.config.width_base.OPTIMIZERS`.

    Raises:
        BadInput: the model has another reader of the norm before its tied logits.
    """
    narrow = models.model(base)
    own, other = (_shapes(bound) for bound in (model, narrow))
    growth = model.config.width / base.width
    table = growth ** -TABLE_POWERS.get(model.family, 0.0)
    is_tied = _has_tied_logits(model, own)
    logits = growth ** (-1.0 - LOGIT_POWERS.get(model.family, 0.0)) / table if is_tied else 1.0
    deviations = _initial_ratios(model, narrow)

    def of_leaf(path: str) -> LeafFactors:
        depth = _depth(path, model.config, base)
        outer = 1 / depth if RESIDUAL.search(path) else 1.0
        axes = kernel_axes(path, len(own[path]))
        if axes is None:
            norm = is_tied and path.startswith(LAST_NORMS[model.family])
            factor = table if path == TABLE else _last_of(path, own[path], logits) if norm else 1.0
            first = 1 if "layers/" in path else 0
            entries = math.prod(own[path][first:]) / math.prod(other[path][first:])
            return LeafFactors(multiplier=factor * outer, initial=deviations[path], gradient=entries * depth)
        inputs, outputs = (math.prod(own[path][axis] / other[path][axis] for axis in part) for part in axes)
        rate = _rate(path, own[path], other[path], inputs, outputs, optim)
        deviation = 1 / inputs if outputs == 1 else inputs**-0.5
        return LeafFactors(multiplier=rate * outer, initial=deviations[path] * deviation / rate, gradient=outputs * depth / rate)

    return {path: of_leaf(path) for path in own}


def factors_of_run(run: Run) -> dict[str, LeafFactors]:
    """Return the constants of the model of a run with `width_transfer`."""
    return width_factors(models.model(run.model), base_config(run.model, run.width_transfer), run.optim)


def transferred_params(factors: Mapping[str, LeafFactors], params: Any) -> Any:
    """Return the parameters of the model, from trained parameters on a mesh."""
    multiply = functools.partial(multiply_leaves, factors={path: leaf.multiplier for path, leaf in factors.items()})
    return jax.jit(multiply, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, params))(params)


def multiply_leaves(params: Any, factors: Mapping[str, Any]) -> Any:
    """Return a tree whose leaves are multiplied by the factors of their paths; those of factor 1 are the same arrays."""

    def multiply(keys: Any, leaf: Any) -> Any:
        factor = np.asarray(factors[path_of(keys)], np.float32)
        return leaf if (factor == 1).all() else leaf * jnp.asarray(factor, leaf.dtype)

    return jax.tree_util.tree_map_with_path(multiply, params)


def _rate(path: str, own: tuple[int, ...], other: tuple[int, ...], inputs: float, outputs: float, optim: Optim) -> float:
    """Return the learning rate of a kernel over that in the base."""
    if optim.name != "muon" or not is_matrix(path):
        return 1 / inputs
    # The updates of Muon have singular values of 1, times a scale. They are to be sqrt(outputs / inputs) times a constant, for
    # which states of constant size change by a constant (Yang, Simon and Bernstein 2023, condition 1).
    scales = [muon_scale(optim, *matrix_sizes(path, shape)) for shape in (own, other)]
    return math.sqrt(outputs / inputs) * scales[1] / scales[0]


def _last_of(path: str, shape: tuple[int, ...], factor: float) -> Any:
    """Return the factor, or one for each layer of a stack that is 1 but for the last."""
    if "layers/" not in path:
        return factor
    factors = np.ones((shape[0], *[1] * (len(shape) - 1)))
    factors[-1] = factor
    return factors


def _has_tied_logits(model: Model, shapes: Mapping[str, Any]) -> bool:
    """Return whether the logits of a model are products with the table of its embeddings.

    Raises:
        BadInput: its last norm is also that of an encoder.
    """
    has_own_kernel = any(path.startswith(("unembed/embedding", "classifier/", "score/")) for path in shapes)
    if has_own_kernel or TABLE not in model.names.tied.values():
        return False
    if getattr(model.config, "architecture", "") == "shared":
        raise BadInput("--width-transfer: the encoder has the norm before the tied logits too; choose --model.no-tied")
    return True


def _depth(path: str, own: Any, base: Any) -> float:
    """Return the number of layers over that in the base, of the stack that a leaf belongs to; 1 outside of the layers."""
    if "layers/" not in path:
        return 1.0
    name = "decoder_layers" if path.startswith("decoder/") and hasattr(own, "decoder_layers") else "layers"
    return getattr(own, name) / getattr(base, name)


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(lambda: model.init(jax.random.key(0))))
    return {path_of(keys): leaf.shape for keys, leaf in leaves}


def _initial_ratios(own: Model, base: Model) -> dict[str, float]:
    """Return the standard deviation of each leaf's initializer in the base over that in the model, by path."""
    values, others = _constant_sample(own), _constant_sample(base)
    return {path: float(others[path]) / float(value) if value else 1.0 for path, value in values.items()}


def _constant_sample(model: Model) -> dict[str, np.ndarray]:
    """Return the first entry of each leaf for a source of random bits that are all alike.

    Initializers multiply a number that depends on the bits alone by their standard deviation, so that the ratio of two samples is
    that of the standard deviations to the last bits. XLA computes these entries alone.
    """

    def first_entries(key: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[(0,) * leaf.ndim], model.init(key))

    key = jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32), impl=_constant_bits())
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(jax.jit(first_entries)(key)))
    return {path_of(keys): leaf for keys, leaf in leaves}


@functools.cache
def _constant_bits() -> Any:
    """Return an implementation of random keys whose uniform numbers are all 3/4."""
    return jax_random.define_prng_impl(
        key_shape=(2,),
        seed=lambda seed: jnp.zeros(2, jnp.uint32),
        split=lambda key, shape: jnp.zeros((*shape, 2), jnp.uint32),
        random_bits=lambda key, width, shape: jnp.full(shape, 3 << (width - 2), f"uint{width}"),
        fold_in=lambda key, data: key,
        name="constant_bits",
        tag="cb",
    )
