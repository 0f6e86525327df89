"""The command `zoo experiment`."""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from zoo.cli.commands.train import parse_options
from zoo.cli.option_parser import parse
from zoo.errors import BadInput, printable, require
from zoo.file_access import refuse_links_out

HANDOVERS = ("plan", "commands", "node", "render")
GRID_OPTIONS = ("pilot", "tier", "seeds", "corpus", "corpus_digest", "tasks")
"""Options that decide which grid it is; a job on another machine has the same."""


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
        """Scale. smoke: minutes, to try it; nano: an hour or two on two cores; night: ten times that; paper: the paper's."""
        seeds: int = 0
        """Number of seeds, from 0 on; 0 = as many as the tier has."""
        corpus: str = ""
        """Folder with train/ and valid/ of the training text; empty = the tier's; "embedded" = the embedded corpus."""
        corpus_digest: str = ""
        """SHA-256 that --corpus must have; empty = that of the tier's; "any" = another corpus, which the page then names."""
        tasks: str = ""
        """Folder of the published task files (multi30k/); smoke generates its own."""
        plan: bool = False
        """Print runs, FLOPs and minutes, and run nothing."""
        rate: float = 0.0
        """GFLOP/s of matrix products that --plan assumes; 0 = measure this machine's."""
        on: Literal["local", "slurm", "ray", "jobset"] = "local"
        """Where to run: on this machine, or as Slurm arrays, Ray tasks or Kubernetes job sets, which this command submits and
        follows. The other machines must see DIR at the same path."""
        workers: int = 0
        """Number of runs at a time. local: 0 = 1; more divide the cores, or have a GPU each. Elsewhere 0 = no limit."""
        cpus: int = 1
        """CPU cores of a run, on other machines."""
        gpus: int = 0
        """GPUs of a run, on other machines."""
        memory: int = 4
        """GiB of memory of a run, on other machines."""
        image: str = "IMAGE"
        """Container image with the zoo (jobset)."""
        volume: str = "zoo"
        """Persistent volume claim that has the folder above DIR (jobset)."""
        commands: bool = False
        """Print what --on would run, and run nothing: the commands level by level, a script for Slurm, or job sets."""
        pilot: bool = False
        """Only run the pilot, which chooses the learning rate of each row; without this flag the grid follows it."""
        node: str = ""
        """Run only this run or evaluation, whose parents are done; the jobs of --on do so."""
        render: bool = False
        """Only write experiment.json and the page, from the runs that exist."""

    options = parse(Options, args=args, prog="zoo experiment")
    _check_options(options)
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
    from eval.experiments import grid_checks, grid_runner, pilot, preregistration

    tier, own = declared.tiers[options.tier], folder / pilot.FOLDER
    seeds = tuple(range(options.seeds or tier.seeds or declared.seeds))
    build = functools.partial(
        grids.build_grid, tier=options.tier, files=files, read_run=parse_options, flops_per_step=_flops_per_step
    )
    pilot_grid, untuned = (
        build(pilot.pilot_experiment(declared, options.tier), seeds=tier.pilot_seeds),
        build(declared, seeds=seeds),
    )
    if options.plan:
        print("pilot")
        if (code := _act(options, pilot_grid, own)) or options.pilot:
            return code
        print("grid")
        return _act(options, untuned, folder)
    # What would stop the grid is refused before the pilot takes its time.
    if not options.node:
        grid_checks.check_grid(untuned, lambda: _costs(untuned))
    refuse_links_out(folder, grid_runner.OWN, levels=1)
    for place, grid, free in ((own, pilot_grid, ()), (folder, untuned, ("rows", "pilot"))):
        if (place / preregistration.FILE).exists():
            registered = preregistration.read_registration(place)
            preregistration.check_fixed(registered, preregistration.registration_of(grid), place, free=free)
    if options.commands and (own / preregistration.FILE).exists():
        _collect(pilot_grid, own)
    result = pilot.finished_pilot(folder)
    if options.node and result is None and not options.pilot:
        raise BadInput(f"--node {options.node}: the pilot in {own} is not finished; run it first, or add --pilot for a run of it")
    if result is None or options.pilot:
        if not (options.commands or options.node):
            print(f"pilot: {len(tier.rates)} learning rates for each row, seeds {', '.join(map(str, tier.pilot_seeds))}")
        code = _act(dataclasses.replace(options, pilot=True), pilot_grid, own)
        result = pilot.finished_pilot(folder)
        if options.node or options.commands:
            return code
        if result is None:
            _notify(f"the pilot in {own} is not finished, so the grid has not begun; the same command continues it")
            return code
    chosen = pilot.read_pilot(declared, options.tier, result, len(seeds))
    if not (options.commands or options.node):
        print("\n".join(pilot.planning_lines(declared, options.tier, chosen)))
    if options.pilot or (options.render and not (folder / preregistration.FILE).exists()):
        return 0
    return _act(options, build(pilot.tuned_experiment(declared, options.tier, chosen, seeds), seeds=seeds, pilot=chosen), folder)


def _collect(grid: Any, folder: Path) -> None:
    """Write experiment.json and the page of a registered grid, whatever state it is in."""
    from eval.experiments import collect_results, grid_runner, preregistration

    with grid_runner.lock_folder(folder, _notify):
        collect_results.write_results(grid, preregistration.register_grid(grid, folder), folder)


def _check_options(options: Any) -> None:
    """Refuse options that contradict each other or are out of range."""
    chosen = [f"--{name}" for name in HANDOVERS if getattr(options, name)]
    require(len(chosen) <= 1, "plan", " ".join(chosen), "choose one of them")
    require(0 <= options.seeds <= 1000, "seeds", options.seeds, "choose 0 (the tier's) or 1 to 1,000")
    require(options.rate >= 0, "rate", options.rate, "choose 0 (measure it) or a rate in GFLOP/s")
    require(options.workers >= 0, "workers", options.workers, "choose 1 or more, or 0 for the default")
    require(options.cpus >= 1, "cpus", options.cpus, "choose 1 or more")
    require(options.gpus >= 0, "gpus", options.gpus, "choose 0 or more")
    require(options.memory >= 1, "memory", options.memory, "choose 1 or more GiB")
    require(not (options.commands and options.on == "ray"), "on", "ray", "it has no script to print; leave --commands out")
    submits = options.on == "jobset" and not any(getattr(options, name) for name in HANDOVERS)
    require(not submits or options.image != "IMAGE", "image", options.image, "name a container image that has the zoo")
    if "://" in options.folder:
        raise BadInput(
            f"{options.folder}: an experiment needs a folder, and not an object store; mount one that all machines see"
        )


def _act(options: Any, grid: Any, folder: Path) -> int:
    """Do what the options request: plan, print or run the grid or a node of it, or write its page."""
    from eval.experiments import experiment_data, grid_checks, grid_runner, node_status, preregistration
    from eval.experiments.page.registration_edits import edit_lines

    if not options.node:
        grid_checks.check_grid(grid, lambda: _costs(grid))
    if options.plan:
        from eval.experiments import cost_estimates

        rate = options.rate * 1e9 or _measured_rate()
        print("\n".join(cost_estimates.plan_lines(grid, _costs(grid), rate)))
        return 0
    if few := grid_checks.few_seeds(grid):
        _notify(few)
    if options.render or options.node:
        preregistration.read_registration(folder)
    elif not options.commands:
        _check_place(options, folder)
    with grid_runner.lock_folder(folder, _notify):
        node_status.check_runs(grid, folder)
        registered = preregistration.register_grid(grid, folder)
        if not (options.render or options.node):
            experiment_data.write_files(grid.files, folder)
    if options.node:
        return _run_node(options, grid, folder)
    for line in edit_lines(registered):
        _notify(line)
    failures: list[str] = []
    if options.commands:
        print(f"{_script(options, grid, folder)}\n# registration {registered['hash']}", flush=True)
        return 0
    if not options.render:
        print(f"registered on {registered['date']}: SHA-256 {registered['hash']}", flush=True)
        try:
            failures = _run_all(options, grid, folder)
        except grid_runner.Stopped as stopped:
            _notify("stopped; the same command continues")
            return 128 + stopped.number
    return _write_page(grid, registered, folder, failures)


def _write_page(grid: Any, registered: Any, folder: Path, failures: list[str]) -> int:
    """Write experiment.json and the page, print the verdicts, and return the exit code."""
    from eval.experiments import collect_results, grid_runner
    from eval.experiments.page.registration_edits import edit_lines

    with grid_runner.lock_folder(folder, _notify):
        result = collect_results.write_results(grid, registered, folder)
    later = [line for line in edit_lines(result["registration"]) if line not in edit_lines(registered)]
    for line in [*failures, *later, *result["deviations"]]:
        _notify(line)
    for claim in result["claims"]:
        print(printable(f"{claim['id']:24} {claim['verdict']}: {claim['reason']}"))
    print(folder / collect_results.HTML, flush=True)
    return 1 if failures else 0


def _notify(line: str) -> None:
    print(f"! {printable(line)}", file=sys.stderr, flush=True)


def _check_place(options: Any, folder: Path) -> None:
    """Refuse, before anything is written, to run where this machine cannot."""
    from eval.experiments.workers import cluster_jobs, local_workers, ray_workers

    if options.on == "local":
        local_workers.LocalWorkers(folder, options.workers or 1)
    elif options.on == "ray":
        ray_workers.require_ray()
    else:
        cluster_jobs.require_program({"slurm": "sbatch", "jobset": "kubectl"}[options.on])


def _run_all(options: Any, grid: Any, folder: Path) -> list[str]:
    """Run the nodes that are not done where --on says, and return a line for each that failed."""
    from eval.experiments import grid_runner
    from eval.experiments.workers import cluster_jobs, local_workers

    words = _job_words(options)
    if options.on == "slurm":
        return cluster_jobs.run_on_slurm(grid, folder, ["zoo", *words], _resources(options))
    if options.on == "jobset":
        return cluster_jobs.run_on_kubernetes(grid, folder, ["zoo", *words], _resources(options))
    if options.on == "ray":
        from eval.experiments.workers import ray_workers

        workers = ray_workers.RayWorkers(folder, words, _resources(options))
    else:
        workers = local_workers.LocalWorkers(folder, options.workers or 1)
    return grid_runner.run_missing(grid, folder, workers)


def _run_node(options: Any, grid: Any, folder: Path) -> int:
    """Run one node, and return the exit code: 3 if one that it needs failed, 75 if one that it needs is not done."""
    from eval.experiments import grid_runner, node_status
    from eval.experiments.workers import cluster_scripts, local_workers, node_process

    nodes = {node.name: node for node in grid.nodes}
    require(options.node in nodes, "node", options.node, f"{grid.experiment.name} has no such run; choose {', '.join(nodes)}")
    node = nodes[options.node]
    if (failed := node_status.failed_ancestor(grid, node, folder)) is not None:
        _notify(f"{node.name} is left out: it needs {failed.name}, which failed: {node_status.node_failure(failed, folder)}")
        return cluster_scripts.NEEDS_FAILED
    for parent in node.parents:
        if not node_status.is_done(nodes[parent], folder):
            _notify(f"{node.name} cannot begin: it needs {parent}, which is not done; run that first")
            return node_process.STUCK
    try:
        failures = grid_runner.run_missing(dataclasses.replace(grid, nodes=(node,)), folder, local_workers.LocalWorkers(folder))
    except grid_runner.Stopped as stopped:
        return 128 + stopped.number
    for line in failures:
        _notify(line)
    return 1 if failures else 0


def _script(options: Any, grid: Any, folder: Path) -> str:
    """Return what --commands prints."""
    from eval.experiments.workers import cluster_scripts

    words = ["zoo", *_job_words(options)]
    if options.on == "slurm":
        return cluster_scripts.slurm_script(grid, folder, words, _resources(options))
    if options.on == "jobset":
        return cluster_scripts.job_sets(grid, folder, words, _resources(options))
    return "\n".join(cluster_scripts.command_lines(grid, folder))


def _job_words(options: Any) -> list[str]:
    """Return the arguments of `zoo` that declare the same grid in any folder."""
    words = ["experiment", options.name, str(Path(options.folder).resolve())]
    for name in GRID_OPTIONS:
        if value := getattr(options, name):
            is_path = name in ("corpus", "tasks") and value != "embedded"
            words += [f"--{name.replace('_', '-')}"]
            words += [] if value is True else [str(Path(value).resolve() if is_path else value)]
    return words


def _resources(options: Any) -> Any:
    from eval.experiments.workers.cluster_scripts import Resources

    names = [field.name for field in dataclasses.fields(Resources) if field.name != "mount"]
    # A pilot is in a folder of the experiment, and has the same volume.
    return Resources(**{name: getattr(options, name) for name in names}, mount=Path(options.folder).resolve().parent)


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
