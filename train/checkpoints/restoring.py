"""Restoring a state from the newest intact checkpoint, onto any mesh."""

from typing import Any

import jax

from train.checkpoints import orbax_io
from train.checkpoints.manifest import DamagedCheckpoint, Manifest, by_path, describe_leaves, kind_of_entry, manifest_differences
from train.checkpoints.step_folders import StepFolders
from zoo.errors import BadInput


def restore_state(
    folders: StepFolders, abstract_state: Any, *, step: int | None, partial: bool
) -> tuple[Any, dict[str, Any]] | None:
    """Read a state; see `train.checkpoints.checkpoints.Checkpoints.restore`."""
    abstract_leaves = by_path(abstract_state)
    if unsharded := [path for path, leaf in abstract_leaves.items() if leaf.sharding is None]:
        raise ValueError(f"leaves without a sharding: {', '.join(unsharded)}")
    while True:
        chosen = folders.agree(lambda: _newest_valid(folders)) if step is None else step
        if chosen < 0:
            return None
        manifest = folders.read_manifest(chosen)
        expected = describe_leaves(abstract_leaves)
        saved = {path: leaf for path, leaf in manifest.leaves.items() if not partial or path in expected}
        if differences := manifest_differences(saved, expected):
            folder = folders.path(chosen)
            raise BadInput(f"{folder} has another state: {'; '.join(differences)}; restore the state that was saved")
        if folders.agree(
            lambda chosen=chosen, manifest=manifest: _is_intact(folders, chosen, manifest, required=step is not None)
        ):
            break
    leaves = orbax_io.read_arrays(folders.path(chosen), abstract_leaves)
    state = jax.tree.unflatten(jax.tree.structure(abstract_state), [leaves[path] for path in abstract_leaves])
    return state, manifest.meta


def _newest_valid(folders: StepFolders) -> int:
    """Set aside damaged steps and return the newest valid one; -1 if nothing was ever saved."""
    for step in folders.steps():
        try:
            Manifest.read(folders.path(step), step)
        except DamagedCheckpoint as damage:
            folders.set_aside(step, damage)
        else:
            return step
    lost = sorted(entry.name for entry in folders.entries() if kind_of_entry(entry) in ("step", "corrupt"))
    if lost:
        raise BadInput(f"{folders.folder}: no intact checkpoint, only {', '.join(lost)}; delete the folder to start again")
    return -1


def _is_intact(folders: StepFolders, step: int, manifest: Manifest, *, required: bool) -> bool:
    """Return whether every file of a step has its digest; set a damaged step aside, or refuse it if it is `required`."""
    try:
        manifest.check_content(folders.path(step))
    except DamagedCheckpoint as damage:
        if required:
            raise BadInput(f"{folders.path(step)}: {damage}; choose another step") from damage
        folders.set_aside(step, damage)
        return False
    return True
