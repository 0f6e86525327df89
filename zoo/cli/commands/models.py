"""The command `zoo models`."""

import dataclasses
from typing import Annotated

from zoo.cli.option_parser import parse


def models(args: list[str]) -> int:
    """Run `zoo models [NAME] [--json]`."""
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Models:
        """List the sizes of the zoo with exact parameter counts and the source of every number. No model is allocated."""

        name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = ""
        """Size to show in full, or family whose sizes to list; empty = list all sizes."""
        json: bool = False
        """Print JSON."""

    options = parse(Models, args=args, prog="zoo models")
    from zoo.cli import models_table

    print(models_table.render_models(options.name, as_json=options.json), end="")
    return 0
