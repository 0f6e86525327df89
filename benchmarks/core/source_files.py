"""Which source files are this project's, whatever the folder is called in which it lies."""

from pathlib import Path

import zoo

ROOT = Path(zoo.__file__).parents[1]
"""The folder that contains the packages, spelled as Python spells it in the files of tracebacks."""


def own_path(file: str) -> str:
    """Return the path of a source file from the folder that contains our packages; other files keep their path."""
    path = Path(file)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else file
