"""Task files of lm-evaluation-harness: the code that they name, and what of it is refused. Nothing here imports the harness.

A YAML file of a task is code of its author in three ways: `!function` imports a Python function, a metric that the harness does
not have is a Python script that the library `evaluate` runs, and templates are rendered by Jinja. Functions need the user's
confirmation (`zoo.trust`); other metrics are refused; templates get Jinja's sandbox and limits (`harness_templates`).
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from zoo import trust
from zoo.errors import BadInput
from zoo.file_access import UnusableFile, read_regular

LARGEST_FILE = 1 << 20
"""Bytes of the largest task file that is read."""
FUNCTION = "task function"
"""Kind of the references of `task_references`."""


class _Function(str):
    """A function that a YAML file names."""


class _Loader(yaml.SafeLoader):
    """Loader that keeps every tag that is not a plain YAML type as a name."""


_Loader.add_multi_constructor("", lambda loader, suffix, node: _Function(getattr(node, "value", suffix)))


def task_references(name: str) -> trust.References:
    """Return the functions that the task files in a folder, or beside a file, name; none is imported.

    The harness reads all .yaml files there and in subfolders, and those that they include.
    """
    names = [
        trust.Reference(FUNCTION, f"{function} of {file.name}", _origin(function, file.parent))
        for file, content in _read_files(name)
        for function in _values(content)
        if isinstance(function, _Function)
    ]
    return trust.References(name, "task file", tuple(dict.fromkeys(names)), "")


def check_metrics(name: str, own: Collection[str]) -> None:
    """Refuse task files, as in `task_references`, with a metric that is none of the harness's `own`.

    Raises:
        BadInput: names the file and the metric.
    """
    for file, content in _read_files(name):
        rows = content.get("metric_list") if isinstance(content, dict) else None
        for row in rows if isinstance(rows, list) else ():
            metric = row.get("metric") if isinstance(row, dict) else None
            if metric is not None and (metric not in own or row.get("hf_evaluate")):
                fix = "choose one of the harness's own; metrics of other libraries are programs that would be run"
                raise BadInput(f"{file}: metric {str(metric)[:60]!r} is not supported; {fix}")


def _read_files(name: str) -> Iterator[tuple[Path, Any]]:
    """Return the content of all task files, without unreadable ones, which the harness leaves out too.

    Raises:
        BadInput: one is no regular file, or larger than `LARGEST_FILE`.
    """
    folder = Path(name) if Path(name).is_dir() else Path(name).parent
    waiting, seen = sorted(folder.rglob("*.yaml")), set()
    while waiting:
        file = waiting.pop(0)
        if file.resolve() in seen:
            continue
        seen.add(file.resolve())
        try:
            content = yaml.load(read_regular(file, LARGEST_FILE), _Loader)
        except UnusableFile:
            # The harness would wait for it.
            raise
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            continue
        included = content.get("include") if isinstance(content, dict) else None
        others = included if isinstance(included, list) else [included]
        waiting += [file.parent / other for other in others if isinstance(other, str)]
        yield file, content


def _values(content: Any) -> Iterator[Any]:
    """Return all values, keys included, of an object that has lists and dictionaries; an anchor may occur several times."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) not in seen:
            seen.add(id(value))
            yield value
            waiting += [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()


def _origin(function: str, folder: Path) -> str:
    """Return the file that the harness would import: one beside the task file, or else a module."""
    module = function.rpartition(".")[0]
    beside = folder.joinpath(f"{module.replace('.', '/')}.py").resolve()
    return str(beside) if beside.exists() else trust.find_module(module) if module.replace(".", "_").isidentifier() else ""
