"""The folder in which a model is: a run, published weights, a model of the hub, or a run in an object store."""

import functools
from pathlib import Path

from train.run.run_dir import NAME, is_run
from train.store import run_fetch
from zoo import object_store
from zoo.errors import BadInput, require
from zoo.hf import hub


def resolve_model_name(name: str, step: int | None = None) -> Path:
    """Return the folder for a name on the command line: a path, hub:ID, or the URI of a run, which is fetched.

    Args:
        step: the step of a run that will be read; None and -1 select one automatically.

    Raises:
        BadInput: see `zoo.hf.hub.folder_of` and `train.store.run_fetch.local_name`.
    """
    if object_store.is_uri(name):
        return _fetched(name, step, object_store.working_folder(name))
    return hub.folder_of(name)


def import_source(where: str) -> Path:
    """Return the folder of published weights to import: a local one, or that of an id on the hub, which is fetched.

    Raises:
        BadInput: a file or a run; see also `zoo.hf.hub.fetch_model`.
    """
    hub.check_not_file(where)
    folder = Path(where) if Path(where).is_dir() else hub.fetch_model(where)
    if is_run(folder):
        raise BadInput(f"{where}: a run, not published weights; `zoo export {where} DIR` converts it to a published folder")
    return folder


def import_target(where: str, out: str, name: str) -> Path:
    """Return the folder to write for an imported model, `out`/`name`.

    Args:
        name: empty: the name of the folder `where`, or that of the model on the hub.

    Raises:
        BadInput: the name is not one of a folder.
    """
    if not name:
        hub_name = where.removeprefix(hub.PREFIX).partition("@")[0].rpartition("/")[2]
        name = Path(where).resolve().name if Path(where).is_dir() else hub_name
    require(NAME.fullmatch(name) is not None, "name", name, "choose up to 100 letters, digits, '.', '_' and '-'")
    return Path(out) / name


@functools.cache
def _fetched(name: str, step: int | None, working: Path) -> Path:
    """Return the folder of a run in an object store; a process fetches it once, so that all its parts read the same steps.

    Args:
        working: folder that stands for it, which depends on the cache.
    """
    return Path(run_fetch.local_name(name, step))
