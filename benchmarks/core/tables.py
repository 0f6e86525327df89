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
    found = []
    for group in groups.values():
        state = min((cell["state"] for cell in group), key=SEVERITY.index)
        same = [cell for cell in group if cell["state"] == state]
        one = {**same[0], "processes": len(same)}
        for name, value in same[0].items():
            numbers = [each for cell in same if isinstance(each := cell.get(name), int | float)]
            if isinstance(value, int | float) and len(numbers) == len(same):
                one[name] = statistics.median(numbers)
        found.append(one)
    return found


def seconds_text(seconds: float) -> str:
    """A time in three digits."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            value = seconds / scale
            return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def machine_line(results: Results) -> str:
    """What a table was measured on."""
    told = results.environment
    where = f"{told['cpu']}, {told['cores']} cores" if told["backend"] == "cpu" else f"{told['devices']} x {told['device']}"
    rates = ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in told["matrix_rate"].items())
    flags = told["versions"]["XLA_FLAGS"]
    processes = len({cell["process"] for cell in results.cells})
    return (
        f"{where}; JAX {told['versions']['jax']}, Python {told['versions']['python']}; XLA_FLAGS={flags}; {told['date']}, "
        f"load {told['load']}; matrix products {rates}; copies {told['copy_rate'] / 1e9:.1f} GB/s; "
        f"{processes} {'process' if processes == 1 else 'processes'}"
    )
