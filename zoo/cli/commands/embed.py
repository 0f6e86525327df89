"""The command `zoo embed`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from zoo.cli import early_checks
from zoo.cli.command_setup import names_option, prepare_model_command, require_one_process
from zoo.cli.option_parser import parse
from zoo.errors import require
from zoo.file_access import check_output_file


def embed(args: list[str]) -> int:
    """Run `zoo embed RUN|DIR|hub:ID --text ... [options]`."""
    import tyro

    from eval.commands.model_options import ModelOptions
    from eval.inference.encoder_inputs import Texts, Vectors

    @dataclasses.dataclass(frozen=True)
    class Embed:
        """Compute a float32 vector for each text from an encoder's last layer. Without --out, print the cosine of every pair."""

        model: Annotated[ModelOptions, tyro.conf.arg(name="", prefix_name=False)]
        texts: Annotated[Texts, tyro.conf.arg(name="", prefix_name=False)]
        vectors: Annotated[Vectors, tyro.conf.arg(name="", prefix_name=False)] = Vectors()
        normalize: bool = False
        """Divide each vector by its length. Without either option: if the folder of the model has a module for it (Normalize)."""
        out: str = ""
        """File to write: .npy (an array), .safetensors (the array as "embeddings") or .jsonl (an object for each text)."""
        index: str = ""
        """New folder of an index that `zoo search` reads. --files are then documents: .jsonl with _id, text and perhaps title, or
        .txt. Vectors are compared as the folder of the model says, with its prompt for documents."""
        json: bool = False
        """Print one JSON object per text."""

    options = parse(Embed, args=args, prog="zoo embed", unlisted={Vectors: ("normalize",)})
    normalize = options.normalize if options.normalize or names_option(args, "--no-normalize") else None
    if options.out:
        check_output_file(Path(options.out), "out")
    if options.index:
        _check_index(options, normalize)
    files = {"--files": options.texts.files}
    if (code := prepare_model_command(options.model, ["embed", *args], files, early_checks.check_encoder)) is not None:
        return code
    from eval.commands import embed

    if options.index:
        return embed.run_index(options.model, options.texts, options=options.vectors, index=options.index)
    return embed.run_embed(
        options.model,
        options.texts,
        options=dataclasses.replace(options.vectors, normalize=normalize),
        out=options.out,
        as_json=options.json,
    )


def _check_index(options: Any, normalize: bool | None) -> None:
    """Refuse options that contradict --index, and a folder that cannot be created."""
    require_one_process(options.model.machine)
    require(not options.out, "out", options.out, "--index writes the vectors too; give only one of the two")
    require(not options.json, "json", options.json, "--index prints no vectors; remove it")
    require(
        normalize is None, "normalize", normalize, "has no effect on --index, which the model's similarity decides; remove it"
    )
    require(bool(options.texts.files), "index", options.index, "name the documents with --files")
    early_checks.check_new(options.index)
