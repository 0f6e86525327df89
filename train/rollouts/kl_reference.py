"""The reference of a policy's KL divergence: the frozen parameters of --init."""

from typing import Any

import jax
from jax.sharding import Mesh

from train.config.run_config import Run
from train.weights import warm_start
from train.weights.load import load_model
from zoo.errors import BadInput
from zoo.models import Model


def load_reference(run: Run, model: Model, mesh: Mesh) -> Any:
    """Return the parameters of `run.init`, float32, sharded over the mesh.

    Raises:
        BadInput: nothing to load there, or the parameters of another model.
    """
    warm_start.check_init(run)
    params = load_model(run.init, mesh).params
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    if jax.tree.map(lambda leaf: leaf.shape, params) != jax.tree.map(lambda leaf: leaf.shape, shapes):
        fix = f"name the weights of a model that predicts words, or choose --{run.objective.replace('_', '-')}.beta 0"
        raise BadInput(f"--init {run.init}: its parameters are not those of the model in training, whose reference it is; {fix}")
    return params
