"""The projection to the vectors of tokens, of a loaded model or of one that a run begins with."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Float32

from train.engine.token_projection import PROJECTION
from train.run.run_dir import is_run
from train.weights.load import Loaded, load_model
from train.weights.resolve_model_name import resolve_model_name
from zoo.embedding_modules import DenseLayer, EmbeddingModules, read_modules


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


def read_projection(source: str) -> Float32[np.ndarray, "D E"] | None:
    """Return the kernel of the projection of a run or a folder; None for a model without one.

    Raises:
        BadInput: see `train.weights.load.load_model`.
    """
    folder = resolve_model_name(source)
    # The modules of a run do not have it.
    modules = loaded_modules(load_model(source)) if is_run(folder) else read_modules(folder)
    if modules is None or modules.multi_vector is None or not modules.dense:
        return None
    return np.ascontiguousarray(modules.dense[0].kernel.T)
