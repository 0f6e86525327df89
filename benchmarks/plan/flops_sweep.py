"""Compares the FLOPs that plans count with those that the models need: `python -m benchmarks.plan.flops_sweep FILE CASE ...`.

A case is SIZE,TARGET,ATTENTION,MESH,REMAT, for example `gpt2,v5e:2x4,splash,fsdp=4 x data=2,none`. The file is a table of all
cases; those that it already has are not compiled again. A case is compiled with few layers, which count as all would, and with
two rows for each device.
"""

import dataclasses
import sys
from pathlib import Path

from benchmarks.plan import find_run, target_devices
from train.config.run_config import Mesh, Run
from zoo.errors import BadInput, require
from zoo.file_access import read_regular_text

HEAD = (
    *("size", "layers", "target", "attention", "mesh", "remat"),
    *("model needs", "computed twice", "optimizer", "traced", "compiled", "compiled / expected"),
)
"""Columns: GFLOP of all devices; `expected` is what the model needs, what is computed twice, and the optimizer's products."""


def case_run(case: str) -> tuple[Run, str]:
    """Return the run and the target of a case.

    Raises:
        BadInput: a case that is not understood, or a size that does not exist.
    """
    parts = [part.strip() for part in case.split(",")]
    require(len(parts) == 5, "case", case, "write SIZE,TARGET,ATTENTION,MESH,REMAT")
    size, target, attention, mesh, remat = parts
    run = find_run.run_of_size(size)
    pattern = getattr(run.model, "pattern", (None,))
    count = len(pattern) if len(pattern) > 1 else 2
    layers = {name: count for name in ("layers", "decoder_layers") if hasattr(run.model, name)}
    compute = dataclasses.replace(run.model.compute, attention=attention, remat=remat)  # pyright: ignore[reportArgumentType]
    sizes = {axis.strip(): int(number) for axis, number in (part.split("=") for part in mesh.split(" x "))}
    devices = len(target_devices.devices(target_devices.parse_target(target)))
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
    from benchmarks.hlo import hlo_parser
    from benchmarks.plan import check_flops, compile_program, flops_and_bytes

    run, name = case_run(case)
    size, target, attention, mesh, remat = (part.strip() for part in case.split(","))
    program = compile_program.compile_run(run, "train", target_devices.parse_target(name))
    devices, traced = program.mesh.size, program.traced
    module = hlo_parser.parse_program(program.text)
    work = flops_and_bytes.work(
        module, program.calls, devices, products=program.products, on_chip=program.target.platform == "tpu"
    )
    check_flops.check_flops(program, work, size)
    needed, counted = check_flops.needed_flops(program), work.flops * devices
    expected = needed + traced.recomputed + traced.optimizer
    amounts = (needed, traced.recomputed, traced.optimizer, traced.flops, counted)
    numbers = (f"{amount / 1e9:,.1f}" for amount in amounts)
    return size, str(run.model.layers), target, attention, mesh, remat, *numbers, f"{counted / expected:.3f}"


def sweep(file: Path, cases: list[str]) -> int:
    """Count the cases that the file does not have, and write it after each; return the exit code.

    Raises:
        BadInput: a case that is not understood.
    """
    lines = read_regular_text(file).splitlines() if file.exists() else ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    done = {tuple(cell.strip() for cell in line.strip("|").split("|")[:1]) + _key(line) for line in lines[2:]}
    failed = 0
    for case in cases:
        parts = tuple(part.strip() for part in case.split(","))
        if parts in done:
            continue
        try:
            row = count_case(case)
        except BadInput as error:
            failed += 1
            print(f"! {case}: {error}", file=sys.stderr, flush=True)
            continue
        lines.append("| " + " | ".join(row) + " |")
        print(lines[-1], flush=True)
        file.write_text("\n".join(lines) + "\n")
    return int(failed > 0)


def _key(line: str) -> tuple[str, ...]:
    """Return the target, attention, mesh and remat of a row."""
    return tuple(cell.strip() for cell in line.strip("|").split("|")[2:6])


if __name__ == "__main__":
    first = target_devices.parse_target(sys.argv[2].split(",")[1].strip())
    target_devices.prepare(first)
    raise SystemExit(sweep(Path(sys.argv[1]), sys.argv[2:]))
