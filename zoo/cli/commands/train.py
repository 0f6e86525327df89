"""The command `zoo train`."""

import inspect
import re
import sys
import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from zoo import plugins, trust
from zoo.cli import early_checks
from zoo.cli.command_setup import (
    named_mesh_axes,
    option_value,
    prepare_process,
    refuse_empty_options,
    take_adapter,
    take_objective,
    unlisted_fields,
)
from zoo.cli.option_parser import explicit_names, parse
from zoo.cli.phases import OPTION as PHASES
from zoo.cli.phases import Phase, check_phases, split_phases
from zoo.errors import BadInput
from zoo.runtime import launch

if TYPE_CHECKING:
    from train.config.run_config import Run

CHECK = "--check"
"""Option that checks a run instead of training it."""
JSON = "--json"
"""Option that writes the rows of metrics.jsonl to stdout, and everything else to stderr."""


def train(args: list[str]) -> int:
    """Run `zoo train [RECIPE] [options]`."""
    began = time.perf_counter()
    from train import recipes
    from train.config import mesh_sizes
    from train.run.run_dir import RunDir

    if args[:1] in (["-h"], ["--help"]):
        by_name = recipes.recipes()
        about = {name: (recipe.__doc__ or "").strip().splitlines()[0] for name, recipe in sorted(by_name.items())}
        about |= {plugin.name: f"Plug-in of {plugin.origin}." for plugin in plugins.installed_plugins("zoo.recipes")}
        width = max(map(len, about))
        for name, line in about.items():
            print(f"{name:{width}}  {line}")
        print("\nzoo train RECIPE --help describes a recipe and lists its options.")
        return 0
    name = args.pop(0) if args and not args[0].startswith("-") else recipes.DEFAULT
    is_check, as_json = CHECK in args, JSON in args
    if is_check and as_json:
        raise BadInput(f"{JSON}: {CHECK} trains nothing, so there are no rows; leave out one of the two")
    args = [arg for arg in args if arg not in (CHECK, JSON)]
    phases = parse_phases(name, args)
    if is_check:
        code = check_data(parse_run(*phases[0]))
        for later in phases[1:]:
            run = parse_options(*later)
            size = f"{run.steps:,} steps of {run.data.sizes} rows of {run.data.length}"
            print(f"then {run.recipe}: {size}; its data are read with the tokenizer of the phase before it, and not checked")
        return code
    code, is_prepared = None, False
    for recipe, options in phases:
        run = parse_run(recipe, options)
        if not is_prepared:
            stacks, sizes = RunDir.of(run).stacks(0), mesh_sizes.fewer_processes(run)
            # Local processes train one phase, and others are started for the next one.
            words = ["train", recipe, *options, *([JSON] if as_json else [])]
            code = prepare_process(run.machine, words, stacks=stacks, smaller_group_sizes=sizes)
            is_prepared = code is None
        if is_prepared:
            code, began = train_here(run, named_mesh_axes(options), began, as_json=as_json), None
        if code:
            return code
    return 0


def parse_phases(name: str, args: list[str]) -> list[Phase]:
    """Return the runs that the words after `zoo train NAME` describe, after checking that they follow each other.

    Raises:
        BadInput: see `split_phases` and `check_phases`.
    """
    phases, steps = split_phases(name, args)
    if len(phases) > 1:
        check_phases([parse_options(*phase) for phase in phases], steps)
    return phases


def check_data(run: "Run") -> int:
    """Check the data of a run as training would, without starting JAX, and print what would be trained.

    Raises:
        BadInput: the data cannot be read or does not fit the run.
    """
    from train.inputs import data_notices, run_inputs
    from train.run.console import Console
    from train.run.run_dir import RunDir
    from zoo import configs
    from zoo.runtime import caches

    folder = RunDir.of(run)
    run = run_inputs.resolve_config(run)
    data = run_inputs.read_inputs(run, folder, caches.cache_dir() / "text")
    state = "would continue" if folder.is_resumable else "would start"
    with Console(steps=run.steps) as console:
        facts = {"model": configs.family_of(run.model), "objective": run.objective, **data.describe(run), "run": str(folder.path)}
        console.header(f"{run.recipe}, {state} (checked only)", facts)
        for line in data_notices.notices(run, data):
            console.notice(line)
    return 0


def parse_run(name: str, args: list[str]) -> "Run":
    """Return the run that a recipe and options describe, after everything that can be refused without JAX.

    Raises:
        BadInput: no such recipe, an option that does not fit, or paths that do not exist or are in use.
    """
    from train.config import run_plugins
    from train.run.run_dir import as_json
    from train.store import run_fetch

    run = parse_options(name, args)
    trust.permit_names(map(trust.key_of, run_plugins.references(as_json(run))))
    if run.machine.process == 0 and not launch.is_child():
        run_fetch.prepare_training(run)
        early_checks.check_run(run)
    return run


def parse_options(name: str, args: list[str]) -> "Run":
    """Return the run that a recipe and options describe; of the paths in it only that of --init is read.

    Raises:
        BadInput: no such recipe, or an option that does not fit.
    """
    from train import recipes
    from train.config import optim_options
    from train.config.run_config import kind_of

    init, takes_weights = option_value(args, "--init"), recipes.takes_weights(name)
    with early_checks.prefix_option("--init", init if takes_weights else ""):
        run = recipes.recipe_run(name, init)
    default, args = take_objective(run, args)
    has_weights = bool(takes_weights or default.init or init)
    unlisted = unlisted_fields(default, args, has_weights=has_weights)
    default = take_adapter(default, args)
    # tyro joins the lines of a paragraph, so each field of the docstring becomes a paragraph.
    about = re.sub(r"\n+(?=[A-Z]\w+: )", "\n\n", inspect.getdoc(recipes.find_recipe(name)) or "")
    about += f"\n\n{PHASES} RECIPE ... trains these after it, each from the parameters of the one before."
    about += f"\n\n{JSON} writes the rows of metrics.jsonl to standard output, one JSON object in a line, and the rest to stderr."
    about += f"\n\n{CHECK} checks options and data, prints what would be trained, and ends."
    about += f"\n\nObjective: {default.objective}. --objective NAME --help lists the options of another one."
    about += "" if has_weights else " With --init FOLDER, --help also lists the options of frozen layers and low-rank adapters."
    prog, objective = f"zoo train {name}", default.objective
    kind = kind_of(default)
    run = parse(kind, default=default, prog=prog, args=args, description=about, objective=objective, unlisted=unlisted)
    refuse_empty_options(run, args)
    optim_options.check_used(run.optim, explicit_names(args))
    return run


def train_here(run: "Run", named_axes: Collection[str] = (), began: float | None = None, *, as_json: bool = False) -> int:
    """Train in this process, which is prepared for JAX, and return the exit code.

    Args:
        named_axes: axes of the mesh that the user named. If there are any, the others, which the recipe chose, are fitted to the
            devices, with a notice; a mesh of the recipe alone must multiply to the devices.
        began: see `train.trainer.run`.
        as_json: see `train.trainer.run`.

    Raises:
        BadInput: see `mesh_sizes.fit_mesh` and `train.trainer.run`.
    """
    import jax

    from eval.report import report, samples
    from eval.tasks.held_out import scorers
    from train import trainer
    from train.config import mesh_sizes

    if named_axes:
        run, notice = mesh_sizes.fit_mesh(run, jax.device_count(), named_axes)
        if notice and jax.process_index() == 0:
            print(f"! {notice}", file=sys.stderr)
    return trainer.run(
        run,
        evaluate=scorers.scorer,
        sample=samples.write_run_samples,
        preview=samples.preview_continuation,
        on_end=report.write_report,
        began=began,
        as_json=as_json,
    )
