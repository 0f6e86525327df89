"""The state of a run: everything a step reads and writes, and nothing else."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """What travels from step to step, is donated to the next one and is saved in a checkpoint.

    The same tree of `jax.ShapeDtypeStruct`s or of shardings describes it. `step` alone is the data position: the rows of step n
    are a function of n and the seed.
    """

    step: Any
    """int32 scalar. Steps taken, counting those skipped for a non-finite gradient."""
    params: Any
    """Nested dict of float32 arrays; per-layer leaves stacked on axis 0."""
    opt_state: Any
    carry: Any
    """`{}`, or what the model carries from step to step (XLNet memory), batch axis first."""
    key: Any
    """uint32[2]. The run's random key; never advanced, since every draw is a function of (key, step, example, layer, site)."""
