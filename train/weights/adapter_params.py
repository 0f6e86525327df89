"""The parameters of a run that trains adapters: the adapters and their shapes, and the frozen parameters of the base model.

The frozen parameters are saved once, in RUN/base, so that the run does not depend on the folder of its --init. A checkpoint
stores the digest of their manifest, and is only used with frozen parameters of this digest.
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from train.checkpoints import manifest
from train.checkpoints.checkpoints import Checkpoints
from train.config import run_config
from train.engine.state_init import TrainedParams, all_params
from train.run.run_dir import RunDir
from zoo import sharding
from zoo.errors import BadInput
from zoo.lora import adapters, peft_files
from zoo.lora.adapter_config import Adapters
from zoo.models import Model
from zoo.sha256_and_fsync import sha256

STEP = 0
"""Number of the only checkpoint in RUN/base."""


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


def trained(model: Model, spec: Adapters | None) -> TrainedParams:
    """Return the initializer and the sharding of the trained parameters: the model's, or its adapters and its head."""
    if spec is None:
        return all_params(model)
    return TrainedParams(functools.partial(adapters.init, model, spec), adapters.rules(model, spec))


def summary(model: Model, spec: Adapters) -> str:
    """Return the numbers of parameters of adapters, and of the head that is trained beside them, in words."""
    heads = adapters.head_paths(model.config)
    shapes = jax.eval_shape(lambda: trained(model, spec).init(jax.random.key(0)))
    sizes = {path: leaf.size for path, leaf in adapters.flat(shapes).items()}
    head = sum(size for path, size in sizes.items() if path in heads)
    of_adapters = f"{sum(sizes.values()) - head:,} parameters of adapters of rank {spec.rank} on {', '.join(spec.targets)}"
    of_adapters += f", dropout {spec.dropout:g}" if spec.dropout else ""
    return of_adapters + (f", {head:,} of the head" if head else "")


def abstract_params(parameters: TrainedParams, mesh: Mesh) -> Any:
    """Return the shapes of trained parameters, float32, with their shardings."""
    shapes = jax.eval_shape(lambda: parameters.init(jax.random.key(0)))
    shardings = sharding.shardings(mesh, shapes, parameters.sharding)
    return jax.tree.map(lambda leaf, own: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own), shapes, shardings)


def abstract_base(model: Model, mesh: Mesh) -> Any:
    """Return the shapes of the frozen parameters, with their shardings."""
    return adapters.base_of(model.config, abstract_params(trained(model, None), mesh))


def merged_params(model: Model, spec: Adapters, mesh: Mesh, base: Any, params: Any) -> Any:
    """Return the parameters of the model, from the frozen and the trained ones, sharded over the mesh."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(trained(model, None), mesh))
    with jax.set_mesh(mesh):
        merge = functools.partial(adapters.merge, model.config, spec)
        return jax.jit(merge, out_shardings=shardings)(base, params)


def initial_params(model: Model, spec: Adapters, mesh: Mesh, seed: int, params: Any, folder: str) -> Any:
    """Return the trained parameters of a run before its first step, sharded over the mesh.

    Args:
        seed: the seed of new adapters.
        params: the model's parameters, from which the run takes the head.
        folder: an adapter in peft's format to begin with; "" = a new one.

    Raises:
        BadInput: the adapter cannot be read or does not fit; see `read_adapter`.
    """
    parameters = trained(model, spec)
    shapes = adapters.flat(abstract_params(parameters, mesh))
    shardings = adapters.nested({path: leaf.sharding for path, leaf in shapes.items()})
    with jax.set_mesh(mesh):
        fresh = jax.jit(lambda: parameters.init(jax.random.key(seed)), out_shardings=shardings)()
    leaves = adapters.flat(fresh)
    leaves |= {path: leaf for path, leaf in adapters.flat(params).items() if path in adapters.head_paths(model.config)}
    stored = adapters.flat(read_adapter(Path(folder), model, spec)) if folder else {}
    leaves |= {path: place(array, shapes[path].sharding) for path, array in stored.items()}
    return adapters.nested(leaves)


def place(array: Any, leaf_sharding: Any) -> jax.Array:
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
    shapes = adapters.flat(abstract_params(trained(model, spec), mesh))
    placed = {path: place(array, shapes[path].sharding) for path, array in adapters.flat(values).items()}
    return merged_params(model, spec, mesh, params, adapters.nested(placed))


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
        raise BadInput(f"{folder.base}: missing; it has the parameters that the run's adapters are added to, so restore it")
    return sha256(file)


def read_base(folder: RunDir, model: Model, mesh: Mesh, digest: str, *, notify: Callable[[str], None]) -> Any:
    """Return the frozen parameters of a run, sharded over the mesh.

    Args:
        digest: the digest in the metadata of the run's checkpoint.

    Raises:
        BadInput: they are missing or damaged, or differ from those that the adapters were trained with.
    """
    if base_digest(folder) != digest:
        raise BadInput(f"{folder.base}: not the parameters that the run's adapters were trained with; restore that folder")
    source = Checkpoints(folder.base, 1, notify=notify)
    restored = source.restore({"params": abstract_base(model, mesh)}, step=STEP, partial=True)
    assert restored is not None, "a step that is named is read or refused"
    return restored[0]["params"]
