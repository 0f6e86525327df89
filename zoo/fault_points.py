"""Fault points: named places of this project's own input and output at which tests let an error, a delay or a kill happen.

    ZOO_FAULT=checkpoint.rename:kill:2 zoo train gpt-nano

kills the process when it is about to rename its second checkpoint. Several faults are separated by commas. No fault point is in
or near a compiled step, and without the variable each is one comparison.
"""

import contextlib
import dataclasses
import difflib
import errno
import os
import re
import signal
import time
from collections.abc import Iterator

from zoo.errors import REMEDIES, BadInput

VARIABLE = "ZOO_FAULT"
"""Environment variable with the faults of a process, as `POINT:KIND[:COUNT[:PROCESS]]`, separated by commas."""

POINTS = {
    "train.start": "a run begins, before its data is read",
    "train.compile": "the first step is about to be compiled",
    "train.step": "a step was dispatched",
    "train.rollout": "the responses to a batch are about to be sampled",
    "train.respond": "a student is about to sample responses to a batch",
    "train.judge": "the responses to a batch are sampled and about to be judged",
    "train.validate": "a validation begins",
    "train.save": "a checkpoint is due; its rows are not synced yet",
    "train.score": "the held-out data is about to be scored",
    "train.scored": "scores.json is written, samples and report are not",
    "train.report": "the report is about to be written",
    "checkpoint.mkdir": "the folder of a save is about to be created",
    "checkpoint.arrays": "the arrays are about to be copied and written",
    "checkpoint.written": "this process has written its arrays",
    "checkpoint.merge": "process 0 merges the files of all processes",
    "checkpoint.manifest": "the manifest is about to be written",
    "checkpoint.rename": "the folder is about to get its final name",
    "checkpoint.committed": "the folder has its final name; its parent is not synced yet",
    "checkpoint.delete": "an old step is about to be renamed, to be deleted",
    "checkpoint.deleting": "an old step is renamed; its files are about to be deleted",
    "checkpoint.set_aside": "a damaged step is about to be renamed",
    "checkpoint.read": "a manifest is about to be read",
    "checkpoint.restore": "the arrays of a step are about to be read",
    "file.write": "a file that is replaced atomically (config.json, scores.json, ...) is about to be written",
    "file.rename": "such a file is written and is about to get its name",
    "file.fsync": "a file or a folder is about to be synced to the disk",
    "file.digest": "the SHA-256 of a file is about to be computed",
    "rows.read": "a file of rows is about to be read",
    "rows.write": "a row of metrics.jsonl or ledger.jsonl is about to be written",
    "rows.fsync": "these rows are about to be synced to the disk",
    "tokens.write": "a part of the cache of tokens is about to be written",
    "tokens.header": "the header of the cache of tokens is about to be written",
    "tokens.rename": "the cache of tokens is about to get its name",
    "tokens.read": "the header of the cache of tokens is about to be read",
    "compiled.write": "a compiled program is about to be written",
    "compiled.rename": "a compiled program is about to get its name",
    "compiled.read": "a compiled program is about to be read",
    "reference.read": "the log-probabilities of a reference model are about to be read from their cache",
    "reference.write": "these log-probabilities are about to be written",
    "reference.rename": "their file is about to get its name",
    "store.list": "the objects of a run in an object store are about to be listed",
    "store.put": "an object is about to be uploaded",
    "store.get": "an object is about to be downloaded to a file",
    "store.read": "a small object is about to be downloaded",
    "store.delete": "an object is about to be deleted",
    "store.commit": "the files of a step are uploaded, and its COMMIT.json is about to be",
    "store.rename": "a step is downloaded and checked, and is about to get its final name",
    "weights.read": "the header of published weights is about to be read",
    "weights.write": "a file of an export or an import is about to be written",
    "weights.rename": "the folder of an export or an import is about to get its name",
}
"""Point -> when a process passes it."""

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}
"""Kind of fault -> signal that the process sends to itself."""
ERRORS = {errno.errorcode[number] for number in REMEDIES}
"""Names of the errors of the operating system that a fault raises as `OSError`: ENOSPC, EIO, ..."""
KINDS = (*SIGNALS, "error", "memory", "delay=SECONDS", *sorted(ERRORS))
_SYNTAX = re.compile(r"(?P<point>[^:]*):(?P<kind>[^:]*)(?::(?P<first>\d+)(?P<on>\+?)(?::(?P<process>\d+))?)?")


@dataclasses.dataclass
class _Fault:
    """A fault at one point."""

    kind: str
    first: int
    """Number of the pass at which it happens, from 1."""
    on: bool
    """True if it happens at every later pass too."""
    passes: int = 0

    def is_due(self) -> bool:
        """Count a pass, and return whether the fault happens at it."""
        self.passes += 1
        return self.passes == self.first or (self.on and self.passes > self.first)

    def happen(self, point: str) -> None:
        if self.kind in SIGNALS:
            os.kill(os.getpid(), SIGNALS[self.kind])
        elif self.kind.startswith("delay="):
            time.sleep(float(self.kind.removeprefix("delay=")))
        elif self.kind == "memory":
            raise MemoryError(f"fault at {point}")
        elif self.kind == "error":
            raise RuntimeError(f"fault at {point}")
        else:
            number = getattr(errno, self.kind)
            raise OSError(number, os.strerror(number))


_faults: dict[str, list[_Fault]] = {}


def fault_point(name: str) -> None:
    """Let the faults of a point happen; without any this does nothing.

    Raises:
        OSError, MemoryError, RuntimeError: the fault is such an error.
    """
    if _faults:
        # A list: one that raises does not keep the others from counting the pass.
        for fault in [fault for fault in _faults.get(name, ()) if fault.is_due()]:
            fault.happen(name)


def read_environment() -> None:
    """Take the faults that `VARIABLE` describes; called once, when a command starts.

    Raises:
        BadInput: it names a point or a kind that does not exist.
    """
    if text := os.environ.get(VARIABLE):
        set_faults(text)


def set_faults(text: str) -> None:
    """Replace the faults of this process; "" removes them.

    Args:
        text: the value of `VARIABLE`. PROCESS is the number of the process that a fault is for; without it a fault is for all.
            COUNT is the number of the pass at which the fault happens, 1 if it is left out; "3+" means the third and all later
            ones.

    Raises:
        BadInput: it names a point or a kind that does not exist, or is no list of faults.
    """
    _faults.clear()
    own = os.environ.get("ZOO_PROCESS", "0")
    for part in text.split(",") if text else ():
        fault = _SYNTAX.fullmatch(part)
        if fault is None or int(fault["first"] or 1) < 1:
            raise BadInput(
                f"{VARIABLE} {part!r}: write POINT:KIND, POINT:KIND:COUNT or POINT:KIND:COUNT:PROCESS, COUNT from 1 on"
            )
        point, kind = fault["point"], fault["kind"]
        if point not in POINTS:
            near = difflib.get_close_matches(point, POINTS, n=1, cutoff=0.0)[0]
            raise BadInput(f"{VARIABLE} {part!r}: there is no fault point {point!r}; the nearest is {near}")
        if kind not in (*SIGNALS, "error", "memory", *ERRORS) and not re.fullmatch(r"delay=\d+(\.\d+)?", kind):
            raise BadInput(f"{VARIABLE} {part!r}: there is no kind of fault {kind!r}; choose {', '.join(KINDS)}")
        if fault["process"] in (None, own):
            _faults.setdefault(point, []).append(_Fault(kind, int(fault["first"] or 1), bool(fault["on"])))


@contextlib.contextmanager
def faults(text: str) -> Iterator[None]:
    """Set faults for a block, and none after it; see `set_faults`."""
    set_faults(text)
    try:
        yield
    finally:
        set_faults("")
