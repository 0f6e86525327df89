"""Averages of the parameters, as the last link of an optimizer's chain.

There are exponential ones (Polyak and Juditsky 1992), those of power functions (Karras et al. 2024), and the schedule-free one.

An average lies in the state of the optimizer, so it is sharded as the parameters, saved and restored with them, and remains as it
is in a step that is skipped.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float64

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


class PowerAverageState(NamedTuple):
    """Averages of the parameters over shares of the updates so far."""

    count: Any
    """An int32 scalar."""
    average: Any
    """The average of the first width; a tree like the parameters."""
    others: dict[str, Any]
    """The averages of the other widths by their place, "1", "2", ...; each a tree like the parameters."""


def average_by_powers(widths: Sequence[float]) -> optax.GradientTransformationExtraArgs:
    """Return the link that leaves updates as they are, and averages the parameters that follow from them, once for each width.

    After t updates the parameters of update n have a weight in proportion to n^g, so that the average is of a constant share of
    the updates (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3.1). g is the
    `exponent_of_width`.
    """
    exponents = {str(place): exponent_of_width(width) for place, width in enumerate(widths)}

    def init(params: Any) -> PowerAverageState:
        return PowerAverageState(jnp.int32(0), params, {place: params for place in exponents if place != FIRST})

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, PowerAverageState]:
        count = state.count + 1

        def moved(old: Any, exponent: float) -> Any:
            # 1 - (1 - 1 / count)^(g + 1), without the loss of digits of a difference from 1.
            share = -jnp.expm1((exponent + 1.0) * jnp.log1p(-1.0 / count.astype(jnp.float32)))
            return jax.tree.map(lambda old, param, update: old + share * (param + update - old), old, params, updates)

        others = {place: moved(old, exponents[place]) for place, old in state.others.items()}
        return updates, PowerAverageState(count, moved(state.average, exponents[FIRST]), others)

    return optax.GradientTransformationExtraArgs(init, update)


FIRST = "0"
"""Place of the width whose average is scored."""


def exponent_of_width(width: float) -> float:
    """Return the exponent of the power function whose standard deviation is a share `width` of the updates (equation 3 there)."""
    square = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - square, 12.0 - square])
    return float(roots[np.abs(roots.imag) < 1e-9].real.max())


def synthesis_weights(
    counts: Float64[np.ndarray, " N"], exponents: Float64[np.ndarray, " N"], count: float, exponent: float
) -> Float64[np.ndarray, " N"]:
    """Return the weights of stored averages whose sum is nearest to another average (appendix C.3 there).

    Unlike there, the weights add up to 1, so that parameters that never change remain the same.

    Args:
        counts, exponents: updates of each stored average, and its exponent.
        count, exponent: those of the average to be approximated.
    """

    def overlap(first: Any, first_exponent: Any, second: Any, second_exponent: Any) -> Any:
        """Return the integral of the product of two normalized power functions."""
        ratio = (first / second) ** np.where(first < second, second_exponent, -first_exponent)
        total = (first_exponent + 1) * (second_exponent + 1) * ratio
        return total / ((first_exponent + second_exponent + 1) * np.maximum(first, second))

    products = overlap(counts[:, None], exponents[:, None], counts[None], exponents[None])
    with_target = overlap(counts, exponents, count, exponent)
    # The least-squares problem with a Lagrange multiplier, in units of the count, which are those of 1 / products.
    ones = np.ones(len(counts))
    system = np.block([[products * count, ones[:, None]], [ones[None], np.zeros((1, 1))]])
    return np.linalg.lstsq(system, np.append(with_target * count, 1.0), rcond=1e-12)[0][:-1]


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
    return next((link.average for link in links if isinstance(link, AVERAGES)), state.params)


def stored_average(opt_state: Any, params: Any, width: int = 0) -> dict[str, Any]:
    """Return the part of an optimizer's state that is an average, as nested dicts, with `params` in its place.

    Args:
        opt_state: the state, also as shapes.
        width: the place of the average among those of several widths.
    """
    place = next(i for i, link in enumerate(opt_state) if isinstance(link, AVERAGES))
    return {"opt_state": {str(place): {"others": {str(width): params}} if width else {"average": params}}}


AVERAGES = (AverageState, PowerAverageState, ScheduleFreeState)
