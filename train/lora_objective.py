"""Training adapters with any objective, whose loss is computed with the sum of the frozen parameters and the adapters.

A run with `lora.rank` has its objective wrapped here. The step updates, and the checkpoints save, the adapters and the head of a
fine-tuned model; the frozen parameters are an input of the step. A run without adapters is not affected.
"""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from train import objectives
from train.config.run_config import Run
from train.engine.state_init import TrainedParams
from train.objectives.base import Objective
from train.rollouts.batch_feed import Feed, FeedSource
from train.run.run_dir import RunDir
from train.weights import adapter_params as weights
from zoo import models
from zoo.batch import Batch
from zoo.errors import require
from zoo.lora import adapters
from zoo.lora.adapter_config import Adapters
from zoo.models import Model


@dataclasses.dataclass(frozen=True, eq=False)
class LoraObjective(Objective):
    """An objective whose loss is computed with a model that has adapters.

    `bind` derives a class from this class and from the class of the objective, whose class methods plan and build the rows.
    """

    objective: Objective
    model: Model
    adapters: Adapters
    base: Any
    """The frozen parameters, or their shapes and shardings before the parameters are read."""

    def frozen_inputs(self) -> Any:
        """Return the frozen parameters and the frozen inputs of the wrapped objective."""
        return {"base": self.base, "objective": self.objective.frozen_inputs()}

    def added_params(self, model: Model) -> TrainedParams:
        """Return the parameters that the wrapped objective adds; they have no adapters."""
        return self.objective.added_params(model)

    def trained(self, model: Model) -> TrainedParams:
        """Return the trained parameters: the adapters, the head of a fine-tuned model, and parameters that the objective adds."""
        return weights.trained(model, self.adapters).beside(self.added_params(model))

    def loss_params(self, params: Any, frozen: Any) -> Any:
        """Return the frozen parameters with the adapters, whose input is dropped out where the objective has dropout."""
        adapted = adapters.with_adapters(self.model.config, self.adapters, frozen["base"], params)
        return self.objective.loss_params(adapted, frozen["objective"])

    def initial_params(self, model: Model, params: Any) -> Any:
        """Return the initial parameters of the wrapped objective; `begin` creates the adapters."""
        return self.objective.initial_params(model, params)

    def feed(self, source: FeedSource, first: int) -> AbstractContextManager[Feed]:
        """Return the batches of the wrapped objective; if they depend on the parameters, the adapters are added to these."""
        return self.objective.feed(source, first)

    def complete_batch(self, model: Model, params: Callable[[], Any], batch: Batch, frozen: Any, **options: Any) -> Batch:
        """Return the batch with the objective's numbers; see `train.objectives.base.Objective.complete_batch`."""
        return self.objective.complete_batch(model, params, batch, frozen["objective"], **options)

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the divisor of each term of the objective's loss."""
        return self.objective.weights(batch)

    def loss(
        self, model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
    ) -> tuple[dict[str, jax.Array], Any]:
        """Return the objective's loss; see `train.objectives.base.Objective.loss`."""
        options: dict[str, Any] = {"seeds": seeds, "carry": carry, "smoothing": smoothing, "chunk": chunk}
        return self.objective.loss(model, params, batch, frozen["objective"], **options)

    def flops(self, model: Model, batch: Batch) -> float:
        """Return the FLOPs of a step without the gradients of frozen kernels; those of the adapters are not counted."""
        return self.objective.flops(model, batch) - self.forward_flops(model, batch)

    def forward_flops(self, model: Model, batch: Batch) -> float:
        """Return the FLOPs of the forward pass, without the products of the adapters."""
        return self.objective.forward_flops(model, batch)


def bind(run: Run, mesh: Mesh) -> Objective:
    """Return the objective of a run, which trains adapters if the run does.

    Raises:
        BadInput: dropout of adapters, and an objective without dropout; see also `Objective.bind`, `Run.check_base` and
            `train.weights.adapter_params.adapters_of`.
    """
    run.check_base()
    return _with_adapters(run, mesh, objectives.objective(run.objective).bind(run, mesh))


def bind_abstract(run: Run, mesh: Mesh) -> Objective:
    """Return the objective of a run as `bind` does, with shapes instead of arrays."""
    return _with_adapters(run, mesh, objectives.objective(run.objective).bind_abstract(run, mesh))


def check(run: Run) -> None:
    """Refuse an adapter that a run cannot begin with, before anything of the run is written.

    Raises:
        BadInput: it cannot be read, or does not fit the run.
    """
    spec = weights.adapters_of(run)
    if spec is not None and run.adapter:
        weights.read_adapter(Path(run.adapter), models.model(run.model), spec)


def unsaved(objective: Objective, folder: RunDir) -> Any:
    """Return the shapes of the frozen parameters that the folder of a run does not have yet; () if there are none."""
    return objective.base if isinstance(objective, LoraObjective) and not folder.is_resumable else ()


def begin(objective: Objective, run: Run, mesh: Mesh, params: Any) -> tuple[Objective, Any]:
    """Return (the objective with its frozen parameters, the trained parameters) of a new run, from its initial parameters.

    Raises:
        BadInput: the adapter of `run.adapter` cannot be read, or does not fit the run.
    """
    if not isinstance(objective, LoraObjective):
        return objective, params
    model, spec = objective.model, objective.adapters
    base = adapters.base_of(model.config, params)
    return dataclasses.replace(objective, base=base), weights.initial_params(model, spec, mesh, run.seed, params, run.adapter)


def save(objective: Objective, folder: RunDir, state: Any, *, notify: Callable[[str], None]) -> dict[str, str]:
    """Save the frozen parameters of a new run, and return the metadata about them for its checkpoints; {} if it has none."""
    if not isinstance(objective, LoraObjective):
        return {}
    weights.save_base(folder, state, objective.base, notify=notify)
    return {"base": weights.base_digest(folder)}


def resume(
    objective: Objective, folder: RunDir, mesh: Mesh, metadata: dict[str, Any], *, notify: Callable[[str], None]
) -> tuple[Objective, dict[str, str]]:
    """Return (the objective with the frozen parameters of a resumed run, the metadata about them for its checkpoints)."""
    if not isinstance(objective, LoraObjective):
        return objective, {}
    base = weights.read_base(folder, objective.model, mesh, metadata.get("base", ""), notify=notify)
    return dataclasses.replace(objective, base=base), {"base": metadata.get("base", "")}


def to_loss_params(objective: Objective, model: Model, mesh: Mesh) -> Callable[[Any], Any]:
    """Return a function from trained parameters to those of the model and those that the objective adds."""
    if type(objective).loss_params is Objective.loss_params:
        return lambda params: params
    shapes = weights.abstract_params(weights.trained(model, None).beside(objective.added_params(model)), mesh)
    if isinstance(objective, LoraObjective):
        # Nothing is dropped out where no gradient is computed.
        objective = dataclasses.replace(objective, adapters=dataclasses.replace(objective.adapters, dropout=0.0))
    merge = jax.jit(objective.loss_params, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, shapes))

    def loss_params(params: Any) -> Any:
        with jax.set_mesh(mesh):
            return merge(params, objective.frozen_inputs())

    return loss_params


def describe(objective: Objective) -> dict[str, str]:
    """Return a line about the trained parameters, for the console and the report; {} if all parameters are trained."""
    if not isinstance(objective, LoraObjective):
        return {}
    added = jax.eval_shape(lambda: objective.added_params(objective.model).init(jax.random.key(0)))
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in added.items()}
    others = [f"{size:,} of {name}, which {objective.NAME} adds" for name, size in sizes.items()]
    return {"trained": ", ".join([weights.summary(objective.model, objective.adapters), *others])}


def _with_adapters(run: Run, mesh: Mesh, objective: Objective) -> Objective:
    spec = weights.adapters_of(run)
    if spec is None:
        return objective
    fix = f"{run.objective} trains without dropout, which would make its ratios noise; choose 0"
    require(objective.HAS_DROPOUT or not spec.dropout, "lora.dropout", spec.dropout, fix)
    model = models.model(run.model)
    kind = type(f"Lora{type(objective).__name__}", (LoraObjective, type(objective)), {})
    return kind(objective, model, spec, weights.abstract_base(model, mesh))
