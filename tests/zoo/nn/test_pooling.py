"""Pooling of hidden states against loops over the tokens of each text."""

import math
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.batch import Batch
from zoo.configs._pooling import Pool
from zoo.nn.pooling import pool_tokens, unit_vectors

SIZES = (5, 1, 3)
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(3, 5, 4)).astype(np.float32)
SEGMENTS = (np.arange(5) < np.array(SIZES)[:, None]).astype(np.int32)
BATCH = Batch(tokens=np.zeros((3, 5), np.int32), segments=SEGMENTS)


def by_hand(pool: Pool) -> np.ndarray:
    rows = []
    for states, size in zip(HIDDEN, SIZES, strict=True):
        tokens = [states[place] for place in range(size)]
        weighted = sum(place * token for place, token in enumerate(tokens, 1)) / sum(range(1, size + 1))
        rows.append(
            {
                **{"mean": sum(tokens) / size, "cls": tokens[0], "last": tokens[-1], "max": np.maximum.reduce(tokens)},
                **{"weighted_mean": weighted, "mean_sqrt": sum(tokens) / math.sqrt(size)},
            }[pool]
        )
    return np.stack(rows)


@pytest.mark.parametrize("pool", get_args(Pool))
def test_pooling_is_a_loop_over_the_tokens(pool: Pool) -> None:
    np.testing.assert_allclose(pool_tokens(jnp.asarray(HIDDEN), BATCH, pool), by_hand(pool), rtol=1e-6)


@pytest.mark.parametrize("pool", get_args(Pool))
@pytest.mark.planted
def test_padding_has_no_part_in_the_vector_and_in_its_gradient(pool: Pool) -> None:
    noise = jnp.where(SEGMENTS[..., None] > 0, HIDDEN, 1e6)
    np.testing.assert_array_equal(pool_tokens(noise, BATCH, pool), pool_tokens(jnp.asarray(HIDDEN), BATCH, pool))
    gradient = jax.grad(lambda hidden: pool_tokens(hidden, BATCH, pool).sum())(noise)
    assert np.all(np.asarray(gradient)[SEGMENTS == 0] == 0) and np.isfinite(gradient).all()
    # Without the mask the noise would count.
    everything: Any = Batch(tokens=BATCH.tokens, segments=np.ones_like(SEGMENTS))
    if pool not in ("cls",):
        assert np.abs(pool_tokens(noise, everything, pool) - by_hand(pool)).max() > 1e3


def test_unit_vectors_have_length_one_and_zeros_stay_zeros() -> None:
    vectors = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(unit_vectors(vectors), [[0.6, 0.8], [0.0, 0.0]])
