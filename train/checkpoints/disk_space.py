"""The check, before training, that a disk has space for the checkpoints of a run."""

import math
import shutil
from pathlib import Path
from typing import Any

import jax

from train.checkpoints.manifest import kind_of_entry
from train.config import run_config
from train.run.run_dir import RunDir
from zoo.errors import BadInput


def check_disk_space(folder: RunDir, run: run_config.Run, state: Any, first: int = 0, base: Any = ()) -> None:
    """Refuse a run whose checkpoints will not fit on the disk of its folder.

    While a checkpoint is written there are `checkpoint.keep` others, and two copies of the best parameters if the run keeps them.

    Args:
        state: the `train.engine.state.State` as shapes; a checkpoint takes its bytes (less what compression saves).
        first: the step that the run continues from.
        base: the frozen parameters as shapes, if they are still to be saved.

    Raises:
        BadInput: names the bytes needed and the bytes free.
    """
    saves = math.ceil((run.steps - first) / run.checkpoint.every)
    if saves == 0:
        return
    size, steps = _bytes(state), [entry for entry in _entries(folder.checkpoints) if kind_of_entry(entry) == "step"]
    needed = size * min(len(steps) + saves, run.checkpoint.keep + 1) - sum(map(_size, steps))
    needed += _bytes(base)
    if run.selection.best:
        needed += 2 * _bytes(state.params) - _size(folder.best)
    free = shutil.disk_usage(folder.path).free
    if needed > free:
        raise BadInput(
            f"--checkpoint.keep {run.checkpoint.keep}: checkpoints of {size:,} bytes each need {needed:,} bytes, and "
            f"{folder.path} has {free:,} free; make room, choose another --out, or keep fewer"
        )


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _size(folder: Path) -> int:
    """Return the total size in bytes of the files in a folder."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
