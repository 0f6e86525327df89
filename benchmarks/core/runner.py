"""What the benchmarks' commands have in common: fresh processes, the folder of results, and what is shown of them at the end."""

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
"""Code that a process ends with which refused what it was asked."""


@dataclasses.dataclass(frozen=True)
class Start:
    """What a command finds when it starts."""

    process: int | None
    """Which of several fresh processes this is; None = the one that was asked."""
    alone: bool
    """Whether this process measures, and starts no others."""
    machine: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Request:
    """How a command was called, less what is measured."""

    argv: Sequence[str]
    """Its arguments after `zoo`: what fresh processes are started with."""
    out: str = ""
    """Folder of the results; none = one of its name."""
    resume: bool = False
    json: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
    """How results are shown."""

    markdown: Callable[[Results], str]
    csv: Callable[[Results], str]
    page: Callable[[Results], str]
    terminal: Callable[[Results], None]


def start(repeats: int, devices: int = 0, *, peers: bool = False) -> Start:
    """Set this process up, if it is to measure.

    Args:
        devices: CPU devices to simulate; 0 = the real ones.
        peers: whether other libraries are to share its accelerator, most of whose memory JAX would else take at once.
    """
    if peers:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    number = os.environ.pop(PROCESS, None)
    process = None if number is None else int(number)
    if process is None and repeats > 1:
        return Start(process, False, _elsewhere())
    jax_setup.prepare(devices)
    jax_setup.canary()
    return Start(process, True, result_files.machine())


class _Terminated(KeyboardInterrupt):
    """A signal that asks to end: like Ctrl-C it leaves time to close what is open."""

    def __init__(self, number: int) -> None:
        self.number = number


def _terminate(number: int, frame: FrameType | None) -> None:
    if launch.importing(frame):
        os._exit(128 + number)
    raise _Terminated(number)


@contextlib.contextmanager
def _termination_heeded() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is closed unless it is ignored, are no deaths of what is measured."""
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _terminate) for number in numbers}
    try:
        yield
    except _Terminated as asked:
        sys.exit(128 + asked.number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@_termination_heeded()
def perform(
    begun: Start,
    what: str,
    measure: Callable[[Path, int, bool], None],
    views: Views,
    request: Request,
    *,
    repeats: int,
) -> int:
    """Measure, here or in fresh processes one after the other, and show what there is then, also of a run that was stopped.

    Args:
        what: the benchmark's name, by which a folder is named where the request names none.
        measure: `(folder, process, resume)` writes cells.

    Returns:
        0; 1 if something is wrong or failed; whatever a fresh process that died returned.

    Raises:
        BadInput: the folder has results and is not to be resumed, or those of another benchmark; see `records.Writer`.
        SystemExit: after SIGTERM, with 143, and SIGHUP, with 129.
    """
    folder = Path(request.out) if request.out else result_files.default_folder(what, begun.machine, newest=request.resume)
    if begun.process is not None:
        measure(folder, begun.process, True)
        return 0
    if (folder / result_files.CELLS).exists():
        if not request.resume:
            raise BadInput(f"{folder} has results already; --resume completes them, --out chooses another folder")
        if (before := result_files.read(folder).what) != what:
            raise BadInput(f"{folder} has results of zoo bench {before}; choose another --out")
    code = 0
    try:
        if begun.alone:
            measure(folder, 0, request.resume)
        else:
            code = _repeat(repeats, folder, request.argv)
    except BadInput:
        # Nothing was measured, and what lies there is not touched.
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            print("stopped; --resume completes it", file=sys.stderr)
        _show(folder, views, request.json)
        raise
    if code == REFUSED:
        return code
    results = _show(folder, views, request.json)
    # Without any no process came to write, and each has said why.
    return code or int(results is not None and any(cell["state"] in ("wrong", "failed") for cell in results.cells))


def known(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value of an option that is none of its choices.

    Raises:
        BadInput: with the nearest.
    """
    names = list(choices)
    if value not in names:
        near = difflib.get_close_matches(value, names, n=1, cutoff=0.0)[0]
        raise BadInput(f"--{name} {value}: choose from {', '.join(names)}; the nearest is {near}")


def check_numbers(settings: Any, *names: str) -> None:
    """Refuse numbers of settings that make no sense.

    Raises:
        BadInput: one of these is not above 0; or rounds and a budget for them are both told.
    """
    for name in names:
        value = getattr(settings, name)
        require(value is None or value > 0, name, value, "choose a number above 0, or leave it out")
    if settings.rounds and settings.budget:
        raise BadInput(f"--rounds with --budget {settings.budget}: both say when rounds end; leave one of them out")


def _elsewhere() -> dict[str, Any]:
    """The machine, asked of another process: one that only starts others must not hold its accelerator."""
    program = "from zoo.runtime import jax_setup; jax_setup.prepare(); from benchmarks.core import result_files; import json"
    command = [sys.executable, "-P", "-c", f"{program}; print(json.dumps(result_files.machine()))"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _repeat(repeats: int, folder: Path, argv: Sequence[str]) -> int:
    """Start the fresh processes. One that dies does not stop the others; returns the first code that is not 0."""
    code = 0
    for number in range(repeats):
        print(f"process {number + 1} of {repeats}", file=sys.stderr, flush=True)
        command = [*launch.PROGRAM, *argv, "--out", str(folder), "--resume"]
        # Its own process group: Ctrl-C reaches it through this process alone.
        with subprocess.Popen(command, env=os.environ | {PROCESS: str(number)}, process_group=0) as child:
            try:
                ended = child.wait()
            except KeyboardInterrupt as stopped:
                # Not killed: it would seem to have died of what it was at.
                child.send_signal(stopped.number if isinstance(stopped, _Terminated) else signal.SIGINT)
                child.wait()
                raise
        if ended:
            print(f"process {number + 1} ended with {ended}; --resume completes it", file=sys.stderr, flush=True)
            code = code or (ended if ended > 0 else 128 - ended)
    return code


def _show(folder: Path, views: Views, as_json: bool) -> Results | None:
    """Write what a folder's results look like, and print them; None where there are none."""
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
