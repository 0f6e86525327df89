"""Object stores, caches and tasks of a harness that somebody else has written to."""

import itertools
import os
from collections.abc import Callable

from tests.hostile.case_types import ESCAPES, Case, Place, edited, forge_manifest, link, replace, step_of
from tests.hostile.code_cases import module, pickled
from tests.hostile.content_cases import content

MODEL = "snapshots/main"


def objects(*names: str) -> Callable[[Place], None]:
    """Return a function that adds objects to a stored run."""

    def write(place: Place) -> None:
        for name in names:
            replace(place.folder / name, "{}\n")

    return write


def modes(*names: str, mode: int = 0o777) -> Callable[[Place], None]:
    """Return a function that lets others write to folders of a cache."""

    def write(place: Place) -> None:
        for name in names:
            (place.folder / name).mkdir(parents=True, exist_ok=True)
            os.chmod(place.folder / name, mode)

    return write


def task(**fields: str) -> Callable[[Place], None]:
    """Return a function that adds lines to the YAML of a task, whose functions are in a module beside it."""

    def write(place: Place) -> None:
        module(place, "task/payload.py")
        file = place.folder / "local.yaml"
        file.write_text(file.read_text() + "".join(f"{name}: {value}\n" for name, value in fields.items()))

    return write


def _foreign_cache(place: Place) -> None:
    os.chown(place.folder, 12345, 12345)


def _linked_cache(place: Place) -> None:
    """Link a folder of the cache to one that others can write to."""
    os.chmod(place.outside, 0o777)
    link(place.folder / "text", place.outside)
    link(place.folder / "plans", place.outside)


def _hub(name: str, content: bytes | None) -> Callable[[Place], None]:
    """Return a function that replaces a file of a model in the cache of the hub; None: by a link to a secret."""

    def write(place: Place) -> None:
        if content is None:
            link(place.folder / MODEL / name, place.home / ".ssh/id_rsa")
        else:
            replace(place.folder / MODEL / name, content)

    return write


def _hub_pickle(place: Place) -> None:
    (place.folder / MODEL / "model.safetensors").unlink()
    replace(place.folder / MODEL / "pytorch_model.bin", pickled(place))


def _hub_revision(place: Place) -> None:
    replace(place.folder / "refs" / "main", "../../../../../outside")


def _stored_manifest(place: Place) -> None:
    files = {"../../../../../home/.bashrc": {"size": 2, "sha256": "x"}}
    forge_manifest(step_of(place.folder), lambda content: content.update(files=files))


def _python(place: Place) -> None:
    module(place, "store/runs/out/done/sitecustomize.py")


PLUGIN = {"group": "zoo.attention", "name": "a", "distribution": "evil'; id", "version": "1"}
REMOTE_CODE = "{trust_remote_code: true, data_files: {test: task/pairs.jsonl}}"
LETTERS = "abcdefghijk"
ALIASES = {"a": "&a [x, x, x, x, x, x, x, x, x]"} | {
    name: f"&{name} [{', '.join(9 * [f'*{before}'])}]" for before, name in itertools.pairwise(LETTERS)
}
"""Lists in YAML that have nine times the entries of the list before."""
CASES = [
    Case("object .bashrc", "writes", "store", objects(".bashrc"), ()),
    Case("object in a hidden folder", "writes", "store", objects(".ssh/authorized_keys"), ()),
    Case("object run.lock", "writes", "store", objects("run.lock"), ()),
    Case("object whose name ends a line", "terminal", "store", objects("metrics.jsonl\nzoo: done"), ()),
    Case("object whose name has escapes", "terminal", "store", objects(ESCAPES.replace("/", "_")), ()),
    Case("object wandb/id", "writes", "store", objects("wandb/id"), ()),
    Case("object writer.json of a list", "formats", "store", content("writer.json", b"[1]"), ()),
    Case("object fetched/damaged.json", "writes", "store", objects("fetched/damaged.json"), ()),
    Case("object with the name of a folder", "formats", "store", objects("checkpoints/evil", "best/evil"), ()),
    Case("object that is Python", "code", "store", _python, ()),
    Case("manifest of a stored step with ..", "writes", "store", _stored_manifest),
    Case("stored configuration with a plug-in", "advice", "store", edited("config.json", plugins=[PLUGIN])),
    Case("cache that others can write", "code", "cache", modes(".")),
    Case("text of a cache that others can write", "code", "cache", modes("text"), ("eval", "data inspect")),
    Case("plans of a cache that others can write", "code", "cache", modes("plans"), ("plan",)),
    Case("cache of another user", "code", "cache", _foreign_cache),
    Case("cache that is linked", "code", "cache", _linked_cache),
    Case("model of the hub that is a pickle", "code", "hub", _hub_pickle),
    Case("configuration of the hub that is a link to a secret", "reads", "hub", _hub("config.json", None)),
    Case("configuration of the hub that is deep", "limits", "hub", _hub("config.json", b"[" * 100_000)),
    Case("revision of the hub with ..", "reads", "hub", _hub_revision),
    Case("function of a task", "code", "task", task(process_docs="!function payload.process_docs")),
    Case("object of Python in a task", "code", "task", task(evil="!!python/object/apply:os.system ['touch ~/code-ran']")),
    Case("include of a task", "reads", "task", task(include="../../home/.ssh/id_rsa")),
    Case("class of a task", "code", "task", task(**{"class": "!function payload.Model"})),
    Case("remote code of a task", "code", "task", task(dataset_kwargs=REMOTE_CODE), ()),
    Case("address in a task", "network", "task", task(dataset_path="evil/data")),
    Case("aliases of YAML that double", "limits", "task", task(**ALIASES), ()),
]
