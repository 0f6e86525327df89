"""Compiled training steps beside their recorded figures; those that compile for a TPU or GPU run with --aot.

Nobody runs these programs here: what grows in them without a reason, a user with a device pays for.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.budgets import program_budgets
from benchmarks.budgets.program_budgets import Budget, compare_with_record, compile_budget, figures_above
from benchmarks.budgets.step_programs import PROGRAMS, TARGETS, step_program
from benchmarks.core import timing
from benchmarks.plan import target_devices
from tests.support import benchmark_steps
from train.config.run_config import Run
from zoo.errors import BadInput

FAST = {"v5e": ("decoder",), "v5p": ("decoder-sharded",), "h100": ("decoder", "t5")}
"""Programs that are compared whenever the compilers are there; one compiles in up to half a minute."""
CASES = [
    pytest.param(chip, program, marks=[] if program in FAST[chip] else pytest.mark.slow, id=f"{platform}-{chip}-{program}")
    for chip, budgets in program_budgets.read_record().items()
    for platform in [target_devices.parse_target(TARGETS[chip]).platform]
    for program in budgets
]
FIGURES = {"FLOPs": 1e9, "temporaries, bytes": 100.0, "all-reduce over data, count": 7.0, "spilled by k, bytes": 0.0}


@pytest.fixture(autouse=True)
def cold() -> Iterator[None]:
    """Compile without JAX's cache, as `prepare_target` does: the cache cannot read a program for other devices again."""
    with timing.without_compilation_cache():
        yield


def needs(chip: str) -> None:
    """Skip without the compiler of a chip, and fail where there is no compiler at all."""
    why = {name: target_devices.unavailable_reason(target_devices.parse_target(TARGETS[name]).platform) for name in TARGETS}
    if all(why.values()):
        pytest.fail("; ".join(map(str, why.values())), pytrace=False)
    if why[chip]:
        pytest.skip(str(why[chip]))


@pytest.mark.aot
@pytest.mark.parametrize(("chip", "program"), CASES)
def test_a_compiled_step_stays_within_its_budget(chip: str, program: str) -> None:
    needs(chip)
    exceeded = compare_with_record(chip, program, compile_budget(chip, step_program(program), "compared"))
    if exceeded:
        pytest.fail(exceeded, pytrace=False)


def without_remat(run: Run) -> Run:
    """Plant the mistake that nothing is computed again: the memory of activations grows."""
    compute = dataclasses.replace(run.model.compute, remat="none")
    return dataclasses.replace(run, model=dataclasses.replace(run.model, compute=compute))


def with_dense_attention(run: Run) -> Run:
    """Plant the mistake that `auto` falls back to dense attention: kernels disappear."""
    compute = dataclasses.replace(run.model.compute, attention="xla")
    return dataclasses.replace(run, model=dataclasses.replace(run.model, compute=compute))


@pytest.mark.aot
@pytest.mark.planted
@pytest.mark.parametrize(
    ("chip", "program", "plant", "figures"),
    [
        pytest.param(
            "v5e", "decoder", with_dense_attention, ("kernel splash_", "temporaries"), id="tpu-dense", marks=pytest.mark.slow
        ),
        pytest.param("v5p", "remat", without_remat, ("temporaries",), id="tpu-remat", marks=pytest.mark.slow),
        pytest.param("h100", "decoder", with_dense_attention, ("kernel __cudnn", "temporaries"), id="gpu-dense"),
    ],
)
def test_what_makes_a_program_slower_exceeds_its_budget(chip: str, program: str, plant: Any, figures: tuple[str, ...]) -> None:
    needs(chip)
    exceeded = compare_with_record(chip, program, compile_budget(chip, plant(step_program(program)), "planted"))
    assert all(f"{chip}/{program}: {figure}" in exceeded for figure in figures), exceeded


def test_each_recorded_program_has_a_reason_and_spills_nothing() -> None:
    record = program_budgets.read_record()
    assert all(set(programs) <= set(record[chip]) for chip, programs in FAST.items())
    for chip, budgets in record.items():
        for program, budget in budgets.items():
            assert program in PROGRAMS
            date, _, reason = budget["renewed"].partition(": ")
            assert date.startswith("20") and reason and budget["versions"]["jax"], (chip, program)
            spilled = [name for name, size in budget["figures"].items() if name.startswith("spilled") and size]
            assert not spilled, (chip, program, spilled)


@pytest.mark.planted(4)
@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"temporaries, bytes": 103.0}, "temporaries, bytes: 100 recorded, 103 now (+3.0%)"),
        ({"spilled by k, bytes": 8.0}, "spilled by k, bytes: 0 recorded, 8 now (from zero)"),
        ({"kernel dense, runs": 2.0}, "kernel dense, runs: 2 has appeared"),
        ({"all-reduce over data, count": None}, "all-reduce over data, count: 7 recorded, and it has disappeared"),
    ],
)
def test_a_figure_that_grows_appears_or_disappears_is_named(changes: dict[str, float | None], line: str) -> None:
    now = {name: number for name, number in {**FIGURES, **changes}.items() if number is not None}
    assert list(figures_above(FIGURES, now)) == [line]
    within = {**FIGURES, "temporaries, bytes": 101.9, "FLOPs": 5e8}
    assert not list(figures_above(FIGURES, within))


def test_the_message_has_the_versions_the_reason_and_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "budgets.json"
    monkeypatch.setattr(program_budgets, "RECORD", file)
    budget: Budget = {"renewed": "2026-12-01: first", "versions": {"jax": "0.10.2"}, "figures": FIGURES}
    command = 'python -m benchmarks.budgets.program_budgets h100/bert --reason "WHY"'
    assert compare_with_record("h100", "bert", budget) == f"h100/bert: there is no record; if that is intended: {command}"
    file.write_text(json.dumps({"h100": {"bert": budget}}))
    assert compare_with_record("h100", "bert", budget) == ""
    now: Budget = {**budget, "versions": {"jax": "0.12.0"}, "figures": {**FIGURES, "FLOPs": 2e9}}
    assert compare_with_record("h100", "bert", now).splitlines() == [
        "h100/bert: FLOPs: 1,000,000,000 recorded, 2,000,000,000 now (+100.0%)",
        "the versions differ, which may be the cause: jax 0.10.2 recorded, 0.12.0 here",
        "recorded 2026-12-01: first",
        f"if that is intended: {command}",
    ]


def test_a_program_is_renewed_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also for simulated CPU devices, which need no other compiler."""
    file = tmp_path / "budgets.json"
    monkeypatch.setattr(program_budgets, "RECORD", file)
    monkeypatch.setitem(TARGETS, "cpu", "cpu:8")
    monkeypatch.setattr(target_devices, "prepare_target", lambda _: None)
    benchmark_steps.hurry_plans(monkeypatch)
    monkeypatch.setattr("sys.argv", ["program_budgets", "cpu/decoder"])
    assert program_budgets.compare_or_renew() == 1
    assert "there is no record" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["program_budgets", "cpu/decoder", "--reason", "a test"])
    assert program_budgets.compare_or_renew() == 0
    budget = json.loads(file.read_text())["cpu"]["decoder"]
    assert budget["renewed"].endswith(": a test") and budget["figures"]["all-reduce over data, count"] > 0
    monkeypatch.setattr("sys.argv", ["program_budgets", "cpu/decoder"])
    assert program_budgets.compare_or_renew() == 0


def test_an_unknown_chip_or_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["program_budgets", "h100/alberta"])
    with pytest.raises(BadInput, match=r"h100/alberta: choose a chip \(v5e, v5p, h100\), or CHIP/PROGRAM with one of decoder, "):
        program_budgets.compare_or_renew()
