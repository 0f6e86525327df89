"""The judge of an experiment as it is registered: digests of the source files that decide a verdict, and the levels in them."""

import ast
import contextlib
import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

COLLECTION = ("eval.experiments.collect_results", "eval.experiments.grid_checks", "eval.experiments.item_sampling_error")
"""Modules that decide which runs count, beside the module of the judge and those that it imports."""
ANALYSIS = "eval.experiments.analysis."
PACKAGES = ("train", "eval")
"""Packages whose modules can decide a verdict; those of `zoo` that a judge imports, such as the errors, do not."""


def registered_judge(judge: Callable[..., Any]) -> dict[str, Any]:
    """Return the name of a judge, the SHA-256 of each source file that decides its verdicts, and its levels.

    The levels are the numbers that these files assign to names in capitals.
    """
    paths = {name: _source(name) for name in sorted(_with_imports({judge.__module__, *COLLECTION}))}
    sources = {name: path.read_bytes() for name, path in paths.items()}
    return {
        "function": f"{judge.__module__}.{judge.__qualname__}",
        "files": {name: hashlib.sha256(source).hexdigest() for name, source in sources.items()},
        "levels": {f"{name}.{key}": value for name, source in sources.items() for key, value in _constants(source)},
    }


def _with_imports(modules: set[str]) -> set[str]:
    """Return modules and those that they import, directly or not, also inside of functions.

    Of the modules in `COLLECTION` only imports of the analysis are followed, and of those in `train` none.
    """
    names, queue = set[str](), [*modules]
    while queue:
        name = queue.pop()
        if name not in names:
            names.add(name)
            prefixes = (ANALYSIS,) if name in COLLECTION else PACKAGES if name.startswith("eval.") else ()
            queue += [other for other in _imports(_source(name).read_bytes()) if other.startswith(prefixes)]
    return names


def _imports(source: bytes) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_module(alias.name))
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                if _is_module(name):
                    yield name


def _is_module(name: str) -> bool:
    """Return whether a name is that of a module of the project and not of a package, whose file has no code."""
    with contextlib.suppress(ModuleNotFoundError):
        spec = importlib.util.find_spec(name) if name.partition(".")[0] in PACKAGES else None
        return spec is not None and spec.submodule_search_locations is None
    return False


def _source(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return Path(spec.origin)


def _constants(source: bytes) -> Iterator[tuple[str, Any]]:
    """Yield the numbers that a module assigns to names in capitals, with their names."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
            values = node.value.elts if isinstance(node.value, ast.Tuple) and len(targets) > 1 else [node.value]
            for target, value in zip(targets, values, strict=False):
                number = value.value if isinstance(value, ast.Constant) else None
                if isinstance(target, ast.Name) and target.id.isupper() and type(number) in (int, float):
                    yield target.id, number
