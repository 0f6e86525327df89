"""How many bytes a program must read of what it is given."""

import math
from typing import Any

CALLS = ("jit", "scan")
"""Primitives with a program of their own, whose operands are theirs one by one; a scan's hold one layer of what is scanned."""
LOOKUPS = ("gather", "dynamic_slice", "slice")
"""Primitives that read as much of their first operand as they return."""


def reads(jitted: Any, *arguments: Any) -> list[int]:
    """Bytes that a call must read of each leaf of its arguments, in the order of `jax.tree.leaves`: what it uses, once.

    Of a table that is only looked up that is what is found in it; of what is only handed on, nothing.

    Args:
        jitted: what `jax.jit` returns.
        arguments: arrays, or their shapes.
    """
    program = jitted.trace(*arguments).jaxpr.jaxpr
    return [_of(operand, program) for operand in program.invars]


def _of(operand: Any, program: Any) -> int:
    """At most all of it: what is read again may have stayed near."""
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
