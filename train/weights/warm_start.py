"""The beginning of a run: parameters, copied from another model where both have one, or the whole state of another run."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from train.config import run_config
from train.engine.state import State
from train.run.run_dir import is_run, no_checkpoint, read_config
from train.weights.load import NEWEST, load_model, open_checkpoints
from train.weights.pretrained_config import check_family
from train.weights.resolve_model_name import resolve_model_name
from zoo import configs, published_weights, sharding
from zoo.errors import BadInput, require
from zoo.models import Model

TASK_SPECIFIC = ("classifier", "dense")
"""Parts of a head that do not fit another task, or other labels."""


def check_init(run: run_config.Run) -> None:
    """Refuse a run that cannot start from its `init`, before anything of the run is written.

    Raises:
        BadInput: another family or body (every value that differs is named), a run without a checkpoint, incomplete weights, or
            `init` does not exist.
    """
    check_family(run.init, run.model)
    folder = resolve_model_name(run.init)
    source = read_config(folder) if is_run(folder) else None
    cfg = source.model if source else published_weights.read_config(folder)[0]
    init_shape, run_shape = configs.body_fields(cfg), configs.body_fields(run.model)
    different = [
        f"{name} {init_shape[name]} there and {value} here" for name, value in run_shape.items() if init_shape[name] != value
    ]
    if different:
        fix = "choose the recipe of its size, or set --model.*"
        raise BadInput(f"--init {run.init}: another model: {', '.join(different)}; {fix}")
    if source is None:
        published_weights.open_folder(folder)
        require(not run.fork, "fork", run.fork, f"{run.init} has weights alone, and no moments; name a run, or leave --fork out")
    elif (latest := open_checkpoints(folder, source, NEWEST if run.fork else None).latest()) is None:
        raise no_checkpoint(folder)
    elif run.fork:
        _check_fork(run, source, latest)


def _check_fork(run: run_config.Run, source: run_config.Run, latest: int) -> None:
    """Refuse to continue the state of a run that is another kind of state, or has no further step."""
    fix = f"{run.init} has taken {latest:,} steps, and --steps counts them too; choose more"
    require(run.steps > latest, "steps", run.steps, fix)
    fix = f"the order of the data of {run.init} follows from {source.seed}; choose it, or leave --fork out"
    require(run.seed == source.seed, "seed", run.seed, fix)
    fix = f"{run.init} has the moments of {source.optim.name}; choose it, or leave --fork out"
    require(run.optim.name == source.optim.name, "optim.name", run.optim.name, fix)
    fix = (
        f"{run.init} trains other parts of its model; choose the same options of --lora and of frozen parts, or leave --fork out"
    )
    require(not run.has_frozen and not source.has_frozen, "fork", run.fork, fix)


def forked_state(run: run_config.Run, state: State, notify: Callable[[str], None]) -> State:
    """Return the newest state of the run `run.init`.

    Args:
        state: shapes and shardings of the state of `run`.

    Raises:
        BadInput: the state has other arrays, each of which is named, or its checkpoints are damaged.
    """
    folder = resolve_model_name(run.init)
    restored = open_checkpoints(folder, read_config(folder), NEWEST).restore(state)
    if restored is None:
        raise no_checkpoint(folder)
    notify(
        f"continues {run.init} from step {int(jax.device_get(restored[0].step)):,}, with its moments and its order of the data"
    )
    return restored[0]


def initial_params_from(run: run_config.Run, model: Model, mesh: Mesh, notify: Callable[[str], None]) -> Any:
    """Return the parameters of `run.init` on the mesh.

    Parameters that it lacks, or has for another task or other labels, are newly initialized, and `notify` is called with a line
    that names them.
    """
    source = load_model(run.init, mesh)
    loaded = {sharding.path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(source.params)}
    if _head(source.model) != _head(model):
        loaded = {path: leaf for path, leaf in loaded.items() if path.split("/")[0] not in TASK_SPECIFIC}

    def init() -> Any:
        return model.init(jax.random.key(run.seed))

    shapes = jax.eval_shape(init)
    missing = {sharding.path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(shapes)} - loaded.keys()
    fresh = {}
    if missing:
        notify(f"--init {run.init}: it has no weights for this task, newly initialized: {_parts(missing)}")

        def init_missing() -> dict[str, Any]:
            leaves = jax.tree_util.tree_leaves_with_path(init())
            return {path: leaf for keys, leaf in leaves if (path := sharding.path_of(keys)) in missing}

        shardings = jax.tree_util.tree_leaves_with_path(sharding.shardings(mesh, shapes, model.definition.sharding))
        missing_shardings = {path: leaf for keys, leaf in shardings if (path := sharding.path_of(keys)) in missing}
        with jax.set_mesh(mesh):
            fresh = jax.jit(init_missing, out_shardings=missing_shardings)()
    return jax.tree_util.tree_map_with_path(lambda keys, _: (loaded | fresh)[sharding.path_of(keys)], shapes)


def _head(model: Model) -> tuple[str, tuple[str, ...], bool]:
    """Return the properties in which two models must agree to share the weights of their heads."""
    return model.task, getattr(model.config, "labels", ()), getattr(model.config, "multi_label", False)


def _parts(paths: set[str]) -> str:
    return ", ".join(sorted({path.rpartition("/")[0] for path in paths}))
