"""The choices of `auto`: for each kind of device, lines of an implementation, its requests, and the figures behind it.

`auto_lines.json` has the lines for accelerators. `benchmarks.attention.auto_from_figures` writes it from published times of
kernels of the same form; where a backward pass is compared, that of `xla` includes its forward pass and that of the kernels does
not. The first line whose requests include a call, and whose implementation supports the call, is used.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.attention.request import Request
from zoo.runtime.hardware import is_kind

FILE = Path(__file__).with_name("auto_lines.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A line of `auto`: an implementation, the requests that it is for, and why."""

    implementation: str
    features: frozenset[str] = frozenset()
    """The line is for requests with any of these features; empty: with any features."""
    queries: int = 1
    """Smallest number of queries."""
    keys: int = 1
    """Smallest number of keys."""
    dtypes: frozenset[str] = frozenset()
    """Empty: all."""
    time: str = ""
    """Its measured time, relative to that of `xla`: median, smallest and largest; "": not measured on this kind of device."""
    source: str = ""
    """Where the figures are, or what the line is derived from if there are none."""

    def is_for(self, request: Request) -> bool:
        """Return whether a request has the features, the lengths and the dtype of this line."""
        _, queries, keys, _, _, _ = request.shape
        has_features = not self.features or bool(self.features & request.features)
        is_long = queries >= self.queries and keys >= self.keys
        return has_features and is_long and (not self.dtypes or request.dtype in self.dtypes)

    @property
    def lengths(self) -> str:
        """Describe the lengths of this line; "": all."""
        lengths = {"queries": self.queries, "keys": self.keys}
        if self.queries == self.keys:
            lengths = {"queries and keys": self.queries}
        words = [f"{length:,} {name}" for name, length in lengths.items() if length > 1]
        return f"from {' and '.join(words)} on" if words else ""

    @property
    def requests(self) -> str:
        """Describe the requests of this line: features, lengths and dtypes."""
        words = " or ".join(sorted(self.features)), self.lengths, " or ".join(sorted(self.dtypes))
        return ", ".join(filter(None, words)) or "all others"

    @property
    def reason(self) -> str:
        """Describe why the line is there: its time and its source."""
        if self.time:
            return f"{self.time} of xla's time ({self.source})"
        return f"not measured; {self.source}" if self.source else "supports every request"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceLines:
    """The lines of `auto` for a kind of device."""

    device: str
    """Name for users, as in "TPU v5p"."""
    platform: str
    kinds: tuple[str, ...] = ()
    """The words with which JAX's `device_kind` begins."""
    lines: tuple[Line, ...] = ()
    """In the order in which they are tried; the last is for all requests."""
    like: str = ""
    """The device whose lines are used, because nothing is published for this one."""
    because: str = ""
    """Why that one is the nearest."""
    note: str = ""
    """Notice for users about `like`; "": the lines are of this device."""


def _parse_device(fields: dict[str, Any]) -> DeviceLines:
    """Return the lines of a device from its fields in the file, where the fields at their defaults are left out."""
    sets = ("features", "dtypes")
    lines = [{**line, **{name: frozenset(line.get(name, ())) for name in sets}} for line in fields.get("lines", ())]
    return DeviceLines(**{**fields, "kinds": tuple(fields["kinds"]), "lines": tuple(Line(**line) for line in lines)})


_TABLE = json.loads(FILE.read_text(encoding="utf-8"))
NEAREST: dict[str, str] = _TABLE["nearest"]
"""Platform -> the device whose lines an unknown kind has: the newest one with figures."""
DEVICES = tuple(_parse_device(fields) for fields in _TABLE["devices"])

CPU = DeviceLines(
    device="CPU",
    platform="cpu",
    lines=(
        Line(
            implementation="blocked",
            queries=64,
            # The same time at 32 queries in a causal gradient, and more at 8.
            time="0.6 to 0.8 at 128 queries, 0.7 to 0.9 at 64, forward and backward",
            source="benchmarks/results/step-gains_xeon-2-cores_2026-11-26.md",
        ),
        Line(implementation="xla"),
    ),
)


def device_lines(platform: str, kind: str) -> DeviceLines:
    """Return the lines for a kind of device.

    For a kind without figures they are those of the nearest one that has some; `DeviceLines.note` then says which, and why.

    Args:
        platform: cpu, gpu or tpu.
        kind: JAX's `device_kind`.
    """
    if platform == CPU.platform:
        return CPU
    by_kind = {name: device for device in DEVICES if device.platform == platform for name in device.kinds}
    # The longest name that fits: "TPU v5 lite" is not a "TPU v5".
    names = [name for name in by_kind if is_kind(kind, name)]
    if names:
        device = by_kind[max(names, key=len)]
    else:
        like = NEAREST[platform]
        device = DeviceLines(device=kind or platform, platform=platform, like=like, because="the newest kind that has figures")
    if not device.like:
        return device
    (measured,) = (other for other in DEVICES if other.device == device.like)
    note = f"there are no figures for {device.device}: these are the lines of {measured.device}, {device.because}"
    return dataclasses.replace(device, lines=measured.lines, note=note)


def matching_line(lines: tuple[Line, ...], request: Request, is_supported: Callable[[str], bool]) -> Line:
    """Return the first line that is for a request and whose implementation supports it; the last line is for all requests."""
    return next(line for line in lines if line.is_for(request) and is_supported(line.implementation))
