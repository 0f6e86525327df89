"""The training step: pure, donated, and the same function under jit over a mesh and under pmap."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.config import run_config
from train.engine import optim
from train.engine.device_mesh import batch_sharding, shard_batch
from train.engine.losses import model_weights
from train.engine.micro_batches import join_rows, split_rows
from train.engine.state import State
from train.engine.state_init import TrainedParams, abstract_state
from train.engine.step_acceptance import acceptance
from zoo.batch import Batch
from zoo.models import Model
from zoo.ops.counter_rng import example_seeds
from zoo.ops.xla_cpu_workarounds import select_update
from zoo.precision import DTYPES, cast_params

Metrics = dict[str, jax.Array]
Step = Callable[..., tuple[State, Metrics]]


@runtime_checkable
class StepObjective(Protocol):
    """The part of an objective that a step needs; `train.objectives.base.Objective` has these methods and explains them."""

    def trained(self, model: Model) -> TrainedParams:
        """Return the initializer and the sharding of the parameters that the step updates."""
        ...

    def loss_params(self, params: Any, frozen: Any) -> Any:
        """Return the parameters of the model, given those that the step updates."""
        ...

    def complete_batch(
        self,
        model: Model,
        params: Callable[[], Any],
        batch: Batch,
        frozen: Any,
        *,
        reduce: Callable[[Any], Any],
        num_micro: int,
        chunk: int,
    ) -> Batch:
        """Return the batch with the numbers that depend on the current parameters and on all rows of the global batch."""
        ...

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the divisor of each term of the loss, float32 [], but for those that the model adds."""
        ...

    def loss(
        self, model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
    ) -> tuple[dict[str, jax.Array], Any]:
        """Return (each term of the loss as a sum over the batch, float32 []; the model's new carry)."""
        ...


def make_step(run: run_config.Run, model: Model, objective: StepObjective, tx: optax.GradientTransformation, dtype: Any) -> Step:
    """Return `step(state, batch, frozen={}, *, reduce=identity) -> (state, metrics)`.

    `frozen`: parameters that the objective reads but does not train (a teacher's). `reduce` sums over devices under pmap; under
    jit the arrays are global already. A step that is not accepted (`train.engine.step_acceptance`), as one whose loss or
    gradient is not finite, leaves parameters, optimizer and carry as they were. Metrics are float32 scalars: loss, grad_norm, lr,
    each term of the loss by name, and the decision: `finite` = 0 for a step that was skipped, and perhaps `spike` = 1.
    """
    rate, accept, factors = optim.schedule(run.optim, run.steps), acceptance(run.spikes), model.loss_factors

    def step(state: State, batch: Batch, frozen: Any = {}, *, reduce: Callable[[Any], Any] = lambda x: x):  # noqa: B006
        def cast(params: Any) -> Any:
            return cast_params(objective.loss_params(params, frozen), dtype)

        # Computed outside of the loss, so that no gradient is taken through these numbers.
        options: dict[str, Any] = {"reduce": reduce, "num_micro": run.accumulate, "chunk": run.loss_chunk}
        batch = objective.complete_batch(model, lambda: cast(state.params), batch, frozen, **options)
        weights = reduce({**model_weights(model, batch), **objective.weights(batch)})
        assert batch.index is not None
        seeds = example_seeds(state.key, state.step, batch.index)

        def loss(params: Any, micro: tuple[Any, ...]) -> tuple[jax.Array, tuple[Metrics, Any]]:
            batch, seeds, carry = micro
            sums, carry = objective.loss(
                model, cast(params), batch, frozen, seeds=seeds, carry=carry, smoothing=run.label_smoothing, chunk=run.loss_chunk
            )
            # Each sum is divided by its global weight here, so that micro-batches and devices sum to the full gradient.
            terms = {name: sums[name] / weights[name] for name in sums}
            scaled = (term * factors[name] if name in factors else term for name, term in terms.items())
            return functools.reduce(jnp.add, scaled), (terms, carry)

        gradient = jax.value_and_grad(loss, has_aux=True)
        (total, (terms, carry)), grads = _accumulate(gradient, state.params, (batch, seeds, state.carry), run.accumulate)
        total, terms, grads = reduce((total, terms, grads))

        norm = optim.norm(run.optim, grads)
        accepted, statistics, decision = accept.decide(state.statistics, total, norm)
        lr = rate(state.step)

        def apply_update() -> Any:
            updates, opt_state = optax.with_extra_args_support(tx).update(grads, state.opt_state, state.params, norm=norm)
            return jax.tree.map(lambda p, u: p - lr * u, state.params, updates), opt_state, carry

        params, opt_state, carry = select_update(accepted, apply_update, (state.params, state.opt_state, state.carry))
        updated = {"params": params, "opt_state": opt_state, "carry": carry, "statistics": statistics}
        state = dataclasses.replace(state, step=state.step + 1, **updated)
        return state, {**terms, "loss": total, "grad_norm": norm, "lr": lr, **decision}

    return step


def _accumulate(gradient: Callable[..., Any], params: Any, batch: tuple[Any, ...], num_micro: int) -> Any:
    """Sum value, terms and gradient over micro-batches."""
    if num_micro == 1:
        return gradient(params, batch)

    def micro_step(sums: Any, micro: Any) -> tuple[Any, Any]:
        (total, (terms, carry)), grads = gradient(params, micro)
        return jax.tree.map(jnp.add, sums, (total, terms, grads)), carry

    micros = split_rows(batch, num_micro)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda leaf: leaf[0], micros))
    (total, (terms, _)), grads = shapes
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (total, terms, grads))
    (total, terms, grads), carries = jax.lax.scan(micro_step, zeros, micros)
    return (total, (terms, join_rows(carries))), grads


@dataclasses.dataclass(frozen=True)
class Assembly:
    """The parts that a run's steps are made of, before anything is allocated."""

    tx: optax.GradientTransformation
    state: State
    """Shapes, dtypes and shardings; see `train.engine.state_init.abstract_state`."""
    engine: "Engine"


def assemble(run: run_config.Run, model: Model, objective: StepObjective, mesh: Mesh) -> Assembly:
    """Return the step of a run on a mesh, whose devices may be absent: the trainer runs it, and a plan compiles it.

    Args:
        run: the configuration with its precision resolved, float32 or bfloat16.
        objective: bound to the run (by `bind` of `train.objectives.base.Objective`, or by `bind_abstract`).
    """
    tx = optim.optimizer(run.optim)
    trained = objective.trained(model)
    state = abstract_state(run, model, tx, mesh, trained.init, trained.sharding)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_step(run, model, objective, tx, DTYPES[run.precision])
    return Assembly(tx, state, ENGINES[run.engine](step, mesh, shardings, run.data.batch))


@dataclasses.dataclass(frozen=True)
class Engine:
    """The functions that launch a step and lay out its arguments."""

    step: Callable[[State, Batch, Any], tuple[State, Metrics]]
    """Takes a state, a batch and the frozen parameters, laid out by `shard`, `shard_batch` and `replicate`."""
    shard: Callable[[State], State]
    """Converts a state of global arrays to the layout of `step`."""
    get: Callable[[State], State]
    """Converts a state of `step` back to global arrays."""
    shard_batch: Callable[[Batch], Batch]
    """Lays this process's rows of a batch out over its devices."""
    replicate: Callable[[Any], Any]
    """Converts the parameters that the objective reads but does not train to the layout of `step`: under jit they keep the
    sharding they have, under pmap every device gets all of them."""
    trace: Callable[[State, Batch, Any], Any] | None = None
    """Traces the step on shapes, to be lowered and compiled; None for an engine that needs its devices."""


def jit_engine(step: Step, mesh: Mesh, state_shardings: State, rows: int) -> Engine:
    """Return one program over the mesh; `state_shardings` are the state's shardings, `rows` the size of a global batch."""
    replicated = NamedSharding(mesh, PartitionSpec())
    # None: frozen parameters keep the sharding that they have.
    in_shardings = (state_shardings, batch_sharding(mesh), None)
    compiled = jax.jit(step, donate_argnums=0, in_shardings=in_shardings, out_shardings=(state_shardings, replicated))

    def run(state: State, batch: Batch, frozen: Any = {}) -> tuple[State, Metrics]:  # noqa: B006
        with jax.set_mesh(mesh):
            return compiled(state, batch, frozen)

    def trace(state: State, batch: Batch, frozen: Any = {}) -> Any:  # noqa: B006
        with jax.set_mesh(mesh):
            return compiled.trace(state, batch, frozen)

    return Engine(
        step=run,
        shard=_same,
        get=_same,
        shard_batch=lambda batch: shard_batch(batch, mesh, rows),
        replicate=_same,
        trace=trace,
    )


def _same(tree: Any) -> Any:
    return tree


def pmap_engine(step: Step, mesh: Mesh, state_shardings: State, rows: int) -> Engine:
    """Return the same step with one replica of the state per device and `psum` between them; arrays have a leading device axis.

    It is the data-parallel alternative to `jit_engine`, with the same results, for code that still uses `jax.pmap`.
    """
    devices = list(mesh.devices.flat)
    local = [device for device in devices if device.process_index == jax.process_index()]
    by_device = NamedSharding(Mesh(np.array(devices), ("device",)), PartitionSpec("device"))
    mapped = jax.pmap(
        functools.partial(step, reduce=functools.partial(jax.lax.psum, axis_name="device")),
        axis_name="device",
        donate_argnums=0,
        devices=devices,
    )

    def stack(shards: list[Any]) -> jax.Array:
        """Return local devices' values, in order, as one array over all devices."""
        chunks = [jax.device_put(shard[None], device) for shard, device in zip(shards, local, strict=True)]
        return jax.make_array_from_single_device_arrays((len(devices), *chunks[0].shape[1:]), by_device, chunks)

    def in_order(x: jax.Array) -> list[np.ndarray]:
        shards = {shard.device: shard.data for shard in x.addressable_shards}
        return [jax.device_get(shards[device]) for device in local]

    def stack_shards(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: stack(in_order(leaf)), tree)

    def get(state: State) -> State:
        def global_array(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
            # The carry is split over the devices; everything else is the same on each device.
            is_split = sharding.spec == batch_sharding(mesh).spec
            shape = (len(devices) * leaf.shape[1], *leaf.shape[2:]) if is_split else leaf.shape[1:]
            chunks = [jax.device_put(shard[0], device) for shard, device in zip(in_order(leaf), local, strict=True)]
            return jax.make_array_from_single_device_arrays(shape, sharding, chunks)

        return jax.tree.map(global_array, state, state_shardings)

    def split(batch: Batch) -> Batch:
        return jax.tree.map(lambda leaf: stack(np.split(leaf, len(local))), batch)

    def run(state: State, batch: Batch, frozen: Any = {}) -> tuple[State, Metrics]:  # noqa: B006
        return mapped(state, batch, frozen)

    return Engine(step=run, shard=stack_shards, get=get, shard_batch=split, replicate=stack_shards)


ENGINES: dict[str, Callable[[Step, Mesh, State, int], Engine]] = {"jit": jit_engine, "pmap": pmap_engine}
