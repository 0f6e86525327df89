"""The parameters a run begins with: fresh ones, or those of another model where both have the same."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from train.config import run_config
from train.run.run_dir import is_run, no_checkpoint, read_config
from train.weights.load import checkpoints, load
from zoo import configs, pretrained, sharding
from zoo.errors import BadInput
from zoo.hf import hub
from zoo.models import Model

FITTED = ("classifier", "dense")
"""Parts of a head that are of no use to another task, or to other labels."""


def check(run: run_config.Run) -> None:
    """Refuse a run whose `init` cannot be its beginning, before anything of the run is written.

    Raises:
        BadInput: another family or body (every number that differs is named), a run without a checkpoint, weights that are not
            whole, or nothing there.
    """
    folder = hub.folder_of(run.init)
    begun = read_config(folder) if is_run(folder) else None
    cfg = begun.model if begun else pretrained.read_config(folder)[0]
    if type(cfg) is not type(run.model):
        raise BadInput(f"--init {run.init}: {configs.family_of(cfg)}, and the recipe trains {configs.family_of(run.model)}")
    theirs, ours = configs.shape(cfg), configs.shape(run.model)
    different = [f"{name} {theirs[name]} there and {ours[name]} here" for name in ours if theirs[name] != ours[name]]
    if different:
        fix = "choose the recipe of its size, or set --model.*"
        raise BadInput(f"--init {run.init}: another model: {', '.join(different)}; {fix}")
    if begun is None:
        pretrained.open_folder(folder)
    elif checkpoints(folder, begun).latest() is None:
        raise no_checkpoint(folder)


def params(run: run_config.Run, net: Model, mesh: Mesh, notify: Callable[[str], None]) -> Any:
    """Parameters of `run.init` on the mesh; what it has not, or has for another task or other labels, is drawn afresh.

    `notify` receives a line that names what is fresh.
    """
    theirs = load(run.init, mesh)
    given = {sharding.path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(theirs.params)}
    if (theirs.net.task, _labels(theirs.net.config)) != (net.task, _labels(net.config)):
        given = {path: leaf for path, leaf in given.items() if path.split("/")[0] not in FITTED}

    def init() -> Any:
        return net.init(jax.random.key(run.seed))

    shapes = jax.eval_shape(init)
    missing = {sharding.path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(shapes)} - given.keys()
    fresh = {}
    if missing:
        notify(f"--init {run.init}: drawn afresh, since it has none for this task: {_parts(missing)}")

        def drawn() -> dict[str, Any]:
            leaves = jax.tree_util.tree_leaves_with_path(init())
            return {path: leaf for keys, leaf in leaves if (path := sharding.path_of(keys)) in missing}

        places = jax.tree_util.tree_leaves_with_path(sharding.shardings(mesh, shapes, net.module.SHARDING))
        where = {path: place for keys, place in places if (path := sharding.path_of(keys)) in missing}
        with jax.set_mesh(mesh):
            fresh = jax.jit(drawn, out_shardings=where)()
    return jax.tree_util.tree_map_with_path(lambda keys, _: (given | fresh)[sharding.path_of(keys)], shapes)


def _labels(cfg: Any) -> tuple[str, ...]:
    return getattr(cfg, "labels", ())


def _parts(paths: set[str]) -> str:
    return ", ".join(sorted({path.rpartition("/")[0] for path in paths}))
