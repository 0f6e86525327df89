"""The rows of metrics.jsonl."""

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from train.run.provenance import peak_bytes, read_provenance, registered_hash
from train.run.run_dir import RunDir, write_text
from train.run.time_account import settle_killed
from zoo.errors import BadInput, cannot_write
from zoo.fault_points import fault_point
from zoo.file_access import open_regular, open_to_append, too_large
from zoo.json_shapes import is_usable_number, shape_problem
from zoo.json_text import json_value

# JSON has no numbers for these; protobuf's JSON mapping uses the same strings.
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
LARGEST_FILE, LONGEST_ROW = 512 << 20, 4 << 20
"""Bytes of the largest file of rows that is read, and of the longest row."""
MOST_ROWS = 4_000_000


class Metrics:
    """A file of rows, one JSON object per line, each with its "step"; one process appends them, one at a time.

    Columns that differ between two runs of one configuration (seconds, rates, dates) are in one nested object, "time".
    Write the rows of step n, and `sync`, before committing the checkpoint of step n: a resumed run then has every row.
    """

    def __init__(self, path: Path, *, resume_at: int | None = None) -> None:
        """Open `path` for a run that continues at step `resume_at`; None: for a run that starts from the beginning.

        Later rows, and a line cut off by a kill, are dropped; the file is replaced atomically.

        Raises:
            BadInput: a line is not a valid row (the message has its number), or the file cannot be written.
        """
        rows = read_rows(path) if resume_at is not None and path.exists() else []
        lines = [row_line(row) for row in rows if row["step"] <= resume_at]
        write_text(path, "".join(lines))
        self._path, self._count, self._digest = path, len(lines), hashlib.sha256("".join(lines).encode())
        # Unbuffered: a buffer that could not be written would be written again, and fail again, when the file is closed.
        self._file = open_to_append(path, buffering=0)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row of Python's or numpy's values; numbers that are not finite are written as "NaN" or "Infinity".

        Raises:
            BadInput: the row cannot be written.
        """
        line = remaining = row_line(row).encode()
        try:
            fault_point("rows.write")
            while remaining:
                remaining = remaining[self._file.write(remaining) :]
        except OSError as error:
            raise cannot_write(self._path, error) from None
        self._count += 1
        self._digest.update(line)

    def sync(self) -> None:
        """Wait until the rows are on the disk.

        Raises:
            BadInput: the rows cannot be written to it.
        """
        try:
            fault_point("rows.fsync")
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def summary(self) -> dict[str, Any]:
        """Return the number of rows and their SHA-256, which is saved in a checkpoint."""
        return {"rows": self._count, "sha256": self._digest.hexdigest()}

    def lost(self, saved: Mapping[str, Any]) -> str:
        """Return a message about how the rows differ from the `summary` in a checkpoint; "" if they do not."""
        if self.summary() == saved:
            return ""
        if missing := saved["rows"] - self._count:
            change = f"{missing} of {saved['rows']} rows are missing" if missing > 0 else f"{-missing} rows were added"
        else:
            change = "rows were changed"
        return f"{self._path}: {change} since the checkpoint was saved; the run continues without the lost rows"

    def close(self) -> None:
        self._file.close()


def train_row(
    *,
    step: int,
    loss: float,
    grad_norm: float,
    lr: float,
    tokens: int,
    skipped: int,
    seconds: float,
    tokens_per_s: float,
    mfu: float | None,
    **more: Any,
) -> dict[str, Any]:
    """Return a row of kind "train".

    Args:
        step: steps taken, this one included.
        loss: mean over the predicted tokens of step `step`, in nats.
        grad_norm: global gradient norm before clipping.
        lr: learning rate of the step.
        tokens: positions of all batches so far, padding included; for an encoder-decoder those of the decoder.
        skipped: steps skipped since the previous train row, for a non-finite gradient or a spike of the loss.
        seconds: mean seconds per step since the previous train row, without validation and saving.
        tokens_per_s: over all devices.
        mfu: share of the peak or measured rate, 0 to 1; None where there is no such rate.
        more: further columns (with the same value in every run of the same configuration).
    """
    measured = {"seconds": seconds, "tokens_per_s": tokens_per_s, "mfu": mfu, "at": time.time()}
    values = {"step": step, "loss": loss, "grad_norm": grad_norm, "lr": lr, "tokens": tokens, "skipped": skipped}
    return {"kind": "train", **values, **more, "time": measured}


def valid_row(*, step: int, seconds: float, **metrics: float) -> dict[str, Any]:
    """Return a row of kind "valid": a validation's metrics by name (`metric_definitions`), and the `seconds` it took."""
    return {"kind": "valid", "step": step, **metrics, "time": {"seconds": seconds, "at": time.time()}}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a file; a last line without a line end, as a killed process leaves it, counts only if it is complete.

    Raises:
        BadInput: the file cannot be read, or a line is not a valid row (the message has its number).
    """
    rows: list[dict[str, Any]] = []
    try:
        fault_point("rows.read")
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > LARGEST_FILE:
                raise too_large(path, LARGEST_FILE)
            while line := file.readline(LONGEST_ROW + 1):
                if len(line) > LONGEST_ROW:
                    raise BadInput(f"{path}:{len(rows) + 1} is longer than {LONGEST_ROW >> 20} MiB; remove the line")
                if len(rows) == MOST_ROWS:
                    raise BadInput(f"{path} has more than {MOST_ROWS:,} rows; remove some")
                try:
                    rows.append(_row(line.removesuffix(b"\n"), path, len(rows) + 1))
                except BadInput:
                    if line.endswith(b"\n"):
                        raise
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror})") from None
    return rows


def read_metrics(folder: RunDir) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl, as `train_row` and `valid_row` make them; none if there is no such file.

    Raises:
        BadInput: see `read_rows`; or a row lacks a number, or has something else than numbers.
    """
    return _checked_rows(folder.metrics, _metrics_problem)


def read_starts(folder: RunDir) -> list[dict[str, Any]]:
    """Return the rows of a run's starts.jsonl, as `record_start` makes them; none if there is no such file.

    Raises:
        BadInput: see `read_rows`; or a field is missing or of another kind.
    """
    return _checked_rows(folder.starts, _start_problem)


def _checked_rows(path: Path, problem: Callable[[Mapping[str, Any]], str]) -> list[dict[str, Any]]:
    rows = read_rows(path) if path.exists() else []
    for number, row in enumerate(rows, 1):
        if name := problem(row):
            raise BadInput(f"{path}:{number} is not a row of a run: {name} is missing or of another kind; remove the line")
    return rows


NEEDED = {"train": ("loss", "grad_norm", "lr", "tokens", "skipped"), "valid": ()}
"""Kind of a row -> the numbers without which it is not of that kind."""
NESTED = ("time", "counts", "terms", "rollout")
"""Fields of a row that are objects of numbers."""
LATEST = 1e11
"""Unix time that is too late for a date."""


def _metrics_problem(row: Mapping[str, Any]) -> str:
    """Return the name of a field of a row of metrics.jsonl that is wrong; "" if there is none."""
    measured = row.get("time")
    if row.get("kind") not in tuple(NEEDED):
        return "kind"
    if not isinstance(measured, Mapping) or not _is_time(measured.get("at")):
        return "time"
    needed = {name: row.get(name) for name in NEEDED[row["kind"]]} | {"seconds": measured.get("seconds")}
    if row["kind"] == "train":
        needed |= {name: value if type(value := row.get(name)) is int else None for name in ("tokens", "skipped")}
        needed |= {"tokens_per_s": measured.get("tokens_per_s"), "step": row["step"] if row["step"] > 0 else None}
    wrong = [name for name, value in needed.items() if not _is_number(value)]
    wrong += [name for name, value in row.items() if name not in ("kind", *NESTED) and not _is_number(value)]
    for name in NESTED:
        group = row.get(name, {})
        is_wrong = not isinstance(group, Mapping) or any(
            not _is_number(value) and (name, key, value) != ("time", "mfu", None) for key, value in group.items()
        )
        wrong += [name] * is_wrong
    return wrong[0] if wrong else ""


def _start_problem(row: Mapping[str, Any]) -> str:
    """Return the name of a field of a row of starts.jsonl that is wrong; "" if there is none."""
    if not _is_time(row.get("at")):
        return "at"
    objects = {"facts": row.get("facts"), "versions": row.get("versions"), "provenance": row.get("provenance", {})}
    objects["options"] = row.get("options", {})
    wrong = [name for name, value in objects.items() if shape_problem(value, {str: object})]
    numbers = {name: row.get(name) for name in ("flops", "rate", "seconds", "peak_bytes")}
    wrong += [name for name, value in numbers.items() if value is not None and not is_usable_number(value)]
    if "spent" in row:
        spent = row["spent"]
        is_wrong = not isinstance(spent, Mapping) or any(not _is_time(value) for value in spent.values())
        wrong += ["spent"] * is_wrong + ["spent_step"] * (type(row.get("spent_step")) is not int)
        wrong += [name for name in ("began", "restart") if not _is_time(row.get(name))]
    return wrong[0] if wrong else ""


def _is_time(value: Any) -> bool:
    return is_usable_number(value) and 0 <= value < LATEST


def _is_number(value: Any) -> bool:
    """Return whether a value is a number; those of a run that diverges are not finite."""
    return isinstance(value, float) or is_usable_number(value)


def record_start(
    folder: RunDir,
    step: int,
    facts: Mapping[str, str],
    flops: float,
    rate: float,
    spent: Mapping[str, float] | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Record in starts.jsonl that the run starts or resumes at `step`, and complete the row of a start that was killed.

    The row has `facts`, as the console shows them, versions, provenance (with the hash of the registration, if the run is of an
    experiment), the date, the FLOPs of a step, the `rate` of matrix products that was measured (0 = none), the seconds `spent`
    since the start (`train.run.time_account`), and the `options` that repeat its steps (`run_identity.repeated_options`).
    It is called before the rows of metrics.jsonl after `step` are dropped.
    """
    row = {"step": step, "at": time.time(), "facts": dict(facts), "versions": software_versions(), "flops": flops, "rate": rate}
    row["provenance"] = read_provenance()
    if registration := registered_hash(folder.path):
        row["provenance"]["registration"] = registration
    if options is not None:
        row["options"] = dict(options)
    before = read_starts(folder)
    if spent is not None:
        began = row["at"] - sum(spent.values())
        rows = read_rows(folder.metrics) if before and folder.metrics.exists() else []
        row |= {"spent": dict(spent), "spent_step": step, "began": began, "restart": settle_killed(before, rows, step, began)}
    write_text(folder.starts, "".join(map(row_line, [*before, row])))


def best_rate(folder: RunDir, precision: str) -> float:
    """Return the best rate of matrix products that starts.jsonl records for these devices and a precision; 0 if there is none.

    Raises:
        BadInput: see `read_starts`.
    """
    here = read_provenance()
    machine = {name: here[name] for name in ("host", "device", "devices", "processes")}
    rates = [
        row.get("rate") or 0.0
        for row in read_starts(folder)
        if machine.items() <= row.get("provenance", {}).items() and row["facts"].get("precision") == precision
    ]
    return max(rates, default=0.0)


def record_usage(folder: RunDir, seconds: float, rate: float, **spent: Any) -> None:
    """Record in the newest row of starts.jsonl the `seconds` since that start, the best `rate`, and the most memory in use.

    An error while writing does not end the run.

    Args:
        spent: `spent`, the seconds by category, with the `spent_step` at which they were measured; `finished` = True at the end.
    """
    with contextlib.suppress(BadInput):
        *before, row = read_rows(folder.starts)
        row |= {"seconds": seconds, "rate": rate, "peak_bytes": peak_bytes(), **spent}
        write_text(folder.starts, "".join(map(row_line, [*before, row])))


def software_versions() -> dict[str, str]:
    """Return the versions that results depend on, and the compiler's flags, on which speeds on XLA:CPU depend."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    installed = {name: importlib.metadata.version(name) for name in packages}
    return (
        {"python": platform.python_version()}
        | installed
        | {"system": platform.platform(), "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}
    )


def mfu(flops_per_step: float | int, seconds: float, rate: float) -> float:
    """Return the model FLOPs utilization: the share of `rate` (FLOP/s of all devices) that steps of `seconds` use.

    Chowdhery et al. 2022 (PaLM), appendix B.
    """
    return flops_per_step / (seconds * rate)


def row_line(row: Mapping[str, Any]) -> str:
    """Return the line of a row in its file; numbers that are not finite are "NaN", "Infinity" and "-Infinity"."""
    return json.dumps(json_value(row), allow_nan=False, separators=(",", ":")) + "\n"


def _row(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line.decode(), parse_constant=NOT_FINITE.__getitem__)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}:{number} is not a valid row: {error}; remove the line") from None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise BadInput(f'{path}:{number} is not a valid row: it must be an object with an integer "step"; remove the line')
    # Rarely needed, and it would take half the time of reading a long file.
    return _parse_non_finite(row) if b'"NaN"' in line or b'Infinity"' in line else row


def _parse_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _parse_non_finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_parse_non_finite(item) for item in value]
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value
