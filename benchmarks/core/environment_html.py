"""The environment section of every benchmark page: machine, options and versions behind its numbers."""

from collections.abc import Mapping
from typing import Any

from benchmarks.core.result_files import Results
from eval.report.html_page import card


def environment(results: Results) -> str:
    """Return cards of the machine, the requested options and the versions, including those of peers."""
    machine = dict(results.environment)
    versions, settings = machine.pop("versions"), machine.pop("settings", {})
    machine["matrix_rate"] = ", ".join(f"{dtype} {rate / 1e9:,.1f} GFLOP/s" for dtype, rate in machine["matrix_rate"].items())
    machine["copy_rate"] = f"{machine['copy_rate'] / 1e9:,.1f} GB/s"
    options = {name: value for name, value in results.options.items() if value not in (None, [], "")}
    peers = {name: version for cell in results.cells for name, version in cell.get("versions", {}).items()}

    def titled(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name.replace("_", " "): value for name, value in values.items()}

    return (
        card("machine", titled(machine))
        + card("asked", titled(options))
        + card("versions", {**versions, **peers})
        + card("settings", settings)
    )


def device(results: Results) -> str:
    """Return the name of the processor or accelerator."""
    return results.environment["cpu" if results.environment["backend"] == "cpu" else "device"]
