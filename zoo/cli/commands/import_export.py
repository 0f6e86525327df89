"""The commands `zoo import` and `zoo export`."""

import dataclasses
from typing import Annotated

from zoo.cli import early_checks
from zoo.cli.command_setup import prepare_process, require_one_process
from zoo.cli.option_parser import parse


def import_weights(args: list[str]) -> int:
    """Run `zoo import DIR|HUB_ID [options]`."""
    import tyro

    from train.config.run_config import Machine, Mesh

    @dataclasses.dataclass(frozen=True)
    class Import:
        """Check every tensor of published weights (safetensors, or msgpack of Flax), and store them unchanged under models/."""

        where: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR|HUB_ID")]
        """Folder with config.json, weights and tokenizer, or a hub id (from the local cache, else downloaded)."""
        out: str = "models"
        """Folder that holds the imported models."""
        name: str = ""
        """Name of the imported model; empty = the name of the folder or on the hub."""
        explain: bool = False
        """Only print where each tensor goes."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    options = parse(Import, args=args, prog="zoo import")
    require_one_process(options.machine)
    early_checks.check_import(options.where, options.out, options.name, explain=options.explain)
    if (code := prepare_process(options.machine, ["import", *args])) is not None:
        return code
    from train.weights import import_export

    return import_export.import_weights(
        options.where, out=options.out, name=options.name, explain=options.explain, mesh=options.mesh
    )


def export(args: list[str]) -> int:
    """Run `zoo export RUN DIR [options]`."""
    import tyro

    from train.config.run_config import Machine, Mesh
    from train.store import run_fetch

    @dataclasses.dataclass(frozen=True)
    class Export:
        """Write a run's weights as a folder that transformers loads: config.json, safetensors, tokenizer."""

        run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
        """Folder of a run."""
        target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
        """Folder to create."""
        step: int | None = None
        """Step of the checkpoint to use. None = the best checkpoint if the run keeps one, else the newest; -1 = the newest."""
        last: int = 0
        """Average the parameters of this many newest checkpoints, as in the Transformer paper; 0 = export one checkpoint."""
        average_width: float = 0.0
        """Export an average of this width at the newest step, made from the kept checkpoints of a run with --optim.average-widths
        (Karras et al. 2024); 0 = the average of the run's first width."""
        adapter: bool = False
        """Write only the adapters of a run with --lora.rank, in peft's format; otherwise they are merged into the weights."""
        shard: float = 5.0
        """Size of the largest safetensors file, in GB."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    options = parse(Export, args=args, prog="zoo export")
    require_one_process(options.machine)
    run = run_fetch.local_name(options.run, options.step, all_steps=options.last > 0 or options.average_width > 0)
    early_checks.check_source(run, options.step)
    early_checks.check_export(run, options.last, options.step, options.shard, options.adapter)
    early_checks.check_average_width(options.average_width, alone=options.step is None and not (options.last or options.adapter))
    early_checks.check_new(options.target)
    early_checks.check_weights(run)
    if (code := prepare_process(options.machine, ["export", *args])) is not None:
        return code
    from train.weights import import_export

    if options.adapter:
        return import_export.export_adapter(run, options.target, step=options.step, mesh=options.mesh)
    which = {"step": options.step, "last": options.last, "width": options.average_width}
    return import_export.export_run(run, options.target, **which, shard=options.shard, mesh=options.mesh)
