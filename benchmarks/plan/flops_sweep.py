"""Compares the FLOPs that plans count with those that models need: `python -m benchmarks.plan.flops_sweep FILE [CASE ...]`.

A case is SIZE,TARGET,ATTENTION,MESH,REMAT, for example `gpt2,v5e:2x4,splash,fsdp=4 x data=2,none`; without any, all sizes are
compiled with all implementations of attention for all of `TARGETS` and `MESHES`, which takes days. FILE has a table of the cases;
those that it already has are not compiled again. A case has two layers, or as many as repeat, and two rows for each device.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.plan import find_run, target_devices
from train.config.run_config import Mesh, Run
from train.run.run_dir import write_text
from zoo import configs
from zoo.attention import attention
from zoo.errors import BadInput
from zoo.file_access import read_regular_text

HEAD = (
    *("size", "layers", "target", "attention", "mesh", "remat"),
    *("model needs", "computed twice", "optimizer", "traced", "compiled", "compiled / expected"),
)
"""Columns: GFLOP of all devices; `expected` is what the model needs, what is computed twice, and the optimizer's products."""


TARGETS = ("v5e:2x4", "v6e:2x4", "h100:8")
MESHES = ("data=8", "fsdp=8", "fsdp=2 x data=4", "fsdp=4 x tensor=2", "tensor=2 x data=4")
"""Meshes of eight devices."""


def case_run(case: str) -> tuple[Run, str]:
    """Return the run and the target of a case.

    Raises:
        BadInput: a case that is not understood, or a size that does not exist.
    """
    parts = [part.strip() for part in case.split(",")]
    if len(parts) != 5:
        raise BadInput(f"case {case}: it has {len(parts)} parts; write SIZE,TARGET,ATTENTION,MESH,REMAT")
    size, target, kernel, mesh, remat = parts
    run = find_run.run_of_size(size)
    pattern = getattr(run.model, "pattern", (None,))
    count = len(pattern) if len(pattern) > 1 else 2
    layers = {name: count for name in ("layers", "decoder_layers") if hasattr(run.model, name)}
    compute = dataclasses.replace(run.model.compute, attention=kernel, remat=remat)  # pyright: ignore[reportArgumentType]
    sizes = {axis.strip(): int(number) for axis, number in (part.split("=") for part in mesh.split(" x "))}
    devices = len(target_devices.devices_of_target(target_devices.parse_target(target)))
    return dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, **layers, compute=compute),
        mesh=Mesh(**sizes),
        accumulate=1,
        data=dataclasses.replace(run.data, batch=2 * devices),
    ), target


def count_case(case: str) -> tuple[str, ...]:
    """Compile a case and return its row of the table.

    Raises:
        BadInput: the case cannot be compiled, or its FLOPs cannot be counted.
    """
    from benchmarks.flops import flops_and_bytes
    from benchmarks.hlo import hlo_parser
    from benchmarks.plan import check_flops, compile_program

    run, name = case_run(case)
    size, target, kernel, mesh, remat = (part.strip() for part in case.split(","))
    program = compile_program.compile_run(run, "train", target_devices.parse_target(name))
    devices, traced = program.mesh.size, program.traced
    module = hlo_parser.parse_program(program.text)
    work = flops_and_bytes.device_work(
        module, program.calls, devices, products=program.products, on_chip=program.target.platform == "tpu"
    )
    check_flops.check_flops(program, work, size)
    needed, counted = check_flops.needed_flops(program), work.flops * devices
    expected = needed + traced.recomputed + traced.optimizer
    amounts = (needed, traced.recomputed, traced.optimizer, traced.flops, counted)
    numbers = (f"{amount / 1e9:,.1f}" for amount in amounts)
    return size, str(run.model.layers), target, kernel, mesh, remat, *numbers, f"{counted / expected:.3f}"


def all_cases() -> Iterator[str]:
    """Yield the cases of a complete sweep; some are of implementations that do not support a model."""
    for target in TARGETS:
        platform = target_devices.parse_target(target).platform
        names = [name for name, row in attention.IMPLEMENTATIONS.items() if platform in row.platforms]
        sizes = (size for family in configs.families() for size in configs.family(family).SIZES)
        for size, name, mesh, remat in itertools.product(sizes, names, MESHES, ("none", "full")):
            yield f"{size},{target},{name},{mesh},{remat}"


def sweep(file: Path, cases: Iterable[str]) -> int:
    """Count the cases that the file does not have, and write it after each; return the exit code.

    A case that cannot be compiled, or whose FLOPs cannot be counted, is a row with the reason.
    """
    lines = read_regular_text(file).splitlines() if file.exists() else [_line(HEAD), "|" + "---|" * len(HEAD)]
    done = {_cells(line)[:1] + _cells(line)[2:6] for line in lines[2:]}
    failed = False
    for case in cases:
        parts = tuple(part.strip() for part in case.split(","))
        if parts in done:
            continue
        try:
            row = count_case(case)
        except BadInput as error:
            row, failed = (*parts[:1], "", *parts[1:], *[""] * 5, str(error).replace("|", "/")), True
        lines.append(_line(row))
        print(lines[-1], flush=True)
        write_text(file, "\n".join(lines) + "\n")
    return int(failed)


def _line(row: Iterable[str]) -> str:
    return f"| {' | '.join(row)} |"


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip("|").split("|"))


if __name__ == "__main__":
    wanted_cases = sys.argv[2:] or list(all_cases())
    target_devices.prepare_target(target_devices.parse_target(wanted_cases[0].split(",")[1].strip()))
    raise SystemExit(sweep(Path(sys.argv[1]), wanted_cases))
