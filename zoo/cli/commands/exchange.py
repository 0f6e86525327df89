"""`zoo import` and `zoo export`."""

import dataclasses
from typing import Annotated

from zoo.cli import early_checks
from zoo.cli.machine import alone, on_machine
from zoo.cli.options import parse


def import_weights(args: list[str]) -> int:
    """`zoo import DIR|HUB_ID [options]`."""
    import tyro

    from train.config.run_config import Machine, Mesh

    @dataclasses.dataclass(frozen=True)
    class Import:
        """Check published weights (safetensors and JSON only) to the last tensor, and keep them exactly, under models/."""

        where: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR|HUB_ID")]
        """Folder with config.json, safetensors and tokenizer, or a hub id: from the local cache, else fetched."""
        out: str = "models"
        """Folder that holds the imported models."""
        name: str = ""
        """Name there; none: that of the folder or of the hub."""
        explain: bool = False
        """Only print what becomes of each tensor."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    asked = parse(Import, args=args, prog="zoo import")
    alone(asked.machine)
    if (code := on_machine(asked.machine, ["import", *args])) is not None:
        return code
    from train.weights import import_export

    return import_export.import_weights(asked.where, out=asked.out, name=asked.name, explain=asked.explain, mesh=asked.mesh)


def export(args: list[str]) -> int:
    """`zoo export RUN DIR [options]`."""
    import tyro

    from train.config.run_config import Machine, Mesh

    @dataclasses.dataclass(frozen=True)
    class Export:
        """Write a run's weights as a folder that transformers loads: config.json, safetensors, tokenizer."""

        run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
        """Folder of a run."""
        target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
        """Folder to make."""
        step: int | None = None
        """Checkpoint; None = the best one of a run that keeps it, else the newest; -1 = the newest."""
        last: int = 0
        """Average the parameters of so many of the newest checkpoints, as the Transformer's paper does; 0 = take one as it is."""
        shard: float = 5.0
        """Largest safetensors file, in GB."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    asked = parse(Export, args=args, prog="zoo export")
    alone(asked.machine)
    early_checks.check_export(asked.last, asked.step, asked.shard)
    early_checks.check_source(asked.run, asked.step)
    early_checks.check_new(asked.target)
    if (code := on_machine(asked.machine, ["export", *args])) is not None:
        return code
    from train.weights import import_export

    return import_export.export(asked.run, asked.target, step=asked.step, last=asked.last, shard=asked.shard, mesh=asked.mesh)
