"""The command `zoo fill-mask`."""

import dataclasses
from typing import Annotated

from zoo.cli import early_checks
from zoo.cli.command_setup import prepare_model_command
from zoo.cli.option_parser import parse


def fill_mask(args: list[str]) -> int:
    """Run `zoo fill-mask RUN|DIR|hub:ID --text ... [options]`."""
    import tyro

    from eval.commands.model_options import ModelOptions
    from eval.inference.encoder_inputs import Texts

    @dataclasses.dataclass(frozen=True)
    class FillMask:
        """Show the most likely words for each mask of a text. A mask is written [MASK] or <mask>, for any model.

        The masks of one text are predicted independently: all of them stay masked.
        """

        model: Annotated[ModelOptions, tyro.conf.arg(name="", prefix_name=False)]
        texts: Annotated[Texts, tyro.conf.arg(name="", prefix_name=False)]
        top: int = 5
        """Number of words to show for each mask."""
        targets: tuple[str, ...] = ()
        """Show the probabilities of these words instead; each must be an entry of the vocabulary."""
        json: bool = False
        """Print one JSON object per mask."""

    options = parse(FillMask, args=args, prog="zoo fill-mask")
    files = {"--files": options.texts.files}
    if (code := prepare_model_command(options.model, ["fill-mask", *args], files, early_checks.check_encoder)) is not None:
        return code
    from eval.commands import fill_mask

    return fill_mask.run_fill_mask(
        options.model,
        options.texts,
        top=options.top,
        targets=options.targets,
        as_json=options.json,
    )
