"""Permission to use what the files of a folder name: code to import, and models and data to fetch. Nothing here imports JAX.

A run, published weights or a task may come from somebody else. Nothing that its files name is imported or fetched, except the
zoo's own code and what this command names too (`permit_names`), unless the user confirmed the folder (`confirm_references`). A
confirmation is a private file of the cache for each name. It is called by a digest of the name, of what it resolves to on this
machine, and of the content that identifies the folder, so that it holds for a copy of the folder, and not after a change of one
of these.
"""

import dataclasses
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Collection, Iterable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, NamedTuple

from zoo.errors import BadInput, cannot_write
from zoo.file_access import real_path
from zoo.runtime import caches
from zoo.sha256_and_fsync import sha256

FOLDER = "trusted"
"""Folder of the cache with the confirmations."""
OPTION = "--trust"
REWARD = "reward function"
"""Kind of the references to Python functions by module, whose names need no kind before them."""


class Reference(NamedTuple):
    """A name in a file of a folder: of code, or of something that is fetched."""

    kind: str
    """Noun for messages, such as "reward function"; for something that is fetched, the key in the file."""
    name: str
    """The name as in the file."""
    origin: str = ""
    """Code: the file of its module, or its distribution with the object; "" if it does not exist here."""
    is_code: bool = True

    @property
    def title(self) -> str:
        """The kind and the name, shortened, for messages."""
        return f"{'the ' if self.is_code else ''}{self.kind} {self.name[:200]}"


@dataclasses.dataclass(frozen=True)
class References:
    """References in a file of a folder, and the content that identifies the folder."""

    folder: str
    """The folder, or the file itself, as the user names it."""
    file: str
    """Name of the file that has the references."""
    names: tuple[Reference, ...]
    content: Any
    """Other content that is part of a confirmation, as JSON: a change of it needs a new one."""

    def digest(self, name: Reference) -> str:
        """Return the SHA-256 digest that the confirmation of one of the names is stored under.

        For code in the folder itself the digest contains that of the file: whoever changes the folder can change it too.
        """
        file, folder = Path(name.origin), Path(self.folder)
        folder = folder if folder.is_dir() else folder.parent
        inside = file.is_file() and real_path(file).is_relative_to(real_path(folder))
        identity = [*name, sha256(file) if inside else "", self.content]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


_PERMITTED: set[str] = set()
"""Results of `key_of` for what this command names, or a confirmed folder, and all words of the command."""
_REFUSED: dict[str, str] = {}
"""Other names that a folder has -> the message of the error if one is used."""


def begin_command(words: Iterable[str]) -> None:
    """Permit the words of a command line and the values of its options, and nothing of a command before it."""
    _PERMITTED.clear()
    _REFUSED.clear()
    permit_names(part for word in words for part in (word, word.partition("=")[2]))


def permit_names(names: Iterable[str]) -> None:
    """Permit names that the user wrote: words of the command line, or values of a run that it describes."""
    _PERMITTED.update(names)


def key_of(name: Reference) -> str:
    """Return what `permit_names` and `check_trusted` call a reference: a reward function or an address as it is in a command."""
    return f"{name.kind} {name.name} {name.origin}" if name.is_code and name.kind != REWARD else name.name


def admit_references(references: References, needed: Collection[str] = ()) -> None:
    """Permit what a folder names if the user has confirmed the folder; otherwise `check_trusted` refuses it.

    Args:
        needed: kinds of code that reading the folder imports.

    Raises:
        BadInput: a kind that is needed occurs and is not permitted.
    """
    permit_names(key_of(name) for name in references.names if is_confirmed(references, name))
    refused = [name for name in references.names if key_of(name) not in _PERMITTED]
    code = [name for name in refused if name.is_code]
    for name in refused:
        _REFUSED[key_of(name)] = _refusal(references, code if name.is_code else [name])
    check_trusted(key_of(name) for name in code if name.kind in needed)


def check_trusted(names: Iterable[str]) -> None:
    """Refuse to use names that only a folder has, before they are imported or fetched.

    Args:
        names: results of `key_of`.

    Raises:
        BadInput: the first one that is not permitted, with the folder and the fix.
    """
    for name in names:
        if name in _REFUSED and name not in _PERMITTED:
            raise BadInput(_REFUSED[name])


def _refusal(references: References, refused: list[Reference]) -> str:
    names = ", ".join(name.title for name in refused)
    fix = f"if you trust its author, add {OPTION} {references.folder} (needed once)"
    if refused[0].is_code:
        return f"{references.folder}: its {references.file} names code that is not part of the zoo: {names}; {fix}"
    what = f"its {references.file} names {names}, which would be fetched, and this command does not name it"
    return f"{references.folder}: {what}; fetch it by a command of your own (zoo import, zoo data inspect --data.paths), or {fix}"


def is_confirmed(references: References, name: Reference) -> bool:
    """Return whether the user has confirmed a name of a folder.

    Raises:
        BadInput: others can write to the folder of the confirmations.
    """
    folder = caches.cache_dir() / FOLDER
    return os.path.lexists(folder) and (caches.private_folder(folder) / references.digest(name)).is_file()


def confirm_references(references: References) -> None:
    """Store that the user trusts what a folder names, and permit it.

    Raises:
        BadInput: the confirmation cannot be stored, or others can write to its folder.
    """
    folder = caches.private_folder(caches.cache_dir() / FOLDER)
    for name in references.names:
        file = folder / references.digest(name)
        partial = folder / f".{file.name}.{os.urandom(8).hex()}"
        text = json.dumps({"folder": os.path.abspath(references.folder), **name._asdict()}, indent=2) + "\n"
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
                stream.write(text)
            partial.replace(file)
        except OSError as error:
            raise cannot_write(file, error) from None
    permit_names(map(key_of, references.names))


def find_module(name: str) -> str:
    """Return the file of a module, or the first folder of a package without one, without importing it; "" if it is absent.

    The working directory is searched last, as by `train.rollouts.rewards`.
    """
    importlib.invalidate_caches()
    first, *others = name.split(".")
    spec = _find_top_level(first)
    for part in others:
        if spec is None or spec.submodule_search_locations is None:
            return ""
        # Without the names of its packages, which are not imported.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    return "" if spec is None else spec.origin or next(iter(spec.submodule_search_locations or ()), "")


def _find_top_level(name: str) -> ModuleSpec | None:
    for finder in sys.meta_path:
        # This finder searches sys.path, to which the import will append the working directory.
        path = [*sys.path, os.getcwd()] if finder is PathFinder else None
        if (spec := finder.find_spec(name, path)) is not None:
            return spec
    return None
