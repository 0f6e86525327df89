"""Choosing a token: every filter against plain numpy, one row and one token at a time, and against transformers; the draws."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.errors import BadInput
from zoo.generation import sampling
from zoo.generation.decoding_settings import GREEDY, Sampling
from zoo.ops import counter_rng

VOCABULARY = 40


def probabilities(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def top_k(logits: np.ndarray, k: int) -> np.ndarray:
    return np.array([x if (logits > x).sum() < k else -np.inf for x in logits])


def top_p(logits: np.ndarray, p: float) -> np.ndarray:
    share = probabilities(logits)
    return np.array([x if share[logits > x].sum() < p else -np.inf for x in logits])


def min_p(logits: np.ndarray, p: float) -> np.ndarray:
    share = probabilities(logits)
    return np.array([x if each >= p * share.max() else -np.inf for x, each in zip(logits, share, strict=True)])


def expected(logits: np.ndarray, chosen: Sampling) -> np.ndarray:
    """In float64, one row after the other."""
    rows = []
    for row in np.float64(logits):
        if chosen.temperature:
            row = top_k(row / chosen.temperature, chosen.top_k or VOCABULARY)
            row = min_p(top_p(row, chosen.top_p) if chosen.top_p < 1 else row, chosen.min_p)
        rows.append(row)
    return np.stack(rows)


def random_logits(seed: int, rows: int = 4) -> np.ndarray:
    return np.float32(3 * np.random.default_rng(seed).standard_normal((rows, VOCABULARY)))


@functools.cache
def program(chosen: Sampling) -> Callable[..., Any]:
    return jax.jit(lambda logits: sampling.filter_logits(logits, chosen))


CHOICES = [
    Sampling(temperature=1.6, top_k=12, top_p=0.9, min_p=0.1),
    Sampling(top_p=0.8),
    Sampling(),
    GREEDY,
    Sampling(top_k=1),
    Sampling(top_k=10 * VOCABULARY),
    Sampling(top_p=1e-9),
    Sampling(top_p=0.999999),
    Sampling(min_p=0.05),
    Sampling(min_p=1.0),
]
every_choice = pytest.mark.parametrize(
    "chosen", [*CHOICES[:2], *(pytest.param(chosen, marks=pytest.mark.full) for chosen in CHOICES[2:])], ids=str
)


@every_choice
def test_a_filter_is_its_definition(chosen: Sampling) -> None:
    for seed in range(5):
        logits = random_logits(seed)
        left, wanted = np.asarray(program(chosen)(logits)), expected(logits, chosen)
        np.testing.assert_array_equal(np.isneginf(left), np.isneginf(wanted))
        np.testing.assert_allclose(left, wanted, rtol=1e-5)


ORDERED = Sampling(temperature=2.0, top_k=8, top_p=0.7, min_p=0.2)
STEPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "temperature": lambda logits: logits / 2.0,
    "top_k": lambda logits: top_k(logits, 8),
    "top_p": lambda logits: top_p(logits, 0.7),
    "min_p": lambda logits: min_p(logits, 0.2),
}


@pytest.mark.planted(3)
def test_the_order_of_the_filters_matters_and_is_kept() -> None:
    """The same filters in other orders leave other tokens: the comparison above would notice."""
    batches = [random_logits(seed) for seed in range(5)]

    def kept(order: str) -> np.ndarray:
        rows = [row for batch in batches for row in np.float64(batch)]
        return np.stack([np.isfinite(functools.reduce(lambda x, step: STEPS[step](x), order.split(), row)) for row in rows])

    left = np.concatenate([np.isfinite(program(ORDERED)(batch)) for batch in batches])
    np.testing.assert_array_equal(left, kept("temperature top_k top_p min_p"))
    for other in ("top_k top_p min_p temperature", "temperature top_p top_k min_p", "min_p temperature top_k top_p"):
        assert (left != kept(other)).any()


@pytest.mark.full
def test_equal_logits_are_filtered_together_and_the_largest_is_kept() -> None:
    values = np.array([0.0, -0.0, -2.0, 0.5], np.float32)
    for chosen, seed in itertools.product(CHOICES, range(12)):
        logits = np.random.default_rng(seed).choice(values[: 1 + seed % 4], (4, VOCABULARY))
        left = np.isfinite(program(chosen)(logits))
        for row, kept in zip(logits, left, strict=True):
            assert kept[row.argmax()] and set(row[kept]).isdisjoint(row[~kept])


@pytest.mark.parity
@every_choice
def test_a_filter_is_that_of_transformers(chosen: Sampling) -> None:
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as theirs

    steps: list[Any] = []
    if chosen.temperature:
        steps.append(theirs.TemperatureLogitsWarper(chosen.temperature))
        steps += [theirs.TopKLogitsWarper(chosen.top_k)] if chosen.top_k else []
        steps += [theirs.TopPLogitsWarper(chosen.top_p)] if chosen.top_p < 1 else []
        steps += [theirs.MinPLogitsWarper(chosen.min_p)] if chosen.min_p else []
    for seed in range(50):
        logits = random_logits(seed)
        left = torch.tensor(logits)
        for step in steps:
            left = step(torch.zeros((4, 1), dtype=torch.long), left)
        np.testing.assert_allclose(np.asarray(program(chosen)(logits)), left.numpy(), rtol=1e-6)


def token_seeds(seed: int, prompts: int) -> jax.Array:
    numbers = jnp.arange(prompts, dtype=jnp.uint32)
    return counter_rng.fold(sampling.row_seeds(seed, numbers, jnp.zeros_like(numbers)), 0)


@functools.partial(jax.jit, static_argnames="chosen")
def draw(logits: Any, row_seeds: Any, chosen: Sampling) -> tuple[jax.Array, jax.Array]:
    return sampling.sample_token(logits, chosen, row_seeds)[:2]


def drawn(logits: Any, row_seeds: Any, chosen: Sampling) -> np.ndarray:
    return np.asarray(draw(logits, row_seeds, chosen)[0])


def test_sampled_frequencies_match_the_probabilities() -> None:
    """Over 40,000 prompts, over positions and over samples of one prompt: chi-squared within 4 standard deviations."""
    chosen = Sampling(temperature=2.0, top_k=10)
    logits = random_logits(3, rows=1)
    wanted = probabilities(expected(logits, chosen)[0])
    count, many = 40_000, np.repeat(logits, 40_000, 0)
    numbers = jnp.arange(count, dtype=jnp.uint32)
    same = sampling.row_seeds(5, jnp.zeros_like(numbers), jnp.zeros_like(numbers))
    ways = {
        "prompts": token_seeds(5, count),
        "positions": counter_rng.fold(same, numbers),
        "samples": counter_rng.fold(sampling.row_seeds(5, jnp.zeros_like(numbers), numbers), 7),
    }
    for name, numbered in ways.items():
        found = np.bincount(drawn(many, numbered, chosen), minlength=VOCABULARY)
        assert (found[wanted == 0] == 0).all()
        means = count * wanted[wanted > 0]
        terms, freedom = (found[wanted > 0] - means) ** 2 / means, len(means) - 1
        assert abs(terms.sum() - freedom) < 4 * math.sqrt(2 * freedom), name


@pytest.mark.full
def test_rare_tokens_are_sampled_too() -> None:
    """The noise has tails: of tokens with probability 2^-20 each, some come in 2^16 draws of 2^8 tokens."""
    logits = np.full((1 << 16, 257), -20 * math.log(2), np.float32)
    logits[:, 256] = math.log(1 - 2.0**-12)
    count = int((drawn(logits, token_seeds(2, 1 << 16), Sampling()) < 256).sum())
    assert abs(count - 16) < 4 * 4


FINITE = [Sampling(), Sampling(top_k=3), Sampling(top_p=0.5), Sampling(min_p=0.1)]


@pytest.mark.planted(3)
@pytest.mark.parametrize("chosen", [GREEDY, *(pytest.param(chosen, marks=pytest.mark.full) for chosen in FINITE)], ids=str)
def test_logits_that_are_not_finite_are_reported(chosen: Sampling) -> None:
    """In the very rows that have them, whatever removes or hides them."""
    for bad in (np.nan, np.inf, -np.inf):
        logits = random_logits(0)
        logits[1, 0], logits[3] = bad, bad
        _, finite = draw(logits, token_seeds(0, 4), chosen)
        assert finite.tolist() == [True, False, True, False]


REFUSED = {
    "temperature": [-1.0, math.inf, math.nan, 1e-9],
    "top_k": [-1],
    "top_p": [0.0, 1.5, math.nan],
    "min_p": [-0.1, 1.01, math.nan],
}


def test_a_setting_that_leaves_nothing_to_sample_is_refused() -> None:
    for field, value in ((field, value) for field, values in REFUSED.items() for value in values):
        with pytest.raises(BadInput, match=rf"^--{field.replace('_', '-')} {value}: choose [^\n]*$"):
            Sampling(**{field: value})
