"""Files that evaluation reads: their names, lines and JSON objects; and the mean of outcomes."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from zoo.errors import BadInput

LONGEST_LINE = 16 << 20
"""Bytes of the longest line read: a file without line ends must not fill the memory."""


def files(names: Sequence[str], suffixes: Sequence[str]) -> list[Path]:
    """The files that are named, and of folders those with one of the suffixes, by name; hidden ones are passed over.

    Raises:
        BadInput: no such file, one of another kind, one named twice, or a folder without any.
    """
    kinds = " or ".join(suffixes)
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if each.suffix.lower() in suffixes and not each.name.startswith("."))
            if not inside:
                raise BadInput(f"--files {name}: the folder holds no {kinds} file; name the one that does")
            found += inside
        elif not path.exists():
            raise BadInput(f"--files {name}: no such file")
        elif path.suffix.lower() not in suffixes:
            raise BadInput(f"--files {name}: only {kinds} files are read here")
        else:
            found.append(path)
    resolved = [path.resolve() for path in found]
    if twice := [path for i, path in enumerate(found) if resolved[i] in resolved[:i]]:
        raise BadInput(f"--files {twice[0]}: named twice, so it would count twice; name it once")
    return found


def lines(file: Path) -> Iterator[tuple[str, str]]:
    """("file:line", text) of each line that is not blank, without its end.

    Raises:
        BadInput: a file that cannot be read or holds nothing, or a line that is too long or not UTF-8.
    """
    some, number = False, 0
    try:
        with file.open("rb") as stream:
            while raw := stream.readline(LONGEST_LINE + 1):
                number += 1
                if len(raw) > LONGEST_LINE:
                    raise BadInput(f"{file}:{number}: longer than {LONGEST_LINE >> 20} MiB; an example a line is read")
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    some = True
                    yield f"{file}:{number}", text
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}:{number}: not UTF-8 (byte {error.start} of the line); convert the file to UTF-8") from None
    if not some:
        raise BadInput(f"{file}: holds no line")


def strings(text: str, where: str, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, str]:
    """The named fields of a line that is a JSON object; an optional one that is absent is left out.

    Raises:
        BadInput: no JSON object, a required field that is absent or blank, or a named one that is no string of text.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: no JSON ({error}); write one whole object a line") from None
    if not isinstance(value, dict):
        raise BadInput(f"{where}: no JSON object; write lines like {json.dumps(dict.fromkeys(required, '...'))}")
    found = {name: value[name] for name in (*required, *optional) if name in value}
    for name in required:
        if name not in found:
            raise BadInput(
                f"{where}: no field {json.dumps(name)}; it has {', '.join(map(json.dumps, list(value)[:20])) or 'none'}"
            )
    for name, content in found.items():
        if not isinstance(content, str) or not content.strip():
            raise BadInput(f"{where}: field {json.dumps(name)} holds no text; write a string")
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise BadInput(
                f"{where}: field {json.dumps(name)} has a lone surrogate at character {error.start}; mend it"
            ) from None
    return found


def mean_and_error(outcomes: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error, from the sample variance (divided by n - 1); a single outcome tells no error."""
    values = np.asarray(outcomes, np.float64)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
