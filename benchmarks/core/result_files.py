"""Result files: JSONL with a header and a line for each cell, appended as soon as the cell is measured.

The header is {"schema", "what", "environment", "asked", "unit"}; "asked" holds the options of the command. A cell is {"key":
{axis: value}, "process", "state", "reason", ...measured columns}; `key` and `process`, the number of the fresh process that
measured it, identify it. `unit` holds the axes of the reference of a cell's column "ratio", measured in the same rounds:
{"implementation": "xla"}. A timed cell has the columns of `timing.time_columns`, which `zoo bench compare` reads.

Between the cells are two other kinds of lines. {"attempt": [key, ...], "process"} lists the cells that the process works on from
there on; the list is empty where a process ended in order. {"death": [key, ...], "process"} lists the cells that a killed process
was working on; the next process writes it.

    cells.jsonl   the measurements        table.md, table.csv, report.html   the same, for people
"""

import collections
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from benchmarks.core import timing
from benchmarks.core.source_paths import ROOT
from train.run import matmul_rate
from train.run.metrics_file import software_versions
from train.run.provenance import PACKAGES, read_commit
from zoo import plugins
from zoo.errors import BadInput, without_secrets
from zoo.file_access import open_to_append, read_regular

SCHEMA = 2
SCHEMAS = (1, 2)
"""Schemas that are read. The first had no attempts: an older version reads only that one and refuses the second by its header."""
KINDS = ("attention", "step", "growth", "feedback", "embed")
STATES = ("timed", "skipped", "failed", "wrong")
"""States of a cell: measured; not tried, with the reason; tried without success; wrong results, and therefore not timed."""
DEATHS = 2
"""Number of processes that may die while they work on a cell: after that it is not tried again."""
DIED = "the process ended twice while it ran; out of memory?"
"""Reason of a cell that failed in this way."""
CELLS = "cells.jsonl"
LARGEST_FILE = 256 << 20
"""Bytes of the largest result file that is read."""
SETTINGS = r"(JAX|XLA|LIBTPU|GLIBC|OMP|MKL|OPENBLAS|TORCH\w*|CUDA)_"
"""Pattern of the names of environment variables that change what is measured."""
MACHINE = ("backend", "device", "devices", "cpu", "cores")
"""Keys of an environment that identify the machine; times of two machines are not compared."""


def describe_environment(dtypes: Sequence[str] = ("float32",)) -> dict[str, Any]:
    """Describe the machine and measure its best rates; takes a second or two and needs an otherwise idle machine.

    "versions" includes the commit of a checkout, with a + if files were changed since; "settings" are the environment variables
    that change what is measured. "matrix_rate" is FLOP/s of matrix products by dtype (`train.run.matmul_rate`),
    "copy_rate" bytes/s read and written by `timing.copy_rate`, "load" the load average of the last minute before these were
    measured, and "clock_mhz" the mean clock of the cores just after them, None if the system does not report it. "threads"
    are those of peers: torch uses one for each core, whatever OMP_NUM_THREADS is.
    """
    load, checkout = round(os.getloadavg()[0], 2), read_commit(ROOT, (*PACKAGES, "benchmarks"))
    rates = {"matrix_rate": {dtype: matmul_rate.measure_matmul_rate(dtype) for dtype in dtypes}, "copy_rate": timing.copy_rate()}
    return {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        **describe_machine(),
        "load": load,
        "clock_mhz": _clock(),
        "threads": f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')}, torch {os.cpu_count()}",
        **rates,
        "versions": {
            **software_versions(),
            "transformer-zoo": importlib.metadata.version("transformer-zoo"),
            "revision": f"{(checkout['commit'] or '')[:12]}{'+' if checkout['dirty'] else ''}",
            # An implementation or a model of any of them may be measured.
            **{plugin.distribution: plugin.version for group in plugins.GROUPS for plugin in plugins.installed_plugins(group)},
        },
        "settings": {name: without_secrets(value) for name, value in sorted(os.environ.items()) if re.match(SETTINGS, name)},
    }


def describe_machine() -> dict[str, Any]:
    """Return the part of an environment that `MACHINE` names."""
    devices = jax.local_devices()
    kind = {"backend": jax.default_backend(), "device": devices[0].device_kind, "devices": len(devices)}
    return kind | {"cpu": next(iter(_cpuinfo("model name")), platform.machine()), "cores": os.cpu_count()}


def hardware_name(machine: Mapping[str, Any]) -> str:
    """Return a machine as part of a folder's name: "intel-r-xeon-r-processor-2-cores", "nvidia-h100-80gb-hbm3"."""
    on_cpu = machine["backend"] == "cpu"
    name = f"{machine['cpu']} {machine['cores']} cores" if on_cpu else machine["device"]
    count = f"-x{machine['devices']}" if not on_cpu and machine["devices"] > 1 else ""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") + count


def default_folder(what: str, machine: Mapping[str, Any], *, newest: bool = False) -> Path:
    """Return the default folder of results, runs/bench/<what>_<hardware>_<date>; with `newest` the last existing one, if any."""
    place, name = Path("runs", "bench"), f"{what}_{hardware_name(machine)}_"
    folders = sorted(path.parent for path in place.glob(f"{name}????-??-??/{CELLS}")) if newest else []
    return folders[-1] if folders else place / f"{name}{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"


# --- reading --------------------------------------------------------------------------------------------------------------------


Place = tuple[str, int]
"""Identification of a cell: `cell_identity` of its key, and its process."""


@dataclass(frozen=True)
class Results:
    """The content of a result file: the machine, the options, and a cell for each process and key."""

    path: Path
    what: str
    environment: dict[str, Any]
    options: dict[str, Any]
    unit: dict[str, Any]
    cells: list[dict[str, Any]]
    schema: int = SCHEMA
    deaths: collections.Counter[Place] = field(default_factory=collections.Counter)
    """How often a process died while it worked on a cell."""
    begun: frozenset[Place] = frozenset()
    """Cells that the last writing process was measuring when it died, or is still measuring."""

    def same_machine(self, other: "Results") -> bool:
        """Return whether both were measured on the same kind of machine."""
        return all(self.environment.get(key) == other.environment.get(key) for key in MACHINE)


def read_results(path: str | Path) -> Results:
    """Read the results in a file, or in a folder's cells.jsonl; an incomplete last line of a killed run is ignored.

    Raises:
        BadInput: no such file, not a result file, another schema, or a damaged line, with its number.
    """
    path = Path(path) / CELLS if Path(path).is_dir() else Path(path)
    try:
        lines = read_regular(path, LARGEST_FILE).split(b"\n")[:-1]
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); name a folder or file of zoo bench") from None
    fix = "name a folder or file that zoo bench wrote"
    if not lines:
        raise BadInput(f"{path} is not a result file of zoo bench: it has no header; {fix}")
    header = _object(path, 1, lines[0])
    if "schema" not in header:
        raise BadInput(f"{path} is not a result file of zoo bench: its first line has no schema; {fix}")
    if header["schema"] not in SCHEMAS:
        readable = " and ".join(map(str, SCHEMAS))
        raise BadInput(f"{path} has schema {header['schema']}, and this version reads {readable}; measure again")
    wrong = [name for name in ("environment", "asked", "unit") if not isinstance(header.get(name), dict)]
    if wrong or header.get("what") not in KINDS:
        raise BadInput(f"{path}:1 is not a header of zoo bench: {wrong[0] if wrong else 'what'} is missing or invalid")
    cells: list[dict[str, Any]] = []
    deaths: collections.Counter[Place] = collections.Counter()
    begun: set[Place] = set()
    for number, line in enumerate(lines[1:], 2):
        record = _object(path, number, line)
        if "attempt" in record:
            begun = _places(path, number, record, "attempt")
        elif "death" in record:
            deaths.update(_places(path, number, record, "death"))
            begun = set()
        else:
            cells.append(_cell(path, number, record))
            begun.discard((cell_identity(record["key"]), record["process"]))
    columns = (header["what"], header["environment"], header["asked"], header["unit"])
    return Results(path, *columns, cells, header["schema"], deaths, frozenset(begun))


def cell_identity(key: Mapping[str, Any]) -> str:
    """Return a key as a string that is equal for equal keys."""
    return json.dumps(key, sort_keys=True)


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadInput(f"{path}:{number} is not a line of a result file: it is not a JSON object")
    return value


def _places(path: Path, number: int, line: Mapping[str, Any], name: str) -> set[Place]:
    keys, process = line[name], line.get("process")
    if not (isinstance(keys, list) and all(isinstance(key, dict) for key in keys) and type(process) is int):
        raise BadInput(f"{path}:{number} is not a valid {name}: it needs a list of keys, and a process")
    return {(cell_identity(key), process) for key in keys}


def _cell(path: Path, number: int, cell: dict[str, Any]) -> dict[str, Any]:
    if not (isinstance(cell.get("key"), dict) and type(cell.get("process")) is int and cell.get("state") in STATES):
        raise BadInput(f"{path}:{number} is not a cell: it needs a key, a process, and a state of {', '.join(STATES)}")
    needed = [] if cell["state"] != "timed" else ["seconds", *(timing.RATIOS if cell.get("ratio") is not None else ())]
    if lacking := [name for name in needed if not isinstance(cell.get(name), int | float) or not cell[name] > 0]:
        raise BadInput(f"{path}:{number} is not a timed cell: it has no number above 0 as {' and '.join(lacking)}")
    return cell


# --- writing --------------------------------------------------------------------------------------------------------------------


def existing_results(folder: Path) -> BadInput:
    """Return the refusal to measure into a folder that has results, without --resume."""
    return BadInput(f"{folder} has results already; --resume completes them, --out chooses another folder")


class Writer:
    """The result file of a run that may be killed at any moment and resumed; one process writes to it at a time.

    When it is opened, cells in which `DEATHS` processes died are recorded as failed.
    """

    def __init__(
        self,
        path: Path,
        what: str,
        environment: Mapping[str, Any],
        options: Mapping[str, Any],
        unit: Mapping[str, Any],
        *,
        new: bool = False,
    ) -> None:
        """Open `path`, creating it and its folder if necessary; an incomplete last line is dropped.

        An existing file is continued and keeps its header: the environment of the first process.

        Args:
            unit: axes of the reference of column "ratio"; without them nothing is compared.
            new: whether the file must not exist, not even since a moment ago.

        Raises:
            BadInput: the file exists and must be new; it has other options or another machine; it cannot be written, or another
                process writes to it.
        """
        # As it is read back from the file: lists instead of tuples.
        header = {"schema": SCHEMA, "what": what, "environment": environment, "asked": options, "unit": unit}
        header = json.loads(_line(header))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_to_append(path, new=new)
        except OSError as error:
            if new and path.exists():
                raise existing_results(path.parent) from None
            raise BadInput(f"{path} cannot be written ({error.strerror}); choose another --out") from None
        self._cells: dict[Place, dict[str, Any]] = {}
        self._deaths: collections.Counter[Place] = collections.Counter()
        self._begun: set[Place] = set()
        try:
            self._begin(path, header)
        except BlockingIOError:
            self.close()
            raise BadInput(f"{path} is being written by another process; wait for it, or choose another --out") from None
        except BaseException:
            self.close()
            raise

    def has(self, key: Mapping[str, Any], process: int) -> bool:
        """Return whether a cell is in the file, in any state."""
        return (cell_identity(key), process) in self._cells

    def died(self, key: Mapping[str, Any], process: int) -> bool:
        """Return whether processes died in a cell so often that it must not be tried again, not even together with others."""
        return self._deaths[cell_identity(key), process] >= DEATHS

    def begin(self, keys: Sequence[Mapping[str, Any]], process: int) -> None:
        """Record, before the measurement, that these cells and no others are measured: they may kill this process."""
        self._begun = {(cell_identity(key), process) for key in keys}
        self._append({"attempt": keys, "process": process})

    def write(self, cell: Mapping[str, Any]) -> None:
        """Append a cell; it is on the disk when this returns.

        Raises:
            ValueError: the cell is invalid, or already in the file.
        """
        state, place = cell["state"], (cell_identity(cell["key"]), cell["process"])
        if state not in STATES or (state != "timed" and not cell["reason"]):
            raise ValueError(f"state {state!r} with reason {cell['reason']!r}")
        if place in self._cells:
            raise ValueError(f"{place} is measured already")
        self._append(cell)
        self._cells[place] = dict(cell)
        self._begun.discard(place)

    def close(self) -> None:
        """Let another process write; unfinished cells are recorded as abandoned, because no process died in them."""
        try:
            if self._begun:
                self.begin([], next(iter(self._begun))[1])
        finally:
            self._file.close()

    def _begin(self, path: Path, header: dict[str, Any]) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._file.seek(0)
        content = self._file.read()
        complete = content.rpartition(b"\n")[0]
        if not complete:
            if not content.startswith(b'{"schema"'[: len(content)]):
                raise BadInput(f"{path} is not a result file of zoo bench; choose another --out")
            self._file.truncate(0)
            self._append(header)
            return
        before = read_results(path)
        if differences := _differences(before, header):
            raise BadInput(f"{path.parent} cannot be resumed: {'; '.join(differences)}; choose another --out")
        self._file.truncate(len(complete) + 1)
        self._cells = {(cell_identity(cell["key"]), cell["process"]): cell for cell in before.cells}
        self._deaths = before.deaths + collections.Counter(before.begun)
        if before.begun:
            keys = [json.loads(key) for key, _ in sorted(before.begun)]
            self._append({"death": keys, "process": next(iter(before.begun))[1]})
        for place in sorted(self._deaths.keys() - self._cells.keys()):
            key, process = json.loads(place[0]), place[1]
            if self.died(key, process):
                self.write({"key": key, "process": process, "state": "failed", "reason": DIED})

    def _append(self, value: Mapping[str, Any]) -> None:
        self._file.write(_line(value).encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def _line(value: Mapping[str, Any]) -> str:
    # numpy's numbers have the method `item`.
    return json.dumps(value, allow_nan=False, separators=(",", ":"), default=lambda number: number.item()) + "\n"


def _differences(before: Results, header: Mapping[str, Any]) -> list[str]:
    """Return how the options or the machine differ from those in the file, as "key: old before, new now"."""
    pairs = {name: (getattr(before, name), header[name]) for name in ("schema", "what", "unit")}
    for key in sorted(before.options.keys() | header["asked"].keys()):
        pairs[key] = before.options.get(key), header["asked"].get(key)
    for key in MACHINE:
        pairs[key] = before.environment.get(key), header["environment"].get(key)
    pairs |= changed_settings(before.environment, header["environment"])
    return [f"{key}: {one} before, {other} now" for key, (one, other) in pairs.items() if one != other]


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the versions and settings that differ between two environments, as (before, after)."""
    pairs = {}
    for part in ("versions", "settings"):
        old, new = (source.get(part, {}) for source in (before, after))
        pairs |= {key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())}
    return {key: (old, new) for key, (old, new) in pairs.items() if old != new}


def _clock() -> float | None:
    """Return the mean clock of the cores now, in MHz."""
    clocks = _cpuinfo("cpu MHz")
    return round(sum(map(float, clocks)) / len(clocks), 1) if clocks else None


def _cpuinfo(name: str) -> list[str]:
    """Return a property of each core; nothing if the system does not report it."""
    cpuinfo = Path("/proc/cpuinfo")
    return re.findall(rf"^{name}\s*: (.*)", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else []
