"""The choice between the plain definition of an array function and a form that XLA's CPU compiler turns into faster code.

A function that is decorated with `with_cpu_form` computes its plain definition, and on CPU a form that is registered below it.
Callers do not see the choice. Each form says what XLA on CPU does wrong, the measured cost, and when the form can be removed. Its
results are as exact as those of the plain definition.

"Time of a step" is relative to the step without the form, on two Xeon cores; tables and shapes are in
`benchmarks/results/step-gains_xeon-2-cores_2026-11-26.md`. To see whether a form is still needed, compare `zoo bench step gpt2`
with and without it.

Three functions have the same form on every platform, which was chosen for the CPU: `zoo.nn.layers.gelu` has erf, for which XLA on
CPU takes half as long as for the erfc of `jax.nn.gelu`; `zoo.nn.layer_stack.run_stack` does not reshape a stack of equal layers,
since XLA on CPU copies donated parameters that a loop reads reshaped; and `zoo.generation.sampling` selects tokens without a
sort, which inside a loop takes ten times as long. The flags that keep the compiler from wrong numbers are in
`zoo.runtime.jax_setup`.
"""

import functools
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import jax

from zoo.sharding import target_platform

P = ParamSpec("P")
R = TypeVar("R")


def single_cpu() -> bool:
    """Return True if a program is compiled for one CPU device, where splitting or merging an axis needs no communication."""
    mesh = jax.sharding.get_abstract_mesh()
    return target_platform() == "cpu" and (mesh.empty or mesh.size == 1)


class with_cpu_form(Generic[P, R]):
    """Decorate the plain definition of a function, to which forms for the CPU are then added.

    For example::

    @with_cpu_form
    def row_max(x): ...


    @row_max.on_cpu
    def _row_max_by_halves(x): ...
    """

    def __init__(self, plain: Callable[P, R]):
        functools.update_wrapper(self, plain)
        self.plain = plain
        self._one, self._several = plain, plain

    def on_one_cpu(self, form: Callable[P, R]) -> Callable[P, R]:
        """Register the form for programs of one CPU device, which may split or merge an axis that a mesh would shard."""
        self._one = form
        return form

    def on_cpu(self, form: Callable[P, R]) -> Callable[P, R]:
        """Register the form for programs of any number of CPU devices."""
        self._one = self._several = form
        return form

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        form = self._one if single_cpu() else self._several if target_platform() == "cpu" else self.plain
        return form(*args, **kwargs)
