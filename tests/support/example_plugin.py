"""Real distributions on `sys.path`: the example of docs/extending.md, from the text of its pages, and others of a few lines."""

import contextlib
import functools
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.processes import ROOT
from zoo import plugins

PAGES = "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("extending*.md")))
"""The pages that show the files of the example."""


def page_files() -> dict[str, str]:
    """Return the files that the pages show: a name in a line of its own, then a block."""
    return dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```", PAGES, re.MULTILINE | re.DOTALL))


def page_commands() -> list[str]:
    """Return the commands that docs/extending.md shows for the example."""
    (block,) = re.findall(r"these commands work:\n\n```\n(.*?)```", PAGES, re.DOTALL)
    return block.splitlines()


def write_distribution(
    folder: Path, name: str, version: str, entry_points: Mapping[str, Mapping[str, str]], files: Mapping[str, str]
) -> Path:
    """Write an installed distribution into a folder, as pip leaves it, and return the folder."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = (
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in rows.items()) for group, rows in entry_points.items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups))
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def write_example(folder: Path, version: str = "", without: str = "") -> Path:
    """Write the example of the pages, with another version than its own or without a group, and return the folder."""
    project, files = tomllib.loads(page_files()["pyproject.toml"])["project"], page_files()
    groups = {group: rows for group, rows in project["entry-points"].items() if group != without}
    assert groups.keys() | {without} == plugins.GROUPS.keys() | {without}
    return write_distribution(
        folder, project["name"], version or project["version"], groups, files | {"zoo_example/__init__.py": ""}
    )


@contextlib.contextmanager
def installed(*folders: Path) -> Iterator[None]:
    """Put folders with distributions on `sys.path`; afterwards nothing of them is left in this process."""

    def forget() -> None:
        for cached in (plugins._installed, plugins._import):
            assert isinstance(cached, functools._lru_cache_wrapper)
            cached.cache_clear()
        plugins._ACCEPTED.clear()

    before, modules = list(sys.path), set(sys.modules)
    sys.path[:0] = map(str, folders)
    forget()
    try:
        yield
    finally:
        sys.path[:] = before
        forget()
        for name in set(sys.modules) - modules:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(tuple(map(str, folders))):
                del sys.modules[name]
