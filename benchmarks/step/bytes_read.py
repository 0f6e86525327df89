"""Number of bytes that a program must read of its arguments."""

import math
from typing import Any

CALLS = ("jit", "scan")
"""Primitives whose inner program has the same operands; inside a scan, an operand is one slice of the scanned array."""
LOOKUPS = ("gather", "dynamic_slice", "slice")
"""Primitives that read as much of their first operand as they return."""


def argument_bytes_read(jitted: Any, *arguments: Any) -> list[int]:
    """Return the bytes that a call must read of each leaf of its arguments, in the order of `jax.tree.leaves`, each byte once.

    A table that is only looked up counts with the rows found in it; an argument that is only passed on counts 0.

    Args:
        jitted: what `jax.jit` returns.
        arguments: arrays, or their shapes.
    """
    program = jitted.trace(*arguments).jaxpr.jaxpr
    return [_of(operand, program) for operand in program.invars]


def _of(operand: Any, program: Any) -> int:
    """Return the bytes read of an operand, at most its size: repeated reads are assumed to hit a cache."""
    size, total = _size(operand), 0
    for line in program.eqns:
        name = line.primitive.name
        for place in (place for place, variable in enumerate(line.invars) if variable is operand):
            if name in CALLS:
                inner = line.params["jaxpr"].jaxpr
                total += line.params.get("length", 1) * _of(inner.invars[place], inner)
            elif name in LOOKUPS and place == 0:
                total += _size(line.outvars[0])
            else:
                total += size
    return min(total, size)


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape) * variable.aval.dtype.itemsize
