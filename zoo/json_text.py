"""JSON as the commands print it: valid by RFC 8259, which has no NaN and no infinities."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def print_json(value: Any) -> None:
    """Print a value as one JSON document on standard output, for a command with --json."""
    print(json.dumps(json_value(value), indent=2, allow_nan=False), flush=True)


def json_value(value: Any) -> Any:
    """Return a value of Python or numpy as JSON has it.

    Paths become strings, arrays nested lists, and numbers that are not finite "NaN", "Infinity" and "-Infinity", as in protobuf's
    JSON mapping.
    """
    if isinstance(value, Mapping):
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return json_value(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return str(value) if isinstance(value, Path) else value
