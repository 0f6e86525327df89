"""The commit marker: what makes a folder a checkpoint, and how a changed byte shows.

COMMIT.json lies beside the files of a step and lists what the run is (`meta`), every leaf with shape and dtype, and every file
with size and SHA-256. Its text is a function of its content and holds that content's digest, so it vouches for itself as well.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import stat
from collections.abc import Collection
from typing import Any

import jax

from zoo.errors import BadInput

NAME = "COMMIT.json"
FORMAT = 1

_FOLDER = re.compile(r"(\d{8,})(?:\.(?:(tmp)|(corrupt)-\d+))?", re.ASCII)


class Damaged(Exception):
    """A step that is not what was saved. The message says in which file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marker:
    """The content of COMMIT.json."""

    step: int
    meta: dict[str, Any]
    """JSON given by the run: its config and the fingerprints of what it reads."""
    leaves: dict[str, str]
    """As `describe` gives them."""
    files: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """Path of each file inside the folder -> {"size": bytes, "sha256": hex}."""

    def write(self, folder: pathlib.Path) -> None:
        """Record the files that are in a folder and mark it, all of it on the disk and not only in its cache on return.

        The folder still needs a rename to its final name, and its parent a `sync_directory`.
        """
        for path, file in _files(folder).items():
            self.files[path] = {"size": file.stat().st_size, "sha256": _digest(file, sync=True)}
        marker = folder / NAME
        marker.write_text(_seal({"format": FORMAT, **dataclasses.asdict(self)}), encoding="utf-8")
        _digest(marker, sync=True)
        for directory, _, _ in os.walk(folder):
            sync_directory(directory)

    @classmethod
    def read(cls, folder: pathlib.Path, step: int) -> "Marker":
        """The marker of a folder that holds `step` and whose files are all there, in their sizes and no others.

        Raises:
            Damaged: it is not so.
            BadInput: the marker is of another version of this project.
        """
        marker = cls(**_unseal(folder / NAME))
        if marker.step != step:
            raise Damaged(f"{NAME} is that of step {marker.step}")
        try:
            sizes = {path: file.lstat().st_size for path, file in _files(folder).items()}
        except FileNotFoundError as error:
            raise Damaged("it is being removed") from error
        except OSError as error:
            raise Damaged(f"its files cannot be listed ({error.strerror})") from error
        for path in sorted(sizes.keys() | marker.files.keys()):
            if path not in marker.files:
                raise Damaged(f"{path} does not belong to it")
            if path not in sizes:
                raise Damaged(f"{path} is missing")
            if sizes[path] != (saved := marker.files[path]["size"]):
                raise Damaged(f"{path} has {sizes[path]:,} bytes, not {saved:,}")
        return marker

    def check_content(self, folder: pathlib.Path) -> None:
        """Read every file (1-2 GB/s) and compare its digest.

        Raises:
            Damaged: a file has other content than was saved.
        """
        for path, saved in self.files.items():
            try:
                same = _digest(folder / path) == saved["sha256"]
            except FileNotFoundError as error:
                raise Damaged(f"{path} is missing") from error
            except OSError as error:
                raise Damaged(f"{path} cannot be read ({error.strerror})") from error
            if not same:
                raise Damaged(f"{path} has other content than was saved")


def folder_name(step: int) -> str:
    """Name of the folder of a step."""
    return f"{step:08d}"


def kind(entry: pathlib.Path) -> str:
    """What an entry among the step folders is: step, tmp, corrupt or junk; gone if it was renamed just now."""
    match = _FOLDER.fullmatch(entry.name)
    try:
        is_folder = stat.S_ISDIR(entry.lstat().st_mode)
    except FileNotFoundError:
        return "gone"
    if match is None or folder_name(int(match[1])) != match[1] or not is_folder:
        return "junk"
    return match[2] or match[3] or "step"


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by path, as "params/blocks/up/kernel" or "opt_state/0/mu/embed/table", in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    paths = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(paths) != len(leaves):
        raise ValueError("two leaves have one path: a key contains '/'")
    return paths


def describe(leaves: dict[str, Any]) -> dict[str, str]:
    """Shape and dtype of each leaf, as "float32[12,64,64]"."""
    return {path: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for path, leaf in leaves.items()}


def compare(saved: dict[str, Any], asked: dict[str, Any], ignored: Collection[str] = ()) -> list[str]:
    """What differs between two nested JSON dicts: one line each, as "model.layers: 4 in the checkpoint, 6 asked".

    Args:
        ignored: keys of the top level that may differ.
    """
    lines = []
    for key in [*saved, *(key for key in asked if key not in saved)]:
        if key in ignored:
            continue
        old, new = saved.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += [f"{key}.{line}" for line in compare(old, new)]
            continue
        old, new = (json.dumps(side[key], sort_keys=True) if key in side else "nothing" for side in (saved, asked))
        if old != new:
            lines.append(f"{key}: {_shorten(old)} in the checkpoint, {_shorten(new)} asked")
    return lines


def sync_directory(directory: str | os.PathLike) -> None:
    """Make the names in a directory outlive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Every file but the marker, by its path inside the folder."""
    found = [file for file in folder.rglob("*") if file.is_symlink() or not file.is_dir()]
    return {file.relative_to(folder).as_posix(): file for file in sorted(found) if file != folder / NAME}


def _digest(file: pathlib.Path, *, sync: bool = False) -> str:
    with file.open("rb") as opened:
        if sync:
            os.fsync(opened.fileno())
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _seal(content: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, sort_keys=True, indent=1) + "\n"


def _unseal(file: pathlib.Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text)
        del content["sha256"]
        sealed = _seal(content) == text
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{file.name} is missing") from error
    except OSError as error:
        raise Damaged(f"{file.name} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{file.name} cannot be read") from error
    if not sealed:
        raise Damaged(f"{file.name} was changed after it was written")
    if (version := content.pop("format")) != FORMAT:
        raise BadInput(f"{file}: format {version}, and this version reads {FORMAT}; use the version of zoo that wrote it")
    return content


def _shorten(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:60]}... ({len(text)} characters)"
