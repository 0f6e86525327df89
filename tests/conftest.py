"""What every test stands on: eight CPU devices, no network, and the command line as a user starts it."""

import contextlib
import dataclasses
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest

# Before any import of ours or of a library that reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
# Where it is set, each of the many processes that tests start compiles JAX's sources anew, which takes longer than most tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
CACHE = tempfile.TemporaryDirectory(prefix="zoo-tests-")
os.environ["ZOO_CACHE"] = str(Path(CACHE.name, "here"))
# A shell starts what runs in its background deaf to Ctrl-C, and every process below it: tests that send it would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

from zoo import runtime  # noqa: E402

runtime.prepare(devices=8)

OPT_IN = ("slow", "parity", "aot", "weights")


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str
    seconds: float


def clean_environment() -> dict[str, str]:
    """The environment of a new process: ours, without what set up this one.

    Its compile cache is one for all the processes of a session, and not this process's: a killed process may leave half an
    entry behind, which JAX warns of.
    """
    ours = {"XLA_FLAGS", "JAX_PLATFORMS", "PYTEST_CURRENT_TEST"}
    kept = {name: value for name, value in os.environ.items() if name not in ours and not name.startswith(("JAX_", "ZOO_"))}
    return kept | {"ZOO_CACHE": str(Path(CACHE.name, "commands")), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}


@pytest.fixture
def zoo(tmp_path: Path) -> Callable[..., Ended]:
    """`zoo("train", "gpt-nano", env={...}, cwd=..., timeout=...)` runs the command in a new process, in `tmp_path`."""

    def run(*argv: str, env: dict[str, str] | None = None, cwd: Path = tmp_path, timeout: float = 300) -> Ended:
        return run_python("-P", "-m", "zoo.cli", *argv, env=env, cwd=cwd, timeout=timeout)

    return run


def run_python(*argv: str, env: dict[str, str] | None = None, cwd: Path | None = None, timeout: float = 300) -> Ended:
    """Run this Python with `argv` in a clean environment."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, *argv],
        env=clean_environment() | (env or {}),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Ended(done.returncode, done.stdout, done.stderr, time.monotonic() - start)


def seen_on_terminal(act: Callable[[TextIO], None]) -> str:
    """What reaches a terminal that `act` writes to, until it closes."""
    leader, follower = pty.openpty()
    seen = bytearray()

    def watch() -> None:
        with contextlib.suppress(OSError):  # Linux reports the end of a terminal as an error
            while more := os.read(leader, 1 << 16):
                seen.extend(more)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with os.fdopen(follower, "w") as stream:
        act(stream)
    watcher.join()
    os.close(leader)
    return seen.decode()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the test's name alone."""
    return np.random.default_rng(list(request.node.nodeid.encode()))


def pytest_addoption(parser: pytest.Parser) -> None:
    for marker in OPT_IN:
        parser.addoption(f"--{marker}", action="store_true", help=f"also run the tests marked {marker}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what was not asked for: it shows as deselected in the last line, and as a reason in the header."""

    def left_out(item: pytest.Item) -> Sequence[str]:
        return [marker for marker in OPT_IN if item.get_closest_marker(marker) and not config.getoption(marker)]

    if out := [item for item in items if left_out(item)]:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if not left_out(item)]
        counts = {marker: sum(marker in left_out(item) for item in out) for marker in OPT_IN}
        config.stash[LEFT_OUT] = ", ".join(f"{count} {marker} (run with --{marker})" for marker, count in counts.items() if count)


LEFT_OUT = pytest.StashKey[str]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker, one of several processes that share the tests, tells the one that reports."""
    if (told := getattr(session.config, "workeroutput", None)) is not None:
        told["left out"] = session.config.stash.get(LEFT_OUT, "")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left out", "")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left_out := config.stash.get(LEFT_OUT, ""):
        terminalreporter.write_line(f"left out: {left_out}")
