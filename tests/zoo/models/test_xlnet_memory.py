"""What XLNet's training step holds in memory when attention is computed in blocks."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.support.small import small
from zoo.batch import Batch
from zoo.configs import Compute

TARGETS = 16


def temporaries(impl: str, length: int) -> int:
    """Bytes that the compiled gradient of both streams needs beside its arguments and results."""
    net = small("xlnet", task="permutation", layers=1, compute=Compute(attention=impl))  # pyright: ignore[reportArgumentType]
    whole, some = jax.ShapeDtypeStruct((1, length), jnp.int32), jax.ShapeDtypeStruct((1, TARGETS), jnp.int32)
    batch = Batch(tokens=whole, types=whole, order=whole, query_at=some)  # pyright: ignore[reportArgumentType]

    def value(params: Any, batch: Batch) -> jax.Array:
        predicted = net.apply(params, batch).predicted
        assert predicted is not None
        return predicted.sum()

    params = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    memory = jax.jit(jax.grad(value)).lower(params, batch).compile().memory_analysis()
    return memory.temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.planted
def test_memory_of_both_streams_is_linear_in_length() -> None:
    """At a fixed number of targets nothing of size T x T is stored; by `xla` it is, and that is seen."""
    found = {length: temporaries("blocked", length) for length in (512, 2048)}
    assert found[2048] < 4.5 * found[512]
    assert temporaries("xla", 2048) > 10 * temporaries("xla", 512)
    assert found[2048] < temporaries("xla", 2048) / 10
