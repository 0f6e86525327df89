"""Optimizers and schedules, from optax. An optimizer here yields the direction to subtract; the step multiplies by the rate."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train.config.run_config import Optim
from zoo.errors import BadInput
from zoo.models import Model
from zoo.ops.reductions import square_sum
from zoo.sharding import path_of

DECAYED = re.compile(r"(^|/)(kernel|embedding)$")
"""Leaves with weight decay, by path: matrices and embeddings, never norms and biases."""


def check(cfg: Optim, net: Model) -> None:
    """Refuse what means one stack of layers to a model that has two.

    Raises:
        BadInput: rates by layer, or frozen parts.
    """
    if (cfg.layer_decay < 1 or _freezes(cfg)) and "layers" not in jax.eval_shape(lambda: net.init(jax.random.key(0))):
        raise BadInput(
            "--optim.layer-decay, --optim.freeze-layers, --optim.freeze-embeddings: they mean one stack of layers, and a "
            f"{net.family} has two; leave them out"
        )


def optimizer(cfg: Optim) -> optax.GradientTransformationExtraArgs:
    """Clipping, preconditioning and decoupled decay, at learning rate 1. `update` takes the gradients' `norm` if it is known."""
    freeze = [optax.stateless(lambda updates, _: _scaled(updates, cfg, 1.0))] if _freezes(cfg) else []
    clip = [_clip(cfg.clip)] if cfg.clip > 0 else []
    decay = [optax.add_decayed_weights(cfg.weight_decay, mask=decay_mask)] if cfg.weight_decay > 0 else []
    # Once more at the end: decay must not move what is frozen either.
    by_layer = cfg.layer_decay < 1 or _freezes(cfg)
    layers = [optax.stateless(lambda updates, _: _scaled(updates, cfg, cfg.layer_decay))] if by_layer else []
    return optax.with_extra_args_support(optax.chain(*freeze, *clip, PRECONDITIONERS[cfg.name](cfg), *decay, *layers))


def norm(cfg: Optim, grads: Any) -> jax.Array:
    """Global norm of the gradients of what is trained, before clipping."""
    trained = _scaled(grads, cfg, 1.0) if _freezes(cfg) else grads
    return jnp.sqrt(functools.reduce(jnp.add, map(square_sum, jax.tree.leaves(trained))))


def schedule(cfg: Optim, steps: int) -> optax.Schedule:
    """Learning rate of each step, counted from 0: linear warm-up, then the named decay over the rest of `steps`.

    With n the step counted from 1 and w the warm-up, at least 1: inverse_sqrt is lr * min(n / w, sqrt(w / n)) (Vaswani et al.
    2017, section 5.3: there the peak is (d_model * w)^-1/2); inverse_sqrt_flat has no rise, lr * sqrt(w / max(n, w)) (Raffel et
    al. 2020, section 3.1.2: w^-1/2).
    """
    if cfg.schedule == "inverse_sqrt_flat":
        flat = max(cfg.warmup, 1)
        return lambda step: cfg.lr * jnp.sqrt(flat / jnp.maximum(step + 1, flat))
    warmup = min(cfg.warmup, steps)
    rest = max(steps - warmup, 1)
    decays: dict[str, optax.Schedule] = {
        "cosine": optax.cosine_decay_schedule(cfg.lr, rest, alpha=cfg.final),
        "linear": optax.linear_schedule(cfg.lr, cfg.lr * cfg.final, rest),
        "inverse_sqrt": lambda step: cfg.lr * jnp.sqrt(max(warmup, 1) / (step + warmup + 1)),
        "constant": optax.constant_schedule(cfg.lr),
    }
    # Step 0 already moves: its rate is one warm-up increment, not 0.
    rise = optax.linear_schedule(cfg.lr / max(warmup, 1), cfg.lr, max(warmup - 1, 1))
    return optax.join_schedules([rise, decays[cfg.schedule]], [warmup])


def decay_mask(params: Any) -> Any:
    """True where weight decay applies."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: bool(DECAYED.search(path_of(keys))), params)


def _freezes(cfg: Optim) -> bool:
    return cfg.freeze_embeddings or cfg.freeze_layers > 0


def _scaled(updates: Any, cfg: Optim, rate: float) -> Any:
    """Updates times rate^(layers above), and times 0 where frozen (Yang et al. 2019, appendix A.4.2).

    Nothing is above the last of L layers and the head; L - 1 layers are above the first, L above the embeddings.
    """
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    layers = next(leaf.shape[0] for keys, leaf in leaves if path_of(keys).startswith("layers/"))
    numbers = np.arange(layers)
    by_layer = np.where(numbers < cfg.freeze_layers, 0.0, rate ** (layers - 1 - numbers))
    embeddings = 0.0 if cfg.freeze_embeddings else rate**layers

    def scale(keys: Any, update: jax.Array) -> jax.Array:
        part = path_of(keys).split("/")[0]
        if part == "layers":
            factor = jnp.asarray(by_layer, update.dtype).reshape(-1, *[1] * (update.ndim - 1))
        else:
            factor = jnp.asarray(embeddings if part == "embed" else 1.0, update.dtype)
        # A frozen gradient may be anything, not a number included.
        return jnp.where(factor == 0, 0, update * factor)

    return jax.tree_util.tree_map_with_path(scale, updates)


def _clip(most: float) -> optax.GradientTransformationExtraArgs:
    """Pascanu et al. 2013, algorithm 1. Not `optax.clip_by_global_norm`: that takes the norm of all gradients once more, and
    divides by it, which XLA on CPU does apart from the moments."""

    def update(updates: Any, state: Any, params: Any = None, *, norm: Any = None, **_: Any) -> tuple[Any, Any]:
        factor = jnp.minimum(1.0, most / (optax.tree.norm(updates) if norm is None else norm))
        return jax.tree.map(lambda grad: grad * factor.astype(grad.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _adam(cfg: Optim) -> optax.GradientTransformation:
    return optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps)


def _adafactor(cfg: Optim) -> optax.GradientTransformation:
    """Factored second moments, updates clipped to unit RMS and scaled by the parameter's RMS (Shazeer and Stern 2018)."""
    one = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())
    # Its statistics are those of one matrix: a stacked leaf is as many matrices as there are layers.
    per_layer = optax.GradientTransformation(jax.vmap(one.init), jax.vmap(one.update))
    return optax.partition({"stacked": per_layer, "single": one}, _kinds)


def _kinds(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: "stacked" if "layers" in path_of(keys).split("/") else "single", params
    )


PRECONDITIONERS: dict[str, Callable[[Optim], optax.GradientTransformation]] = {"adamw": _adam, "adafactor": _adafactor}
