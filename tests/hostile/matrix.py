"""Trials: a command on a hostile argument, in a confined process, and everything that it must not do."""

import concurrent.futures
import dataclasses
import functools
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.hostile import canary, intact
from tests.hostile.case_types import HTML, Case, Place
from tests.hostile.commands import COMMANDS, OUT, Command
from tests.support import compilation, forked
from tests.support.environment import SCRATCH
from tests.support.processes import clean_environment

IDLE, LONGEST = 10.0, 120.0
"""Seconds without any computation after which a process hangs, and seconds after which it does on any machine."""
LARGEST_RSS = 2 << 30
"""Bytes of memory that no command on such small models needs: those on intact arguments take up to 0.8e9."""
QUICK = (("data inspect", "compare", "bench", "experiment --commands"), ("generate", "eval", "fill-mask", "embed", "predict"))
"""Beginnings of the names of commands that take the least time, and of those that take less than others."""
LOST = 255
"""Exit code that `multiprocessing` returns if its server has lost the code of a process. No command ends with it."""
LIBRARY = ("datasets", "modules")
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069]")
"""Characters that control a terminal or the direction of text."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A command and the case that its argument is; None is the intact argument."""

    command: Command
    case: Case | None

    @property
    def title(self) -> str:
        """Return the command and the case."""
        return f"zoo {self.command.title}: {self.case.name if self.case else 'intact'}"

    @property
    def expected(self) -> set[int]:
        """Return the exit codes that are right."""
        if self.case is None:
            return {self.command.code}
        verdict = {1} if self.command.has_verdict else set[int]()
        return verdict | ({2} if self.case.is_refused(self.command.name) else {2, self.command.code})


@dataclasses.dataclass(frozen=True)
class Result:
    """How a trial ended."""

    trial: Trial
    code: int | None
    stdout: str
    stderr: str
    problems: tuple[str, ...]

    def __str__(self) -> str:
        last = next(iter(self.stderr.splitlines()[-1:]), "")
        return f"{self.trial.title}: {'; '.join(self.problems)} (exit code {self.code}, {last[:200]!r})"


def trials(cases: Sequence[Case]) -> Iterator[Trial]:
    """Yield every command on every case that it takes as an argument."""
    for case in cases:
        for command in COMMANDS:
            if command.kind in case.kinds:
                yield Trial(command, case)


def run(trial: Trial) -> Result:
    """Write a case, run a command on it in a confined process, and return everything that is wrong with what happened."""
    result = _run_once(trial)
    return _run_once(trial) if result.code == LOST else result


def _run_once(trial: Trial) -> Result:
    folder = Path(tempfile.mkdtemp(dir=SCRATCH, prefix="trial-"))
    try:
        canary.write_home(folder)
        work = folder / "work"
        for kind in trial.command.needs:
            intact.put(kind, work)
        shutil.copy(intact.make_intact("run").parents[1] / "book.txt", work)
        argument = intact.put(trial.command.kind, work)
        if trial.case is not None:
            trial.case.write(Place(argument, folder))
        before = canary.snapshot(folder)
        code, stopped = _run_confined(trial.command, folder)
        out, err = (
            (folder / name).read_bytes().decode(errors="surrogateescape") if (folder / name).exists() else ""
            for name in ("stdout", "stderr")
        )
        problems = [stopped] if stopped else []
        problems += _wrong_end(trial, code, err) if not stopped else []
        # The harness shows its progress with carriage returns.
        problems += _wrong_text(out + (err.replace("\r", "") if trial.command.kind == "task" else err))
        problems += _wrong_events(
            trial.command, (folder / canary.EVENTS).read_text() if (folder / canary.EVENTS).exists() else ""
        )
        problems += _wrong_files(trial.command, folder, before)
        return Result(trial, code, out, err, tuple(problems))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_confined(command: Command, folder: Path) -> tuple[int | None, str]:
    """Return (exit code, why the process was stopped; "" if it ended)."""
    out, err = folder / "stdout", folder / "stderr"
    before = functools.partial(canary.confine, folder, canary.CPU_SECONDS)
    environment = clean_environment() | compilation.FLAGS
    process = forked.start(command.argv, folder / "work", out, err, environment, before, command.act)
    assert process.pid is not None
    began = changed = time.monotonic()
    used, reason = 0.0, ""
    while process.is_alive() and not reason:
        process.join(0.05)
        now, total = time.monotonic(), canary.processor_time(process.pid)
        if total > used:
            used, changed = total, now
        reason = "hangs" if now - changed > IDLE or now - began > LONGEST else ""
    if reason:
        for pid in canary.descendants(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.kill()
    process.join()
    return process.exitcode, reason


def _wrong_end(trial: Trial, code: int | None, stderr: str) -> list[str]:
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return [f"killed by signal {-code}: more than {canary.CPU_SECONDS} s of a processor, or too much memory"]
    if code is None or code < 0:
        return [f"killed by signal {-(code or 0)}"]
    if "Traceback" in stderr or (code == 1 and not trial.command.has_verdict):
        return [f"traceback: {next(iter(stderr.splitlines()[-1:]), '')[:200]}"]
    problems = [] if code in trial.expected else [f"exit code {code}, not {' or '.join(map(str, sorted(trial.expected)))}"]
    # Notices may come before the line.
    *notices, last = stderr.splitlines() or [""]
    others = [line for line in notices if line.startswith("zoo: ") and " IS DAMAGED: " not in line]
    if code == 2 and (not last.startswith("zoo: ") or others):
        problems.append(f"not one line: {stderr[:300]!r}")
    if "out of memory" in stderr:
        problems.append("the memory was used up")
    return problems


def _wrong_text(text: str) -> list[str]:
    problems = (
        [f"raw control character {match[0]!r}: {text[max(0, match.start() - 30) : match.end()]!r}"]
        if (match := CONTROL.search(text))
        else []
    )
    problems += ["a secret is in the output"] if canary.SECRET in text else []
    problems += ["a folder's word in a command"] if re.search(r"pip install[^\n]*evil", text) else []
    return problems


def _wrong_events(command: Command, events: str) -> list[str]:
    lines = events.splitlines()
    problems = [f"code ran: {line}" for line in lines if line.startswith("code ")][:1]
    # A model that the command line names is asked for where the cache has not all of it.
    problems += [f"network: {line}" for line in lines if line.startswith("network ") and command.kind != "hub"][:1]
    largest = max((int(line.split()[1]) * 1024 for line in lines if line.startswith("memory ")), default=0)
    return [*problems, *([f"{largest / 1e9:.1f} GB of memory"] if largest > LARGEST_RSS else [])]


def _wrong_files(command: Command, folder: Path, before: dict[str, str]) -> list[str]:
    changed = canary.changes(before, canary.snapshot(folder))
    problems = ["code ran"] if f"home/{canary.CODE_RAN}" in changed else []
    allowed = ("cache", *(f"work/{path}" for path in (OUT, *command.writes)))
    # The library of data sets makes the folders of its cache when it is imported.
    own = ("stdout", "stderr", canary.EVENTS, f"home/{canary.CODE_RAN}", *(f"home/.cache/huggingface/{name}" for name in LIBRARY))
    inside = [path for path in changed if any(path == name or path.startswith(f"{name}/") for name in allowed)]
    library = tuple(f"home/.cache/huggingface/{name}/" for name in LIBRARY)
    outside = [path for path in changed if path not in inside and path not in own and not path.startswith(library)]
    problems += [f"changed {', '.join(outside[:3])}"] if outside else []
    for path in inside:
        file = folder / path
        if not file.is_symlink() and file.is_file() and file.stat().st_size < 1 << 24:
            content = file.read_bytes()
            problems += [f"a secret is in {path}"] if canary.SECRET.encode() in content else []
            problems += [f"HTML of a folder is in {path}"] if path.endswith(".html") and HTML.encode() in content else []
    return problems


def run_all(chosen: Sequence[Trial], jobs: int, stop: Callable[[], bool] = lambda: False) -> Iterator[Result]:
    """Yield the result of each trial, several of which run at the same time, until `stop()` is true."""
    # Arguments are made in this thread, which changes the current folder.
    for kind in dict.fromkeys(kind for trial in chosen for kind in ("run", trial.command.kind, *trial.command.needs)):
        intact.make_intact(kind)
    pending: set[concurrent.futures.Future[Result]] = set()
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for trial in chosen:
            if stop():
                break
            pending.add(pool.submit(run, trial))
            if len(pending) >= jobs:
                done, pending = concurrent.futures.wait(pending, return_when="FIRST_COMPLETED")
                yield from (future.result() for future in done)
        for future in concurrent.futures.as_completed(pending):
            yield future.result()


def covering(cases: Sequence[Case], least: int = 1) -> list[Trial]:
    """Return trials in which every case occurs with a quick command, and every command at least so often as it has cases."""
    chosen, uses = [], dict.fromkeys(COMMANDS, 0)
    own = {case: [command for command in COMMANDS if command.kind in case.kinds] for case in cases}
    for case, commands in own.items():
        chosen.append(Trial(min(commands, key=lambda command: (not case.is_refused(command.name), _cost(command))), case))
        uses[chosen[-1].command] += 1
    for command, count in uses.items():
        # From all parts of the corpus, which is sorted by subject.
        rest = [case for case in cases if command in own[case] and Trial(command, case) not in chosen]
        missing = max(0, least - count)
        chosen += [Trial(command, case) for case in rest[:: max(1, len(rest) // max(1, missing))][:missing]]
    return chosen


def _cost(command: Command) -> int:
    """Return the place of a command among all by the time that it takes."""
    return next((place for place, names in enumerate(QUICK) if any(map(command.name.startswith, names))), len(QUICK))
