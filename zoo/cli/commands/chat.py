"""The command `zoo chat`."""

import dataclasses
from typing import Annotated

from zoo.cli import early_checks
from zoo.cli.command_setup import prepare_model_command, require_one_process
from zoo.cli.commands.generate import OF_FOLDERS
from zoo.cli.option_parser import explicit_names, parse

LIMIT = 1024
"""Default of --limit: a reply ends by itself, unlike the continuation of a text."""


def chat(args: list[str]) -> int:
    """Run `zoo chat RUN|DIR|hub:ID [options]`."""
    import tyro

    from eval.commands.model_options import ModelOptions
    from eval.generation.generation_options import Decoding
    from zoo.generation.decoding_settings import Processors

    @dataclasses.dataclass(frozen=True)
    class Chat:
        """Talk to a model with a chat template; text appears as it is decoded.

        /help lists commands. Without a terminal, each line of standard input is a message. In --stop, \\n stands for a line end.
        """

        model: Annotated[ModelOptions, tyro.conf.arg(name="", prefix_name=False)]
        decoding: Annotated[Decoding, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(
            default_factory=lambda: Decoding(limit=LIMIT)
        )
        template: str = ""
        """Chat template: a file (chat_template.jinja), or builtin for "User: ...", "Assistant: ..."; empty = the model's own."""

    options = parse(Chat, args=args, prog="zoo chat", unlisted={Decoding: {"total"}, Processors: OF_FOLDERS})
    require_one_process(options.model.machine)
    if (code := prepare_model_command(options.model, ["chat", *args], {}, early_checks.check_generates)) is not None:
        return code
    from eval.commands.chat import run_chat

    return run_chat(options.model, options.decoding, template=options.template, explicit=explicit_names(args))
