"""Averages of the parameters, as the last link of an optimizer's chain: exponential (Polyak and Juditsky 1992), or schedule-free.

An average lies in the state of the optimizer, so it is sharded as the parameters, saved and restored with them, and remains as it
is in a step that is skipped.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from train.engine.state import State


class AverageState(NamedTuple):
    """The average of the parameters after a number of updates."""

    count: Any
    """An int32 scalar."""
    average: Any
    """A tree like the parameters."""


def average_parameters(decay: float) -> optax.GradientTransformationExtraArgs:
    """Return the link that leaves updates as they are, and averages the parameters that follow from them.

    With n updates so far the decay is min(decay, (1 + n) / (10 + n)), so that the first parameters are soon forgotten.
    """

    def init(params: Any) -> AverageState:
        return AverageState(jnp.int32(0), params)

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, AverageState]:
        count = state.count + 1
        share = 1.0 - jnp.minimum(decay, (1.0 + count) / (10.0 + count))
        average = jax.tree.map(lambda old, param, update: old + share * (param + update - old), state.average, params, updates)
        return updates, AverageState(count, average)

    return optax.GradientTransformationExtraArgs(init, update)


class ScheduleFreeState(NamedTuple):
    """The sequences of a schedule-free optimizer, beside the parameters y that gradients are computed at."""

    total: Any
    """Sum of the squared learning rates, a float scalar."""
    base: Any
    """The sequence z, which the updates are added to; a tree like the parameters."""
    average: Any
    """The sequence x, the average of z; a tree like the parameters."""


def schedule_free(b1: float) -> optax.GradientTransformationExtraArgs:
    """Return the link that makes the optimizer before it schedule-free (Defazio et al. 2024, algorithm 1).

    The updates are added to z, each z counts in the average x by the square of its learning rate `lr`, and the parameters become
    (1 - b1) z + b1 x. `optax.contrib.schedule_free` computes x from y and z, and the learning rate from its own count. As there,
    the bias correction of the second moment is in the updates; in the algorithm it is in the rate, and so in the weights of z.
    """

    def init(params: Any) -> ScheduleFreeState:
        return ScheduleFreeState(jnp.zeros(()), params, params)

    def update(updates: Any, state: Any, params: Any = None, *, lr: Any = 1.0, **_: Any) -> tuple[Any, ScheduleFreeState]:
        total = state.total + lr**2
        share = lr**2 / jnp.where(total > 0, total, 1.0)
        base = jax.tree.map(jnp.add, state.base, updates)
        average = jax.tree.map(lambda old, new: old + share * (new - old), state.average, base)
        updates = jax.tree.map(lambda y, z, x: z + b1 * (x - z) - y, params, base, average)
        return updates, ScheduleFreeState(total, base, average)

    return optax.GradientTransformationExtraArgs(init, update)


def scored_parameters(state: State) -> Any:
    """Return the trained parameters that validations and scores use: the average, if the run has one."""
    links = state.opt_state if isinstance(state.opt_state, tuple) else ()
    return next((link.average for link in links if isinstance(link, AverageState | ScheduleFreeState)), state.params)


def stored_average(opt_state: Any, params: Any) -> dict[str, Any]:
    """Return the part of an optimizer's state that is the average, as nested dicts, with `params` in its place.

    Args:
        opt_state: the state, also as shapes.
    """
    place = next(i for i, link in enumerate(opt_state) if isinstance(link, AverageState | ScheduleFreeState))
    return {"opt_state": {str(place): {"average": params}}}
