"""Commands in processes of their own, in a clean environment, and what a terminal shows of them."""

import contextlib
import dataclasses
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

from tests.support.environment import COMPILED, INHERITED, SCRATCH
from zoo.runtime import jax_setup

ROOT = Path(__file__).resolve().parents[2]
"""The root of this checkout."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def clean_environment() -> dict[str, str]:
    """Return the environment for a new process: the one in which the tests were started, without what set up their process.

    It is the same at all times, no matter what has been imported, as `tests.support.forked.start` requires.
    """
    ours = {"XLA_FLAGS", "JAX_PLATFORMS", "PYTEST_CURRENT_TEST", jax_setup.THREADS_VARIABLE}
    inherited = {name: value for name, value in INHERITED.items() if name not in ours and not name.startswith(("JAX_", "ZOO_"))}
    return inherited | {
        "ZOO_CACHE": str(SCRATCH / "commands"),
        "JAX_COMPILATION_CACHE_DIR": str(COMPILED),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
    }


def run_python(*argv: str, env: Mapping[str, str | None] | None = None, cwd: Path | None = None, timeout: float = 300) -> Ended:
    """Run this Python with `argv` in a clean environment with the variables of `env`; None removes a variable."""
    variables = clean_environment() | (env or {})
    done = subprocess.run(
        [sys.executable, *argv],
        env={name: value for name, value in variables.items() if value is not None},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def children(pid: int) -> list[int]:
    """Return the ids of the processes that the main thread of a process has started, the oldest first."""
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def seen_on_terminal(act: Callable[[TextIO], None]) -> str:
    """Return what reaches a terminal that `act` writes to, until it closes."""
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
