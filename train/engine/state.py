"""The state of a run: everything a step reads and writes, and nothing else."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """The state that a step takes and returns: donated to the next step, and saved in a checkpoint.

    The same class with `jax.ShapeDtypeStruct`s or shardings as leaves describes it. `step` alone is the position in the data: the
    rows of step n are a function of n and the seed.
    """

    step: Any
    """Steps taken, an int32 scalar; skipped steps count."""
    params: Any
    """Nested dict of float32 arrays; per-layer leaves stacked on axis 0."""
    opt_state: Any
    carry: Any
    """`{}`, or the arrays that the model carries from step to step (XLNet's memory), with the batch axis first."""
    statistics: Any = dataclasses.field(default_factory=dict)
    """`{}`, or what decides whether a step is skipped (`train.engine.step_acceptance`), the same on all devices."""
    key: Any
    """The run's random key, uint32[2]; never advanced: every sample is a function of (key, step, example, layer, site)."""
