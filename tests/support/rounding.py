"""What a program's roundings may add up to, from the number of terms that its matrix products sum."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core

UNIT_ROUNDOFF = 2.0**-24


def over_products(of: Callable[[Any, int], int], function: Callable, *arguments: Any) -> int:
    """Sum `of(equation, terms of each sum)` over the matrix products in a function's jaxpr, loops times their length."""

    def count(jaxpr: Any) -> int:
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                left = equation.invars[0].aval.shape
                total += of(equation, int(np.prod([left[axis] for axis in contracted])))
            times = equation.params["length"] if equation.primitive.name == "scan" else 1
            total += times * sum(map(count, core.jaxprs_in_params(equation.params)))
        return total

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


def assert_rounded_alike(result: Any, expected: Any, function: Callable, *arguments: Any) -> None:
    """Assert that two float32 computations of a function differ by no more than its roundings, by the root of the mean square.

    No path through a program sums more terms than all its products together, n. As independent errors of at most u these
    add up to u n^1/2 of each result (Higham and Mary 2019; see `benchmarks.attention.rounding_error_bounds`), and both
    results err.
    """
    terms = over_products(lambda _, terms: terms, function, *arguments)
    expected = np.asarray(expected, np.float64)
    difference = np.linalg.norm(np.asarray(result, np.float64) - expected)
    assert difference <= 2 * UNIT_ROUNDOFF * math.sqrt(terms) * np.linalg.norm(expected), (difference, terms)
