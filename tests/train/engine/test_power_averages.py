"""Averages of power functions (Karras et al. 2024): their weights, their widths, and other averages made from them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.config.optim_options import WIDEST, Optim
from train.engine.averages import (
    PowerAverageState,
    average_by_powers,
    exponent_of_width,
    scored_parameters,
    stored_average,
    synthesis_weights,
)
from train.engine.optim import make_optimizer
from train.engine.state import State
from zoo.errors import BadInput

UPDATES, EVERY = 400, 50


def power_average(values: np.ndarray, exponent: float) -> float:
    """The average in which value n of 1 to t has the weight of its part of the integral of a power function."""
    edges = np.arange(len(values) + 1) / len(values)
    return float(values @ np.diff(edges ** (exponent + 1)))


def trajectory() -> np.ndarray:
    """A parameter that falls, with noise."""
    steps = np.arange(1, UPDATES + 1)
    return 3 / np.sqrt(steps) + 0.2 * np.random.default_rng(0).standard_normal(UPDATES).cumsum() / np.sqrt(UPDATES)


def test_exponents_are_those_of_the_paper() -> None:
    """Section 3.1: widths of 5% and 10% have the exponents 16.97 and 6.94."""
    assert [round(exponent_of_width(width), 2) for width in (0.05, 0.1)] == [16.97, 6.94]
    assert exponent_of_width(12**-0.5) == pytest.approx(0, abs=1e-6)
    for width in (0.01, 0.15, WIDEST):
        # The standard deviation of the weight over the share of the updates.
        x, g = (np.arange(200_000) + 0.5) / 200_000, exponent_of_width(width)
        weight = (g + 1) * x**g
        mean = (weight * x).mean()
        assert np.sqrt((weight * (x - mean) ** 2).mean()) == pytest.approx(width, rel=1e-3)


@pytest.mark.planted
def test_an_average_has_the_weights_of_its_power_function() -> None:
    values, widths = trajectory(), (0.05, 0.1)
    tx = optax.chain(optax.identity(), average_by_powers(widths))
    before, update = jnp.float32(7.0), jax.jit(tx.update)
    state: Any = jax.jit(tx.init)(before)
    for value in values:
        _, state = update(jnp.float32(value) - before, state, before)
        before = jnp.float32(value)
    link = state[-1]
    assert isinstance(link, PowerAverageState) and link.count == UPDATES
    expected = [power_average(values, exponent_of_width(width)) for width in widths]
    # The recursion's weights are the ratios of gamma functions, which the integrals of parts approach.
    assert [float(link.average), float(link.others["1"])] == pytest.approx(expected, abs=3e-3)
    assert abs(expected[0] - expected[1]) > 0.01 < abs(values.mean() - expected[1])


def test_a_late_update_has_its_share() -> None:
    """After a million updates a new one counts (g + 1) / 10^6, which a difference from 1 in float32 misses by a percent."""
    tx, zero = average_by_powers((0.05,)), jnp.float32(0)
    state = PowerAverageState(jnp.int32(10**6 - 1), zero, {})
    _, after = tx.update(jnp.float32(1), state, zero)
    assert isinstance(after, PowerAverageState)
    assert float(after.average) == pytest.approx(1 - (1 - 1e-6) ** (exponent_of_width(0.05) + 1), rel=1e-5)


def stored(values: np.ndarray, widths: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (counts, exponents, averages) of the checkpoints of a run."""
    counts, exponents = (
        array.ravel().astype(np.float64)
        for array in np.meshgrid(np.arange(EVERY, UPDATES + 1, EVERY), [*map(exponent_of_width, widths)], indexing="ij")
    )
    averages = [power_average(values[: int(count)], exponent) for count, exponent in zip(counts, exponents, strict=True)]
    return counts, exponents, np.array(averages)


@pytest.mark.planted
def test_other_widths_are_made_from_stored_averages() -> None:
    values = trajectory()
    counts, exponents, averages = stored(values, (0.05, 0.1))
    for width in (0.05, 0.07, 0.1, 0.15, 0.2):
        weights = synthesis_weights(counts, exponents, float(UPDATES), exponent_of_width(width))
        expected = power_average(values, exponent_of_width(width))
        assert weights.sum() == pytest.approx(1) and weights @ averages == pytest.approx(expected, abs=3e-3)
    # Of a width that was stored, the weights are its own average alone.
    own = synthesis_weights(counts, exponents, float(UPDATES), exponents[-1])
    assert own == pytest.approx(np.eye(len(counts))[-1], abs=1e-5)
    # With the exponents of the two averages exchanged, the result is that of the other width.
    swapped = synthesis_weights(counts, exponents.reshape(-1, 2)[:, ::-1].ravel(), float(UPDATES), exponents[0])
    assert abs(swapped @ averages - averages[-2]) > 0.01


def test_the_first_width_is_scored_and_every_average_can_be_read() -> None:
    params = {"w": jnp.ones(3)}
    state: Any = make_optimizer(Optim(average_widths=(0.1, 0.05))).init(params)
    ((place, link),) = [(str(i), link) for i, link in enumerate(state) if isinstance(link, PowerAverageState)]
    assert stored_average(state, "all") == {"opt_state": {place: {"average": "all"}}}
    assert stored_average(state, "all", 1) == {"opt_state": {place: {"others": {"1": "all"}}}}
    fields = {"step": jnp.int32(0), "params": {"w": jnp.zeros(3)}, "carry": {}, "statistics": {}, "key": jax.random.key(0)}
    assert scored_parameters(State(opt_state=state, **fields)) is link.average


@pytest.mark.parametrize("widths", [(0.0,), (0.3,), (0.05, 0.05)])
def test_widths_out_of_range_or_twice_are_refused(widths: tuple[float, ...]) -> None:
    with pytest.raises(BadInput, match=r"--optim\.average-widths .*: choose different widths of 0.001 to 0.28"):
        Optim(average_widths=widths)


def test_two_kinds_of_averages_are_refused() -> None:
    with pytest.raises(BadInput, match=r"--optim\.average-widths 0.1: the parameters have one kind of average"):
        Optim(average_widths=(0.1,), average=0.9)
    with pytest.raises(BadInput, match="schedule_free_adamw has an average of its own"):
        Optim(name="schedule_free_adamw", schedule="constant", average_widths=(0.1,))
