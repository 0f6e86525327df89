"""Wrong types and shapes are noticed in every function of this project (`tests.support.type_checks`)."""

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from zoo.errors import printable_lines
from zoo.nn import experts
from zoo.runtime.hardware import device_peak


@pytest.mark.planted(4)
def test_wrong_types_and_shapes_are_noticed() -> None:
    logits, chosen, others = jnp.ones((2, 4, 3)), jnp.zeros((2, 4), jnp.int32), jnp.zeros((2, 5, 1), jnp.int32)
    for function, arguments in (
        *((printable_lines, (3,)), (device_peak, (None, "float32"))),
        *((experts.load_balance, (logits, chosen, None)), (experts.load_balance, (logits, others, None))),
    ):
        with pytest.raises(TypeCheckError):
            function(*arguments)
