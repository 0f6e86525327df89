"""Compares compiled steps with their recorded figures: `python -m benchmarks.budgets.program_budgets CHIP[/PROGRAM] ...`.

With `--reason TEXT` the record of these programs is renewed, and the reason is stored beside the figures. Nothing runs, and no
device is needed.
"""

import argparse
import collections
import datetime
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict

from benchmarks.attention import gpu_kernels
from benchmarks.budgets.step_programs import PROGRAMS, TARGETS, step_program
from benchmarks.micro import script_setup
from benchmarks.plan import target_devices
from train.config.run_config import Run
from train.run.run_dir import write_text
from zoo.errors import BadInput
from zoo.file_access import read_regular_text

RECORD = Path(__file__).with_name("program_budgets.json")
"""File with a `Budget` for each chip and program."""
GROWTH = 0.02
"""Part by which a figure may grow."""
COMMAND = "python -m benchmarks.budgets.program_budgets"
ASSEMBLERS = ("nvidia-cuda-nvcc", "nvidia-cudnn-cu13")
"""Packages that compile kernels for GPUs, beside those of JAX."""


class Budget(TypedDict):
    """Recorded figures of a compiled program."""

    renewed: str
    """Date and reason."""
    versions: dict[str, str]
    """Versions of the compilers by package."""
    figures: dict[str, float]
    """Name of a figure -> its number, of a device and a step."""


def compile_budget(chip: str, run: Run, reason: str) -> Budget:
    """Compile a run for a chip and return its figures; call `target_devices.prepare_target` first.

    Raises:
        BadInput: the compiler or the assembler is not installed, or refuses the program.
    """
    from benchmarks.plan import compile_program, plan_record

    target = target_devices.parse_target(TARGETS[chip])
    spills: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        options = {name: value.format(folder=folder) for name, value in gpu_kernels.OPTIONS.items()}
        options = options if target.platform == "gpu" else None
        plan = plan_record.make_plan(compile_program.compile_run(run, "train", target, options), run.recipe)
        if options:
            for kernel in gpu_kernels.take_named_kernels(Path(folder), plan.kernel_runs, chip):
                # Kernels of XLA's own have numbers in their names, which any change of the program changes.
                if kernel.name in plan.kernel_runs:
                    spills[f"spilled by {kernel.name}, bytes"] += kernel.spilled
    assert plan.products is not None and plan.kernels is not None, "the program fits"
    figures = {
        "FLOPs": plan.products + plan.kernels,
        "temporaries, bytes": float(plan.temporaries),
        "arguments, bytes": float(sum(plan.memory.values())),
    }
    for row in plan.collectives:
        figures[f"{row.kind} over {row.axes}, count"] = row.count
        figures[f"{row.kind} over {row.axes}, bytes"] = row.bytes
    figures |= {f"kernel {name}, runs": times for name, times in plan.kernel_runs.items()} | dict(spills)
    versions = plan.versions | (plan_record.installed_versions(ASSEMBLERS) if options else {})
    date = datetime.datetime.now(datetime.UTC).date()
    return {"renewed": f"{date}: {reason}", "versions": versions, "figures": dict(sorted(figures.items()))}


def read_record() -> dict[str, dict[str, Budget]]:
    """Return the recorded budgets by chip and program."""
    return json.loads(read_regular_text(RECORD)) if RECORD.exists() else {}


def compare_with_record(chip: str, program: str, budget: Budget) -> str:
    """Return what exceeds the recorded budget of a program, a figure on each line, and what to do; "" if nothing does."""
    case = f"{chip}/{program}"
    renew = f'if that is intended: {COMMAND} {case} --reason "WHY"'
    before = read_record().get(chip, {}).get(program)
    if before is None:
        return f"{case}: there is no record; {renew}"
    lines = list(figures_above(before["figures"], budget["figures"]))
    if not lines:
        return ""
    versions = [
        f"{name} {old} recorded, {budget['versions'].get(name, 'none')} here"
        for name, old in before["versions"].items()
        if budget["versions"].get(name) != old
    ]
    others = [f"the versions differ, which may be the cause: {'; '.join(versions)}"] if versions else []
    return "\n".join([*(f"{case}: {line}" for line in lines), *others, f"recorded {before['renewed']}", renew])


def figures_above(before: Mapping[str, float], now: Mapping[str, float]) -> Iterator[str]:
    """Yield the figures that have grown by more than `GROWTH`, and those that only one side has."""
    for name in sorted({*before, *now}):
        if name not in now:
            yield f"{name}: {before[name]:,.0f} recorded, and it has disappeared"
        elif name not in before:
            yield f"{name}: {now[name]:,.0f} has appeared"
        elif now[name] > (1 + GROWTH) * before[name]:
            percent = f"{now[name] / before[name] - 1:+.1%}" if before[name] else "from zero"
            yield f"{name}: {before[name]:,.0f} recorded, {now[name]:,.0f} now ({percent})"


def compare_or_renew() -> int:
    """Run the command: return 1 if a budget is exceeded.

    Raises:
        BadInput: there is no such chip or program, or its compiler is not installed.
    """
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument("cases", nargs="+", metavar="CHIP[/PROGRAM]", help=f"chips: {', '.join(TARGETS)}")
    parser.add_argument("--reason", default="", help="renew the record; why the figures changed")
    options = parser.parse_args()
    cases = [case for text in options.cases for case in _cases(text)]
    target_devices.prepare_target(target_devices.parse_target(TARGETS[cases[0][0]]))
    is_exceeded = False
    for chip, program in cases:
        budget = compile_budget(chip, step_program(program), options.reason)
        if options.reason:
            record = read_record()
            record.setdefault(chip, {})[program] = budget
            write_text(RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
            print(f"{chip}/{program}: recorded", flush=True)
            continue
        message = compare_with_record(chip, program, budget)
        is_exceeded |= bool(message)
        print(message or f"{chip}/{program}: within its budget", flush=True)
    return int(is_exceeded)


def _cases(text: str) -> list[tuple[str, str]]:
    """Return the chips and programs of an argument."""
    chip, _, program = text.partition("/")
    if chip not in TARGETS or (program and program not in PROGRAMS):
        raise BadInput(f"{text}: choose a chip ({', '.join(TARGETS)}), or CHIP/PROGRAM with one of {', '.join(PROGRAMS)}")
    return [(chip, program)] if program else [(chip, name) for name in PROGRAMS]


if __name__ == "__main__":
    sys.exit(script_setup.run_measurement(compare_or_renew))
