"""Values of config.json as the dataclasses of a configuration."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from zoo.errors import BadInput

CORRECT = "correct it in config.json"
"""Fix of a value that a file has."""


def from_json(kind: Any, value: Any, key: str, *, fix: str = CORRECT, **replaced: Any) -> Any:
    """Return a JSON value as the type that an annotation names: a dataclass, a tuple, a number, ...

    Args:
        key: the dotted key of the value, for messages.
        fix: what to do about a value of another type, for messages.
        replaced: types of the fields that are declared generically.

    Raises:
        BadInput: an unknown or missing key, or a value of another type.
    """
    if dataclasses.is_dataclass(kind):
        return _build_fields(kind, value, key, fix, replaced)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        # Only `X | None`, `Literal[...] | str`, a name that may be a plug-in's, `int | float` and `int | str` occur.
        if {int, float} <= {*arguments}:
            return from_json(int if type(value) is int else float, value, key, fix=fix)
        if (value is None and types.NoneType in arguments) or (isinstance(value, str) and str in arguments):
            return value
        return from_json(next(option for option in arguments if option is not types.NoneType), value, key, fix=fix)
    if origin is tuple and isinstance(value, list) and (arguments[1:] == (...,) or len(arguments) == len(value)):
        kinds = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        return tuple(
            from_json(item_kind, item, f"{key}[{i}]", fix=fix)
            for i, (item_kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is typing.Literal and value in arguments:
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    expected = f"one of {', '.join(map(str, arguments))}" if origin is typing.Literal else getattr(kind, "__name__", str(kind))
    raise _unexpected(key, value, expected, fix)


def inner_key(key: str, name: str) -> str:
    """Return the dotted key of a field; those of an objective's options have no prefix, as on the command line."""
    return f"{key}.{name}".removeprefix(".") if name != "options" else key


def _build_fields(kind: Any, value: Any, key: str, fix: str, replaced: Mapping[str, Any]) -> Any:
    if not isinstance(value, dict):
        raise _unexpected(key, value, "an object", fix)
    hints, fields = typing.get_type_hints(kind) | dict(replaced), {field.name: field for field in dataclasses.fields(kind)}
    full_keys = {name: inner_key(key, name) for name in fields.keys() | value.keys()}
    for name in value:
        if name not in fields:
            newer = "if another version wrote it, use that version, or train again under another --name"
            raise BadInput(f"{full_keys[name]} {_short(value[name])}: unknown key; {newer}")
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in value and not optional:
            raise BadInput(f"{full_keys[name]}: missing; add it, or restore config.json from a copy")
    return kind(**{name: from_json(hints[name], item, full_keys[name], fix=fix) for name, item in value.items()})


def _unexpected(key: str, value: Any, expected: str, fix: str) -> BadInput:
    return BadInput(f"{key} {_short(value)}: expected {expected}; {fix}".lstrip())


def _short(value: Any) -> str:
    return json.dumps(value, default=repr)[:60]
