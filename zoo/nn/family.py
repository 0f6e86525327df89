"""The type of a model family: its arithmetic, as functions of a configuration, and the tables that other modules read."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, UInt32

from zoo.batch import Batch, Output
from zoo.hf.param_name_types import ParamNames
from zoo.nn.kv_cache import Cache
from zoo.sharding import Rules

Params = dict[str, Any]
"""Parameters: a nested dict of arrays, with those of equal layers stacked on axis 0."""


@runtime_checkable
class Apply(Protocol):
    """The forward pass of a family; see `Family.apply`."""

    def __call__(
        self,
        cfg: Any,
        params: Params,
        batch: Batch,
        *,
        cache: Any = None,
        seeds: UInt32[Array, "B 2"] | None = None,
        carry: Any = None,
    ) -> Output: ...


@runtime_checkable
class Logits(Protocol):
    """A head of a family; `seeds` enables dropout."""

    def __call__(
        self, cfg: Any, params: Params, hidden: Float[Array, "B T D"], *, seeds: UInt32[Array, "B 2"] | None = None
    ) -> Float[Array, "B T O"]: ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """The functions and tables of a family. The first argument of a function is a configuration; None: the family cannot do it.

    `zoo.models.Model` describes the functions and calls them.
    """

    init: Callable[[Any, Array], Params]
    """New parameters, from a key."""
    apply: Apply
    """Hidden states of a batch. A family without `init_cache` never gets a cache, one without `init_carry` no carry."""
    unembed: Callable[[Any, Params, Float[Array, "*B D"]], Float[Array, "*B rows"]]
    """Float32 logits of the LM head at hidden states."""
    flops: Callable[[Any, Batch], float]
    """FLOPs of the matrix products of a forward pass with its head."""
    objectives: tuple[str, ...]
    """Names of the objectives that train it."""
    names: Mapping[str, ParamNames]
    """The published names of the parameters, by task; the first task is the default."""
    sharding: Rules = ()
    """Rows of the sharding table for parameters that those of all families do not match."""
    padded: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Maps a leaf to the option that has its true number of rows. Further rows are padding, which is neither exported nor
    counted."""
    lora: tuple[str, ...] = ()
    """Names of the published matrices that have adapters by default (`zoo.lora`)."""
    init_cache: Callable[[Any, int, int, Any], Cache] | None = None
    """An empty cache for rows, slots and a dtype, with which the family generates text."""
    grow_cache: Callable[[Any, Params, Any, int], Cache] | None = None
    """The cache with more slots; None: `zoo.nn.kv_cache.add_slots` does it."""
    sequence_logits: Logits | None = None
    token_logits: Logits | None = None
    init_carry: Callable[[Any, int], Any] | None = None
    """The initial state that a model carries from step to step, for rows."""
    loss_factors: Callable[[Any], dict[str, float]] | None = None
    """The factors of the terms that the model adds to a training loss."""
