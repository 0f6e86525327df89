"""Words that complete a command line of `zoo`: commands, recipes, options, and the values of options. No JAX is imported."""

import dataclasses
from collections.abc import Mapping

from zoo.cli.completion import help_text
from zoo.cli.config_option import OPTION as CONFIG

Values = tuple[str, ...] | None
"""The words that an option takes: () if there is no list of them, as for numbers; None for names of files."""
SHELLS = ("bash", "zsh", "fish")
SUBCOMMANDS = {"data": ("inspect", "arithmetic")}
"""Commands with commands of their own, beside `zoo bench`."""


@dataclasses.dataclass(frozen=True)
class Option:
    """The values of an option, and how many it takes."""

    values: Values
    is_flag: bool = False
    is_list: bool = False


Options = Mapping[str, Option]
"""Name with -- -> option."""


@dataclasses.dataclass(frozen=True)
class Tables:
    """The words for all commands. A context is a command with the words that decide its options: "bench step", "train bert"."""

    words: Mapping[str, tuple[str, ...]]
    """Context, "" for the command itself -> the words that may follow. Others are followed by names of files."""
    options: Mapping[str, tuple[Options, ...]]
    """Context -> its options, in parts that other contexts have too."""


def completion_tables() -> Tables:
    """Return the words and the options of all commands; the options are those that their --help prints."""
    from eval.experiments import catalogue
    from train import recipes
    from zoo import configs
    from zoo.cli.commands.bench import BENCHMARKS
    from zoo.cli.commands.train import CHECK, JSON
    from zoo.cli.main import COMMANDS
    from zoo.cli.phases import OPTION as PHASES
    from zoo.cli.trust_option import COMMANDS as TRUSTING
    from zoo.trust import OPTION as TRUST

    names = tuple(sorted(recipes.recipes()))
    sizes = tuple(size for family in configs.families() for size in configs.family(family).SIZES)
    subcommands = SUBCOMMANDS | {"bench": (*BENCHMARKS, "compare")}
    words = {
        "": tuple(COMMANDS),
        **subcommands,
        **dict.fromkeys(("train", "sweep", "recipes", "data inspect"), names),
        "plan": (*names, *sizes),
        "models": (*configs.families(), *sizes),
        "experiment": tuple(catalogue.names()),
        "completion": SHELLS,
    }
    options: dict[str, tuple[Options, ...]] = {}
    for command in COMMANDS:
        added = {CONFIG: Option(None)} | ({TRUST: Option(None)} if command in TRUSTING else {})
        for context in (f"{command} {name}" for name in subcommands[command]) if command in subcommands else (command,):
            options[context] = (command_options(*context.split()) if context not in ("train", "plan") else {}, added)
    options["experiment"] += ({"--list": Option((), is_flag=True)},)
    by_recipe = recipe_options()
    default = by_recipe[recipes.DEFAULT]
    of_command = {
        "train": (
            *options["train"],
            {**dict.fromkeys((CHECK, JSON), Option((), is_flag=True)), PHASES: Option(names, is_list=True)},
        ),
        "plan": (*options["plan"], _without(command_options("plan", recipes.DEFAULT), default)),
        "data inspect": (_without(options["data inspect"][0], default), options["data inspect"][1]),
    }
    for command, others in of_command.items():
        # Without the name of a recipe, or with that of a size or a run.
        options[command] = (default, *others)
        options |= {f"{command} {name}": (own, *others) for name, own in by_recipe.items()}
    return Tables(words, options)


def command_options(*words: str) -> Options:
    """Return the options that the --help of a command lists, by the words of the command."""
    from zoo.cli.main import main

    return parse_help(help_text.capture_help(lambda: main([*words, "--help"])))


def recipe_options() -> dict[str, Options]:
    """Return the options of `zoo train RECIPE` for each recipe; recipes of one kind of run have the same."""
    from train import recipes
    from train.config.run_config import kind_of
    from zoo.cli.command_setup import unlisted_fields
    from zoo.cli.commands.train import parse_options

    by_kind: dict[object, Options] = {}
    by_recipe: dict[str, Options] = {}
    for name in sorted(recipes.recipes()):
        run = recipes.recipe_run(name, "")
        has_weights = bool(recipes.takes_weights(name) or run.init)
        unlisted = unlisted_fields(run, [], has_weights=has_weights)
        kind = (kind_of(run), frozenset((owner, frozenset(fields)) for owner, fields in unlisted.items()))
        if kind not in by_kind:
            by_kind[kind] = parse_help(help_text.capture_help(lambda name=name: parse_options(name, ["--help"])))
        by_recipe[name] = by_kind[kind]
    return by_recipe


def parse_help(text: str) -> Options:
    """Return the options that a help text lists."""
    options: dict[str, Option] = {}
    for _, _, headings in help_text.option_boxes(text):
        for heading, _ in headings:
            names, metavar = help_text.split_heading(heading)
            kind, is_list = help_text.inner_metavar(metavar)
            values: Values = tuple(kind[1:].partition("}")[0].split(",")) if kind.startswith("{") else None
            if kind.startswith(("INT", "FLOAT")) or not kind:
                values = ()
            options |= dict.fromkeys(names, Option(values, is_flag=not metavar, is_list=is_list))
    return options


def _without(options: Options, others: Options) -> dict[str, Option]:
    return {name: option for name, option in options.items() if name not in others}
