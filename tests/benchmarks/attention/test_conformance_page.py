"""`python -m benchmarks.attention.conformance`: what is checked at which length, what its page says, and when it fails."""

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.attention import conformance
from zoo.attention import attention

ROW = attention.IMPLEMENTATIONS["xla"]


def round_alone(request: Any) -> str | None:
    _, t, *_, h = request.shape
    return f"it takes multiples of 64, and these are {t} x {h}" if t % 64 or h % 64 else None


def never(request: Any) -> str | None:
    return "it takes nothing"


def wrong(*args: Any, **options: Any) -> Any:
    return 1.01 * ROW.load()(*args, **options)


@pytest.fixture(autouse=True)
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {name: conformance.CASES[name] for name in ("causal", "length 1", "window", "sinks")}
    monkeypatch.setattr(conformance, "CASES", cases)
    monkeypatch.setattr(conformance, "DTYPES", ("float32",))


def add_row(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> None:
    row = dataclasses.replace(ROW, features=frozenset({"causal"}), **changes)
    monkeypatch.setitem(attention.IMPLEMENTATIONS, name, row)


def test_the_options_of_the_compiler_exist_in_this_version() -> None:
    assert jax.jit(lambda x: x + 1, compiler_options=conformance.UNOPTIMIZED)(jnp.float32(1)) == 2


@pytest.mark.planted
def test_an_option_that_the_compiler_does_not_know_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(conformance.UNOPTIMIZED, "xla_an_absent_option", True)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_an_absent_option"):
        test_the_options_of_the_compiler_exist_in_this_version()


def test_an_implementation_of_round_sizes_is_checked_at_them(monkeypatch: pytest.MonkeyPatch) -> None:
    add_row(monkeypatch, "round", module=__name__, function="xla", limits="round_alone")
    monkeypatch.setattr(sys.modules[__name__], "xla", ROW.load(), raising=False)
    page, sound = conformance.support_table(names=["round"])
    rows = dict(line.strip("| ").split(" | ") for line in page.splitlines()[2:6])
    assert sound and rows.pop("causal").endswith(" at 640 x 64")
    assert rows == {"length 1": "-", "window": "-", "sinks": "-"}
    assert page.splitlines()[-1] == "- `round`: it has no sinks, no window; it takes multiples of 64, and these are 1 x 8."


@pytest.mark.planted(2)
@pytest.mark.parametrize(
    ("limits", "function", "reason"),
    [("never", "xla", "no case ran, so nothing is known of its numbers"), ("round_alone", "wrong", "wrong: ")],
)
def test_one_that_is_wrong_or_supports_no_case_is_not_sound(
    limits: str, function: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_row(monkeypatch, "bad", module=__name__, function=function, limits=limits)
    page, sound = conformance.support_table(names=["bad"])
    assert reason in page and not sound


def test_without_names_a_machine_need_not_run_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "IMPLEMENTATIONS", {"cudnn": attention.IMPLEMENTATIONS["cudnn"]})
    page, sound = conformance.support_table()
    assert sound and page.endswith("- `cudnn`: it runs on gpu, and this is cpu.")
