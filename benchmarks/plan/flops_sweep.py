"""Compares the FLOPs that plans count with those that models need: `python -m benchmarks.plan.flops_sweep FILE [CASE ...]`.

A case is SIZE,TARGET,ATTENTION,MESH,REMAT, for example `gpt2,v5e:2x4,splash,fsdp=4 x data=2,none`. Without any, every size is
compiled once for each platform whose compiler is installed, with implementations of attention, meshes and targets that alternate
from size to size, which takes an hour or two; sizes that differ only in their depth count as one. FILE has a table of the cases;
those that it already has are not compiled again. A case has twice as many layers as repeat, in a loop, and two rows for each
device.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.plan import find_run, target_devices
from train.config.run_config import Mesh, Run
from train.run.run_dir import write_text
from zoo import configs
from zoo.attention import attention
from zoo.errors import BadInput
from zoo.file_access import read_regular_text

if TYPE_CHECKING:
    from benchmarks.plan.compile_program import Program

HEAD = (
    *("size", "layers", "target", "attention", "mesh", "remat"),
    *("model needs", "computed twice", "optimizer", "traced", "compiled", "compiled / expected"),
)
"""Columns: GFLOP of all devices; `expected` is what the model needs, what is computed twice, and the optimizer's products."""


TARGETS = {"tpu": ("v5e:2x4", "v6e:2x4", "v5p:2x2x2"), "gpu": ("h100:8", "a100:8")}
MESHES = ("data=8", "fsdp=8", "fsdp=2 x data=4", "fsdp=4 x tensor=2", "tensor=2 x data=4")
"""Meshes of eight devices."""
EXPERT_MESHES = ("fsdp=4 x expert=2", "expert=2 x tensor=2 x data=2")
"""Meshes of models with experts."""


def case_run(case: str) -> tuple[Run, str]:
    """Return the run and the target of a case.

    Raises:
        BadInput: a case that is not understood, or a size that does not exist.
    """
    parts = [part.strip() for part in case.split(",")]
    if len(parts) != 5:
        raise BadInput(f"case {case}: it has {len(parts)} parts; write SIZE,TARGET,ATTENTION,MESH,REMAT")
    size, target, kernel, mesh, remat = parts
    run = _shallow_run(size, kernel, remat)
    sizes = {axis.strip(): int(number) for axis, number in (part.split("=") for part in mesh.split(" x "))}
    devices = len(target_devices.devices_of_target(target_devices.parse_target(target)))
    data = dataclasses.replace(run.data, batch=2 * devices, ramp=())
    return dataclasses.replace(run, mesh=Mesh(**sizes), accumulate=1, data=data), target


def _shallow_run(size: str, kernel: str, remat: str) -> Run:
    """Return the run of a size with few layers."""
    run = find_run.run_of_size(size)
    # With another number of layers, the patterns of ModernBERT and Ettin do not repeat: see `pattern_after_first`.
    period = len(getattr(run.model, "pattern", (None,)))
    for count in (2 * period, 2 * period + 1):
        layers = {name: count for name in ("layers", "decoder_layers") if hasattr(run.model, name)}
        if len(getattr(dataclasses.replace(run.model, **layers), "pattern", (None,))) == period:
            break
    compute = dataclasses.replace(run.model.compute, attention=kernel, remat=remat)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(run, model=dataclasses.replace(run.model, **layers, compute=compute))


def compile_case(case: str) -> "Program":
    """Compile a case.

    Raises:
        BadInput: it cannot be compiled, or is too large for its devices.
    """
    from benchmarks.plan import compile_program

    run, target = case_run(case)
    program = compile_program.compile_run(run, "train", target_devices.parse_target(target))
    if not program.text:
        raise BadInput(f"case {case}: it needs {program.total / 2**30:.1f} GiB, more than a device has; choose another target")
    return program


def count_program(program: "Program", case: tuple[str, ...]) -> tuple[str, ...]:
    """Return the row of the table of a compiled case.

    Raises:
        BadInput: its FLOPs cannot be counted.
    """
    from benchmarks.flops import flops_and_bytes
    from benchmarks.hlo import hlo_parser
    from benchmarks.plan import check_flops

    devices, traced = program.mesh.size, program.traced
    module = hlo_parser.parse_program(program.text)
    work = flops_and_bytes.device_work(
        module, program.calls, devices, products=program.products, on_chip=program.target.platform == "tpu"
    )
    check_flops.check_flops(program, work, case[0])
    needed, counted = check_flops.needed_flops(program), work.flops * devices
    expected = needed + traced.recomputed + traced.optimizer
    amounts = (needed, traced.recomputed, traced.optimizer, traced.flops, counted)
    numbers = (f"{amount / 1e9:,.1f}" for amount in amounts)
    return case[0], str(program.run.model.layers), *case[1:], *numbers, f"{counted / expected:.3f}"


def rotated_cases() -> Iterator[tuple[str, ...]]:
    """Yield alternative cases of each size for each platform that can be compiled for; the first that compiles counts.

    The second pass over the sizes has those platforms that the first one has not, in reverse order, so that two processes, for a
    TPU and a GPU, soon have each size once.
    """
    sizes = list(distinct_sizes())
    both: tuple[target_devices.Platform, ...] = ("tpu", "gpu")
    for turn, platforms in enumerate((both, both[::-1])):
        for place, size in list(enumerate(sizes))[:: 1 - 2 * turn]:
            platform = platforms[place % 2]
            if target_devices.unavailable_reason(platform) is None:
                yield size_cases(size, platform, place // 2)


def distinct_sizes() -> dict[str, list[str]]:
    """Return the sizes whose cases differ, with those that have the same ones: sizes that differ only in their depth."""
    names: dict[Run, list[str]] = {}
    for family in configs.families():
        for size in configs.family(family).SIZES:
            run = _shallow_run(size, "auto", "none")
            names.setdefault(dataclasses.replace(run, recipe=""), []).append(size)
    return {first: others for first, *others in names.values()}


def size_cases(size: str, platform: target_devices.Platform, turn: int) -> tuple[str, ...]:
    """Return the cases of a size in the order in which they are tried; `turn` chooses the first.

    Implementations come before meshes, because more of them do not support a model. The last slice of `TARGETS` for a TPU has the
    most memory, and is tried last.
    """
    targets = TARGETS[platform]
    names = [name for name, row in attention.IMPLEMENTATIONS.items() if platform in row.platforms and not row.requires]
    has_experts = hasattr(configs.find_size(size)[1].config, "experts")
    meshes = [*_rotated(EXPERT_MESHES if has_experts else (), turn), *_rotated(MESHES, turn + turn // len(names))]
    remat = ("none", "full")[turn // len(targets) % 2]
    first = targets[turn % len(targets)]
    choices = itertools.product(dict.fromkeys((first, targets[-1])), meshes, _rotated(names, turn))
    return tuple(f"{size},{target},{name},{mesh},{remat}" for target, mesh, name in choices)


def _rotated(values: Sequence[str], turn: int) -> list[str]:
    first = turn % len(values) if values else 0
    return [*values[first:], *values[:first]]


def sweep(file: Path, cases: Iterable[tuple[str, ...]]) -> int:
    """Count the cases that the file does not have, and write it after each; return the exit code.

    Args:
        cases: alternatives for a row: the first that can be compiled counts. If none can, or if FLOPs cannot be counted, the row
            has the reason.
    """
    lines = read_regular_text(file).splitlines() if file.exists() else [_line(HEAD), "|" + "---|" * len(HEAD)]
    done = {_cells(line)[:1] + _cells(line)[2:6] for line in lines[2:]}
    failed = False
    for alternatives in cases:
        parts = [tuple(part.strip() for part in case.split(",")) for case in alternatives]
        if done & set(parts):
            continue
        row, reason = parts[0], ""
        for case, row in zip(alternatives, parts, strict=True):
            try:
                program = compile_case(case)
            except BadInput as error:
                reason = reason or str(error)
                continue
            try:
                row, reason = count_program(program, row), ""
            except BadInput as error:
                reason = str(error)
            break
        if reason:
            row, failed = (*row[:1], "", *row[1:], *[""] * 5, reason.replace("|", "/")), True
        lines.append(_line(row))
        print(lines[-1], flush=True)
        write_text(file, "\n".join(lines) + "\n")
    return int(failed)


def _line(row: Iterable[str]) -> str:
    return f"| {' | '.join(row)} |"


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip("|").split("|"))


if __name__ == "__main__":
    chosen = [(case,) for case in sys.argv[2:]] or list(rotated_cases())
    target_devices.prepare_target(target_devices.parse_target(chosen[0][0].split(",")[1].strip()))
    raise SystemExit(sweep(Path(sys.argv[1]), chosen))
