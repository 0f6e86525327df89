"""Files that evaluation reads: their names, lines and JSON objects; and the mean of outcomes."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from zoo.errors import BadInput

LONGEST_LINE = 16 << 20
"""Bytes of the longest line that is read, since a file without line ends must not fill the memory."""


def files(names: Sequence[str], suffixes: Sequence[str]) -> list[Path]:
    """Return the named files, and of named folders the files with one of the suffixes, by name, without hidden ones.

    Raises:
        BadInput: no such file, one with another suffix, one named twice, or a folder without any.
    """
    kinds = " or ".join(suffixes)
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes and not file.name.startswith("."))
            if not inside:
                raise BadInput(f"--files {name}: the folder has no {kinds} file; name another folder")
            paths += inside
        elif not path.exists():
            raise BadInput(f"--files {name}: no such file")
        elif path.suffix.lower() not in suffixes:
            raise BadInput(f"--files {name}: only {kinds} files are read here")
        else:
            paths.append(path)
    resolved = [path.resolve() for path in paths]
    if twice := [path for i, path in enumerate(paths) if resolved[i] in resolved[:i]]:
        raise BadInput(f"--files {twice[0]}: named twice, so it would count twice; name it once")
    return paths


def lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield ("file:line", text) of each line that is not blank, without its line end.

    Raises:
        BadInput: a file that cannot be read or has no text, or a line that is too long or not UTF-8.
    """
    has_text, number = False, 0
    try:
        with file.open("rb") as stream:
            while raw := stream.readline(LONGEST_LINE + 1):
                number += 1
                if len(raw) > LONGEST_LINE:
                    raise BadInput(f"{file}:{number}: longer than {LONGEST_LINE >> 20} MiB; write one example a line")
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    has_text = True
                    yield f"{file}:{number}", text
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}:{number}: not UTF-8 (byte {error.start} of the line); convert the file to UTF-8") from None
    if not has_text:
        raise BadInput(f"{file}: has no text")


def strings(text: str, where: str, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, str]:
    """Return the named fields of a line that is a JSON object, without absent optional ones.

    Raises:
        BadInput: no JSON object, a required field that is absent, or a named field that is not a string or is blank.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: invalid JSON ({error}); write one complete object a line") from None
    if not isinstance(value, dict):
        raise BadInput(f"{where}: no JSON object; write lines like {json.dumps(dict.fromkeys(required, '...'))}")
    fields = {name: value[name] for name in (*required, *optional) if name in value}
    for name in required:
        if name not in fields:
            raise BadInput(
                f"{where}: no field {json.dumps(name)}; it has {', '.join(map(json.dumps, list(value)[:20])) or 'none'}"
            )
    for name, content in fields.items():
        if not isinstance(content, str) or not content.strip():
            raise BadInput(f"{where}: field {json.dumps(name)} has no text; write a string")
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise BadInput(f"{where}: field {json.dumps(name)} has a lone surrogate at character {error.start}; fix it") from None
    return fields


def mean_and_error(outcomes: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error, from the sample variance (divisor n - 1); None for a single outcome."""
    values = np.asarray(outcomes, np.float64)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
