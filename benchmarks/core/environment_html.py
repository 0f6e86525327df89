"""What every page of a benchmark says of where its numbers come from."""

from collections.abc import Mapping
from typing import Any

from benchmarks.core.result_files import Results
from eval.report.html_page import card


def environment(results: Results) -> str:
    """Cards of the machine, of what was asked and of versions, those of peers included."""
    told = dict(results.environment)
    versions, settings = told.pop("versions"), told.pop("settings", {})
    told["matrix_rate"] = ", ".join(f"{dtype} {rate / 1e9:,.1f} GFLOP/s" for dtype, rate in told["matrix_rate"].items())
    told["copy_rate"] = f"{told['copy_rate'] / 1e9:,.1f} GB/s"
    asked = {name: value for name, value in results.asked.items() if value not in (None, [], "")}
    peers = {name: version for cell in results.cells for name, version in cell.get("versions", {}).items()}

    def titled(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name.replace("_", " "): value for name, value in values.items()}

    return (
        card("machine", titled(told))
        + card("asked", titled(asked))
        + card("versions", {**versions, **peers})
        + card("settings", settings)
    )


def device(results: Results) -> str:
    """The processor or accelerator."""
    return results.environment["cpu" if results.environment["backend"] == "cpu" else "device"]
