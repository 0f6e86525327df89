"""Files that a task is scored on: those that --files names, and the fields of their JSON lines."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from train.data.sources import check_link
from train.data.text_files import check_string, list_names, nonblank_lines, parse_object
from zoo.errors import BadInput, no_such_file
from zoo.file_access import real_path
from zoo.sha256_and_fsync import sha256


def find_data_files(names: Sequence[str], suffixes: Sequence[str], option: str = "--files") -> list[Path]:
    """Return the named files, and the files with one of the suffixes in named folders, sorted by name, without hidden ones.

    Raises:
        BadInput: no such file, one with another suffix, one named twice, a folder without any, or with a link out of it.
    """
    kinds = " or ".join(suffixes)
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes and not file.name.startswith("."))
            for file in inside:
                check_link(file, path, option)
            if not inside:
                raise BadInput(f"{option} {name}: the folder has no {kinds} file; name another folder")
            paths += inside
        elif not path.exists():
            raise no_such_file(name, f"{option} ")
        elif path.suffix.lower() not in suffixes:
            raise BadInput(f"{option} {name}: only {kinds} files are read here")
        else:
            paths.append(path)
    resolved = [real_path(path) for path in paths]
    if twice := [path for i, path in enumerate(paths) if resolved[i] in resolved[:i]]:
        raise BadInput(f"{option} {twice[0]}: named twice, so it would count twice; name it once")
    return paths


def lines(names: Sequence[str], suffixes: Sequence[str]) -> Iterator[tuple[Path, str, str]]:
    """Yield (file, file:line, text) for each line of the files, without blank ones.

    Raises:
        BadInput: see `find_data_files` and `train.data.text_files.nonblank_lines`.
    """
    for file in find_data_files(names, suffixes):
        for where, text in nonblank_lines(file):
            yield file, where, text


def digest_data_files(names: Sequence[str]) -> str:
    """Return the SHA-256 digest of the contents of files and folders, wherever they are.

    Hidden files in a folder do not count. A name that is not a path, such as a data set of the hub, is hashed itself.
    """
    parts = []
    for name in names:
        path = Path(name)
        inside = path.rglob("*") if path.is_dir() else [path] if path.exists() else []
        visible = [file for file in sorted(inside) if file.is_file() and not file.name.startswith(".")]
        parts += [sha256(file) for file in visible] or [name]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def text_fields(text: str, where: str, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, str]:
    """Return the named fields of a line that is a JSON object, without absent optional ones.

    Raises:
        BadInput: no JSON object, a required field that is absent, or a named field that is not a string or is blank.
    """
    value = parse_object(text, where, json.dumps(dict.fromkeys(required, "...")))
    for name in required:
        if name not in value:
            raise BadInput(f"{where}: no field {json.dumps(name)}; it has {list_names(list(value))}")
    fields = {name: value[name] for name in (*required, *optional) if name in value}
    for name, content in fields.items():
        if not isinstance(content, str) or not content.strip():
            raise BadInput(f"{where}: field {json.dumps(name)} has no text; write a string")
        check_string(content, f"{where}: field {json.dumps(name)}")
    return fields
