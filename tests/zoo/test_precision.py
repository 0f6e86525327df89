"""Which precision "auto" stands for."""

import jax.numpy as jnp
import pytest

from zoo.precision import resolve_dtype, resolve_precision


@pytest.mark.parametrize(
    ("precision", "default", "platform", "resolved"),
    [
        ("auto", "auto", "cpu", "float32"),
        ("auto", "auto", "gpu", "bfloat16"),
        ("auto", "float32", "gpu", "float32"),
        ("bfloat16", "float32", "cpu", "bfloat16"),
    ],
)
def test_auto_is_the_runs_precision_or_that_of_the_platform(precision, default, platform, resolved) -> None:
    assert resolve_precision(precision, default=default, platform=platform) == resolved


def test_the_tests_run_on_a_cpu() -> None:
    assert resolve_dtype("auto") == jnp.float32
