"""All texts of a tiny vocabulary, for expectations that are sums over them, and arithmetic in float64."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

TEXTS = [
    text for n in (1, 2, 3) for text in itertools.product(range(3), repeat=n) if 2 not in text[:-1] and (n == 3 or text[-1] == 2)
]
"""All texts of a vocabulary of 3, whose last token ends a text, that have at most 3 tokens."""
PREFIXES = [(), *((a,) for a in range(2)), *itertools.product(range(2), repeat=2)]


def text_log_probs(table: Any) -> Any:
    """Return the log-probability of each text, from the logits after each prefix."""
    logs = jax.nn.log_softmax(table.reshape(len(PREFIXES), 3))
    return jnp.stack([sum(logs[PREFIXES.index(text[:at]), token] for at, token in enumerate(text)) for text in TEXTS])


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Trace in float64, also where the zoo asks for float32 by name, as norms, softmax and losses do."""
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jnp, "float32", jnp.float64)
        yield
