"""The sizes of the tiles of kernels on each kind of device.

They are those of a tuning that `zoo bench attention --tune` stored on this machine for the device and the installed versions;
without one, those of the first line of `tile_sizes.json` that is for the call. Sizes are upper limits: a kernel takes smaller
ones for shorter arrays.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from zoo.errors import BadInput
from zoo.file_access import read_regular_text
from zoo.json_shapes import read_shaped_json
from zoo.runtime import caches, jax_setup, stdio
from zoo.runtime.hardware import is_kind
from zoo.sharding import target_device_kind, target_platform

TABLE = Path(__file__).with_name("tile_sizes.json")
MULTIPLES = {"blocked": 16, "flash_gpu": 16, "flash_tpu": 128, "splash": 128}
"""Kernel that can be tuned -> what its sizes are multiples of."""
LIBRARIES = {"cpu": (), "tpu": ("libtpu",), "gpu": ("jax-cuda12-plugin", "jax-cuda13-plugin")}
"""Platform -> the distributions of its compiler, besides those of JAX."""
FIX = "delete it, or write it again with zoo bench attention --tune"
ROW = {"kernel": str, "form": str, "head": int, "dtype": str, "queries": int, "keys": int, "sizes": {str: int}}
STORED = {"device": str, "versions": {str: str}, "rows": [ROW]}
"""Shape of the file of a stored tuning. No two rows have the same call."""

Sizes = Mapping[str, int]
forced: dict[str, Sizes] = {}
"""Kernel -> sizes that are used whatever the call is, while candidates are measured and in tests."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelCall:
    """The part of a call of a kernel on which the sizes of its tiles depend, besides the device."""

    kernel: str
    dtype: str
    form: str = ""
    """Content of a tile of attention besides scores, in words: see `zoo.attention.request.Request.kernel_call`."""
    head: int = 0
    """Size of a head; 0 for a product of experts, which has neither heads nor queries."""
    queries: int = 0
    keys: int = 0


def tile_sizes(call: KernelCall) -> Sizes:
    """Return the sizes for the device for which a program is compiled.

    Raises:
        BadInput: the file of a stored tuning is damaged.
    """
    return forced.get(call.kernel) or stored_sizes(call) or table_sizes(call, target_device_kind())


@contextlib.contextmanager
def forced_sizes(kernel: str, sizes: Sizes) -> Iterator[None]:
    """Use some sizes for all calls of a kernel in what is traced inside the block."""
    before = dict(forced)
    forced[kernel] = sizes
    try:
        yield
    finally:
        forced.clear()
        forced.update(before)


def table_sizes(call: KernelCall, kind: str) -> Sizes:
    """Return the sizes of the first line of the table that is for a call on a `device_kind`."""
    return next(line["sizes"] for line in _table()[call.kernel] if _is_for(line, call, kind))


def _is_for(line: Mapping[str, Any], call: KernelCall, kind: str) -> bool:
    """Return whether a line is for a call: each of its fields that is there must fit, the device by the beginning of its name."""
    devices, dtypes = line.get("devices", [kind]), line.get("dtypes", [call.dtype])
    is_device = any(is_kind(kind, name) for name in devices) or "devices" not in line
    is_long = min(call.queries, call.keys) >= line.get("length", 0)
    return is_device and is_long and call.dtype in dtypes


@functools.cache
def _table() -> dict[str, list[dict[str, Any]]]:
    return json.loads(read_regular_text(TABLE))


# --- stored tunings -------------------------------------------------------------------------------------------------------------


def stored_path(kind: str, platform: str) -> Path:
    """Return the file of the tuning of a kind of device; CPUs are told apart by their model and the number of processors."""
    name = f"cpu {jax_setup.processor_digest()} {os.cpu_count()}" if platform == "cpu" else kind
    return caches.cache_dir() / "tiles" / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.json"


def compiler_versions(platform: str) -> dict[str, str]:
    """Return the versions on which the time of a kernel depends."""
    return dict(_installed(("jax", "jaxlib", *LIBRARIES[platform])))


def _installed(names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name in names:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def read_tuning(path: Path) -> dict[str, Any] | None:
    """Return the content of the file of a tuning; None if there is none.

    Raises:
        BadInput: it is damaged.
    """
    stored = read_shaped_json(path, STORED, FIX)
    for row in stored["rows"] if stored else ():
        lines, multiple = _table().get(row["kernel"], []), MULTIPLES.get(row["kernel"], 0)
        names = set(lines[-1]["sizes"]) if multiple else set()
        if not names or set(row["sizes"]) != names or any(size < 1 or size % multiple for size in row["sizes"].values()):
            raise BadInput(f"{path} has unexpected content (sizes of {row['kernel']!r}: {row['sizes']}); {FIX}")
    return stored


@functools.cache
def usable_rows(path: Path, platform: str) -> tuple[tuple[KernelCall, Sizes], ...]:
    """Return the rows of a stored tuning; say on stderr why it is not used, once in a process."""
    stored = read_tuning(path)
    if stored is None:
        return ()
    if reason := unused_reason(stored, platform):
        stdio.write_error(f"tile sizes: {path} {reason}")
        return ()
    calls = ({name: value for name, value in row.items() if name != "sizes"} for row in stored["rows"])
    return tuple((KernelCall(**call), row["sizes"]) for call, row in zip(calls, stored["rows"], strict=True))


def unused_reason(stored: Mapping[str, Any], platform: str) -> str:
    """Return why a stored tuning is not used, and what to do; "" if it is."""
    here = compiler_versions(platform)
    if stored["versions"] != here:
        of, this = (
            ", ".join(f"{name} {version}" for name, version in versions.items()) for versions in (stored["versions"], here)
        )
        return f"is of {of}, and this is {this}: ignored; run zoo bench attention --tune again"
    if jax.process_count() > 1:
        return "is ignored: the processes of a group must compile equal programs, and each has a cache folder of its own"
    return ""


def stored_sizes(call: KernelCall) -> Sizes | None:
    """Return the tuned sizes for a call: those of the row of the same kernel, form, head and dtype with the nearest lengths.

    Only rows with at least as many queries and keys are for a call, because longer arrays may leave less of a memory for tiles.

    Raises:
        BadInput: the file is damaged.
    """
    platform = target_platform()
    if call.kernel not in MULTIPLES or platform not in LIBRARIES:
        return None
    rows = [
        (tuned.queries * tuned.keys, sizes)
        for tuned, sizes in usable_rows(stored_path(target_device_kind(), platform), platform)
        if dataclasses.replace(call, queries=tuned.queries, keys=tuned.keys) == tuned
        and tuned.queries >= call.queries
        and tuned.keys >= call.keys
    ]
    return min(rows, key=lambda row: row[0])[1] if rows else None


def describe_tuning() -> str:
    """Describe for users which tuning the default device uses."""
    platform = target_platform()
    path = stored_path(target_device_kind(), platform)
    if platform not in LIBRARIES or (stored := read_tuning(path)) is None:
        return "those of the table: no tuning is stored (zoo bench attention --tune)"
    if reason := unused_reason(stored, platform):
        return f"those of the table: {path} {reason}"
    return f"those of {path} for the calls of {', '.join(sorted({row['kernel'] for row in stored['rows']}))} that it has"
