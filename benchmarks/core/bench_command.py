"""Shared parts of the benchmark commands: fresh processes, the folder of results, and the output at the end."""

import contextlib
import dataclasses
import difflib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.core import result_files
from benchmarks.core.result_files import Results
from zoo.errors import BadInput, require
from zoo.runtime import jax_setup, launch

PROCESS = "ZOO_BENCH_PROCESS"
"""Environment variable that holds the number of a fresh process."""
REFUSED = 2
"""Exit code of a process that refused its options."""


@dataclasses.dataclass(frozen=True)
class Start:
    """State of a command when it starts."""

    process: int | None
    """Number of this process among several fresh ones; None for the process that the user started."""
    alone: bool
    """Whether this process measures itself and starts no others."""
    machine: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Request:
    """The call of a command, except for what it measures."""

    argv: Sequence[str]
    """Its arguments after `zoo`, with which fresh processes are started."""
    out: str = ""
    """Folder of the results; "" for a folder with the default name."""
    resume: bool = False
    json: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
    """Functions that present results."""

    markdown: Callable[[Results], str]
    csv: Callable[[Results], str]
    page: Callable[[Results], str]
    terminal: Callable[[Results], None]


def start(repeats: int, devices: int = 0, *, peers: bool = False) -> Start:
    """Set this process up if it is going to measure.

    Args:
        devices: CPU devices to simulate; 0 = the real ones.
        peers: whether other libraries share the accelerator, most of whose memory JAX would otherwise allocate at once.
    """
    if peers:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    number = os.environ.pop(PROCESS, None)
    process = None if number is None else int(number)
    if process is None and repeats > 1:
        return Start(process, False, _machine_of_new_process())
    jax_setup.prepare(devices)
    jax_setup.canary()
    return Start(process, True, result_files.machine())


class _Terminated(KeyboardInterrupt):
    """A signal that asks this process to end; like Ctrl-C, it leaves time to close open files."""

    def __init__(self, number: int) -> None:
        self.number = number


def _terminate(number: int, frame: FrameType | None) -> None:
    if launch.is_importing(frame):
        os._exit(128 + number)
    raise _Terminated(number)


@contextlib.contextmanager
def _handle_termination() -> Iterator[None]:
    """Exit in order on SIGTERM, and on SIGHUP unless it is ignored, so that neither counts as a death of the measured cells."""
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _terminate) for number in numbers}
    try:
        yield
    except _Terminated as asked:
        sys.exit(128 + asked.number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@_handle_termination()
def run_benchmark(
    setup: Start,
    what: str,
    measure: Callable[[Path, int, bool], None],
    views: Views,
    request: Request,
    *,
    repeats: int,
) -> int:
    """Measure, here or in fresh processes one after the other, and show the results, also those of a run that was stopped.

    Args:
        what: the benchmark's name, which names the folder if the request does not.
        measure: `(folder, process, resume)` writes cells.

    Returns:
        0; 1 if a cell is wrong or failed; the exit code of a fresh process that died.

    Raises:
        BadInput: the folder has results and is not to be resumed, or those of another benchmark; see `result_files.Writer`.
        SystemExit: after SIGTERM, with 143, and SIGHUP, with 129.
    """
    folder = Path(request.out) if request.out else result_files.default_folder(what, setup.machine, newest=request.resume)
    if setup.process is not None:
        measure(folder, setup.process, True)
        return 0
    if (folder / result_files.CELLS).exists():
        if not request.resume:
            raise BadInput(f"{folder} has results already; --resume completes them, --out chooses another folder")
        if (before := result_files.read(folder).what) != what:
            raise BadInput(f"{folder} has results of zoo bench {before}; choose another --out")
    code = 0
    try:
        if setup.alone:
            measure(folder, 0, request.resume)
        else:
            code = _repeat(repeats, folder, request.argv)
    except BadInput:
        # Nothing was measured, and existing results are left unchanged.
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            print("stopped; --resume completes it", file=sys.stderr)
        _show(folder, views, request.json)
        raise
    if code == REFUSED:
        return code
    results = _show(folder, views, request.json)
    # Without results, no process wrote a cell, and each has printed the reason.
    return code or int(results is not None and any(cell["state"] in ("wrong", "failed") for cell in results.cells))


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value of an option that is not one of its choices.

    Raises:
        BadInput: with the nearest choice.
    """
    names = list(choices)
    if value not in names:
        near = difflib.get_close_matches(value, names, n=1, cutoff=0.0)[0]
        raise BadInput(f"--{name} {value}: choose from {', '.join(names)}; the nearest is {near}")


def check_numbers(settings: Any, *names: str) -> None:
    """Refuse invalid numbers in settings.

    Raises:
        BadInput: one of the named settings is not above 0, or both rounds and a budget for them are given.
    """
    for name in names:
        value = getattr(settings, name)
        require(value is None or value > 0, name, value, "must be above 0; choose a larger number, or leave it out")
    if settings.rounds and settings.budget:
        raise BadInput(f"--rounds with --budget {settings.budget}: both determine when rounds end; leave one of them out")


def _machine_of_new_process() -> dict[str, Any]:
    """Return the machine as another process sees it: a process that only starts others must not hold the accelerator."""
    program = "from zoo.runtime import jax_setup; jax_setup.prepare(); from benchmarks.core import result_files; import json"
    command = [sys.executable, "-P", "-c", f"{program}; print(json.dumps(result_files.machine()))"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _repeat(repeats: int, folder: Path, argv: Sequence[str]) -> int:
    """Start the fresh processes one after the other; return the first exit code that is not 0.

    A process that dies does not stop the others.
    """
    code = 0
    for number in range(repeats):
        print(f"process {number + 1} of {repeats}", file=sys.stderr, flush=True)
        command = [*launch.PROGRAM, *argv, "--out", str(folder), "--resume"]
        # In its own process group, so that Ctrl-C reaches it only through this process.
        with subprocess.Popen(command, env=os.environ | {PROCESS: str(number)}, process_group=0) as child:
            try:
                ended = child.wait()
            except KeyboardInterrupt as stopped:
                # It is interrupted and not killed: a kill would count as a death of the cells it works on.
                child.send_signal(stopped.number if isinstance(stopped, _Terminated) else signal.SIGINT)
                child.wait()
                raise
        if ended:
            print(f"process {number + 1} ended with code {ended}; complete with --resume", file=sys.stderr, flush=True)
            code = code or (ended if ended > 0 else 128 - ended)
    return code


def _show(folder: Path, views: Views, as_json: bool) -> Results | None:
    """Write and print the views of a folder's results; return None if there are none."""
    if not (folder / result_files.CELLS).exists():
        return None
    results = result_files.read(folder)
    written = {"table.md": views.markdown(results), "table.csv": views.csv(results), "report.html": views.page(results)}
    result_files.write_texts(folder, written)
    if as_json:
        for cell in results.cells:
            print(json.dumps(cell))
    else:
        views.terminal(results)
        print(f"\n{folder}: cells.jsonl, table.md, table.csv, report.html")
    return results
