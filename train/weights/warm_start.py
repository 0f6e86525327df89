"""The beginning of a run: parameters, copied from another model where both have one, or the whole state of another run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from train.checkpoints.checkpoints import Checkpoints
from train.config import run_config
from train.config.optim_options import Optim
from train.engine.optimizers import INCLUDES_DECAY
from train.engine.state import State
from train.run.run_dir import is_run, no_checkpoint, read_config
from train.run.run_identity import flat_options
from train.weights.load import NEWEST, Loaded, load_model, open_checkpoints
from train.weights.pretrained_config import check_body, check_family
from train.weights.resolve_model_name import resolve_model_name
from train.weights.run_modules import check_projection
from zoo import configs, published_weights, sharding
from zoo.errors import require
from zoo.models import Model

TASK_SPECIFIC = ("classifier", "dense")
"""Parts of a head that do not fit another task, or other labels."""
LEARNED_POSITIONS = "positions/embedding"
"""End of the path of a table of learned positions."""


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
    check_body(run, cfg)
    check_projection(run)
    if source is None:
        published_weights.open_folder(folder)
        require(not run.fork, "fork", run.fork, f"{run.init} has weights alone, and no moments; name a run, or leave --fork out")
    elif run.fork:
        _check_fork(run, source, open_checkpoints(folder, source, NEWEST))
    elif open_checkpoints(folder, source).latest() is None:
        raise no_checkpoint(folder)


def _check_fork(run: run_config.Run, source: run_config.Run, checkpoints: Checkpoints) -> None:
    """Refuse to continue a state that is not there, or that is not one of `run`."""
    require(
        not run.has_frozen and not source.has_frozen, "fork", run.fork, "adapters and frozen parts cannot be forked; leave it out"
    )
    fix = "the moments are not interpolated; leave out this option, or --fork"
    require(run.init_positions != "interpolate", "init_positions", run.init_positions, fix)
    ramp = ("data.ramp", "data.length") if run.data.ramp or source.data.ramp else ()
    options = ("seed", "width_transfer", "data.batch", *ramp, "optim.name", "optim.moments", "spikes.sigmas", "spikes.window")
    options += ("optim.average_widths",) if run.optim.average_widths or source.optim.average_widths else ()
    of_run, of_source = map(_switches, (run.optim, source.optim))
    options += tuple(name for name in of_run if of_run[name] != of_source.get(name, of_run[name]))
    values, own = (
        {name: "none" if value in ("", ()) else value for name, value in flat_options(config).items()} for config in (source, run)
    )
    for option in options:
        fix = f"the state of {run.init} has {values[option]}; choose it, or leave --fork out"
        require(own[option] == values[option], option, own[option], fix)
    fix = (
        f"{run.init} has {'an' if source.optim.average else 'no'} average of its parameters; choose the same, or leave --fork out"
    )
    require(bool(run.optim.average) == bool(source.optim.average), "optim.average", run.optim.average, fix)
    steps = checkpoints.valid_steps()
    stored = (
        f"{run.init} has checkpoints of the steps {', '.join(map(str, sorted(steps)))}"
        if steps
        else f"{run.init} has no checkpoint"
    )
    require(run.fork in steps, "fork", run.fork, f"{stored}; choose one of them, or train with a larger --checkpoint.keep")


def _switches(cfg: Optim) -> dict[str, bool]:
    """Return options -> whether they add a part to the optimizer, which decides the places of all later parts in the state."""
    before_average = {
        "optim.weight_decay": cfg.weight_decay > 0 and cfg.name not in INCLUDES_DECAY,
        "optim.rates": bool(cfg.rates),
        "optim.layer_decay": cfg.layer_decay < 1,
    }
    return {"optim.clip": cfg.clip > 0} | (before_average if cfg.has_average else {})


def forked_state(run: run_config.Run, state: State, notify: Callable[[str], None]) -> State:
    """Return the state of step `run.fork` of the run `run.init`.

    Args:
        state: shapes and shardings of the state of `run`.

    Raises:
        BadInput: there is no such checkpoint, it is damaged, or its state has other arrays, each of which is named.
    """
    folder = resolve_model_name(run.init, run.fork)
    restored = open_checkpoints(folder, read_config(folder), NEWEST).restore(state, step=run.fork)
    assert restored is not None
    notify(f"continues {run.init} from step {run.fork:,}, with its moments and its position in the data")
    return restored[0]


def initial_params_from(run: run_config.Run, model: Model, mesh: Mesh, notify: Callable[[str], None]) -> Any:
    """Return the parameters of `run.init` on the mesh.

    Parameters that it lacks, or has for another task or other labels, are newly initialized, and `notify` is called with a line
    that names them. It is also called with a line about positions that `run.init_positions` changes.
    """
    source = load_model(run.init, mesh)
    loaded = {sharding.path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(source.params)}
    if run.init_positions != "same":
        loaded = _with_positions(run, source, model, mesh, loaded, notify)
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


def _with_positions(
    run: run_config.Run, source: Loaded, model: Model, mesh: Mesh, loaded: dict[str, Any], notify: Callable[[str], None]
) -> dict[str, Any]:
    """Return parameters by path with learned positions for the rows of `model`."""
    before, after = configs.body_fields(source.model.config), configs.body_fields(model.config)
    changes = ", ".join(f"{name} {before[name]} -> {value}" for name, value in after.items() if before[name] != value)
    notify(f"--init {run.init}: --init-positions {run.init_positions}: {changes}")
    if run.init_positions == "recompute":
        return loaded
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    places = jax.tree_util.tree_leaves_with_path(sharding.shardings(mesh, shapes, model.definition.sharding))
    offset = getattr(model.config, "position_offset", 0)
    _, (field,) = configs.changeable_positions(model.config)
    for keys, place in places:
        if (path := sharding.path_of(keys)).endswith(LEARNED_POSITIONS):
            with jax.set_mesh(mesh):
                resize = jax.jit(interpolate_positions, static_argnums=(1, 2), out_shardings=place)
                loaded[path] = resize(loaded[path], after[field], offset)
    return loaded


def interpolate_positions(table: Float[Array, "rows D"], positions: int, offset: int) -> Float[Array, "more D"]:
    """Return a table of learned positions with more of them, by position interpolation (Chen et al. 2023).

    New position j, of `positions`, is old position j (old - 1) / (`positions` - 1), linearly interpolated between the two rows
    around it: the first and the last row are those of `table`, and no position is outside of those that were trained. The paper
    divides positions by a ratio of lengths, which would need a row after the last one.

    Args:
        offset: number of rows before that of the first position, which are copied (RoBERTa's two).
    """
    old = table.shape[0] - offset
    # Whole numbers, so that a position that falls on a row is that row to the bit.
    below, rest = np.divmod(np.arange(positions) * (old - 1), max(positions - 1, 1))
    share = jnp.asarray(rest / max(positions - 1, 1), table.dtype)[:, None]  # [positions, 1]
    lower, upper = table[offset + below], table[offset + np.minimum(below + 1, old - 1)]  # [positions, D]
    return jnp.concatenate([table[:offset], lower * (1 - share) + upper * share])


def _head(model: Model) -> tuple[str, tuple[str, ...], bool]:
    """Return the properties in which two models must agree to share the weights of their heads."""
    return model.task, getattr(model.config, "labels", ()), getattr(model.config, "multi_label", False)


def _parts(paths: set[str]) -> str:
    return ", ".join(sorted({path.rpartition("/")[0] for path in paths}))
