"""The command `zoo serve`."""

import dataclasses
from typing import Annotated

from zoo.cli.command_setup import prepare_model_command, require_one_process
from zoo.cli.commands.chat import LIMIT
from zoo.cli.commands.generate import OF_FOLDERS
from zoo.cli.option_parser import explicit_names, parse
from zoo.errors import require


def serve(args: list[str]) -> int:
    """Run `zoo serve RUN|DIR|hub:ID [options]`."""
    import tyro

    from eval.commands.model_options import ModelOptions
    from eval.generation.generation_options import Decoding
    from zoo.generation.decoding_settings import Processors

    @dataclasses.dataclass(frozen=True)
    class Serve:
        """Answer HTTP requests in the form of OpenAI's interface, one at a time, with a page to try the model.

        Settings of sampling are those of requests that name none; without --seed such a request gets a random one.
        """

        model: Annotated[ModelOptions, tyro.conf.arg(name="", prefix_name=False)]
        decoding: Annotated[Decoding, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(
            default_factory=lambda: Decoding(limit=LIMIT)
        )
        template: str = ""
        """Chat template: a file (chat_template.jinja), or builtin for "User: ...", "Assistant: ..."; empty = the model's own."""
        host: str = "127.0.0.1"
        """Address to listen on. Requests are not authenticated: with another than a loopback address, everyone who reaches this
        machine can use the model."""
        port: int = 8000
        """Port to listen on; 0 = a free one, which is printed."""

    options = parse(Serve, args=args, prog="zoo serve", unlisted={Decoding: {"total"}, Processors: OF_FOLDERS})
    require_one_process(options.model.machine)
    require(0 <= options.port < 1 << 16, "port", options.port, "choose 1 to 65,535, or 0 for a free one")
    if (code := prepare_model_command(options.model, ["serve", *args], {})) is not None:
        return code
    from eval.commands.serve import run_serve
    from eval.serving.http_server import ModelServer

    with ModelServer(options.host, options.port) as server:
        explicit = explicit_names(args)
        return run_serve(options.model, options.decoding, server=server, template=options.template, explicit=explicit)
