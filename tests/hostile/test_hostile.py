"""Every command on hostile folders, in confined processes; `python -m tests.campaign --rows "hostile folders"` runs all pairs."""

import contextlib
import dataclasses
import os
import socket
import sys
import time
from collections.abc import Callable, Collection
from typing import Any

import pytest

from tests.hostile import canary, matrix
from tests.hostile.all_cases import CASES
from tests.hostile.case_types import ESCAPES, HTML, PROMISES, Case, Place
from tests.hostile.commands import COMMANDS, OUT, Command
from tests.hostile.matrix import Trial
from tests.hostile.tokenizer_cases import SHARED

JOBS = 2
CHEAP = {
    "code": ("attention that is a module", "compare"),
    "writes": ("lock that is a link", "train (resume)"),
    "reads": ("index with ..", "import"),
    "network": ("start from the hub", "eval"),
    "limits": ("config.json: pipe", "compare"),
    "formats": ("config.json: deep lists", "compare"),
    "terminal": ("escapes in evaluations.json", "compare"),
    "advice": ("plug-in that is a command", "compare"),
}
"""Promise -> a case and a command that takes little time."""

KNOWN = {
    "template: long-text": "a word of 1,000,000 letters takes more than 3 GB in the regular expressions of a tokenizer",
}
"""Cases that a command does not pass yet -> the reason. The campaign runs them."""


def find(case: str, command: str) -> Trial:
    """Return the trial of a case and a command by their names."""
    return next(
        trial for trial in matrix.trials(CASES) if trial.case and (trial.case.name, trial.command.name) == (case, command)
    )


def test_the_corpus_has_cases_of_every_promise_kind_and_command() -> None:
    assert len(CASES) >= 120
    assert len({(case.name, kind) for case in CASES for kind in case.kinds}) == sum(len(case.kinds) for case in CASES)
    assert {case.promise for case in CASES} == PROMISES.keys() == CHEAP.keys()
    assert {kind for case in CASES for kind in case.kinds} == {command.kind for command in COMMANDS}
    for case in CASES:
        names = {command.name for command in COMMANDS if command.kind in case.kinds}
        assert case.refused == () or any(map(case.is_refused, names)), case


def test_one_case_of_each_promise() -> None:
    results = [*matrix.run_all([find(*names) for names in CHEAP.values()], JOBS)]
    assert len(results) == len(PROMISES)
    assert [str(result) for result in results if result.problems] == []


@pytest.mark.slow
def test_every_case() -> None:
    """Each case with a quick command, and every command; a few of the cases that other tests have too."""
    cases = [case for case in CASES if case.name not in KNOWN and (case not in SHARED or SHARED.index(case) % 6 == 0)]
    results = [*matrix.run_all(matrix.covering(cases), JOBS)]
    assert len(results) >= len(cases)
    assert {result.trial.command for result in results} == {*COMMANDS}
    assert [str(result) for result in results if result.problems] == []


@pytest.mark.slow
def test_every_command_ends_as_declared_on_an_intact_argument() -> None:
    """Otherwise a hostile case would be refused for another reason."""
    results = [*matrix.run_all([Trial(command, None) for command in COMMANDS], JOBS)]
    assert [str(result) for result in results if result.problems] == []


def _write_outside() -> None:
    with open(f"{os.environ['HOME']}/.bashrc", "a") as file:
        file.write("evil\n")


def _delete_outside() -> None:
    os.remove("../outside/stacks.txt")


def _run_module() -> None:
    with open("runs/done/payload.py", "w") as file:
        file.write("x = 1\n")
    sys.path.insert(0, ".")
    __import__("runs.done.payload")


def _run_payload() -> None:
    with open(f"{os.environ['HOME']}/{canary.CODE_RAN}", "w"):
        pass


def _print_secret() -> None:
    with open(f"{os.environ['HOME']}/.netrc") as file:
        print(file.read())


def _write_token() -> None:
    os.makedirs(OUT)
    with open(f"{OUT}/config.json", "w") as file:
        file.write(os.environ["HF_TOKEN"])


def _connect() -> None:
    with contextlib.suppress(OSError):
        socket.create_connection(("192.0.2.1", 80), 0.1)


def _sleep() -> None:
    time.sleep(100)


def _compute() -> None:
    while True:
        pass


def _fill_memory() -> None:
    print(len(b"x" * LARGER))


def _print_escapes() -> None:
    print(ESCAPES)


def _write_html() -> None:
    os.makedirs(OUT)
    with open(f"{OUT}/report.html", "w") as file:
        file.write(f"<p>{HTML}</p>")


def _advise() -> None:
    print("zoo: pip install 'evil; rm -rf ~'", file=sys.stderr)
    sys.exit(2)


def _two_lines() -> None:
    print("zoo: one\nzoo: two", file=sys.stderr)
    sys.exit(2)


def _traceback() -> None:
    raise KeyError("evil")


def _abort() -> None:
    os.abort()


LARGER = 1 << 30
"""Bytes that a process allocates to need more memory than is allowed."""
MISTAKES: dict[Callable[[], Any], str] = {
    **{_write_outside: "changed home/.bashrc", _delete_outside: "changed outside/stacks.txt", _run_module: "code ran: code "},
    **{
        _run_payload: "code ran",
        _print_secret: "a secret is in the output",
        _write_token: f"a secret is in work/{OUT}/config.json",
    },
    **{_connect: "network: network socket.", _sleep: "hangs", _compute: "killed by signal 24"},
    **{_fill_memory: "GB of memory", _print_escapes: "raw control character", _write_html: f"HTML of a folder is in work/{OUT}"},
    **{_advise: "a folder's word in a command", _two_lines: "not one line", _traceback: "traceback: KeyError"},
    **{_abort: "killed by signal 6"},
}
"""What a command must not do -> the problem that is reported."""


@pytest.mark.slow
@pytest.mark.planted(len(MISTAKES))
def test_everything_that_a_command_must_not_do_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "IDLE", 2.0)
    # A process begins with 0.7e9 bytes, and two gigabytes are filled slowly where little memory is free.
    monkeypatch.setattr(matrix, "LARGEST_RSS", 1 << 30)
    case = Case("a mistake of a command", "code", "run", lambda place: None, ())

    def run(mistakes: Collection[Callable[[], Any]]) -> None:
        commands = [Command("run", "evil", act=act, code=2 if act in (_advise, _two_lines) else 0) for act in mistakes]
        for result in matrix.run_all([Trial(command, case) for command in commands], JOBS):
            expected = MISTAKES[next(act for act in MISTAKES if act is result.trial.command.act)]
            assert any(expected in problem for problem in result.problems), (expected, result)

    run(MISTAKES.keys() - {_compute})
    monkeypatch.setattr(canary, "CPU_SECONDS", 12)
    run([_compute])


@pytest.mark.planted
def test_a_harmful_case_that_is_read_is_noticed() -> None:
    """A case that should be refused, and is not."""

    def nothing(place: Place) -> None:
        pass

    command = next(command for command in COMMANDS if (command.kind, command.name) == ("bench", "bench compare"))
    trial = Trial(command, Case("nothing", "formats", "bench", nothing))
    (result,) = matrix.run_all([trial], 1)
    assert result.problems == ("exit code 0, not 2",)
    (result,) = matrix.run_all([dataclasses.replace(trial, case=None)], 1)
    assert result.problems == ()
