"""The parameters of a run that trains adapters: the adapters and the head of a fine-tuned model beside a frozen base model."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from train.config import run_config
from train.engine.state_init import TrainedParams
from train.weights.param_parts import ParamParts, abstract_params
from zoo.errors import BadInput
from zoo.lora import adapters, peft_files
from zoo.lora.adapter_config import Adapters
from zoo.models import Model


def adapters_of(run: run_config.Run) -> Adapters | None:
    """Return the adapters that a run trains; None if it trains the model's own parameters.

    Raises:
        BadInput: a target that the model does not have, a family without default targets, or dropout where it is not applied.
    """
    if not run.lora.rank:
        return None
    targets = run.lora.targets or adapters.default_targets(run.model)
    lora = run.lora
    spec = Adapters(rank=lora.rank, alpha=lora.alpha, targets=targets, rslora=lora.rslora, dropout=lora.dropout)
    adapters.check_dropout(run.model, spec)
    return spec


def adapter_parts(model: Model, spec: Adapters) -> ParamParts:
    """Return the adapters and the head of a fine-tuned model, which are trained, beside the frozen rest of the model."""
    return ParamParts(
        model=model,
        trained=TrainedParams(
            functools.partial(adapters.init_adapters, model, spec), adapters.adapter_sharding_rules(model, spec)
        ),
        frozen=functools.partial(adapters.base_of, model.config),
        join=functools.partial(adapters.merge_adapters, model.config, spec),
        summary=functools.partial(adapter_summary, model, spec),
    )


def adapter_summary(model: Model, spec: Adapters) -> str:
    """Return the numbers of parameters of adapters, and of the head that is trained beside them, in words."""
    heads = adapters.head_paths(model.config)
    shapes = jax.eval_shape(lambda: adapters.init_adapters(model, spec, jax.random.key(0)))
    sizes = {path: leaf.size for path, leaf in adapters.flatten_tree(shapes).items()}
    head = sum(size for path, size in sizes.items() if path in heads)
    of_adapters = f"{sum(sizes.values()) - head:,} parameters of adapters of rank {spec.rank} on {', '.join(spec.targets)}"
    of_adapters += f", dropout {spec.dropout:g}" if spec.dropout else ""
    return of_adapters + (f", {head:,} of the head" if head else "")


def initial_adapters(model: Model, spec: Adapters, mesh: Mesh, seed: int, params: Any, folder: str) -> Any:
    """Return the trained parameters of a run before its first step, sharded over the mesh.

    Args:
        seed: the seed of new adapters.
        params: the model's parameters, from which the run takes the head.
        folder: an adapter in peft's format to begin with; "" = a new one.

    Raises:
        BadInput: the adapter cannot be read or does not fit; see `read_adapter`.
    """
    parameters = adapter_parts(model, spec).trained
    shapes = adapters.flatten_tree(abstract_params(parameters, mesh))
    shardings = adapters.unflatten_tree({path: leaf.sharding for path, leaf in shapes.items()})
    with jax.set_mesh(mesh):
        fresh = jax.jit(lambda: parameters.init(jax.random.key(seed)), out_shardings=shardings)()
    leaves = adapters.flatten_tree(fresh)
    leaves |= {path: leaf for path, leaf in adapters.flatten_tree(params).items() if path in adapters.head_paths(model.config)}
    stored = adapters.flatten_tree(read_adapter(Path(folder), model, spec)) if folder else {}
    leaves |= {path: place_array(array, shapes[path].sharding) for path, array in stored.items()}
    return adapters.unflatten_tree(leaves)


def place_array(array: Any, leaf_sharding: Any) -> jax.Array:
    """Copy an array from the host to the devices of a sharding, to each device its part."""
    return jax.make_array_from_callback(array.shape, leaf_sharding, lambda index: array[index])


def read_adapter(folder: Path, model: Model, spec: Adapters) -> Any:
    """Return the values of an adapter in peft's format, which must have the rank, alpha, scaling and targets of `spec`.

    Its dropout may be another one, because it does not change what the adapter computes.

    Raises:
        BadInput: see `zoo.lora.peft_files.read_peft_adapter`; or the adapter has another rank, alpha, scaling or other targets.
    """
    own, values = peft_files.read_peft_adapter(folder, model.config)
    spec = dataclasses.replace(spec, dropout=own.dropout)
    for field in dataclasses.fields(spec):
        value, stored = getattr(spec, field.name), getattr(own, field.name)
        if (set(value), set(stored)) != (set(stored), set(value)) if field.name == "targets" else value != stored:
            text = " ".join(stored) if field.name == "targets" else stored
            raise BadInput(f"--lora.{field.name} {value}: {folder} has {text}; choose the same")
    return values


def with_adapter(model: Model, mesh: Mesh, params: Any, folder: Path) -> Any:
    """Return a model's parameters with an adapter in peft's format merged into them.

    Raises:
        BadInput: see `zoo.lora.peft_files.read_peft_adapter`.
    """
    spec, values = peft_files.read_peft_adapter(folder, model.config)
    parts = adapter_parts(model, spec)
    shapes = adapters.flatten_tree(abstract_params(parts.trained, mesh))
    placed = {path: place_array(array, shapes[path].sharding) for path, array in adapters.flatten_tree(values).items()}
    return parts.joined(mesh, params, adapters.unflatten_tree(placed))
