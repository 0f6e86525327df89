"""The folder in which a model is: a run, published weights, a model of the hub, or a run in an object store."""

from pathlib import Path

from train.store import run_fetch
from zoo.hf import hub


def folder_of(name: str, step: int | None = None) -> Path:
    """Return the folder for a name on the command line: a path, hub:ID, or the URI of a run, which is fetched.

    Args:
        step: the step of a run that will be read; None and -1 select one automatically.

    Raises:
        BadInput: see `zoo.hf.hub.folder_of` and `train.store.run_fetch.local_name`.
    """
    return hub.folder_of(run_fetch.local_name(name, step))
