"""Fixtures of all tests. `tests.support.environment` starts JAX with eight devices; it must be imported first."""

from tests.support import type_checks, environment  # noqa: F401, I001

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tyro import _docstrings

from tests.support import compilation
from tests.support.processes import Ended, run_python

pytest_plugins = ["tests.support.tiers"]
OPTIMIZED = {Path(__file__).parent / "zoo" / name for name in ("attention", "ops", "runtime")}
"""Folders whose tests are about what the compiler makes of a formula."""


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compile quickly outside of the folders `OPTIMIZED`: most programs run once."""
    with contextlib.nullcontext() if request.path.parent in OPTIMIZED else compilation.quick():
        yield


@pytest.fixture(autouse=True, scope="session")
def _parse_options_once() -> Iterator[None]:
    """Keep what tyro reads of the source of a class: in each command of this process it would parse the same files again."""
    parsed = _docstrings._ClassTokenization
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsed, "make", staticmethod(functools.cache(parsed.make)))
        yield


@pytest.fixture
def zoo(tmp_path: Path) -> Callable[..., Ended]:
    """`zoo("train", "gpt-nano", env={...}, cwd=..., timeout=...)` runs the command in a new process, in `tmp_path`."""

    def run(*argv: str, env: dict[str, str] | None = None, cwd: Path = tmp_path, timeout: float = 300) -> Ended:
        return run_python("-P", "-m", "zoo.cli", *argv, env=env, cwd=cwd, timeout=timeout)

    return run


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the test's file and name alone."""
    return np.random.default_rng(list(request.node.nodeid.encode()))
