"""The option --phases of `zoo train`: runs that are trained one after another, each from the parameters of the one before."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from zoo.cli import early_checks
from zoo.errors import BadInput, require

OPTION = "--phases"
OF_THE_FIRST = ("init", "init_positions", "fork", "adapter")
"""Options that without the name of a phase are those of the first one, which alone may begin with another model."""


class Phase(NamedTuple):
    """A run of a chain, as a command of its own."""

    recipe: str
    args: list[str]
    """The words of `zoo train RECIPE ...` after the name of the recipe."""


def split_phases(name: str, args: list[str]) -> tuple[list[Phase], int]:
    """Return the runs that the words after `zoo train NAME` describe, and the last step of all of them by --steps; 0: not given.

    There is one run without --phases. An option with the name of a phase, as --NAME.optim.lr, is an option of this phase. Others
    are options of all phases, if the recipes of all have the same value of them.

    Raises:
        BadInput: no such recipe, a phase that is named twice, or an option that does not say which phase it is of.
    """
    options = _grouped(args)
    if all(option != OPTION for option, _ in options):
        return [Phase(name, args)], 0
    from train import recipes
    from train.run.run_identity import flat_options

    # The name of the first one may be joined to the option.
    following = [word for option, words in options if option == OPTION for word in (words[0].partition("=")[2], *words[1:])]
    names = [name, *filter(None, following)]
    if len(names) == 1:
        raise BadInput(f"{OPTION}: no recipe is named; name those that follow, as --phases NEXT NEXT")
    repeated = next((name for number, name in enumerate(names) if name in names[:number]), "")
    require(not repeated, "phases", repeated, "named twice, and each phase has a folder of this name; name it once")
    runs = [recipes.recipe_run(name, "") for name in names]
    values = [flat_options(run) for run in runs]
    machine = {field.name for field in dataclasses.fields(runs[0].machine)}
    shared: list[str] = []
    own: dict[str, list[str]] = {name: [] for name in names}
    steps = 0
    for option, words in options:
        phase = next((name for name in names if option.startswith(f"--{name}.")), "")
        field = (option.removeprefix(f"--{phase}.") if phase else option[2:]).replace("-", "_").replace(".no_", ".")
        if option == OPTION:
            continue
        if field in ("name", "extend"):
            fix = "each phase has the name of its recipe" if field == "name" else "the next phases began before the added steps"
            raise BadInput(f"{option}: {fix}; leave it out, or choose another --out")
        if phase and field in {"out", *machine}:
            raise BadInput(f"{option}: all phases have one; write --{option.partition('.')[2]}")
        if phase != name and phase and field == "init":
            raise BadInput(f"{option}: it is the phase before; leave it out")
        if phase != name and phase and field == "fork":
            raise BadInput(f"{option}: a phase begins with new moments, and a fork continues a run; give it a command of its own")
        if phase:
            own[phase] += [f"--{words[0].removeprefix(f'--{phase}.')}", *words[1:]]
        elif field == "steps":
            steps = _last_step(words)
        elif field in OF_THE_FIRST:
            own[name] += words
        else:
            _check_common(option, [run_values.get(field) for run_values in values], names)
            shared += words
    phases = _chain(names, shared, own, runs[0].out)
    for phase in phases[1:]:
        _check_recipe(phase.recipe, phase.args[-1])
    return phases, steps


def check_phases(runs: Sequence[Any], steps: int) -> None:
    """Refuse phases that do not follow each other, before the first one is trained.

    Args:
        runs: the `train.config.run_config.Run` of each phase.
        steps: see `split_phases`.

    Raises:
        BadInput: the steps of the phases are not `steps` together, a phase has another model than the one before it, or its files
            do not exist.
    """
    from train import objectives
    from train.run.run_dir import RunDir
    from train.weights.pretrained_config import check_body

    lengths = [run.steps - run.fork for run in runs]
    fix = f"the phases end at {' + '.join(f'{length:,}' for length in lengths)} = {sum(lengths):,}"
    fix += f"; choose that, or set the steps of a phase, as --{runs[-1].recipe}.steps"
    require(steps in (0, sum(lengths)), "steps", steps, fix)
    for before, run in itertools.pairwise(runs):
        if type(run.model) is not type(before.model):
            raise BadInput(f"{OPTION} {run.recipe}: another model family than that of {before.recipe}; choose one of the same")
        check_body(run, before.model)
        objectives.check_run(run)
        early_checks.check_inputs(dataclasses.replace(run, init=""), RunDir.of(run))


def _grouped(args: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return each option of a command line, and its words: the option itself, also as --name=value, and its values."""
    groups: list[tuple[str, list[str]]] = []
    for word in args:
        if word.startswith("--") or not groups:
            groups.append((word.partition("=")[0], [word]))
        else:
            groups[-1][1].append(word)
    return groups


def _last_step(words: Sequence[str]) -> int:
    """Return the value of --steps."""
    from zoo.cli.option_parser import whole_number

    text = words[0].partition("=")[2] or " ".join(words[1:])
    try:
        return whole_number(text)
    except ValueError as error:
        raise BadInput(f"--steps: {error}") from None


def _check_common(option: str, values: Sequence[Any], names: Sequence[str]) -> None:
    """Refuse an option for all phases whose recipes have different values of it."""
    if any(value != values[0] for value in values):
        listed = ", ".join("none" if value is None else str(value) for value in values)
        fix = f"write it with the name of a phase, as --{names[0]}.{option[2:]}"
        raise BadInput(f"{option}: the phases have different values of it, {listed}; {fix}")


def _check_recipe(name: str, init: str) -> None:
    """Refuse a phase whose recipe reads the size of its model from a run that is not trained yet."""
    from train import recipes

    try:
        recipes.recipe_run(name, init if recipes.takes_weights(name) else "")
    except BadInput:
        fix = f"train the phases before it, and then `zoo train {name} --init {init}`"
        raise BadInput(f"{OPTION} {name}: its recipe reads the model of --init, which is not trained yet; {fix}") from None


def _chain(names: Sequence[str], shared: list[str], own: dict[str, list[str]], out: str) -> list[Phase]:
    """Return the phases, each after the first with --init of the one before."""
    from zoo.cli.command_setup import option_value

    out = option_value(shared, "--out") or out
    begins = [[], *(["--init", f"{out.rstrip('/')}/{name}"] for name in names[:-1])]
    return [Phase(name, [*shared, *own[name], *begin]) for name, begin in zip(names, begins, strict=True)]
