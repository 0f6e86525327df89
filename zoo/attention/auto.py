"""The choices of `auto`: for each kind of device, lines of an implementation, its requests, and the figures behind it.

`auto_table` has the lines for accelerators, which a script writes from published measurements. The first line whose requests
include a call, and whose implementation supports the call, is used.
"""

import dataclasses
import re
from collections.abc import Callable

from zoo.attention.auto_table import DEVICES, NEAREST
from zoo.attention.auto_table_types import DeviceLines, Line
from zoo.attention.request import Request

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
    names = [name for name in by_kind if re.match(rf"{re.escape(name)}(?![\w.])", kind)]
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
