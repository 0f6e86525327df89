"""Wrong types and shapes are noticed in every function of this project (`tests.support.type_checks`)."""

import jax.numpy as jnp
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from train.run.hardware import device_peak
from zoo.errors import printable_lines
from zoo.nn import experts


@pytest.mark.planted(4)
def test_wrong_types_and_shapes_are_noticed() -> None:
    for mistake in (lambda: printable_lines(3), lambda: device_peak(dtype="float32", kind=None)):
        with pytest.raises(BeartypeCallHintViolation):
            mistake()
    logits = jnp.ones((2, 4, 3))
    for chosen in (jnp.zeros((2, 4), jnp.int32), jnp.zeros((2, 5, 1), jnp.int32)):
        with pytest.raises(TypeCheckError):
            experts.balance(logits, chosen, None)
