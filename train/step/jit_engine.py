"""The launch of a step: one program over a mesh. `train.step.pmap_engine` is the data-parallel alternative."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.engine import device_mesh
from train.engine.device_mesh import batch_sharding, shard_batch
from train.engine.state import State
from train.step.training_step import Metrics, Step
from zoo.batch import Batch


@dataclasses.dataclass(frozen=True)
class Engine:
    """The functions that launch a step and lay out its arguments."""

    step: Callable[..., tuple[State, Metrics]]
    """Takes the arguments of `make_step`'s step, laid out by `shard`, `shard_batch` and `replicate`."""
    shard: Callable[[State], State]
    """Converts a state of global arrays to the layout of `step`."""
    get: Callable[[State], State]
    """Converts a state of `step` back to global arrays."""
    shard_batch: Callable[[Batch], Batch]
    """Lays this process's rows of a batch out over its devices."""
    replicate: Callable[[Any], Any]
    """Converts parameters that the step reads but does not train to its layout: under jit they keep the sharding that they
    have, under pmap every device gets all of them."""
    trace: Callable[..., Any] | None = None
    """Traces the step on shapes, to be lowered and compiled; None for an engine that needs its devices."""


def jit_engine(step: Step, mesh: Mesh, state_shardings: State, rows: int) -> Engine:
    """Return one program over the mesh; `state_shardings` are the state's shardings, `rows` the size of a global batch.

    A batch of another size makes another program, which is compiled when it comes.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    # None: frozen parameters keep the sharding that they have.
    in_shardings = (state_shardings, batch_sharding(mesh), None, None)
    compiled = jax.jit(step, donate_argnums=0, in_shardings=in_shardings, out_shardings=(state_shardings, replicated))

    local_rows = len(device_mesh.local_rows(mesh, rows))

    def lay_out(batch: Batch) -> Batch:
        # Each process has the same share of the rows of every batch.
        return shard_batch(batch, mesh, len(batch.tokens) * rows // local_rows)

    def run(state: State, batch: Batch, frozen: Any = {}, base: Any = {}) -> tuple[State, Metrics]:  # noqa: B006
        with jax.set_mesh(mesh):
            return compiled(state, batch, frozen, base)

    def trace(state: State, batch: Batch, frozen: Any = {}, base: Any = {}) -> Any:  # noqa: B006
        with jax.set_mesh(mesh):
            return compiled.trace(state, batch, frozen, base)

    return Engine(
        step=run,
        shard=_same,
        get=_same,
        shard_batch=lay_out,
        replicate=_same,
        trace=trace,
    )


def _same(tree: Any) -> Any:
    return tree
