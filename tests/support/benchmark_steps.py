"""Small models, quick compilation and a known machine, for tests of the benchmarks that do not depend on any time."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from benchmarks.attention import conformance, measure_row
from benchmarks.core import guarded_trials, result_files, timing
from benchmarks.growth import bench_growth
from benchmarks.plan import compile_program
from benchmarks.step import programs
from zoo import configs

SMALL: dict[str, Any] = {"batch": 2, "length": 8}
NUMBERS = {"vocab": 131, "layers": 2, "decoder_layers": 2, "width": 32, "heads": 2, "kv_heads": 2, "head": 16, "ffn": 64}
NUMBERS |= {"context": 16}
OPTIONS = {"xla_backend_optimization_level": 0}


class _Unwatched(guarded_trials.Watch):
    def __init__(self) -> None:
        pass

    def begin(self, told: str, *keys: Mapping[str, Any]) -> None:
        pass

    def died(self, key: Mapping[str, Any]) -> bool:
        return False


UNWATCHED = _Unwatched()


def shrink(patch: pytest.MonkeyPatch) -> None:
    for family in configs.families():
        table = configs.family(family).SIZES
        for name, size in table.items():
            if name.endswith("-nano"):
                fields = {field.name for field in dataclasses.fields(size.config)}
                numbers = {field: value for field, value in NUMBERS.items() if field in fields}
                patch.setitem(table, name, dataclasses.replace(size, config=dataclasses.replace(size.config, **numbers)))
    hurry(patch)


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Compile without optimization, take programs from the cache, and measure the machine not at all."""
    patch.setattr(programs, "COMPILER", OPTIONS)
    patch.setattr(conformance, "check_supported", functools.partial(conformance.check_supported, options=OPTIONS))
    patch.setattr(timing, "without_compilation_cache", contextlib.nullcontext)
    patch.setattr(result_files, "describe_environment", environment)


def hurry_plans(patch: pytest.MonkeyPatch) -> None:
    """Compile what is planned without optimizing the processor's code: what a plan reads of a program is the same."""
    patch.setattr(compile_program, "compile_lowered", lambda lowered, _: (lowered.compile(compiler_options=OPTIONS), ()))


def environment(dtypes: Sequence[str] = ("float32",)) -> dict[str, Any]:
    rates = {"matrix_rate": dict.fromkeys(dtypes, 1e9), "copy_rate": 1e9, "load": 0.0, "clock_mhz": None}
    return {**result_files.describe_machine(), **rates, "date": "today", "versions": {"XLA_FLAGS": "", "jax": "", "python": ""}}


def make_deadly(patch: pytest.MonkeyPatch, die: Callable[[], Any]) -> None:
    """Make commands `die` in the middle of a cell: attention of xla over 24 keys, a step or growth of two scanned layers."""

    def plant(owner: Any, name: str, deadly: Callable[..., bool]) -> None:
        honest = getattr(owner, name)

        def planted(*arguments: Any, **options: Any) -> Any:
            if deadly(*arguments):
                die()
            return honest(*arguments, **options)

        patch.setattr(owner, name, planted)

    shrink(patch)
    patch.setattr(measure_row, "_check_cases", lambda *_: None)
    patch.setattr(bench_growth, "BASE", {"length": 8, "layers": 1, "width": 32, "devices": 1})
    skipped = {"state": "skipped", "reason": "not here"}
    patch.setattr(bench_growth, "_devices", lambda settings, keys, watch: [{"key": key, **skipped} for key in keys])
    plant(measure_row, "_first_call", lambda trial, *_: trial.name == "xla" and trial.key["keys"] == 24)
    plant(programs.Step, "compile", lambda step: step.variant.layers == "scan" and step.case.config.layers == 2)
