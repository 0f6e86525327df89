"""The command `zoo data`."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any

from zoo.cli import early_checks
from zoo.cli.command_setup import names_option, option_value, refuse_empty_options, take_objective, unlisted_fields
from zoo.cli.option_parser import parse
from zoo.errors import BadInput


def data(args: list[str]) -> int:
    """Run `zoo data inspect [RECIPE|RUN] [options]` or `zoo data arithmetic [DIR]`."""
    if args[:1] in (["-h"], ["--help"]):
        print(HELP, end="")
        return 0
    if args[:1] == ["arithmetic"]:
        return _arithmetic(args[1:])
    if args[:1] == ["inspect"]:
        return _inspect(args[1:])
    raise BadInput(f"{' '.join(['data', *args[:1]])}: write zoo data inspect [RECIPE|RUN], or zoo data arithmetic [DIR]")


def _arithmetic(args: list[str]) -> int:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Arithmetic:
        """Write the 10,000 sums of two numbers below 100, from which the recipe arithmetic-nano learns, to three files.

        Each sum is in one of them: supervised.jsonl for arithmetic-sft-nano, prompts.jsonl for arithmetic-nano, and
        held_out.jsonl for both.
        """

        folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = "sums"
        """Folder for the files; it may exist."""

    options = parse(Arithmetic, prog="zoo data arithmetic", args=args)
    from train.data import arithmetic

    folder = Path(options.folder)
    arithmetic.write_sums(folder)
    for name, count in arithmetic.SHARES.items():
        print(f"{folder / name}: {count:,} sums")
    return 0


def _inspect(args: list[str]) -> int:
    import tyro

    from train import recipes
    from train.config.run_config import kind_of
    from train.run.run_dir import RunDir, read_config
    from train.run.run_identity import flat_options
    from train.store import run_fetch

    name = run_fetch.local_name(args.pop(0)) if args and not args[0].startswith("-") else recipes.DEFAULT
    folder = RunDir(name) if not recipes.is_recipe(name) and os.path.isdir(name) else None
    run = read_config(name) if folder else recipes.recipe_run(name, option_value(args, "--init"))
    default, args = take_objective(run, args)

    @dataclasses.dataclass(frozen=True)
    class Inspect:
        """Show rows as a run trains on them: decoded, with loss weights, segments and positions."""

        run: Annotated[kind_of(default), tyro.conf.arg(name="", prefix_name=False)]  # pyright: ignore[reportInvalidTypeForm]
        rows: int = 3
        """Number of rows to show."""
        first: int = 0
        """Number of the first row in the training stream: step x batch size + index in the batch."""
        json: bool = False
        """Print JSON."""

    prog, objective = f"zoo data inspect {name}", default.objective
    unlisted = unlisted_fields(default, args)
    options = parse(Inspect, default=Inspect(run=default), prog=prog, args=args, objective=objective, unlisted=unlisted)
    refuse_empty_options(options.run, args)
    values = flat_options(options.run)
    unnamed = any(
        values.get(key) and not names_option(args, f"--{key}") for key in ("data.paths", "pairs.source", "pairs.target")
    )
    stored_data = folder is not None and unnamed
    folder = folder or RunDir.of(options.run)
    early_checks.check_inputs(options.run, folder)
    from train.inputs import inspect_rows

    choice: dict[str, Any] = {"count": options.rows, "first": options.first, "as_json": options.json}
    inspect_rows.inspect(options.run, folder, **choice, stored_data=stored_data)
    return 0


HELP = """\
usage: zoo data inspect [RECIPE|RUN] [options]
       zoo data arithmetic [DIR]

inspect shows rows as a run trains on them: decoded, with loss weights, segments and positions.
arithmetic writes the sums that the recipe arithmetic-nano learns from.

  zoo data inspect gpt-nano --data.paths corpus.jsonl
  zoo data inspect bert-nano --rows 1 --first 320
  zoo data inspect runs/gpt-nano

`zoo train --help` lists the recipes. zoo data inspect NAME --help lists the options.
"""
