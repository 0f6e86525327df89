"""The trained and the frozen parameters of a run that does not train all parameters of its model.

The frozen parameters are saved once, in RUN/base, so that the run does not depend on the folder of its --init. A checkpoint
stores the digest of their manifest, and is only used with frozen parameters of this digest.
"""

import dataclasses
import shutil
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from train.checkpoints import manifest
from train.checkpoints.checkpoints import Checkpoints
from train.engine.state_init import TrainedParams, all_params
from train.run.run_dir import RunDir
from zoo import sharding
from zoo.errors import BadInput
from zoo.models import Model
from zoo.sha256_and_fsync import sha256

STEP = 0
"""Number of the only checkpoint in RUN/base."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ParamParts:
    """The parts that the parameters of a model are computed from: trained ones and frozen ones."""

    model: Model
    trained: TrainedParams
    """The trained parameters."""
    frozen: Callable[[Any], Any]
    """Function from the parameters of the model to the frozen ones; traced, or applied to shapes."""
    join: Callable[[Any, Any], Any]
    """Function from (frozen parameters, trained ones) to the parameters of the model; traced."""
    summary: Callable[[], str]
    """Returns the numbers of trained parameters in words."""

    def abstract_base(self, mesh: Mesh) -> Any:
        """Return the shapes of the frozen parameters, with their shardings."""
        parameters = all_params(self.model)
        return abstract_params(TrainedParams(lambda key: self.frozen(parameters.init(key)), parameters.sharding), mesh)

    def joined(self, mesh: Mesh, base: Any, params: Any) -> Any:
        """Return the parameters of the model, from the frozen and the trained ones, sharded over the mesh."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(all_params(self.model), mesh))
        with jax.set_mesh(mesh):
            return jax.jit(self.join, out_shardings=shardings)(base, params)


def abstract_params(parameters: TrainedParams, mesh: Mesh) -> Any:
    """Return the shapes of parameters, float32, with their shardings."""
    shapes = jax.eval_shape(lambda: parameters.init(jax.random.key(0)))
    shardings = sharding.shardings(mesh, shapes, parameters.sharding)
    return jax.tree.map(lambda leaf, own: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own), shapes, shardings)


def save_base(folder: RunDir, state: Any, base: Any, *, notify: Callable[[str], None]) -> None:
    """Save the frozen parameters of a new run in its folder.

    Args:
        state: the `train.engine.state.State` before the first step.

    Raises:
        BadInput: the folder cannot be written.
    """
    if jax.process_index() == 0:
        # Remove the remains of a start that was killed before its first checkpoint. The other processes wait for this one below.
        shutil.rmtree(folder.base, ignore_errors=True)
    with Checkpoints(folder.base, 1, notify=notify) as source:
        source.save(dataclasses.replace(state, params=base, opt_state={}, carry={}), {})
        if not source.wait():
            raise BadInput(f"{folder.base}: could not be saved ({source.reason()}); {source.remedy()}")


def base_digest(folder: RunDir) -> str:
    """Return the digest of the frozen parameters of a run.

    Raises:
        BadInput: they are missing.
    """
    file = folder.base / manifest.folder_name(STEP) / manifest.NAME
    if not file.exists():
        raise BadInput(f"{folder.base}: missing; it has the parameters that the run does not train, so restore it")
    return sha256(file)


def read_base(folder: RunDir, parts: ParamParts, mesh: Mesh, digest: str, *, notify: Callable[[str], None]) -> Any:
    """Return the frozen parameters of a run, sharded over the mesh.

    Args:
        digest: the digest in the metadata of the run's checkpoint.

    Raises:
        BadInput: they are missing or damaged, or differ from those that the run was trained with.
    """
    if base_digest(folder) != digest:
        raise BadInput(f"{folder.base}: not the parameters that the run was trained with; restore that folder")
    source = Checkpoints(folder.base, 1, notify=notify)
    restored = source.restore({"params": parts.abstract_base(mesh)}, step=STEP, partial=True)
    assert restored is not None, "a step that is named is read or refused"
    return restored[0]["params"]
