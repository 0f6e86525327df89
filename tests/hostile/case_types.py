"""What a hostile case is: a mistake or an attack that is written into an intact argument."""

import contextlib
import dataclasses
import fnmatch
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from zoo.errors import BadInput

Promise = Literal["code", "writes", "reads", "network", "limits", "formats", "terminal", "advice"]
PROMISES: dict[Promise, str] = {
    "code": "no code of a folder is imported or run, and none that a folder names",
    "writes": "nothing outside of the named output and the cache is created, changed or deleted",
    "reads": "no content of a file outside of the folder is in an output",
    "network": "nothing is fetched that the command line does not name",
    "limits": "memory and time are bounded, whatever the content says",
    "formats": "other formats and damaged files are refused in one line",
    "terminal": "names and texts of a folder neither control the terminal nor become HTML",
    "advice": "no message advises to run a command that contains a word of a folder",
}
READ_WEIGHTS = ("import", "generate*", "zoo.load", "eval --task", "fill-mask", "embed", "predict", "export", "train --init")
"""Patterns of the commands that read the weights of a folder."""
READ_TOKENIZER = (*READ_WEIGHTS, "data inspect --init")
"""Patterns of the commands that read the tokenizer of a folder of published weights."""
READ_RUN = ("eval", "eval --task", "generate", "export", "zoo.load", "data inspect")
"""Patterns of the commands that read the tokenizer of a run."""
READ_TEMPLATE = ("generate --chat", "train sft", "data inspect sft", "--chat.template")
"""Commands that render a chat template."""
HTML = "<img src=x onerror=alert(1)>"
ESCAPES = "\x1b]0;owned\x07\x1b[2J\u202eevil\u2028\u009b31m"
"""Sets the title of a terminal, clears it, reverses the direction of text, ends a line, and colours by a C1 character."""


@dataclasses.dataclass(frozen=True)
class Place:
    """The argument that a case changes, and the folders of the canary around it."""

    folder: Path
    trial: Path

    @property
    def work(self) -> Path:
        """The folder where the command runs."""
        return self.trial / "work"

    @property
    def home(self) -> Path:
        """The home folder, with secrets."""
        return self.trial / "home"

    @property
    def outside(self) -> Path:
        """A folder of another project."""
        return self.trial / "outside"


@dataclasses.dataclass(frozen=True)
class Case:
    """A hostile argument."""

    name: str
    promise: Promise
    arguments: str
    """Kinds of the intact argument that it may be made from, with spaces between them."""
    write: Callable[[Place], None]
    refused: tuple[str, ...] = ("*",)
    """Patterns of the names of commands that must refuse it. Others do not read what is hostile, or show it as any text: they may
    also end as with an intact argument."""

    @property
    def kinds(self) -> list[str]:
        """Return the kinds of argument as a list."""
        return self.arguments.split()

    def is_refused(self, command: str) -> bool:
        """Return whether a command must refuse the argument."""
        return any(fnmatch.fnmatchcase(command, pattern) for pattern in self.refused)


def edit(file: Path, **changes: Any) -> None:
    """Set keys of a JSON object, those of inner objects with two underscores; a callable gets the value and returns another."""
    content = json.loads(file.read_text())
    for name, value in changes.items():
        *outer, key = name.split("__")
        inner = content
        for part in outer:
            inner = inner[part]
        inner[key] = value(inner.get(key)) if callable(value) else value
    file.write_text(json.dumps(content))


def edited(name: str, **changes: Any) -> Callable[[Place], None]:
    """Return a function that changes a JSON file of the argument, as `edit` does."""
    return lambda place: edit(place.folder / name, **changes)


def edit_config(place: Place, **changes: Any) -> None:
    """Change the config.json of a run or of published weights, and of a run also what its checkpoint says of it."""
    from train.run.run_dir import read_config
    from train.run.run_identity import run_identity

    edit(place.folder / "config.json", **changes)
    if (place.folder / "checkpoints").is_dir():
        # What cannot be read is refused before the two are compared.
        with contextlib.suppress(BadInput):
            config = run_identity(read_config(place.folder))
            forge_manifest(step_of(place.folder), lambda content: content["meta"].update(config=config))


def replace(file: Path, content: str | bytes) -> None:
    """Write a file in place of another one, or of a link or a folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def link(file: Path, target: Path | str) -> None:
    """Write a link in place of a file or of a folder."""
    import shutil

    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    file.unlink(missing_ok=True)
    file.symlink_to(target)


def forge_manifest(step: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest of a checkpoint and give it the right digest, as anybody can who has the folder."""
    from train.checkpoints import manifest

    file = step / manifest.NAME
    content = json.loads(file.read_text())
    del content["sha256"]
    change(content)
    file.write_text(manifest._add_digest(content))


def step_of(run: Path) -> Path:
    """Return the newest checkpoint of a run."""
    return max((run / "checkpoints").iterdir())
