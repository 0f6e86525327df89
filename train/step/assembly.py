"""The step of a run with its optimizer, the shapes of its state, and the functions that launch it."""

import dataclasses
from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh

from train.config import run_config
from train.engine import optim
from train.engine.state import State
from train.engine.state_init import abstract_state
from train.objectives.base import Objective
from train.parametrization import Parametrization, parametrization_of
from train.step.jit_engine import Engine, jit_engine
from train.step.pmap_engine import pmap_engine
from train.step.training_step import Step, make_step
from zoo.precision import DTYPES

ENGINES: dict[str, Callable[[Step, Mesh, State, int], Engine]] = {"jit": jit_engine, "pmap": pmap_engine}


@dataclasses.dataclass(frozen=True)
class Assembly:
    """The parts that a run's steps are made of, before anything is allocated."""

    tx: optax.GradientTransformationExtraArgs
    state: State
    """Shapes, dtypes and shardings; see `train.engine.state_init.abstract_state`."""
    engine: Engine


def assemble(run: run_config.Run, objective: Objective, mesh: Mesh, parameters: Parametrization | None = None) -> Assembly:
    """Return the step of a run on a mesh, whose devices may be absent: the trainer runs it, and a plan compiles it.

    Args:
        run: the configuration with its precision resolved, float32 or bfloat16.
        objective: bound to the run (by `bind` of `train.objectives.base.Objective`, or by `bind_abstract`).
        parameters: those that the run trains; None = those of `parametrization_of`.

    Raises:
        BadInput: --optim.rates names no trained parameter.
    """
    parameters = parameters or parametrization_of(run, objective, mesh)
    optim.check_rates(run.optim, jax.eval_shape(lambda: parameters.trained.init(jax.random.key(0))))
    model, tx = parameters.model, optim.make_optimizer(run.optim, parameters.gradient_factors)
    state = abstract_state(run, model, tx, mesh, parameters.trained)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_step(run, model, objective, tx, DTYPES[run.precision], parameters.training_params)
    return Assembly(tx, state, ENGINES[run.engine](step, mesh, shardings, run.data.batch))
