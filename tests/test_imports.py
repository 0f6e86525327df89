"""Test modules are imported once: a second copy of a module has caches of its own, and compiles every program again."""

import collections
import sys

import jax
import pytest

from tests.support.environment import COMPILED
from tests.support.processes import ROOT


def names_of_files() -> dict[str, list[str]]:
    """Return the names in `sys.modules` of every file below tests/."""
    names = collections.defaultdict(list)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and file.startswith(str(ROOT / "tests")):
            names[file].append(name)
    return names


def test_no_file_is_imported_under_two_names() -> None:
    names = names_of_files()
    assert len(names) > 5
    assert {file: found for file, found in names.items() if len(found) > 1} == {}


@pytest.mark.planted
def test_a_second_name_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiny", sys.modules[__name__])
    assert sorted(names_of_files()[__file__]) == ["tests.test_imports", "tiny"]


def test_the_compilation_cache_is_shared_by_all_processes() -> None:
    assert jax.config.values["jax_compilation_cache_dir"] == str(COMPILED)
    assert jax.config.values["jax_persistent_cache_min_compile_time_secs"] == 0
