"""Keys of a config.json that have the value of a field of a configuration under another name, read and written by one table."""

from collections.abc import Mapping
from typing import Any

from zoo.hf.config_json import PublishedConfig

Keys = Mapping[str, tuple[str, int | float | bool]]
"""Maps a field to its key and to the value of an absent key, whose type is that of the field."""


def read_fields(published: PublishedConfig, keys: Keys) -> dict[str, Any]:
    """Return the fields of a configuration that a config.json has.

    Raises:
        BadInput: a value of another type, or an integer below 1.
    """

    def value(field: str, key: str, default: int | float | bool) -> int | float | bool:
        if isinstance(default, bool):
            return published.flag(key, default)
        if isinstance(default, int):
            return published.integer(key, default)
        return published.number(key, default, decimal=field == "eps")

    return {field: value(field, *row) for field, row in keys.items()}


def write_fields(config: Any, keys: Keys) -> dict[str, Any]:
    """Return the entries of a config.json that have the fields of a configuration."""
    return {key: getattr(config, field) for field, (key, _) in keys.items()}
