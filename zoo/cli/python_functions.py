"""Functions of the Python interface beside `load`: training, recipes, sizes, models without parameters, metrics of a run."""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import plugins
from zoo.cli import early_checks
from zoo.cli.python_arguments import check_argument, check_name
from zoo.errors import BadInput, require

if TYPE_CHECKING:
    from zoo.models import Model


def model(size: str | Any) -> "Model":
    """Return the functions of a model for a training loop of your own: `init`, `apply`, `unembed`, ... It has no parameters.

    Args:
        size: the name of a size (see `sizes`), or a configuration, such as `dataclasses.replace(sizes()["gpt2"], layers=6)`.

    Raises:
        BadInput: no size has this name, or the object is no configuration.
    """
    early_checks.check_packages()
    from zoo import configs, models
    from zoo.runtime import jax_setup

    jax_setup.prepare_jax()
    config = configs.find_size(size)[1].config if isinstance(size, str) else size
    is_config = dataclasses.is_dataclass(config) and not isinstance(config, type) and hasattr(config, "vocab")
    check_argument(is_config, "size", config, "pass the name of a size, or a configuration of `zoo.configs`")
    return models.model(config)


def train(recipe: str = "gpt-nano", **options: Any) -> Path:
    """Train a recipe to its end, continuing the run of this name if there is one, and return the run's folder.

    With `phases=["NEXT", ...]` these recipes are trained after it, and the folder is that of the last one.

    Args:
        options: options of `zoo train RECIPE --help`. Those with a dot are nested or quoted:
            `train("gpt-nano", steps=20, data={"batch": 8})` or `train("gpt-nano", **{"steps": 20, "data.batch": 8})`.

    Raises:
        BadInput: an unknown recipe or option, a value that does not fit, or data that cannot be read.
        SystemExit: a signal stopped the run, with 128 + its number; the same call continues it.
    """
    early_checks.check_packages()
    from zoo.cli.command_setup import named_mesh_axes, set_attention_check
    from zoo.cli.commands.train import parse_phases, parse_run, train_here
    from zoo.runtime import jax_setup

    check_name(recipe, "recipe", "pass the name of a recipe")
    from train.run.run_dir import RunDir

    folder = Path()
    for name, arguments in parse_phases(recipe, list(option_words(options))):
        run = parse_run(name, arguments)
        require(run.machine.processes == 1, "processes", run.machine.processes, "several processes are started by `zoo train`")
        jax_setup.prepare_jax(run.machine.devices)
        set_attention_check(run.machine)
        if code := train_here(run, named_mesh_axes(arguments)):
            raise SystemExit(code)
        folder = RunDir.of(run).path
    return folder


def recipes() -> dict[str, str]:
    """Return the first line of the description of every recipe, by name; for one of a plug-in, its distribution."""
    early_checks.check_packages()
    from train.recipes import recipes as functions

    own = {name: (inspect.getdoc(function) or "").partition("\n")[0] for name, function in sorted(functions().items())}
    return own | {plugin.name: f"Plug-in of {plugin.origin}." for plugin in plugins.installed_plugins("zoo.recipes")}


def sizes() -> dict[str, Any]:
    """Return the configuration of every published size of the zoo, by name."""
    from zoo import configs

    return {name: size.config for family in configs.families() for name, size in configs.family(family).SIZES.items()}


def metrics(run: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl as a flat table, which `pandas.DataFrame` takes as it is.

    Each row has `kind` ("train" or "valid"), `step` and the metrics of that kind by name. What differs between two equal runs is
    under "time.": `time.seconds`, `time.tokens_per_s`, `time.mfu`, `time.at`.

    Raises:
        BadInput: no run there, or its metrics cannot be read.
    """
    early_checks.check_packages()
    from train.run import metrics_file
    from train.run.run_dir import RunDir, is_run
    from train.weights.resolve_model_name import resolve_model_name

    folder = resolve_model_name(name := check_name(run, "run", "pass the folder of a run"))
    if not is_run(folder):
        raise BadInput(f"{name}: not a run; name a folder that `zoo train` wrote")
    return [dict(_flat(row)) for row in metrics_file.read_rows(RunDir(folder).metrics)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries of nested objects, with dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def option_words(options: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return options as the words of a command line."""
    words: list[str] = []
    for key, value in options.items():
        *groups, name = f"{prefix}{key}".replace("_", "-").split(".")
        option = "--" + ".".join([*groups, name])
        if isinstance(value, Mapping):
            words += option_words(value, f"{prefix}{key}.")
        elif isinstance(value, bool):
            words.append(option if value else "--" + ".".join([*groups, f"no-{name}"]))
        elif isinstance(value, list | tuple):
            words += [option, *map(str, value)]
        else:
            words.append(f"{option}={value}")
    return words
