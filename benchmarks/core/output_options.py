"""Options that all benchmark commands share, and which options determine a result. Importing this does not import JAX."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Output:
    """Options for the results."""

    out: str = ""
    """Folder of the results; empty = runs/bench/<benchmark>_<hardware>_<date>."""
    resume: bool = False
    """Complete the results in the folder. A cell at which the process was killed twice is recorded as failed."""
    json: bool = False
    """Print the cells as JSON, one per line."""


UNRECORDED = ("output", "quick", "devices", "seconds")
"""Options that do not change any cell, or only through other options; a larger `seconds` completes rows that were left out."""


def recorded_options(options: Any) -> dict[str, Any]:
    """Return the options that a result file records, which must be the same when it is resumed."""
    return {name: value for name, value in dataclasses.asdict(options).items() if name not in UNRECORDED}
