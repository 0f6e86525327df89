"""Helpers for the tables of all benchmarks: merged cells, times and the machine as text."""

import collections
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.core.result_files import Results, identity

SEVERITY = ("wrong", "failed", "timed", "skipped")
"""Order of states: the state shown for several processes is the first of these that occurred in one of them."""


def merged(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one cell for each key: the median of each number over its processes, and in "processes" how many there are."""
    groups: dict[str, list[Mapping[str, Any]]] = collections.defaultdict(list)
    for cell in cells:
        groups[identity(cell["key"])].append(cell)
    rows = []
    for group in groups.values():
        state = min((cell["state"] for cell in group), key=SEVERITY.index)
        same = [cell for cell in group if cell["state"] == state]
        one = {**same[0], "processes": len(same)}
        for name, value in same[0].items():
            numbers = [number for cell in same if isinstance(number := cell.get(name), int | float)]
            if isinstance(value, int | float) and len(numbers) == len(same):
                one[name] = statistics.median(numbers)
        rows.append(one)
    return rows


def seconds_text(seconds: float) -> str:
    """Return a time with three digits."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            value = seconds / scale
            return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def machine_line(results: Results) -> str:
    """Return a line that describes the machine and versions of the results."""
    env, versions = results.environment, results.environment["versions"]
    where = f"{env['cpu']}, {env['cores']} cores" if env["backend"] == "cpu" else f"{env['devices']} x {env['device']}"
    rates = ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in env["matrix_rate"].items())
    processes = len({cell["process"] for cell in results.cells})
    return (
        f"{where}; JAX {versions['jax']}, Python {versions['python']}; XLA_FLAGS={versions['XLA_FLAGS']}; {env['date']}, "
        f"load {env['load']}; matrix products {rates}; copies {env['copy_rate'] / 1e9:.1f} GB/s; "
        f"{processes} {'process' if processes == 1 else 'processes'}"
    )
