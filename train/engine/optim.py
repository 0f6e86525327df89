"""The optimizer of a run: clipping, the direction, weight decay and the learning rate, in a chain of optax."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train.config.optim_options import Optim
from train.engine import averages, moments, optimizers
from train.engine.width_transfer import multiply_leaves
from zoo.errors import BadInput
from zoo.models import Model
from zoo.ops.reductions import sum_of_squares
from zoo.sharding import path_of


def check_optimizer(cfg: Optim, model: Model) -> None:
    """Refuse options that assume one stack of layers for a model that has two.

    Raises:
        BadInput: rates by layer or frozen parts are set.
    """
    if (cfg.layer_decay < 1 or cfg.freezes) and "layers" not in jax.eval_shape(lambda: model.init(jax.random.key(0))):
        raise BadInput(
            "--optim.layer-decay, --optim.freeze-layers, --optim.freeze-embeddings: need a model with one stack of layers, and a "
            f"{model.family} has two; leave them out"
        )


def check_rates(cfg: Optim, trained: Any) -> None:
    """Refuse rates of parameters that a run does not train.

    Args:
        trained: shapes of the trained parameters, those that the objective adds included.

    Raises:
        BadInput: a pattern of --optim.rates matches none of them.
    """
    paths = [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(trained)]
    for pattern, _ in cfg.rate_factors:
        if not any(pattern.search(path) for path in paths):
            fix = f"choose a part of a path, such as {paths[0]}"
            raise BadInput(f"--optim.rates {pattern.pattern}: matches no parameter that is trained; {fix}")


def make_optimizer(cfg: Optim, gradient_factors: Mapping[str, float] | None = None) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer: it clips, chooses a direction, decays weights and multiplies by the learning rates.

    `update` takes the learning rate `lr`, 1 by default, `norm`, the gradients' norm, if it is computed already, and `accepted`:
    see `train.engine.moments.stream_moments`.

    Args:
        gradient_factors: factors of the clipped gradients by path; None = all are 1.
    """
    direction = optimizers.direction_of(cfg)
    if cfg.moments == "bfloat16":
        direction = moments.round_moments(direction)
    if cfg.offload:
        direction = moments.stream_moments(direction)
    if gradient_factors is not None:
        direction = _of_scaled_gradients(direction, gradient_factors)
    adds_decay = cfg.weight_decay > 0 and cfg.name not in optimizers.INCLUDES_DECAY
    links = (
        _clip(cfg.clip) if cfg.clip > 0 else None,
        direction,
        optimizers.decayed_weights(cfg) if adds_decay else None,
        _scale_by_layer(cfg) if cfg.layer_decay < 1 else None,
        _scale_by_path(cfg) if cfg.rates else None,
        scale_by_rate(),
        averages.average_parameters(cfg.average) if cfg.average else None,
        averages.average_by_powers(cfg.average_widths) if cfg.average_widths else None,
        averages.schedule_free(cfg.b1) if cfg.is_schedule_free else None,
    )
    return optax.chain(*(link for link in links if link is not None))


def gradient_norm(grads: Any) -> jax.Array:
    """Return the global norm of the gradients, before clipping."""
    return jnp.sqrt(functools.reduce(jnp.add, map(sum_of_squares, jax.tree.leaves(grads))))


def _scale_updates(updates: Any, cfg: Optim) -> Any:
    """Return updates times layer_decay^(number of layers above) (Yang et al. 2019, appendix A.4.2).

    Of L layers, none is above the last one and the head, L - 1 are above the first, and L are above the embeddings. The updates
    are those of the trained parameters, which lack the frozen layers, the lowest ones.
    """
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    sizes = {path_of(keys).partition("layers/")[0]: leaf.shape[0] for keys, leaf in leaves if "layers/" in path_of(keys)}
    # A model may hold its first layers apart, in `first/layers`.
    first = sizes.get("first/", 0)
    layers = first + sizes.get("", 0)
    layer_factors = cfg.layer_decay ** np.arange(layers - 1.0, -1.0, -1.0)
    embedding_factor = cfg.layer_decay ** (cfg.freeze_layers + layers)

    def scale(keys: Any, update: jax.Array) -> jax.Array:
        part = path_of(keys).split("/")[0]
        if part in ("first", "layers"):
            factors = layer_factors[:first] if part == "first" else layer_factors[first:]
            factor = jnp.asarray(factors, update.dtype).reshape(-1, *[1] * (update.ndim - 1))
        else:
            factor = jnp.asarray(embedding_factor if part == "embed" else 1.0, update.dtype)
        return update * factor

    return jax.tree_util.tree_map_with_path(scale, updates)


def _clip(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Return clipping by global norm (Pascanu et al. 2013, algorithm 1).

    `optax.clip_by_global_norm` would compute the norm of all gradients once more, and divide by it in a pass of its own on CPU,
    since XLA does not fuse that with the moments.
    """

    def update(updates: Any, state: Any, params: Any = None, *, norm: Any = None, **_: Any) -> tuple[Any, Any]:
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) if norm is None else norm))
        return jax.tree.map(lambda grad: grad * factor.astype(grad.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _of_scaled_gradients(
    direction: optax.GradientTransformation, factors: Mapping[str, float]
) -> optax.GradientTransformationExtraArgs:
    """Return a direction whose gradients are multiplied by factors first; its state is the direction's own."""
    inner = optax.with_extra_args_support(direction)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return inner.update(multiply_leaves(updates, factors), state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _scale_by_layer(cfg: Optim) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: _scale_updates(updates, cfg))


def _scale_by_path(cfg: Optim) -> optax.GradientTransformation:
    """Return the factors of `Optim.rates`; 1 for a leaf that no pattern matches."""

    def scale(keys: Any, update: jax.Array) -> jax.Array:
        factors = (factor for pattern, factor in cfg.rate_factors if pattern.search(path_of(keys)))
        return update * jnp.asarray(next(factors, 1.0), update.dtype)

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def scale_by_rate() -> optax.GradientTransformationExtraArgs:
    """Return the link that multiplies by the negative learning rate, an argument of `update`."""

    def update(updates: Any, state: Any, params: Any = None, *, lr: Any = 1.0, **_: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda leaf: -lr * leaf, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
