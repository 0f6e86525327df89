"""The training step: pure, and the same function under jit over a mesh and under pmap."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from train.config import run_config
from train.engine import optim, schedules
from train.engine.losses import model_weights
from train.engine.micro_batches import join_rows, split_rows
from train.engine.state import State
from train.engine.step_acceptance import make_acceptance
from train.objectives.base import Objective
from zoo.batch import Batch
from zoo.models import Model
from zoo.ops.counter_rng import example_seeds
from zoo.ops.selects import update_if_finite
from zoo.precision import cast_params

Metrics = dict[str, jax.Array]
Reduce = Callable[[Any], Any]
Step = Callable[..., tuple[State, Metrics]]


def make_step(
    run: run_config.Run,
    model: Model,
    objective: Objective,
    tx: optax.GradientTransformation,
    dtype: Any,
    training_params: Callable[[Any, Any], Any] = lambda params, base: params,
) -> Step:
    """Return `step(state, batch, frozen={}, base={}, *, reduce=identity) -> (state, metrics)`.

    `frozen`: parameters that the objective reads but does not train (a teacher's). `training_params(params, base)`: the
    parameters of the model, from those that the step updates and frozen ones (`train.parametrization`). `reduce` sums over
    devices under pmap; under jit the arrays are global already.

    A step that is not accepted (`train.engine.step_acceptance`), as one whose loss or
    gradient is not finite, leaves parameters, optimizer and carry as they were. Metrics are float32 scalars: loss, grad_norm, lr,
    each term of the loss by name, and the decision: `finite` = 0 for a step that was skipped, and perhaps `spike` = 1.
    """
    objective = objective.with_z_loss(run.z_loss) if run.z_loss else objective
    rate, accept, factors = schedules.make_schedule(run.optim, run.steps), make_acceptance(run.spikes), model.loss_factors

    def step(state: State, batch: Batch, frozen: Any = {}, base: Any = {}, *, reduce: Reduce = lambda x: x):  # noqa: B006
        def cast(params: Any) -> Any:
            return cast_params(training_params(params, base), dtype)

        # Computed outside of the loss, so that no gradient is taken through these numbers.
        assert batch.index is not None
        num_micro = run.micro_batches(len(batch.index))
        seeds = example_seeds(state.key, state.step, batch.index)
        options: dict[str, Any] = {"seeds": seeds, "reduce": reduce, "num_micro": num_micro, "chunk": run.loss_chunk}
        batch = objective.complete_batch(model, lambda: cast(state.params), batch, frozen, **options)
        weights = reduce({**model_weights(model, batch), **objective.weights(batch)})

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
        (total, (terms, carry)), grads = _accumulate(gradient, state.params, (batch, seeds, state.carry), num_micro)
        total, terms, grads = reduce((total, terms, grads))

        norm = optim.gradient_norm(grads)
        accepted, statistics, decision = accept.decide(state.statistics, total, norm)
        lr = rate(state.step)

        def apply_update() -> Any:
            update = optax.with_extra_args_support(tx).update
            updates, opt_state = update(grads, state.opt_state, state.params, norm=norm, lr=lr, accepted=accepted)
            return optax.apply_updates(state.params, updates), opt_state, carry

        params, opt_state, carry = update_if_finite(accepted, apply_update, (state.params, state.opt_state, state.carry))
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
