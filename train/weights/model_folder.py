"""The folder in which a model is: a run, published weights, a model of the hub, or a run in an object store."""

import functools
from pathlib import Path

from train.store import run_fetch
from zoo import object_store
from zoo.hf import hub


def folder_of(name: str, step: int | None = None) -> Path:
    """Return the folder for a name on the command line: a path, hub:ID, or the URI of a run, which is fetched.

    Args:
        step: the step of a run that will be read; None and -1 select one automatically.

    Raises:
        BadInput: see `zoo.hf.hub.folder_of` and `train.store.run_fetch.local_name`.
    """
    if object_store.is_uri(name):
        return _fetched(name, step, object_store.working_folder(name))
    return hub.folder_of(name)


@functools.cache
def _fetched(name: str, step: int | None, working: Path) -> Path:
    """Return the folder of a run in an object store; a process fetches it once, so that all its parts read the same steps.

    Args:
        working: folder that stands for it, which depends on the cache.
    """
    return Path(run_fetch.local_name(name, step))
