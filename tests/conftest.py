"""Fixtures of all tests. `tests.support.environment` starts JAX with eight devices; it must be imported first."""

from tests.support import type_checks, environment  # noqa: F401, I001

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tyro import _docstrings

from tests.support import compilation, object_stores
from tests.support.object_server import Proxy, object_server
from tests.support.processes import Ended, run_python
from train.run import matmul_rate

pytest_plugins = ["tests.support.tiers"]
OPTIMIZED = {Path(__file__).parent / name for name in ("zoo/attention", "zoo/ops", "zoo/runtime", "benchmarks/budgets")}
"""Folders whose tests are about what the compiler makes of a formula or a program."""


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


@pytest.fixture(autouse=True, scope="session")
def _measure_the_matmul_rate_once() -> Iterator[None]:
    """Measure the rate of matrix products, to which MFU is relative, once and briefly: each run would do so for half a second."""
    measured = functools.cache(functools.partial(matmul_rate.measure_matmul_rate, seconds=0.02))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul_rate, "measure_matmul_rate", lambda dtype, seconds=0.0: measured(dtype))
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


@pytest.fixture(scope="session")
def object_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy before a real object server; needs the group store."""
    with object_server(tmp_path_factory.mktemp("objects")) as port:
        proxy = Proxy(port)
        yield proxy
        proxy.close()


@pytest.fixture(params=["folder", pytest.param("server", marks=pytest.mark.store)])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object_stores.Place:
    """An empty place in an object store: in a folder, and with --store on a real server."""
    if request.param == "server":
        return object_stores.on_server(request.getfixturevalue("object_proxy"), monkeypatch)
    return object_stores.in_folder(tmp_path / "store", monkeypatch)


@pytest.fixture
def server_place(object_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> object_stores.Place:
    """An empty place on a real object server; for tests marked `store`."""
    return object_stores.on_server(object_proxy, monkeypatch)
