"""The command `zoo recipes`."""

import dataclasses
from typing import Annotated

from zoo.cli.option_parser import parse


def recipes(args: list[str]) -> int:
    """Run `zoo recipes [NAME] [--json]`."""
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Recipes:
        """List the recipes whose numbers have a source, or show one: each number is published, assumed or unknown."""

        name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = ""
        """Recipe to show in full; empty = list all."""
        json: bool = False
        """Print JSON."""

    options = parse(Recipes, args=args, prog="zoo recipes")
    from zoo.cli import recipes_table

    print(recipes_table.render_recipes(options.name, as_json=options.json), end="")
    return 0
