"""Paths of this project's own source files, independent of the folder that contains the checkout."""

from pathlib import Path

import zoo

ROOT = Path(zoo.__file__).parents[1]
"""The folder that contains the packages, spelled as in the file names of Python tracebacks."""


def own_path(file: str) -> str:
    """Return the path of a source file from the folder that contains our packages; other files keep their path."""
    path = Path(file)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else file
