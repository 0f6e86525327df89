"""The command `zoo embed`."""

import dataclasses
from pathlib import Path
from typing import Annotated

from zoo.cli import early_checks
from zoo.cli.command_setup import prepare_model_command
from zoo.cli.option_parser import parse
from zoo.configs._pooling import Pool
from zoo.file_access import check_output_file


def embed(args: list[str]) -> int:
    """Run `zoo embed RUN|DIR|hub:ID --text ... [options]`."""
    import tyro

    from eval.commands.model_options import ModelOptions
    from eval.inference.encoder_inputs import Texts

    @dataclasses.dataclass(frozen=True)
    class Embed:
        """Compute a float32 vector for each text from an encoder's last layer. Without --out, print the cosine of every pair."""

        model: Annotated[ModelOptions, tyro.conf.arg(name="", prefix_name=False)]
        texts: Annotated[Texts, tyro.conf.arg(name="", prefix_name=False)]
        pool: Pool = "mean"
        """mean: over all tokens, special tokens included, as in sentence-transformers; cls: the vector of the [CLS] token; last:
        that of the last token; max: the largest value of each dimension; weighted_mean: a mean with the weights 1, 2, ... in
        order; mean_sqrt: the sum divided by the square root of the number of tokens."""
        normalize: bool = False
        """Divide each vector by its length."""
        out: str = ""
        """File to write: .npy (an array), .safetensors (the array as "embeddings") or .jsonl (an object for each text)."""
        json: bool = False
        """Print one JSON object per text."""

    options = parse(Embed, args=args, prog="zoo embed")
    if options.out:
        check_output_file(Path(options.out), "out")
    files = {"--files": options.texts.files}
    if (code := prepare_model_command(options.model, ["embed", *args], files, early_checks.check_encoder)) is not None:
        return code
    from eval.commands import embed

    return embed.run_embed(
        options.model,
        options.texts,
        pool=options.pool,
        normalize=options.normalize,
        out=options.out,
        as_json=options.json,
    )
