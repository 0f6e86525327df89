"""Small models and a known machine, for the tests of what steps cost: they measure only whether something is measured."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from benchmarks import programs, records, trials
from zoo import configs

SMALL: dict[str, Any] = {"batch": 2, "length": 8}
NUMBERS = {"vocab": 131, "layers": 2, "decoder_layers": 2, "width": 32, "heads": 2, "head": 16, "ffn": 64, "context": 16}


class _Unwatched(trials.Watch):
    """Notes nothing, and knows of no death."""

    def __init__(self) -> None:
        pass

    def begin(self, told: str, *keys: Mapping[str, Any]) -> None:
        pass

    def died(self, key: Mapping[str, Any]) -> bool:
        return False


UNWATCHED = _Unwatched()


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Make the nanos smaller, and the compiler hurry."""
    for family in configs.families():
        table = configs.family(family).SIZES
        for name, size in table.items():
            if name.endswith("-nano"):
                fields = {field.name for field in dataclasses.fields(size.config)}
                numbers = {field: each for field, each in NUMBERS.items() if field in fields}
                patch.setitem(table, name, dataclasses.replace(size, config=dataclasses.replace(size.config, **numbers)))
    patch.setitem(programs.COMPILER, "xla_backend_optimization_level", 0)


def environment(dtypes: Sequence[str] = ("float32",)) -> dict[str, Any]:
    """What `records.environment` gives, in no time."""
    rates = {"matrix_rate": dict.fromkeys(dtypes, 1e9), "copy_rate": 1e9, "load": 0.0, "clock_mhz": None}
    return {**records.machine(), **rates, "date": "today", "versions": {"XLA_FLAGS": "", "jax": "", "python": ""}}
