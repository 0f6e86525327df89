"""The training step: pure, donated, and the same function under jit over a mesh and under pmap."""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from train import config, optim
from train.mesh import batch_sharding
from train.state import State
from zoo.batch import Batch
from zoo.models import Model
from zoo.seeds import example_seeds
from zoo.sharding import BATCH, constrain

Metrics = dict[str, jax.Array]
Step = Callable[..., tuple[State, Metrics]]


def make_step(run: config.Run, model: Model, objective: ModuleType, tx: optax.GradientTransformation, dtype: Any) -> Step:
    """`step(state, batch, frozen={}, *, reduce=identity) -> (state, metrics)`.

    `frozen` is what the objective reads but does not train (a teacher). `reduce` sums over devices under pmap; under jit the
    arrays are global already. A step whose loss or gradient is not finite leaves parameters, optimizer and carry as they were
    and reports `finite` = 0. Metrics are float32 scalars: loss, grad_norm, lr, finite, and each term of the loss by name.
    """
    rate = optim.schedule(run.optim, run.steps)

    def step(state: State, batch: Batch, frozen: Any = {}, *, reduce: Callable[[Any], Any] = lambda x: x):  # noqa: B006
        weights = reduce(objective.weights(batch))
        seeds = example_seeds(state.key, state.step, batch.index)

        def loss(params: Any, micro: tuple[Any, ...]) -> tuple[jax.Array, tuple[Metrics, Any]]:
            batch, seeds, carry = micro
            cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
            sums, carry = objective.loss(
                model, cast, batch, frozen, seeds=seeds, carry=carry, smoothing=run.label_smoothing, chunk=run.loss_chunk
            )
            # Dividing each sum by its global weight here makes sums over micro-batches and devices the whole gradient.
            terms = {name: sums[name] / weights[name] for name in sums}
            return sum(terms.values(), jnp.float32(0)), (terms, carry)

        gradient = jax.value_and_grad(loss, has_aux=True)
        (total, (terms, carry)), grads = _accumulate(gradient, state.params, (batch, seeds, state.carry), run.accumulate)
        total, terms, grads = reduce((total, terms, grads))

        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        lr = rate(state.step)
        params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
        new = (params, opt_state, carry)
        old = (state.params, state.opt_state, state.carry)
        params, opt_state, carry = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        state = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state, carry=carry)
        return state, {**terms, "loss": total, "grad_norm": norm, "lr": lr, "finite": finite.astype(jnp.float32)}

    return step


def _accumulate(gradient: Callable[..., Any], params: Any, whole: tuple[Any, ...], pieces: int) -> Any:
    """Sum value, terms and gradient over micro-batches; micro-batch i takes rows i, i + pieces, ..., which stay on their device."""
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
class Engine:
    """How a step is launched: states go in with `put`, come out with `get`, batches are placed by `place`."""

    step: Step
    put: Callable[[State], State]
    get: Callable[[State], State]
    place: Callable[[Batch], Batch]


def jit_engine(step: Step, mesh: Mesh, places: State) -> Engine:
    """One program over the mesh. `places` are the state's shardings."""
    rows = batch_sharding(mesh)
    everywhere = jax.sharding.NamedSharding(mesh, PartitionSpec())
    compiled = jax.jit(step, donate_argnums=0, in_shardings=(places, rows, everywhere), out_shardings=(places, everywhere))

    def run(state: State, batch: Batch) -> tuple[State, Metrics]:
        with jax.set_mesh(mesh):
            return compiled(state, batch, {})

    return Engine(step=run, put=lambda state: state, get=lambda state: state, place=lambda batch: batch)


def pmap_engine(step: Step, mesh: Mesh, places: State) -> Engine:
    """The same step with one replica per device and `psum` between them."""
    devices = list(mesh.devices.flat)
    local = [device for device in devices if device.process_index == jax.process_index()]
    mapped = jax.pmap(
        functools.partial(step, reduce=functools.partial(jax.lax.psum, axis_name="batch")),
        axis_name="batch",
        donate_argnums=0,
        devices=devices,
    )

    def by_device(x: Any) -> Any:
        shards = np.concatenate([np.asarray(s.data) for s in sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0)])
        return shards.reshape(len(local), -1, *x.shape[1:])

    def put(state: State) -> State:
        replicate = lambda x: np.broadcast_to(np.asarray(x.addressable_data(0)), (len(local), *x.shape))  # noqa: E731
        same = jax.tree.map(replicate, dataclasses.replace(state, carry={}))
        return dataclasses.replace(same, carry=jax.tree.map(by_device, state.carry))

    def get(state: State) -> State:
        def back(x: jax.Array, place: Any) -> jax.Array:
            return jax.device_put(np.asarray(x.addressable_data(0)).reshape(x.shape[1:]), place)

        whole = jax.tree.map(back, dataclasses.replace(state, carry={}), dataclasses.replace(places, carry={}))
        join = lambda x, place: jax.make_array_from_process_local_data(place, np.asarray(x).reshape(-1, *x.shape[2:]))  # noqa: E731
        return dataclasses.replace(whole, carry=jax.tree.map(join, state.carry, places.carry))

    return Engine(step=mapped, put=put, get=get, place=lambda b: jax.tree.map(by_device, b))


ENGINES: dict[str, Callable[[Step, Mesh, State], Engine]] = {"jit": jit_engine, "pmap": pmap_engine}
