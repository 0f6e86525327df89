"""The check that a JSON file has the content that its reader expects, for files that others may have written.

A shape is a type or a union of types; [shape of each item]; {str: shape of all values}; or {name: shape of its value}, where a
name that ends in "?" may be missing, and further names have any value; or a tuple of alternatives. `object` is any JSON. No
number may be infinite, NaN or an integer that does not fit into 64 bits: arithmetic on those fails, or says nothing.
"""

import json
import math
import types
import typing
from pathlib import Path
from typing import Any

from zoo.errors import BadInput
from zoo.file_access import LARGEST_JSON, read_regular_text

Number = int | float
LARGEST = 1 << 63
LONGEST = 100
"""Characters of the place in a file that a message shows."""


def read_shaped_json(path: Path, shape: Any, fix: str, largest: int = LARGEST_JSON) -> Any:
    """Return the content of a JSON file of a shape; None if the file does not exist.

    Args:
        fix: what the user can do about a wrong file; it ends the message.
        largest: bytes of the largest file that is read.

    Raises:
        BadInput: it cannot be read, is not JSON, or has another shape.
    """
    try:
        content = json.loads(read_regular_text(path, largest))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} is invalid JSON ({error}); {fix}") from None
    if problem := shape_problem(content, shape):
        raise BadInput(f"{path} has unexpected content ({problem}); {fix}")
    return content


def shape_problem(value: Any, shape: Any, where: str = "") -> str:
    """Return where a JSON value first differs from a shape, and what is there, as text; "" if it does not.

    Args:
        where: the place of the value in a file.
    """
    place = where.lstrip(".")[:LONGEST] or "the whole"
    if isinstance(shape, tuple):
        problems = [shape_problem(value, alternative, where) for alternative in shape]
        return "" if "" in problems else problems[0]
    if isinstance(shape, type | types.UnionType):
        accepts_bool = shape is object or bool in typing.get_args(shape) or shape is bool
        if not isinstance(value, shape) or (isinstance(value, bool) and not accepts_bool):
            return f"{place}: {type(value).__name__}"
        problem = _number_problem(value)
        return f"{place}: {problem}" if problem else ""
    if type(value) is not type(shape):
        return f"{place}: {type(value).__name__} instead of {type(shape).__name__}"
    if isinstance(shape, list):
        parts = [(item, shape[0], f"{where}[{index}]") for index, item in enumerate(value)]
    elif str in shape:
        parts = [(item, shape[str], f"{where}.{key}") for key, item in value.items()]
    else:
        if absent := [f"{where}.{key}" for key in shape if not key.endswith("?") and key not in value]:
            return f"no {absent[0].lstrip('.')[:LONGEST]}"
        names = {key.removesuffix("?"): inner for key, inner in shape.items()}
        parts = [(item, names.get(key, object), f"{where}.{key}") for key, item in value.items()]
    return next((problem for part in parts if (problem := shape_problem(*part))), "")


def is_usable_number(value: Any) -> bool:
    """Return whether a value is a finite number, and not an integer beyond 64 bits, which has no float or fails in arrays."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and -LARGEST <= value < LARGEST


def _number_problem(value: Any) -> str:
    """Return what is wrong with a number in a value, at any depth; "" if nothing is."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, int | float) and not isinstance(item, bool) and not is_usable_number(item):
            return f"the number {item}" if isinstance(item, float) else "an integer of more than 64 bits"
        waiting += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return ""
