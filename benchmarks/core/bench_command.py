"""Shared parts of the benchmark commands: fresh processes, the folder of results, and the output at the end."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.core import result_files, result_page, result_tables
from benchmarks.core.guarded_trials import Group, measure_groups
from benchmarks.core.options import Output, recorded_options
from benchmarks.core.result_files import Results
from benchmarks.core.worker_process import WorkerFailed, call_in_process
from eval.pages.markdown_page import render_markdown
from train.run.run_dir import write_text
from zoo.errors import BadInput, require
from zoo.runtime import jax_setup, launch, local_group

PROCESS = "ZOO_BENCH_PROCESS"
"""Environment variable that holds the number of a fresh process."""
REFUSED = 2
"""Exit code of a process that refused its options."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark command: its name, its measurement, and the presentation of its results."""

    what: str
    title: str
    resolve: Callable[[Any, str], Any]
    """(options, backend) -> the options with all omitted fields filled in for the machine; refuses those that make no sense."""
    groups: Callable[[Any, Mapping[str, Any]], list[Group]]
    """(complete options, environment of a process) -> the groups that it measures."""
    report: Callable[[Results, result_page.Form], result_page.Report]
    one_line: Callable[[Sequence[Mapping[str, Any]]], str]
    """Cells of a group -> their outcome for the progress display."""
    unit: Callable[[Any], Mapping[str, Any]] = lambda options: {}
    """Complete options -> axes of the cell that is the unit of ratios: see `result_files.Writer`."""
    dtypes: Callable[[Any], Sequence[str]] = lambda options: ("float32",)
    check: Callable[[Any], None] = lambda options: None
    """Refuses, before anything is measured, complete options that the devices of the measuring process do not allow."""

    def main(self, requested: Any, argv: Sequence[str]) -> int:
        """Measure, here or in fresh processes one after the other, and show the results, even if the run was stopped.

        Args:
            argv: the arguments after `zoo`, with which fresh processes are started.

        Returns:
            0; 1 if a cell is wrong or failed; the exit code of a fresh process that died.

        Raises:
            BadInput: see `resolve` and `check`; the folder has results and --resume is missing, or has results of another
                benchmark; see `result_files.Writer`.
            SystemExit: with code 143 after SIGTERM, and with 129 after SIGHUP.
        """
        repeats, number = getattr(requested, "repeats", 1), os.environ.pop(PROCESS, None)
        alone = number is not None or repeats <= 1
        machine = prepare_measurement(getattr(requested, "devices", 0), alone=alone, peers=getattr(requested, "peers", False))
        options = self.resolve(requested, machine["backend"])
        if alone:
            self.check(options)
        folder = _folder(self.what, options.output, machine, fresh=number is not None)
        with _handle_termination():
            if number is not None:
                self._measure(options, folder, int(number))
                return 0
            return self._measure_and_show(options, folder, None if alone else functools.partial(_repeat, repeats, folder, argv))

    def markdown(self, results: Results) -> str:
        """Return the content of table.md."""
        head = [f"Made by `zoo bench {self.what}`.", result_tables.machine_line(results)]
        return render_markdown(self.title, head, result_page.text_sections(self.report(results, "markdown")))

    def terminal(self, results: Results) -> None:
        """Print the report."""
        blocks = result_page.text_blocks(self.report(results, "terminal"))
        result_tables.print_blocks([result_tables.machine_line(results), *blocks])

    def page(self, results: Results) -> str:
        """Return the content of report.html."""
        return result_page.result_page(results, self.title, self.report(results, "page"))

    def _measure(self, options: Any, folder: Path, process: int) -> None:
        """Measure the missing cells in this process."""
        began, environment = time.monotonic(), result_files.describe_environment(self.dtypes(options))
        path, recorded = folder / result_files.CELLS, recorded_options(options)
        new = not options.output.resume
        writer = result_files.Writer(path, self.what, environment, recorded, self.unit(options), new=new)
        # After these no group begins.
        seconds = getattr(options, "seconds", None) or float("inf")
        groups = self.groups(options, environment)
        if left_out := measure_groups(groups, writer, process, self.one_line, environment, deadline=began + seconds):
            titles = ", ".join(left_out)
            print(f"left out, after the {seconds:g} s of --seconds: {titles}; --resume measures them", file=sys.stderr)

    def _measure_and_show(self, options: Any, folder: Path, repeat: Callable[[], int] | None) -> int:
        """Measure here, or in the fresh processes that `repeat` starts; return the exit code."""
        code, as_json = 0, options.output.json
        try:
            if repeat is None:
                self._measure(options, folder, 0)
            else:
                code = repeat()
        except BadInput:
            # Nothing was measured, and existing results are left unchanged.
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                print("stopped; --resume completes it", file=sys.stderr)
            self._show(folder, as_json)
            raise
        if code == REFUSED:
            return code
        results = self._show(folder, as_json)
        # Without results, no process wrote a cell, and each has printed the reason.
        return code or int(results is not None and any(cell["state"] in ("wrong", "failed") for cell in results.cells))

    def _show(self, folder: Path, as_json: bool) -> Results | None:
        """Write and print the reports of a folder's results; return None if there are none."""
        if not (folder / result_files.CELLS).exists():
            return None
        results = result_files.read_results(folder)
        written = {
            "table.md": self.markdown(results),
            "table.csv": result_tables.table_csv(results),
            "report.html": self.page(results),
        }
        for name, text in written.items():
            write_text(folder / name, text)
        if as_json:
            for cell in results.cells:
                print(json.dumps(cell))
        else:
            self.terminal(results)
            print(f"\n{folder}: cells.jsonl, table.md, table.csv, report.html")
        return results


def prepare_measurement(devices: int = 0, *, alone: bool = True, peers: bool = False) -> Mapping[str, Any]:
    """Set this process up if it is going to measure, and describe the machine.

    Args:
        devices: CPU devices to simulate; 0 = the real ones.
        alone: whether this process measures. One that only starts others must not hold the accelerator.
        peers: whether other libraries share the accelerator, most of whose memory JAX would otherwise allocate at once.
    """
    require(devices >= 0, "devices", devices, "choose the number of CPU devices to simulate, or 0 for the real ones")
    if peers:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if not alone:
        try:
            return call_in_process(_prepared_machine)
        except WorkerFailed as failure:
            raise BadInput(f"the machine cannot be described: {failure}") from None
    jax_setup.prepare_jax(devices)
    jax_setup.check_cpu_compiler()
    return result_files.describe_machine()


def _folder(what: str, output: Output, machine: Mapping[str, Any], *, fresh: bool) -> Path:
    """Return the folder of the results; refuse one with other results, unless a `fresh` process continues them."""
    folder = Path(output.out) if output.out else result_files.default_folder(what, machine, newest=output.resume)
    if not fresh and (folder / result_files.CELLS).exists():
        if not output.resume:
            raise result_files.existing_results(folder)
        if (before := result_files.read_results(folder).what) != what:
            raise BadInput(f"{folder} has results of zoo bench {before}; choose another --out")
    return folder


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
    """Exit cleanly on SIGTERM, and on SIGHUP unless it is ignored, so that neither counts as a crash in the measured cells."""
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _terminate) for number in numbers}
    try:
        yield
    except _Terminated as asked:
        sys.exit(128 + asked.number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_numbers(options: Any, *names: str) -> None:
    """Refuse invalid numbers in options.

    Raises:
        BadInput: one of the named options is not above 0, or both rounds and a budget for them are given.
    """
    for name in names:
        value = getattr(options, name)
        require(value is None or value > 0, name, value, "must be above 0; choose a larger number, or leave it out")
    if options.rounds and (budget := getattr(options, "budget", None)):
        raise BadInput(f"--rounds with --budget {budget}: both determine when rounds end; leave one of them out")


def _prepared_machine() -> dict[str, Any]:
    jax_setup.prepare_jax()
    return result_files.describe_machine()


def _repeat(repeats: int, folder: Path, argv: Sequence[str]) -> int:
    """Start the fresh processes one after the other; return the first exit code that is not 0.

    A process that dies does not stop the others; one that refuses its options does. The first resumes only if `argv` says so, so
    that it refuses a folder that got results in the meantime.
    """
    code = 0
    for number in range(repeats):
        print(f"process {number + 1} of {repeats}", file=sys.stderr, flush=True)
        command = [*local_group.PROGRAM, *argv, "--out", str(folder), *(["--resume"] if number else [])]
        # In its own process group, so that Ctrl-C reaches it only through this process.
        with subprocess.Popen(command, env=os.environ | {PROCESS: str(number)}, process_group=0) as child:
            try:
                ended = child.wait()
            except KeyboardInterrupt as stopped:
                # It is interrupted and not killed: a kill would count as a crash in the cells that it measures.
                child.send_signal(stopped.number if isinstance(stopped, _Terminated) else signal.SIGINT)
                child.wait()
                raise
        if ended:
            print(f"process {number + 1} ended with code {ended}; complete with --resume", file=sys.stderr, flush=True)
            code = code or (ended if ended > 0 else 128 - ended)
        if ended == REFUSED:
            break
    return code
