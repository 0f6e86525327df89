"""A child process with limits of time and memory, which answers requests: for programs that came with files of others.

A request and its answer are a line of JSON each. The child is a new interpreter without the parent's environment variables, open
files and threads; it is started by the first request, and stays for the next ones until the parent ends or a limit is exceeded.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

ENVIRONMENT = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TZ")
"""Names of the environment variables that a child gets; no other one, because they may hold passwords."""
START = "import importlib, sys; sys.path[:] = sys.argv[4:]; importlib.import_module(sys.argv[1]).main()"
LONGEST_ANSWER = 256 << 20
"""Largest number of bytes of an answer that the parent reads."""


class LimitExceededError(Exception):
    """Error: a child process exceeded a limit or crashed. The message says what it did: "takes more than 2 s ..."."""


class LimitedProcess:
    """A child process that runs `main` of a module, which calls `serve_requests`."""

    def __init__(self, module: str, *, seconds: float, memory: int) -> None:
        """Describe a child process, without starting it.

        Args:
            seconds: processor time for each request.
            memory: bytes of address space; it is not limited on macOS, whose kernel ignores the limit.
        """
        self.seconds, self.memory = seconds, memory
        self._module, self._lock = module, threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def request(self, value: Mapping[str, Any], at_start: Mapping[str, Any] | None = None) -> Any:
        """Send a request to the child, and return its answer.

        Args:
            at_start: entries that the request has besides if it is the first one of a child.

        Raises:
            LimitExceededError: the child exceeded a limit or crashed; the next request starts a new one.
        """
        with self._lock:
            # A fork of this process would share the pipes with it.
            if self._process is None or self._owner != os.getpid():
                self._start()
                value = {**value, **(at_start or {})}
            process = self._process
            assert process and process.stdin and process.stdout
            try:
                process.stdin.write(json.dumps(value).encode() + b"\n")
                process.stdin.flush()
                answer = json.loads(process.stdout.readline(LONGEST_ANSWER))
            except (OSError, ValueError):
                # The pipe is closed, or the answer is empty or incomplete, because the child has ended.
                raise LimitExceededError(self._reason(self.stop(wait=1.0))) from None
            except BaseException:
                # After an interrupt, the next answer would be that of this request.
                self.stop()
                raise
            if "exceeded" in answer:
                # There may be no memory for another request.
                self.stop()
                raise LimitExceededError(self._reason(answer["exceeded"]))
            return answer["value"]

    def _start(self) -> None:
        variables = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        limits = [str(self.seconds), str(self.memory)]
        folders = [folder for folder in sys.path if os.path.isabs(folder)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", START, self._module, *limits, *folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Not a pipe, which would block the child when it is full.
            stderr=subprocess.DEVNULL,
            env=variables,
            cwd="/",
        )
        self._owner = os.getpid()
        weakref.finalize(self, _stop_process, self._process, self._owner)

    def stop(self, wait: float = 0.0) -> int:
        """Stop the child, after `wait` seconds in which it may end by itself, and return its exit code."""
        process, self._process = self._process, None
        return 0 if process is None else _stop_process(process, self._owner, wait)

    def _reason(self, end: int | str) -> str:
        if end == -signal.SIGPROF:
            return f"takes more than {self.seconds:g} s of processor time"
        if end == "memory":
            return f"needs more than {self.memory >> 20:,} MiB of memory"
        if end == "depth":
            return f"is nested, or calls itself, more than {sys.getrecursionlimit():,} times"
        return f"crashes (signal {-end})" if isinstance(end, int) and end < 0 else f"ends its process (exit code {end})"


def serve_requests(answer: Callable[[Any], Any]) -> None:
    """Answer the requests of the parent until it ends, each within the limits that the arguments of this process set."""
    seconds, memory = float(sys.argv[2]), int(sys.argv[3])
    # An interrupt in the terminal is for the parent, which then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    if sys.platform != "darwin":
        limits[resource.RLIMIT_AS] = memory
    for limit, value in limits.items():
        largest = resource.getrlimit(limit)[1]
        value = value if largest == resource.RLIM_INFINITY else min(value, largest)
        resource.setrlimit(limit, (value, value))
    for line in sys.stdin.buffer:
        # Its signal ends this process also within a computation of C or Rust.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            result = json.dumps({"value": answer(json.loads(line))})
        except MemoryError:
            result = '{"exceeded": "memory"}'
        except RecursionError:
            result = '{"exceeded": "depth"}'
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(result + "\n")
        sys.stdout.flush()


def _stop_process(process: subprocess.Popen[bytes], owner: int, wait: float = 0.0) -> int:
    """Stop a child, after `wait` seconds in which it may end by itself, and return its exit code.

    In a fork of its parent, which is not the process `owner`, the child goes on.
    """
    for stream in (process.stdin, process.stdout):
        # The rest of a request cannot be written.
        with contextlib.suppress(OSError):
            if stream:
                stream.close()
    if os.getpid() != owner:
        process.returncode = 0
        return 0
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(wait)
    process.kill()
    return process.wait()
