"""`zoo data`."""

import dataclasses
import os
from typing import Annotated

from zoo.commands.machine import refuse_unnamed
from zoo.errors import BadInput


def data(args: list[str]) -> int:
    """`zoo data inspect [RECIPE|RUN] [options]`."""
    import tyro

    from train import recipes
    from train.config import Run
    from train.folder import Folder, read_config

    if args[:1] != ["inspect"]:
        raise BadInput(f"zoo data {' '.join(args[:1])}: write zoo data inspect [RECIPE|RUN]")
    args = args[1:]
    name = args.pop(0) if args and not args[0].startswith("-") else recipes.DEFAULT
    folder = Folder(name) if name not in recipes.recipes() and os.path.isdir(name) else None
    default = read_config(name) if folder else recipes.find(name)()

    @dataclasses.dataclass(frozen=True)
    class Inspect:
        """Rows as a run trains on them: decoded, with what counts in the loss, segments and positions."""

        run: Annotated[Run[type(default.model)], tyro.conf.arg(name="", prefix_name=False)]  # pyright: ignore[reportInvalidTypeForm]
        rows: int = 3
        """Examples shown."""
        first: int = 0
        """Number of the first one in the stream: step x batch + its place in the batch."""

    asked = tyro.cli(Inspect, default=Inspect(run=default), prog=f"zoo data inspect {name}", args=args)
    refuse_unnamed(asked.run, args)
    from train import inspect

    inspect.inspect(asked.run, folder or Folder.of(asked.run), count=asked.rows, first=asked.first)
    return 0
