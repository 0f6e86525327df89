"""Learning-rate schedules."""

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from train.config.optim_options import Optim


def make_schedule(cfg: Optim, steps: int) -> optax.Schedule:
    """Return the learning rate of each step, counted from 0: linear warm-up, then the named decay.

    With n the step counted from 1 and w the warm-up, at least 1: inverse_sqrt is lr * min(n / w, sqrt(w / n)) (Vaswani et al.
    2017, section 5.3: there the peak is (d_model * w)^-1/2); inverse_sqrt_flat has no rise, lr * sqrt(w / max(n, w)) (Raffel et
    al. 2020, section 3.1.2: w^-1/2). cosine and linear take all steps after the warm-up, or `decay_steps` of them, and are then
    constant (Brown et al. 2020, appendix B); wsd is constant and decays in the last ones (Hu et al. 2024, section 4).
    """
    if cfg.schedule == "inverse_sqrt_flat":
        flat = max(cfg.warmup_steps(steps), 1)
        return lambda step: cfg.lr * jnp.sqrt(flat / jnp.maximum(step + 1, flat))
    warmup, length = min(cfg.warmup_steps(steps), steps), cfg.length_of_decay(steps)
    decays: dict[str, optax.Schedule] = {
        "cosine": optax.cosine_decay_schedule(cfg.lr, length, alpha=cfg.final),
        "linear": optax.linear_schedule(cfg.lr, cfg.lr * cfg.final, length),
        "inverse_sqrt": lambda step: cfg.lr * jnp.sqrt(max(warmup, 1) / (step + warmup + 1)),
        "constant": optax.constant_schedule(cfg.lr),
        "wsd": lambda step: cfg.lr * _decayed(cfg, (step - (steps - warmup - length)) / length),
    }
    # Step 0 already updates the parameters: its rate is one warm-up increment, not 0.
    rise = optax.linear_schedule(cfg.lr / max(warmup, 1), cfg.lr, max(warmup - 1, 1))
    return optax.join_schedules([rise, decays[cfg.schedule]], [warmup])


def _decayed(cfg: Optim, share: ArrayLike) -> Float[Array, ""]:
    """Return the factor of the peak after a share of the decay; 1 before it begins."""
    share = jnp.clip(share, 0.0, 1.0)
    shapes = {"linear": share, "sqrt": jnp.sqrt(share), "cosine": 0.5 * (1.0 - jnp.cos(jnp.pi * share))}
    return 1.0 - (1.0 - cfg.final) * shapes[cfg.decay_shape]
