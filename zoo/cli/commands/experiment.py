"""The command `zoo experiment`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

from zoo.cli.commands.train import parse_options
from zoo.cli.option_parser import parse
from zoo.errors import BadInput, printable, require

HANDOVERS = ("plan", "commands", "slurm", "jobset", "render")


def experiment(args: list[str]) -> int:
    """Run `zoo experiment NAME DIR [options]` or `zoo experiment --list`."""
    import tyro

    from eval.experiments import catalogue

    if args[:1] == ["--list"]:
        for name in catalogue.names():
            declared = catalogue.find_experiment(name)
            print(f"{name:14} {declared.question}\n{'':14} {declared.source}; tiers {', '.join(declared.tiers)}")
        return 0

    @dataclasses.dataclass(frozen=True)
    class Options:
        """Run a declared grid of training runs with several seeds, judge its claims, and write a page next to a paper's numbers.

        The same command continues after any interruption. `zoo experiment --list` lists the experiments.
        """

        name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
        """Name of the experiment."""
        folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
        """Folder of the experiment: its runs, its registration, experiment.json and the page."""
        tier: str = "nano"
        """Scale. smoke: minutes, to try it; nano: about an hour on two cores; night: a night; paper: the paper's."""
        seeds: int = 0
        """Number of seeds, from 0 on; 0 = as many as the tier has."""
        corpus: str = ""
        """Folder with train/ and valid/ of the training text; empty = the tier's; "embedded" = the embedded corpus."""
        corpus_digest: str = ""
        """SHA-256 that --corpus must have; empty = that of the tier's; "any" = another corpus, which the page then names."""
        tasks: str = ""
        """Folder of the published task files (sst2/, trec/, multi30k/); smoke generates its own."""
        plan: bool = False
        """Print runs, FLOPs and minutes, and run nothing."""
        rate: float = 0.0
        """GFLOP/s of matrix products that --plan assumes; 0 = measure this machine's."""
        commands: bool = False
        """Print the command of every run, level by level, and run nothing."""
        slurm: bool = False
        """Print a script that submits the runs to Slurm, with one job array per level; Slurm need not be installed here."""
        jobset: bool = False
        """Print Kubernetes job sets, one per level."""
        pilot: bool = False
        """Only run the pilot, which chooses the learning rate of each row; without this flag the grid follows it."""
        render: bool = False
        """Only write experiment.json and the page, from the runs that exist."""

    options = parse(Options, args=args, prog="zoo experiment")
    chosen = [f"--{name}" for name in HANDOVERS if getattr(options, name)]
    require(len(chosen) <= 1, "plan", " ".join(chosen), "choose one of them")
    require(0 <= options.seeds <= 1000, "seeds", options.seeds, "choose 0 (the tier's) or 1 to 1,000")
    require(options.rate >= 0, "rate", options.rate, "choose 0 (measure it) or a rate in GFLOP/s")
    folder = Path(options.folder)
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is a file; name a folder")
    from eval.experiments import experiment_data
    from eval.experiments import grid as grids

    declared = catalogue.find_experiment(options.name)
    if options.tier not in declared.tiers:
        raise BadInput(f"--tier {options.tier}: {declared.name} has {', '.join(declared.tiers)}")
    tier = declared.tiers[options.tier]
    needs_tasks = any("{tasks}" in str(values) for values in _values(declared, options.tier))
    if options.plan:
        # The cost does not depend on the files, which need not exist.
        files = experiment_data.Files(train="{train}", valid="{valid}", tasks="{tasks}", corpus="")
    else:
        files = experiment_data.find_files(
            tier, needs_tasks, folder=options.corpus, digest=options.corpus_digest, tasks=options.tasks
        )
    if tier.rates:
        return _act_after_pilot(options, declared, files, folder)
    require(not options.pilot, "pilot", True, f"the tier {options.tier} of {declared.name} has no pilot; leave this flag out")
    seeds = tuple(range(options.seeds))
    grid = grids.build_grid(declared, options.tier, files, parse_options, seeds=seeds, flops_per_step=_flops_per_step)
    return _act(options, grid, folder)


def _act_after_pilot(options: Any, declared: Any, files: Any, folder: Path) -> int:
    """Act on the pilot of a tier, and once it is finished on the grid with the rates that it chose."""
    from eval.experiments import grid as grids
    from eval.experiments import pilot

    tier = declared.tiers[options.tier]
    seeds = tuple(range(options.seeds or tier.seeds or declared.seeds))
    result = pilot.finished_pilot(folder)
    if result is None or options.pilot or options.plan:
        pilot_grid = grids.build_grid(
            pilot.pilot_experiment(declared, options.tier),
            options.tier,
            files,
            parse_options,
            seeds=tier.pilot_seeds,
            flops_per_step=_flops_per_step,
        )
        print(f"pilot: {len(tier.rates)} learning rates for each row, seeds {', '.join(map(str, tier.pilot_seeds))}")
        code = _act(options, pilot_grid, folder / pilot.FOLDER)
        result = pilot.finished_pilot(folder)
        if result is None and not options.plan:
            return code
    chosen = None
    if result is not None:
        chosen = pilot.read_pilot(declared, options.tier, result)
        print("\n".join(pilot.planning_lines(declared, options.tier, chosen)))
        if options.pilot:
            return 0
        declared = pilot.tuned_experiment(declared, options.tier, chosen, seeds)
    grid = grids.build_grid(
        declared, options.tier, files, parse_options, seeds=seeds, flops_per_step=_flops_per_step, pilot=chosen
    )
    return _act(options, grid, folder)


def _act(options: Any, grid: Any, folder: Path) -> int:
    """Do what the options request: plan, print or run the grid, or write its page."""
    from eval.experiments import cluster_scripts, grid_checks

    grid_checks.check_grid(grid, lambda: _costs(grid))
    if options.plan:
        from eval.experiments import cost_estimates

        rate = options.rate * 1e9 or _measured_rate()
        print("\n".join(cost_estimates.plan_lines(grid, _costs(grid), rate)))
        return 0
    texts = {
        "commands": lambda: "\n".join(cluster_scripts.command_lines(grid, folder)),
        "slurm": lambda: cluster_scripts.slurm_script(grid, folder),
        "jobset": lambda: cluster_scripts.job_sets(grid, folder),
    }
    from eval.experiments import collect_results, experiment_data, grid_runner, node_status, preregistration
    from eval.experiments.page.registration_edits import edit_lines

    if options.render:
        preregistration.read_registration(folder)

    def notify(line: str) -> None:
        print(f"! {printable(line)}", file=sys.stderr, flush=True)

    with grid_runner.lock_folder(folder, notify):
        node_status.check_runs(grid, folder)
        registered = preregistration.register_grid(grid, folder)
        for line in edit_lines(registered):
            notify(line)
        failures: list[str] = []
        if not options.render:
            experiment_data.write_files(grid.files, folder)
            for name in texts:
                if getattr(options, name):
                    print(f"{texts[name]()}\n# registration {registered['hash']}", flush=True)
                    return 0
            print(f"registered on {registered['date']}: SHA-256 {registered['hash']}", flush=True)
            try:
                failures = grid_runner.run_missing(grid, folder)
            except grid_runner.Stopped as stopped:
                notify("stopped; the same command continues")
                return 128 + stopped.number
        result = collect_results.write_results(grid, registered, folder)
    later = [line for line in edit_lines(result["registration"]) if line not in edit_lines(registered)]
    for line in [*failures, *later, *result["deviations"]]:
        notify(line)
    for claim in result["claims"]:
        print(printable(f"{claim['id']:24} {claim['verdict']}: {claim['reason']}"))
    print(folder / collect_results.HTML, flush=True)
    return 1 if failures else 0


def _values(declared: Any, tier: str) -> list[Any]:
    """Return the values of all options of the stages of a tier."""
    options = [stage.overrides for stage in declared.stages] + list(declared.tiers[tier].overrides.values())
    return [value for values in options for value in values.values()]


def _costs(grid: Any) -> Any:
    """Return the costs of a grid; JAX is then limited to the CPU, because the processes of the runs need the other devices."""
    from eval.experiments import cost_estimates

    _use_cpu()
    return cost_estimates.node_costs(grid)


def _flops_per_step(run: Any) -> float:
    from eval.experiments import cost_estimates

    _use_cpu()
    return cost_estimates.step_flops(run)


def _use_cpu() -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")


def _measured_rate() -> float:
    """Return the rate of float32 matrix products of this machine's CPU."""
    import jax.numpy as jnp

    from train.run import matmul_rate

    _use_cpu()
    return matmul_rate.measure_matmul_rate(jnp.float32)
