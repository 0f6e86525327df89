"""Tasks on local files, one file each: what the files hold, and what is measured on them. Found by listing this folder.

A task is a module with a docstring that defines its format and its metrics, and
- `OPTIONS`: names of the fields of `Settings`, beside `batch` and `dtype`, that mean something to it; `argument` is needed,
  unless the task says `ALONE = True`;
- `read(names, settings) -> examples`, of the files or folders named; what can be refused before a model is loaded is;
- `score(subject, examples, settings, progress) -> Result`.
Nothing here imports jax, so that a name can be refused at once.
"""

import dataclasses
import difflib
import importlib
import json
import math
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from eval.settings import Beams
from train.config_objectives import Labelled
from zoo.errors import BadInput

LONGEST_LINE = 16 << 20
"""Bytes of the longest line read: a file without line ends must not fill the memory."""

Progress = Callable[[int, int], None]
"""Told (done, in all) while a task goes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What a caller may choose; a default is the choice of somebody who says nothing."""

    batch: int = 16
    """Rows of the model's full length computed at a time, or as many tokens in shorter rows; no result depends on it."""
    dtype: Any = "float32"
    """Of the arithmetic."""
    argument: str = ""
    """What follows the colon in the task's name."""
    field: str = "text"
    """Field of a .jsonl line that holds the text."""
    length: int = 0
    """Tokens in a row; 0 = the model's positions."""
    stride: int = 0
    """New tokens per row; 0 = half a row."""
    words: bool = False
    """Also the perplexity per word."""
    labelled: Labelled = Labelled()
    """How labelled files are read; as it is, a run reads them as its own."""
    prefix: str = ""
    """What stands before every source; none: the run's own."""
    orders: int = 0
    """Random orders of each document; 0 = the task's choice."""
    limit: int = 0
    """How many of the first examples are scored, at most; 0 = all. A task that takes it reads or scores no others."""
    tokens: int = 0
    """Tokens of a generated text at most; 0 = the task's choice."""
    search: Beams = Beams()
    """How texts are searched for."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a task found; every value can be written as JSON."""

    metrics: dict[str, float]
    examples: int
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Facts by name; a dict of dicts is a table, its rows by name."""


def tasks() -> list[str]:
    """Names of the tasks, found by listing this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def check(name: str) -> None:
    """Refuse a name, TASK or TASK:ARGUMENT, that no task has; the task itself is not imported.

    Raises:
        BadInput: there is no such task; the nearest is named.
    """
    first = name.partition(":")[0]
    if first not in tasks():
        near = difflib.get_close_matches(first, tasks(), n=1, cutoff=0.0)[0]
        raise BadInput(f"--task {name}: no task is called so; the nearest is {near} (all: {', '.join(tasks())})")


def find(name: str) -> tuple[ModuleType, str]:
    """The module of a task, and its argument: the name is TASK or TASK:ARGUMENT.

    Raises:
        BadInput: there is no such task, or it takes no argument, or needs one.
    """
    check(name)
    first, colon, argument = name.partition(":")
    module = importlib.import_module(f"{__name__}.{first}")
    if colon and "argument" not in module.OPTIONS:
        raise BadInput(f"--task {name}: {first} takes nothing after a colon; choose --task {first}")
    if "argument" in module.OPTIONS and not argument and (colon or not getattr(module, "ALONE", False)):
        raise BadInput(f"--task {name}: say which one, --task {first}:NAME")
    return module, argument


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


def first(examples: list[Any], limit: int) -> list[Any]:
    """The first `limit` examples; 0 = all."""
    return examples[:limit] if limit else examples


def mean_and_error(outcomes: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error, from the sample variance (divided by n - 1); a single outcome tells no error."""
    values = np.asarray(outcomes, np.float64)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
