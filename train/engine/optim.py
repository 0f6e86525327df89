"""Optimizers and schedules, from optax."""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from train.config.run_config import Optim
from train.engine import moments
from zoo.errors import BadInput
from zoo.models import Model
from zoo.ops.reductions import sum_of_squares
from zoo.sharding import path_of

DECAYED = re.compile(r"(^|/)(kernel|embedding)$")
"""Leaves with weight decay, by path: matrices and embeddings, never norms and biases."""

MATRICES: tuple[tuple[re.Pattern[str], tuple[int, ...], tuple[int, ...]], ...] = (
    (re.compile(r"layers/(.*/)?(attention|cross)/(qkv|kv)/kernel$"), (1,), (3, 4)),  # [L, D, 3 or 2, N, H]
    (re.compile(r"layers/(.*/)?(attention|cross)/[qkvr]/kernel$"), (1,), (2, 3)),  # [L, D, N, H]
    (re.compile(r"layers/(.*/)?(attention|cross)/out/kernel$"), (1, 2), (3,)),  # [L, N, H, D]
    (re.compile(r"layers/(.*/)?mlp/(up|down)/kernel$"), (1,), (2,)),  # [L, D, F] and [L, F, D]
    (re.compile(r"layers/(.*/)?mlp/gated/kernel$"), (1,), (3,)),  # [L, D, 2, F]
    (re.compile(r"layers/(.*/)?router/kernel$"), (1,), (2,)),  # [L, D, E]
    (re.compile(r"layers/(.*/)?experts/gated/kernel$"), (2,), (4,)),  # [L, E, D, 2, F]
    (re.compile(r"layers/(.*/)?experts/down/kernel$"), (2,), (3,)),  # [L, E, F, D]
)
"""Path of a leaf of the layers -> its input axes and its output axes. Any other axis counts separate matrices."""


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


def make_optimizer(cfg: Optim) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer: it clips, preconditions, decays weights, scales by layer and multiplies by the learning rate.

    `update` takes the learning rate `lr`, 1 by default, `norm`, the gradients' norm, if it is computed already, and `accepted`:
    see `train.engine.moments.stream_moments`.
    """
    preconditioner = PRECONDITIONERS[cfg.name](cfg)
    if cfg.moments == "bfloat16":
        preconditioner = moments.round_moments(preconditioner)
    if cfg.offload:
        preconditioner = moments.stream_moments(preconditioner)
    links = (
        _clip(cfg.clip) if cfg.clip > 0 else None,
        preconditioner,
        optax.add_decayed_weights(cfg.weight_decay, mask=decay_mask) if cfg.weight_decay > 0 else None,
        _scale_by_layer(cfg) if cfg.layer_decay < 1 else None,
        scale_by_rate(),
    )
    return optax.chain(*(link for link in links if link is not None))


def gradient_norm(grads: Any) -> jax.Array:
    """Return the global norm of the gradients, before clipping."""
    return jnp.sqrt(functools.reduce(jnp.add, map(sum_of_squares, jax.tree.leaves(grads))))


def make_schedule(cfg: Optim, steps: int) -> optax.Schedule:
    """Return the learning rate of each step, counted from 0: linear warm-up, then the named decay over the rest of `steps`.

    With n the step counted from 1 and w the warm-up, at least 1: inverse_sqrt is lr * min(n / w, sqrt(w / n)) (Vaswani et al.
    2017, section 5.3: there the peak is (d_model * w)^-1/2); inverse_sqrt_flat has no rise, lr * sqrt(w / max(n, w)) (Raffel et
    al. 2020, section 3.1.2: w^-1/2).
    """
    if cfg.schedule == "inverse_sqrt_flat":
        flat = max(cfg.warmup_steps(steps), 1)
        return lambda step: cfg.lr * jnp.sqrt(flat / jnp.maximum(step + 1, flat))
    warmup = min(cfg.warmup_steps(steps), steps)
    rest = max(steps - warmup, 1)
    decays: dict[str, optax.Schedule] = {
        "cosine": optax.cosine_decay_schedule(cfg.lr, rest, alpha=cfg.final),
        "linear": optax.linear_schedule(cfg.lr, cfg.lr * cfg.final, rest),
        "inverse_sqrt": lambda step: cfg.lr * jnp.sqrt(max(warmup, 1) / (step + warmup + 1)),
        "constant": optax.constant_schedule(cfg.lr),
    }
    # Step 0 already updates the parameters: its rate is one warm-up increment, not 0.
    rise = optax.linear_schedule(cfg.lr / max(warmup, 1), cfg.lr, max(warmup - 1, 1))
    return optax.join_schedules([rise, decays[cfg.schedule]], [warmup])


def decay_mask(params: Any) -> Any:
    """Return a tree of booleans that is True where weight decay applies."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: bool(DECAYED.search(path_of(keys))), params)


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


def _scale_by_layer(cfg: Optim) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: _scale_updates(updates, cfg))


def scale_by_rate() -> optax.GradientTransformationExtraArgs:
    """Return the last link of the chain: the negative product with the learning rate, an argument of `update`."""

    def update(updates: Any, state: Any, params: Any = None, *, lr: Any = 1.0, **_: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda leaf: -lr * leaf, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _adam(cfg: Optim) -> optax.GradientTransformation:
    return optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps)


def _adafactor(cfg: Optim) -> optax.GradientTransformation:
    """Return factored second moments, with updates clipped to unit RMS and scaled by the parameter's RMS.

    Shazeer and Stern 2018.
    """
    single = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())
    # Adafactor factors the moments of one matrix, and a stacked leaf has one matrix per layer.
    per_layer = optax.GradientTransformation(jax.vmap(single.init), jax.vmap(single.update))
    return optax.partition({"stacked": per_layer, "single": single}, _leaf_kinds)


def _muon(cfg: Optim) -> optax.GradientTransformation:
    """Return orthogonalized momentum for the matrices of the layers, and Adam for all other leaves.

    Jordan et al. 2024. Updates are scaled to the root mean square of Adam's, 0.2 sqrt(max(inputs, outputs)) (Liu et al. 2025,
    section 2.2), so that both kinds of leaves use the same learning rate and weight decay.
    """

    def scale(keys: Any, update: jax.Array) -> jax.Array:
        inputs, outputs = _matrix_axes(keys)
        largest = max(math.prod(update.shape[axis] for axis in axes) for axes in (inputs, outputs))
        return 0.2 * math.sqrt(largest) * update

    def dimension_numbers(updates: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda keys, _: contrib.MuonDimensionNumbers(*_matrix_axes(keys)), updates)

    orthogonal = optax.chain(
        contrib.scale_by_muon(beta=0.95, weight_dimension_numbers=dimension_numbers),
        optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates)),
    )
    return optax.partition({"matrix": orthogonal, "other": _adam(cfg)}, _muon_leaf_kinds)


def _muon_leaf_kinds(params: Any) -> Any:
    def kind(keys: Any, _: Any) -> str:
        return "matrix" if any(pattern.search(path_of(keys)) for pattern, *_ in MATRICES) else "other"

    return jax.tree_util.tree_map_with_path(kind, params)


def _matrix_axes(keys: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the input axes and the output axes of a leaf that `MATRICES` names; `optax.partition` keeps all others away."""
    path = path_of(keys)
    return next((inputs, outputs) for pattern, inputs, outputs in MATRICES if pattern.search(path))


def _leaf_kinds(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: "stacked" if "layers" in path_of(keys).split("/") else "single", params
    )


PRECONDITIONERS: dict[str, Callable[[Optim], optax.GradientTransformation]] = {
    "adamw": _adam,
    "adafactor": _adafactor,
    "muon": _muon,
}
