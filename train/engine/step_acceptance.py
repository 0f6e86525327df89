"""The decision whether a step is applied or skipped: by its loss and gradient, and perhaps by the losses before it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from train.config.option_groups import Spikes


@dataclasses.dataclass(frozen=True)
class Acceptance:
    """A decision about each step, from numbers that are the same on all devices."""

    init: Callable[[], Any]
    """Returns the statistics before the first step, which are a part of the state."""
    decide: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any, dict[str, jax.Array]]]
    """Takes the statistics, the loss and the norm of the gradient, float32 []; returns whether the step is applied, bool [], the
    new statistics, and metrics, float32 []."""


def make_acceptance(spikes: Spikes) -> Acceptance:
    """Return the decision of a run: `finite` = 0 is a step that was skipped, and with `spikes` `spike` = 1 is another one."""
    return _ordinary(spikes.sigmas, spikes.window) if spikes.sigmas else Acceptance(dict, _finite)


def _finite(statistics: Any, loss: jax.Array, norm: jax.Array) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    return finite, statistics, {"finite": finite.astype(jnp.float32)}


def _ordinary(sigmas: float, window: int) -> Acceptance:
    """Skip also a loss more than `sigmas` standard deviations above the mean of the last `window` that were applied.

    None is skipped before that many were applied. The losses are kept, not their sums, whose rounding errors would add up.
    """

    def init() -> dict[str, jax.Array]:
        return {"losses": jnp.zeros(window, jnp.float32), "applied": jnp.int32(0)}

    def decide(statistics: Any, loss: jax.Array, norm: jax.Array) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        finite, _, metrics = _finite(statistics, loss, norm)
        losses, applied = statistics["losses"], statistics["applied"]
        mean = losses.mean()
        bound = mean + sigmas * jnp.sqrt(jnp.square(losses - mean).mean())
        spike = finite & (applied >= window) & (loss > bound)
        accepted = finite & ~spike
        # The oldest loss makes room.
        losses = jnp.where(accepted & (jnp.arange(window) == applied % window), loss, losses)
        statistics = {"losses": losses, "applied": applied + accepted.astype(jnp.int32)}
        return accepted, statistics, metrics | {"spike": spike.astype(jnp.float32)}

    return Acceptance(init, decide)
