"""The command `zoo generate`."""

import dataclasses
from typing import Annotated

from zoo.cli import early_checks
from zoo.cli.command_setup import prepare_model_command
from zoo.cli.option_parser import explicit_names, parse

OF_FOLDERS = {"bad_words", "min_length", "forced_first", "forced_end", "suppressed", "begin_suppressed", "renormalize"}
"""Settings of `Processors` that are no options, because they are ids, or mean what a folder of published weights means."""


def generate(args: list[str]) -> int:
    """Run `zoo generate RUN|DIR|hub:ID --prompt ... [options]`."""
    import tyro

    from eval.commands.model_options import ModelOptions
    from eval.generation.generation_options import Decoding, Prompts
    from zoo.generation.decoding_settings import Processors

    @dataclasses.dataclass(frozen=True)
    class Generate:
        """Continue prompts, or compare the likelihoods of the continuations in --choices.

        A single text is printed while it is generated. In --template and --stop, \\n stands for a line end and \\t for a tab.
        """

        model: Annotated[ModelOptions, tyro.conf.arg(name="", prefix_name=False)]
        prompts: Annotated[Prompts, tyro.conf.arg(name="", prefix_name=False)]
        decoding: Annotated[Decoding, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Decoding)
        json: bool = False
        """Print one JSON object per line."""

    options = parse(Generate, args=args, prog="zoo generate", unlisted={Decoding: {"total"}, Processors: OF_FOLDERS})
    files = {"--prompts-file": (options.prompts.prompts_file,), "--examples": (options.prompts.examples,)}
    if (code := prepare_model_command(options.model, ["generate", *args], files, early_checks.check_generates)) is not None:
        return code
    from eval.commands import generate as complete

    return complete.run_generate(
        options.model,
        options.prompts,
        options.decoding,
        as_json=options.json,
        explicit=explicit_names(args),
    )
