"""Trained and frozen parameters of a run, and the pure function from both to the parameters of its model.

The step updates a pytree `params`, and takes the gradient of the loss through `training_params(params, base)`. In a run without
frozen parameters that function is the identity. Frozen parameters, those of the base model below adapters or frozen layers and
embeddings, are an input of the step, and neither gradients nor checkpoints contain them. With width transfer, the function
multiplies each leaf by a constant. An objective may add parameters of its
own, such as PPO's value head, which lie beside the others under names of their own and are not exported.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from train.config.run_config import Run
from train.config.width_base import base_config
from train.engine.state_init import TrainedParams, all_params
from train.engine.width_transfer import LeafFactors, factors_of_run, multiply_leaves, transferred_params
from train.objectives.base import Objective
from train.run.run_dir import RunDir
from train.weights import adapter_params, frozen_layers, param_parts
from train.weights.param_parts import ParamParts
from zoo import models
from zoo.batch import Batch
from zoo.errors import require
from zoo.lora import adapters
from zoo.lora.adapter_config import Adapters
from zoo.models import Model


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Parametrization:
    """The training of all parameters of a model."""

    model: Model
    added: TrainedParams
    """The parameters that the objective adds."""
    base: Any = dataclasses.field(default_factory=dict)
    """The frozen parameters, or their shapes and shardings until `begin` or `restore_base` reads them; {} = there are none."""

    @property
    def trained(self) -> TrainedParams:
        """The initializer and the sharding of the trained parameters."""
        return all_params(self.model).beside(self.added)

    @property
    def gradient_factors(self) -> Mapping[str, float] | None:
        """Factors of the gradients before the moments, by path; None: all are 1."""
        return None

    def training_params(self, params: Any, base: Any) -> Any:
        """Return the parameters that the loss is computed with, in training: the model's, and those that the objective adds."""
        return self.model_params(params, base)

    def model_params(self, params: Any, base: Any) -> Any:
        """Return the same parameters for everything but training, without dropout of their own."""
        return params

    def begin(self, run: Run, mesh: Mesh, params: Any) -> tuple["Parametrization", Any]:
        """Return (the parametrization with its frozen parameters, the trained parameters before the first step).

        Args:
            params: the model's parameters to begin from; None = new ones, and the second result is None too.

        Raises:
            BadInput: the adapter of `run.adapter` cannot be read, or does not fit the run.
        """
        return self, None if params is None else {**params, **self.added.place(mesh, run.seed)}

    def save_base(self, folder: RunDir, state: Any, *, notify: Callable[[str], None]) -> dict[str, str]:
        """Save the frozen parameters of a new run, and return the metadata about them for its checkpoints; {} if it has none.

        Args:
            state: the `train.engine.state.State` before the first step.

        Raises:
            BadInput: the folder cannot be written.
        """
        return {}

    def restore_base(
        self, folder: RunDir, mesh: Mesh, metadata: dict[str, Any], *, notify: Callable[[str], None]
    ) -> tuple["Parametrization", dict[str, str]]:
        """Return (the parametrization with the frozen parameters of a resumed run, the metadata about them).

        Args:
            metadata: that of the run's checkpoint.

        Raises:
            BadInput: they are missing or damaged, or are not those that the checkpoint was trained with.
        """
        return self, {}

    def step_flops(self, objective: Objective, batch: Batch) -> float:
        """Return the matrix-product FLOPs of a training step on a global batch, which may consist of shapes."""
        return objective.flops(self.model, batch)

    def describe(self, objective: str) -> dict[str, str]:
        """Return a line about the trained parameters for the console and the report; {} if all parameters are trained."""
        return {}

    def reader(self, mesh: Mesh) -> Callable[[Any], Any]:
        """Return a compiled function that takes the trained parameters and returns the result of `model_params`."""
        return lambda params: params

    def without_added(self, params: Any) -> Any:
        """Return what scores read, of a result of `reader`: the model's parameters, and added ones that have a use."""
        if self.added.has_use:
            return params
        names = jax.eval_shape(lambda: self.added.init(jax.random.key(0)))
        return {name: part for name, part in params.items() if name not in names}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class WidthTransfer(Parametrization):
    """The training of all parameters, which are constants times trained ones; see `train.engine.width_transfer`."""

    factors: Mapping[str, LeafFactors]
    base_width: int

    @property
    def trained(self) -> TrainedParams:
        """The model's own initializer, times constants."""
        parameters, factors = all_params(self.model), {path: leaf.initial for path, leaf in self.factors.items()}
        return TrainedParams(lambda key: multiply_leaves(parameters.init(key), factors), parameters.sharding)

    @property
    def gradient_factors(self) -> Mapping[str, float]:
        """Factors that give gradients the size that they have in the base."""
        return {path: leaf.gradient for path, leaf in self.factors.items()}

    def model_params(self, params: Any, base: Any) -> Any:
        """Return the parameters of the model."""
        return multiply_leaves(params, {path: leaf.multiplier for path, leaf in self.factors.items()})

    def describe(self, objective: str) -> dict[str, str]:
        """Return both widths in words."""
        return {"width transfer": f"from width {self.base_width} to {self.model.config.width}"}

    def reader(self, mesh: Mesh) -> Callable[[Any], Any]:
        """Return a compiled function that takes trained parameters and returns their `model_params`, sharded alike."""
        return functools.partial(transferred_params, self.factors)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PartialTraining(Parametrization):
    """The training of the model's parameters without the frozen embeddings and layers."""

    parts: ParamParts

    @property
    def trained(self) -> TrainedParams:
        """The trained part, and the parameters that the objective adds."""
        return self.parts.trained.beside(self.added)

    def model_params(self, params: Any, base: Any) -> Any:
        """Return the frozen and the trained parameters, joined."""
        return self.parts.join(base, params)

    def begin(self, run: Run, mesh: Mesh, params: Any) -> tuple[Parametrization, Any]:
        """Return the parametrization with the frozen parameters, and the trained ones; both are new ones if `params` is None."""
        params = all_params(self.model).place(mesh, run.seed) if params is None else params
        abstract = param_parts.abstract_params(self.parts.trained, mesh), self.parts.abstract_base(mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        with jax.set_mesh(mesh):
            split = jax.jit(functools.partial(frozen_layers.split_params, run.optim), out_shardings=shardings)
            params, base = split(params)
        return dataclasses.replace(self, base=base), {**params, **self.added.place(mesh, run.seed)}

    def save_base(self, folder: RunDir, state: Any, *, notify: Callable[[str], None]) -> dict[str, str]:
        """Save the frozen parameters in RUN/base, and return their digest."""
        param_parts.save_base(folder, state, self.base, notify=notify)
        return {"base": param_parts.base_digest(folder)}

    def restore_base(
        self, folder: RunDir, mesh: Mesh, metadata: dict[str, Any], *, notify: Callable[[str], None]
    ) -> tuple[Parametrization, dict[str, str]]:
        """Return the parametrization with the frozen parameters of RUN/base, and their digest."""
        digest = metadata.get("base", "")
        base = param_parts.read_base(folder, self.parts, mesh, digest, notify=notify)
        return dataclasses.replace(self, base=base), {"base": digest}

    def describe(self, objective: str) -> dict[str, str]:
        """Return the numbers of trained parameters in words."""
        added = jax.eval_shape(lambda: self.added.init(jax.random.key(0)))
        sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in added.items()}
        others = [f"{size:,} of {name}, which {objective} adds" for name, size in sizes.items()]
        return {"trained": ", ".join([self.parts.summary(), *others])}

    def reader(self, mesh: Mesh) -> Callable[[Any], Any]:
        """Return a compiled function that takes trained parameters and returns their `model_params`, sharded over the mesh."""
        parameters = all_params(self.model).beside(self.added)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, param_parts.abstract_params(parameters, mesh))
        join = jax.jit(self.model_params, out_shardings=shardings)

        def read(params: Any) -> Any:
            with jax.set_mesh(mesh):
                return join(params, self.base)

        return read


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class AdapterTraining(PartialTraining):
    """The training of adapters and of the head of a fine-tuned model (Hu et al. 2021; see `zoo.lora.adapters`)."""

    adapters: Adapters

    def training_params(self, params: Any, base: Any) -> Any:
        """Return the frozen parameters with the adapters, whose input is dropped out where the objective has dropout."""
        return adapters.with_adapters(self.model.config, self.adapters, base, params)

    def begin(self, run: Run, mesh: Mesh, params: Any) -> tuple[Parametrization, Any]:
        """Return the parametrization with the base model, and new adapters or those of `run.adapter`."""
        base = self.parts.frozen(params)
        params = adapter_params.initial_adapters(self.model, self.adapters, mesh, run.seed, params, run.adapter)
        return dataclasses.replace(self, base=base), {**params, **self.added.place(mesh, run.seed)}

    def step_flops(self, objective: Objective, batch: Batch) -> float:
        """Return the FLOPs of a step without those of the gradients of frozen weights. The adapters' own are not counted."""
        return objective.flops(self.model, batch) - objective.forward_flops(self.model, batch)


def parametrization_of(run: Run, objective: Objective, mesh: Mesh) -> Parametrization:
    """Return the parametrization of a run; frozen parameters are shapes, until `begin` or `restore_base` reads them.

    Raises:
        BadInput: dropout of adapters with an objective without dropout; or as `train.weights.adapter_params.adapters_of`.
    """
    model, parts = models.model(run.model), frozen_layers.param_parts(run)
    added, spec = objective.added_params(model), adapter_params.adapters_of(run)
    if run.width_transfer:
        names = ", ".join(jax.eval_shape(lambda: added.init(jax.random.key(0))))
        fix = f"{run.objective} adds parameters, {names}, for which it has no rule; leave it out"
        require(not names, "width_transfer", run.width_transfer, fix)
        base_width = base_config(run.model, run.width_transfer).width
        return WidthTransfer(model=model, added=added, factors=factors_of_run(run), base_width=base_width)
    if parts is None:
        return Parametrization(model=model, added=added)
    options: dict[str, Any] = {"model": model, "added": added, "parts": parts, "base": parts.abstract_base(mesh)}
    if spec is None:
        return PartialTraining(**options)
    fix = f"{run.objective} trains without dropout, which would make its ratios noise; choose 0"
    require(objective.HAS_DROPOUT or not spec.dropout, "lora.dropout", spec.dropout, fix)
    return AdapterTraining(**options, adapters=spec)


def check_adapter(run: Run) -> None:
    """Refuse an adapter that a run cannot begin with, before anything of the run is written.

    Raises:
        BadInput: it cannot be read, or does not fit the run.
    """
    spec = adapter_params.adapters_of(run)
    if spec is not None and run.adapter:
        adapter_params.read_adapter(Path(run.adapter), models.model(run.model), spec)
