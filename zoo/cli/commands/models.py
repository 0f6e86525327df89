"""`zoo models`."""

import dataclasses
from typing import Annotated

from zoo.cli.options import parse


def models(args: list[str]) -> int:
    """`zoo models [NAME] [--json]`."""
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Models:
        """Sizes of the zoo: exact parameter counts and where every number comes from. Nothing is allocated."""

        name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = ""
        """One size, in full."""
        json: bool = False
        """Machine-readable."""

    asked = parse(Models, args=args, prog="zoo models")
    from zoo.cli import models_table

    print(models_table.render(asked.name, as_json=asked.json), end="")
    return 0
