"""What the tables of several benchmarks share: merged cells, times and the machine as text."""

import collections
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.core.result_files import Results, identity

SEVERITY = ("wrong", "failed", "timed", "skipped")
"""Of several processes the state that is told: the first of these that one of them came to."""


def merged(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A cell for each key: of several processes the median of each number, in "processes" how many timed it."""
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
    """A time in three digits."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            value = seconds / scale
            return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def machine_line(results: Results) -> str:
    """What a table was measured on."""
    environment = results.environment
    where = f"{environment['cpu']}, {environment['cores']} cores" if environment["backend"] == "cpu" else f"{environment['devices']} x {environment['device']}"
    rates = ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in environment["matrix_rate"].items())
    flags = environment["versions"]["XLA_FLAGS"]
    processes = len({cell["process"] for cell in results.cells})
    return (
        f"{where}; JAX {environment['versions']['jax']}, Python {environment['versions']['python']}; XLA_FLAGS={flags}; {environment['date']}, "
        f"load {environment['load']}; matrix products {rates}; copies {environment['copy_rate'] / 1e9:.1f} GB/s; "
        f"{processes} {'process' if processes == 1 else 'processes'}"
    )
