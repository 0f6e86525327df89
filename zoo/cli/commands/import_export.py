"""The commands `zoo import` and `zoo export`."""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from zoo.cli import early_checks
from zoo.cli.command_setup import prepare_process, require_one_process
from zoo.cli.option_parser import parse
from zoo.cli.run_options import train_command
from zoo.errors import BadInput
from zoo.hf import hub_upload
from zoo.json_text import print_json

if TYPE_CHECKING:
    from train.weights.import_export import Exported


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
        json: bool = False
        """Print JSON."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    options = parse(Import, args=args, prog="zoo import")
    require_one_process(options.machine)
    early_checks.check_import(options.where, options.out, options.name, explain=options.explain)
    if (code := prepare_process(options.machine, ["import", *args])) is not None:
        return code
    from train.weights import import_export

    written = import_export.import_weights(
        options.where, out=options.out, name=options.name, explain=options.explain, mesh=options.mesh
    )
    return written.show(as_json=options.json)


def export(args: list[str]) -> int:
    """Run `zoo export RUN DIR [options]`."""
    import tyro

    from train.config.run_config import Machine, Mesh
    from train.exports.forms import Dtype
    from train.store import run_fetch

    @dataclasses.dataclass(frozen=True)
    class Export:
        """Write a run's weights as a folder that transformers loads: config.json, safetensors, tokenizer, a model card."""

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
        license: str = ""
        """Id of the licence of the weights, as the hub names it (apache-2.0, mit, ...), for the model card; empty = none."""
        push: str = ""
        """Upload the folder as a commit of this repository of the Hugging Face hub, ORG/NAME, which is created if there is none.
        This needs --license, and a token (hf auth login, or HF_TOKEN). Empty = nowhere."""
        private: bool = False
        """Make a repository that --push creates visible to its owner only."""
        stablehlo: bool = False
        """Write programs that run with JAX alone, and their weights, instead; see docs/programs.md."""
        onnx: bool = False
        """Write an ONNX file of an encoder instead."""
        gguf: bool = False
        """Write a file for llama.cpp instead."""
        dtype: Dtype = "float32"
        """Dtype of the weights of --stablehlo and --gguf, and of the arithmetic of the programs."""
        json: bool = False
        """Print JSON."""
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
    hub_upload.check_licence(options.license)
    if options.private and not options.push:
        raise BadInput("--private: it is of a repository; name one with --push, or leave the option out")
    form = early_checks.export_form(
        run, {"stablehlo": options.stablehlo, "onnx": options.onnx, "gguf": options.gguf}, options.dtype, adapter=options.adapter
    )
    if form is not None and (options.license or options.push):
        raise BadInput("--license and --push: they are for a folder with a model card; leave out the option for another form")
    if options.push:
        hub_upload.check_upload(options.push, options.license)
    if (code := prepare_process(options.machine, ["export", *args])) is not None:
        return code
    from train.weights import import_export

    if form is not None:
        from train.exports.forms import export_form

        which = {"step": options.step, "last": options.last, "width": options.average_width}
        written = export_form(form, run, options.target, **which, dtype=options.dtype, mesh=options.mesh)
        return written.show(as_json=options.json)
    name = options.push.rpartition("/")[2] or Path(options.target).resolve().name
    common: Any = {"step": options.step, "mesh": options.mesh, "describe": functools.partial(_describe, name, options.license)}
    if options.adapter:
        written = import_export.export_adapter(run, options.target, **common)
    else:
        which = {"last": options.last, "width": options.average_width}
        written = import_export.export_run(run, options.target, **which, shard=options.shard, **common)
    # Before an upload, which may fail.
    if not options.json:
        print(written.text)
    if not options.license:
        print(f"! {options.target}/README.md names no licence, which the hub asks for; --license ID gives one", file=sys.stderr)
    address = None
    if options.push:
        message = f"Upload {name} from transformer-zoo"
        address = hub_upload.upload_folder(Path(options.target), options.push, private=options.private, message=message)
        if not options.json:
            print(address)
    if options.json:
        print_json(written.record | {"address": address})
    return 0


def _describe(name: str, license_id: str, folder: Path, exported: "Exported") -> None:
    """Write the model card of an exported model into its folder."""
    from eval.model_card.write_card import write_card

    command = () if exported.run is None else train_command(exported.run)
    write_card(folder, exported, name=name, license_id=license_id, command=command)
