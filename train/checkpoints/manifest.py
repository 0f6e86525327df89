"""The manifest of a checkpoint: it commits the folder, and its digests reveal every changed byte.

COMMIT.json is beside the files of a step and lists what the run is (`meta`), every leaf with shape and dtype, and every file with
size and SHA-256. Its text is a function of its content and includes that content's digest, so a change to it is noticed as well.
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

from zoo.errors import BadInput
from zoo.fault_points import fault_point
from zoo.file_access import read_regular_text
from zoo.json_shapes import Number, shape_problem
from zoo.sha256_and_fsync import fsync, sha256

NAME = "COMMIT.json"
FORMAT = 1
COUNTS = {"input_tokens": int, "text_tokens": int, "predictions": int, "bytes": int}
ANCESTOR = {"row": str, "seeds": [int], "path": str, "costs": {str: Number | None}}
PARENT = {"path": str, "hub?": str, "from_run?": str, "row": str, "seeds": [int], "ancestors": [ANCESTOR]}
META = {
    **{"config?": {str: object}, "held_out?": str, "tokenizer?": str, "data?": str, "targets?": {str: object}},
    "held_out_text?": str,
    **{"parents?": {str: PARENT}, "records?": {str: {"rows": int, "sha256": str}}, "counts?": (COUNTS, type(None))},
    **{"feed?": {str: int}, "ended?": str, "base?": str, "metric?": str, "value?": Number},
}
SHAPE = {"step": int, "meta": META, "leaves": {str: str}, "files": {str: {"size": int, "sha256": str}}}
"""Shape of the content, see `zoo.json_shapes`: whoever can write a checkpoint can give any manifest the right digest."""

_FOLDER = re.compile(r"(\d{8,})(?:\.(?:(tmp)|(corrupt)-\d+))?", re.ASCII)


class DamagedCheckpoint(Exception):
    """A step whose files are not those that were saved; the message names the file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of COMMIT.json."""

    step: int
    meta: dict[str, Any]
    """JSON from the run: its config and the fingerprints of its data; see `META`."""
    leaves: dict[str, str]
    """Shape and dtype of each leaf by path, from `describe_leaves`."""
    files: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """Path of each file inside the folder -> {"size": bytes, "sha256": hex}."""

    def write(self, folder: pathlib.Path) -> None:
        """Record the files of a folder and write its manifest; on return all of it is on the disk, not only in its cache.

        The caller then renames the folder to its final name, and calls `zoo.sha256_and_fsync.fsync` on its parent.
        """
        for path, file in _files(folder).items():
            self.files[path] = {"size": file.stat().st_size, "sha256": sha256(file, sync=True)}
        own_file = folder / NAME
        fault_point("checkpoint.manifest")
        own_file.write_text(_add_digest({"format": FORMAT, **dataclasses.asdict(self)}), encoding="utf-8")
        fsync(own_file)
        for directory, _, _ in os.walk(folder):
            fsync(directory)

    @classmethod
    def read(cls, folder: pathlib.Path, step: int) -> "Manifest":
        """Return the manifest of a folder, after checking that it is of `step` and lists exactly the files, with their sizes.

        Raises:
            DamagedCheckpoint: the manifest has another shape or is of another step, or the files differ from those that it lists.
            BadInput: the manifest was written by another version of this project.
        """
        manifest = cls(**_read_content(folder / NAME))
        if manifest.step != step:
            raise DamagedCheckpoint(f"{NAME} belongs to step {manifest.step}")
        try:
            sizes = {path: file.lstat().st_size for path, file in _files(folder).items()}
        except FileNotFoundError as error:
            raise DamagedCheckpoint("the folder is being removed") from error
        except OSError as error:
            raise DamagedCheckpoint(f"the folder's files cannot be listed ({error.strerror})") from error
        for path in sorted(sizes.keys() | manifest.files.keys()):
            if path not in manifest.files:
                raise DamagedCheckpoint(f"{path} is not listed in {NAME}")
            if path not in sizes:
                raise DamagedCheckpoint(f"{path} is missing")
            if sizes[path] != (saved := manifest.files[path]["size"]):
                raise DamagedCheckpoint(f"{path} has {sizes[path]:,} bytes, not {saved:,}")
        return manifest

    def check_content(self, folder: pathlib.Path) -> None:
        """Read every file (1-2 GB/s) and compare its digest.

        Raises:
            DamagedCheckpoint: a file is missing, cannot be read, or has other content than was saved.
        """
        for path, saved in self.files.items():
            try:
                same = sha256(folder / path) == saved["sha256"]
            except FileNotFoundError as error:
                raise DamagedCheckpoint(f"{path} is missing") from error
            except OSError as error:
                raise DamagedCheckpoint(f"{path} cannot be read ({error.strerror})") from error
            if not same:
                raise DamagedCheckpoint(f"{path} has other content than was saved")


def folder_name(step: int) -> str:
    """Return the name of the folder of a step."""
    return f"{step:08d}"


def kind_of_entry(entry: pathlib.Path) -> str:
    """Return the kind of an entry among the step folders: step, tmp, corrupt or junk; gone if it was renamed just now."""
    match = _FOLDER.fullmatch(entry.name)
    try:
        is_folder = stat.S_ISDIR(entry.lstat().st_mode)
    except FileNotFoundError:
        return "gone"
    if match is None or folder_name(int(match[1])) != match[1] or not is_folder:
        return "junk"
    return match[2] or match[3] or "step"


def by_path(tree: Any) -> dict[str, Any]:
    """Return a pytree's leaves by path ("params/blocks/up/kernel", "opt_state/0/mu/embed/table"), in the order of the tree."""
    # Imported here, since manifests are also read before JAX is set up.
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    paths = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(paths) != len(leaves):
        raise ValueError("two leaves have the same path, because a key contains '/'")
    return paths


def describe_leaves(leaves: dict[str, Any]) -> dict[str, str]:
    """Return the shape and dtype of each leaf, as "float32[12,64,64]"."""
    return {path: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for path, leaf in leaves.items()}


def manifest_differences(saved: dict[str, Any], current: dict[str, Any], ignored: Collection[str] = ()) -> list[str]:
    """Return the differences of two nested JSON dicts, one per line: "model.layers: 4 in the checkpoint, 6 now".

    Args:
        saved: the values in the checkpoint.
        current: the values of the run that reads the checkpoint.
        ignored: top-level keys that may differ.
    """
    lines = []
    for key in [*saved, *(key for key in current if key not in saved)]:
        if key in ignored:
            continue
        old, new = saved.get(key), current.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += [f"{key}.{line}" for line in manifest_differences(old, new)]
            continue
        old, new = (json.dumps(side[key], sort_keys=True) if key in side else "nothing" for side in (saved, current))
        if old != new:
            lines.append(f"{key}: {_shorten(old)} in the checkpoint, {_shorten(new)} now")
    return lines


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return every file but the manifest, by its path inside the folder."""
    paths = [file for file in folder.rglob("*") if file.is_symlink() or not file.is_dir()]
    return {file.relative_to(folder).as_posix(): file for file in sorted(paths) if file != folder / NAME}


def is_intact(content: bytes) -> bool:
    """Return whether the content of a manifest has not changed since it was written."""
    try:
        text = content.decode()
        fields = json.loads(text)
        del fields["sha256"]
        return _add_digest(fields) == text
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _add_digest(content: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, sort_keys=True, indent=1) + "\n"


def _read_content(file: pathlib.Path) -> dict[str, Any]:
    try:
        fault_point("checkpoint.read")
        text = read_regular_text(file)
        content = json.loads(text)
        del content["sha256"]
        is_unchanged = _add_digest(content) == text
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedCheckpoint(f"{file.name} is missing") from error
    except OSError as error:
        raise DamagedCheckpoint(f"{file.name} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{file.name} cannot be read") from error
    if not is_unchanged:
        raise DamagedCheckpoint(f"{file.name} was changed after it was written")
    if (version := content.get("format")) != FORMAT:
        text = _shorten(json.dumps(version))
        raise BadInput(f"{file}: format {text}, but this version of zoo reads {FORMAT}; use the version that wrote it")
    if problem := shape_problem(content, SHAPE):
        raise DamagedCheckpoint(f"{file.name} has unexpected content ({problem})")
    if other := sorted(content.keys() - {"format", *SHAPE}):
        raise DamagedCheckpoint(f"{file.name} has unexpected content (the field {_shorten(other[0])})")
    return {name: content[name] for name in SHAPE}


def _shorten(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:60]}... ({len(text)} characters)"
