"""The projection to the vectors of tokens: that of a loaded model, or of the model that a run begins with."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Float32

from train.config.late_interaction_options import LateInteractionOptions
from train.config.run_config import Run
from train.engine.token_projection import PROJECTION
from train.run.run_dir import is_run
from train.weights.load import Loaded, load_model
from train.weights.resolve_model_name import resolve_model_name
from zoo.embedding_modules import DenseLayer, EmbeddingModules, read_modules
from zoo.errors import require


def loaded_modules(loaded: Loaded) -> EmbeddingModules | None:
    """Return the modules of a loaded model, with the projection that is among the parameters of a run; None if it has none.

    Raises:
        BadInput: see `zoo.embedding_modules.read_modules`.
    """
    modules = None if loaded.modules_folder is None else read_modules(loaded.modules_folder)
    if modules is None or PROJECTION not in loaded.params:
        return modules
    kernel = np.ascontiguousarray(np.asarray(jax.device_get(loaded.params[PROJECTION]["kernel"]), np.float32).T)
    return dataclasses.replace(modules, dense=(DenseLayer(kernel, None, "identity"),))


def initial_projection(run: Run) -> Float32[np.ndarray, "D E"] | None:
    """Return the kernel of the projection that a run of late interaction begins with; None: a random one.

    Raises:
        BadInput: that of --init has other dimensions.
    """
    assert isinstance(run.options, LateInteractionOptions)
    if not run.init:
        return None
    folder = resolve_model_name(run.init)
    # The modules of a run have no projection; most other runs have no modules of this kind.
    modules = loaded_modules(load_model(run.init)) if is_run(folder) else read_modules(folder)
    if modules is None or modules.multi_vector is None or not modules.dense:
        return None
    kernel = modules.dense[0].kernel
    size, chosen = len(kernel), run.options.late_interaction.dimensions
    fix = f"the projection of --init {run.init} has {size}; choose {size}"
    require(chosen == size, "late_interaction.dimensions", chosen, fix)
    return np.ascontiguousarray(kernel.T)
