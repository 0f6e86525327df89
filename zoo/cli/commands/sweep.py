"""The command `zoo sweep`."""

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from zoo.cli import early_checks
from zoo.cli.commands.train import parse_options
from zoo.cli.option_parser import parse
from zoo.cli.python_functions import option_words
from zoo.errors import BadInput, printable, require
from zoo.json_text import print_json

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from eval.sweeps.run_sweep import Sweep
    from train.config.run_config import Run

SEPARATOR = "--"
"""Word before the options of the recipe."""
OWN = {"--out": "runs are written below DIR", "--name": "each trial has a name", "--phases": "a trial is one run"}
"""Options of `zoo train` that a sweep does not take -> the reason."""


def sweep(args: list[str]) -> int:
    """Run `zoo sweep RECIPE DIR --vary OPTION=VALUES ... [options] -- [options of zoo train]`."""
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Options:
        """Search for the options of a training run with Optuna (the extra sweep).

        Options after "--" are those of zoo train, and every trial has them. The same command continues after any interruption.
        In several processes, also on several machines that see DIR, it divides the trials among them.
        """

        recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
        """Name of the recipe."""
        folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
        """Folder of the sweep: the study and the runs."""
        vary: tuple[str, ...] = ()
        """Options to vary, as OPTION=LOW:HIGH, OPTION=LOW:HIGH:log or OPTION=VALUE,VALUE,...: optim.lr=1e-4:1e-2:log."""
        trials: int = 20
        """Number of trials of the sweep, those included that exist."""
        metric: str = "loss"
        """Metric of the validations that decides, by its last value. Lower or higher is better, depending on the metric."""
        prune: bool = True
        """End a trial early if its best validation so far is worse than the median of the trials that ended with a value, at the
        same step, once there are five of them."""
        workers: int = 1
        """Number of trials at a time; more than one divide the cores, or have a GPU each."""
        seed: int = 0
        """Seed of the values that are drawn."""
        json: bool = False
        """Print the trials as JSON."""

    place = args.index(SEPARATOR) if SEPARATOR in args else len(args)
    options, words = parse(Options, args=args[:place], prog="zoo sweep"), args[place + 1 :]
    require(options.trials >= 1, "trials", options.trials, "choose 1 or more")
    require(options.workers >= 1, "workers", options.workers, "choose 1 or more")
    require(0 <= options.seed < 2**31, "seed", options.seed, "choose 0 to 2,147,483,647")
    from eval.sweeps import run_sweep
    from eval.sweeps.search_space import parse_all
    from train.run.metric_definitions import METRICS
    from train.run.run_dir import RunDir

    metrics = ", ".join(name for name, metric in METRICS.items() if metric.better)
    has_direction = options.metric in METRICS and METRICS[options.metric].better is not None
    require(has_direction, "metric", options.metric, f"choose one of {metrics}")
    folder = Path(options.folder)
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is a file; name a folder")
    if "://" in options.folder:
        raise BadInput(f"{options.folder}: a sweep needs a folder, and not an object store; mount one that all machines see")
    space = parse_all(options.vary)
    for option, reason in OWN.items():
        if option in ({word.partition("=")[0] for word in words} | {f"--{varied.name}" for varied in space}):
            raise BadInput(f"{option}: {reason}; leave it out")

    def read_values(values: Mapping[str, Any], added: Sequence[str]) -> tuple[list[str], "Run"]:
        own = [*words, *option_words(values), *added]
        return [options.recipe, *own], parse_options(options.recipe, own)

    first = {varied.name: varied.values[0] for varied in space}
    run = read_values(first, ["--out", options.folder])[1]
    for varied in space:
        for value in varied.values[1:]:
            read_values(first | {varied.name: value}, ())
    early_checks.check_inputs(run, RunDir.of(run))
    declared = run_sweep.Sweep(options.recipe, tuple(words), space, options.metric, options.prune, options.seed)
    study, lock = run_sweep.open_study(declared, folder)
    many: dict[str, Any] = {"count": options.trials, "workers": options.workers, "read_values": read_values}
    stopped = run_sweep.Trials(declared, study, lock, folder, **many).run()
    _print_trials(declared, study.get_trials(deepcopy=False), folder, as_json=options.json)
    if stopped:
        print("! stopped; the same command continues", file=sys.stderr)
        return 128 + stopped
    return 0 if any(trial.state.name == "COMPLETE" for trial in study.trials) else 1


def _print_trials(declared: "Sweep", trials: "list[FrozenTrial]", folder: Path, *, as_json: bool) -> None:
    """Print the trials, the best ones first, and the command that trains the best one again."""
    from eval.sweeps.run_sweep import run_name
    from train.run.metric_definitions import METRICS

    sign = -1 if METRICS[declared.metric].better == "higher" else 1
    ended = sorted((trial for trial in trials if trial.state.name == "COMPLETE"), key=lambda trial: sign * (trial.value or 0.0))
    others = [trial for trial in trials if trial.state.name != "COMPLETE"]
    best = ["zoo", "train", declared.recipe, *declared.options, *option_words(ended[0].params)] if ended else []
    if as_json:
        rows = [
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                declared.metric: trial.value,
                "options": trial.params,
                "run": str(folder / run_name(trial.number)),
            }
            for trial in (*ended, *others)
        ]
        print_json({"metric": declared.metric, "trials": rows, "command": best})
        return
    table: list[list[Any]] = [["trial", declared.metric, *(varied.name for varied in declared.space)]]
    for trial in (*ended, *others):
        result = f"{trial.value:.6g}" if trial.state.name == "COMPLETE" else trial.state.name.lower()
        values = (trial.params.get(varied.name, "") for varied in declared.space)
        table.append([str(trial.number), result, *(f"{x:.4g}" if isinstance(x, float) else str(x) for x in values)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print(printable("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))))
    if best:
        print(f"best: {printable(shlex.join(best))}")
