"""Running a function of this project in a separate process, which answers in JSON.

`python -m benchmarks.core.worker_process MODULE FUNCTION ARGUMENTS` is such a process; ARGUMENTS is a list in JSON. The function
returns its answer, or its first answer and a function that returns one more for each line of standard input. The output of
libraries goes to a log.
"""

import contextlib
import importlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

Answer = Mapping[str, Any]
Service = Callable[..., Answer | tuple[Answer, Callable[[], Answer]]]


class WorkerFailed(Exception):
    """The function cannot do what is requested, or its process ended; the message is one line."""


class Worker:
    """The process of a function, until `close`."""

    def __init__(self, function: Service, *arguments: Any, env: Mapping[str, str] | None = None) -> None:
        """Start the process; `arguments` are JSON values, `env` is added to the environment."""
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        argv = [sys.executable, "-P", "-m", __name__, function.__module__, function.__name__, json.dumps(arguments)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        self._process = subprocess.Popen(argv, text=True, bufsize=1, env=os.environ | dict(env or {}), **pipes)

    def answer(self, seconds: float | None = None) -> dict[str, Any]:
        """Wait for the next answer, at most `seconds`, and return it.

        Raises:
            WorkerFailed: there is none.
        """
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                self.close()
                raise WorkerFailed(f"no answer within {seconds:.0f} seconds")
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            log_lines = [text for text in self._log.read().splitlines() if text.strip()]
            raise WorkerFailed(f"ended with code {code}: {log_lines[-1].strip() if log_lines else 'and printed nothing'}"[:300])
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer

    def next_answer(self, seconds: float | None = None) -> dict[str, Any]:
        """Ask for another answer and return it: see `answer`."""
        assert self._process.stdin is not None
        # If the process has ended, its log has the reason.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("next\n")
            self._process.stdin.flush()
        return self.answer(seconds)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()


def call_in_process(function: Service, *arguments: Any, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a function in a separate process and return its first answer.

    Raises:
        WorkerFailed: there is none.
    """
    with contextlib.closing(Worker(function, *arguments, env=env)) as worker:
        return worker.answer()


def _serve(module: str, function: str, arguments: str) -> int:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        served = getattr(importlib.import_module(module), function)(*json.loads(arguments))
    except Exception as error:
        lines = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
        answers.write(json.dumps({"error": " ".join(lines)[:300]}) + "\n")
        return 1
    first, following = served if isinstance(served, tuple) else (served, dict)
    answers.write(json.dumps(first) + "\n")
    for _ in sys.stdin:
        answers.write(json.dumps(following()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_serve(*sys.argv[1:]))
