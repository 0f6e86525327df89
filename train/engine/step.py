"""The training step: pure, donated, and the same function under jit over a mesh and under pmap."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.config import run_config
from train.engine import optim
from train.engine.device_mesh import abstract_state, batch_sharding, place
from train.engine.state import State
from zoo.batch import Batch
from zoo.models import Model
from zoo.ops.counter_rng import example_seeds
from zoo.sharding import BATCH, constrain, target

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
"""Dtype of the arithmetic under each precision policy."""

Metrics = dict[str, jax.Array]
Step = Callable[..., tuple[State, Metrics]]


def make_step(run: run_config.Run, model: Model, objective: Any, tx: optax.GradientTransformation, dtype: Any) -> Step:
    """`step(state, batch, frozen={}, *, reduce=identity) -> (state, metrics)`.

    `frozen` is what the objective reads but does not train (a teacher). `reduce` sums over devices under pmap; under jit the
    arrays are global already. A step whose loss or gradient is not finite leaves parameters, optimizer and carry as they were
    and reports `finite` = 0. Metrics are float32 scalars: loss, grad_norm, lr, finite, and each term of the loss by name.
    """
    rate = optim.schedule(run.optim, run.steps)

    def step(state: State, batch: Batch, frozen: Any = {}, *, reduce: Callable[[Any], Any] = lambda x: x):  # noqa: B006
        weights = reduce(objective.weights(batch))
        assert batch.index is not None
        seeds = example_seeds(state.key, state.step, batch.index)

        def loss(params: Any, micro: tuple[Any, ...]) -> tuple[jax.Array, tuple[Metrics, Any]]:
            batch, seeds, carry = micro
            cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
            sums, carry = objective.loss(
                model, cast, batch, frozen, seeds=seeds, carry=carry, smoothing=run.label_smoothing, chunk=run.loss_chunk
            )
            # Dividing each sum by its global weight here makes sums over micro-batches and devices the whole gradient.
            terms = {name: sums[name] / weights[name] for name in sums}
            return functools.reduce(jnp.add, terms.values()), (terms, carry)

        gradient = jax.value_and_grad(loss, has_aux=True)
        (total, (terms, carry)), grads = _accumulate(gradient, state.params, (batch, seeds, state.carry), run.accumulate)
        total, terms, grads = reduce((total, terms, grads))

        norm = optim.norm(run.optim, grads)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        lr = rate(state.step)

        def moved() -> Any:
            updates, opt_state = optax.with_extra_args_support(tx).update(grads, state.opt_state, state.params, norm=norm)
            return jax.tree.map(lambda p, u: p - lr * u, state.params, updates), opt_state, carry

        params, opt_state, carry = _if(finite, moved, (state.params, state.opt_state, state.carry))
        state = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state, carry=carry)
        return state, {**terms, "loss": total, "grad_norm": norm, "lr": lr, "finite": finite.astype(jnp.float32)}

    return step


def _if(finite: jax.Array, moved: Callable[[], Any], old: Any) -> Any:
    """What `moved()` gives where a step is finite, else `old`.

    XLA on CPU computes an optimizer's moments and the parameters apart. In a branch each is written in place; with a select it
    first copies all moments. On accelerators they are one kernel, and a branch would make the host wait for `finite`.
    """
    if target() == "cpu":
        return jax.lax.cond(finite, moved, lambda: old)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved(), old)


def _accumulate(gradient: Callable[..., Any], params: Any, whole: tuple[Any, ...], pieces: int) -> Any:
    """Sum value, terms and gradient over micro-batches. Micro-batch i takes rows i, i + pieces, ...: none leaves its device."""
    if pieces == 1:
        return gradient(params, whole)

    def split(x: jax.Array) -> jax.Array:
        pieces_first = jnp.moveaxis(x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]), 1, 0)
        return constrain(pieces_first, None, BATCH)

    def join(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    def one(sums: Any, micro: Any) -> tuple[Any, Any]:
        (total, (terms, carry)), grads = gradient(params, micro)
        return jax.tree.map(jnp.add, sums, (total, terms, grads)), carry

    micros = jax.tree.map(split, whole)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda leaf: leaf[0], micros))
    (total, (terms, _)), grads = shapes
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (total, terms, grads))
    (total, terms, grads), carries = jax.lax.scan(one, zeros, micros)
    return (total, (terms, jax.tree.map(join, carries))), grads


@dataclasses.dataclass(frozen=True)
class Assembly:
    """All that a run's steps are made of, before anything is allocated."""

    tx: optax.GradientTransformation
    state: State
    """Shapes, dtypes and shardings; see `train.engine.device_mesh.abstract_state`."""
    engine: "Engine"


def assemble(run: run_config.Run, model: Model, objective: Any, mesh: Mesh) -> Assembly:
    """The step of a run on a mesh, whose devices need not be here: the trainer runs it, and a plan compiles it.

    Args:
        run: its precision settled, float32 or bfloat16.
        objective: bound to the run (`train.objectives.bind`, or `sketch`).
    """
    tx = optim.optimizer(run.optim)
    state = abstract_state(run, model, tx, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_step(run, model, objective, tx, DTYPES[run.precision])
    return Assembly(tx, state, ENGINES[run.engine](step, mesh, places, run.data.batch))


@dataclasses.dataclass(frozen=True)
class Engine:
    """How a step is launched. States go in with `put` and out with `get`; `place` lays out this process's rows of a batch."""

    step: Callable[[State, Batch, Any], tuple[State, Metrics]]
    """Of a state, a batch and what the objective reads but does not train, laid out by `hold`."""
    put: Callable[[State], State]
    get: Callable[[State], State]
    place: Callable[[Batch], Batch]
    hold: Callable[[Any], Any]
    trace: Callable[[State, Batch, Any], Any] | None = None
    """The step traced on shapes, to be lowered and compiled; None where an engine cannot be without its devices."""


def jit_engine(step: Step, mesh: Mesh, places: State, rows: int) -> Engine:
    """One program over the mesh. `places` are the state's shardings, `rows` the size of a global batch."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    # What is frozen lies as it was laid out: None takes an argument's own sharding.
    in_shardings = (places, batch_sharding(mesh), None)
    compiled = jax.jit(step, donate_argnums=0, in_shardings=in_shardings, out_shardings=(places, everywhere))

    def run(state: State, batch: Batch, frozen: Any = {}) -> tuple[State, Metrics]:  # noqa: B006
        with jax.set_mesh(mesh):
            return compiled(state, batch, frozen)

    def trace(state: State, batch: Batch, frozen: Any = {}) -> Any:  # noqa: B006
        with jax.set_mesh(mesh):
            return compiled.trace(state, batch, frozen)

    return Engine(step=run, put=_same, get=_same, place=lambda batch: place(batch, mesh, rows), hold=_same, trace=trace)


def _same(tree: Any) -> Any:
    return tree


def pmap_engine(step: Step, mesh: Mesh, places: State, rows: int) -> Engine:
    """The same step with one replica of the state per device and `psum` between them; arrays have a device axis in front.

    `jax.pmap` is kept for programs that are built on it; over one mesh axis it does what `jit_engine` does.
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
        """Local devices' values, in order, as one array over all devices."""
        pieces = [jax.device_put(shard[None], device) for shard, device in zip(shards, local, strict=True)]
        return jax.make_array_from_single_device_arrays((len(devices), *pieces[0].shape[1:]), by_device, pieces)

    def in_order(x: jax.Array) -> list[np.ndarray]:
        shards = {shard.device: shard.data for shard in x.addressable_shards}
        return [jax.device_get(shards[device]) for device in local]

    def put(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: stack(in_order(leaf)), tree)

    def get(state: State) -> State:
        def back(leaf: jax.Array, where: NamedSharding, shape: tuple[int, ...]) -> jax.Array:
            pieces = [jax.device_put(shard[0], device) for shard, device in zip(in_order(leaf), local, strict=True)]
            return jax.make_array_from_single_device_arrays(shape, where, pieces)

        def whole(leaf: jax.Array, where: NamedSharding) -> jax.Array:
            # The carry is split over the devices, everything else is the same on each.
            split = where.spec == batch_sharding(mesh).spec
            shape = (len(devices) * leaf.shape[1], *leaf.shape[2:]) if split else leaf.shape[1:]
            return back(leaf, where, shape)

        return jax.tree.map(whole, state, places)

    def split(batch: Batch) -> Batch:
        return jax.tree.map(lambda leaf: stack(np.split(leaf, len(local))), batch)

    def run(state: State, batch: Batch, frozen: Any = {}) -> tuple[State, Metrics]:  # noqa: B006
        return mapped(state, batch, frozen)

    return Engine(step=run, put=put, get=get, place=split, hold=put)


ENGINES: dict[str, Callable[[Step, Mesh, State, int], Engine]] = {"jit": jit_engine, "pmap": pmap_engine}
