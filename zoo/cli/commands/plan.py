"""The command `zoo plan`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from zoo.cli.command_setup import named_mesh_axes, option_value, require_one_process, take_objective, unlisted_fields
from zoo.cli.option_parser import explicit_names, parse
from zoo.errors import BadInput, require
from zoo.file_access import check_output_file


def plan(args: list[str]) -> int:
    """Run `zoo plan MODEL|RECIPE --target T [options]`, or `zoo plan --published FILE [options]`."""
    from benchmarks.plan import target_devices

    if args[:1] in (["-h"], ["--help"]):
        print(HELP, end="")
        return 0
    if args and args[0].partition("=")[0] == "--published":
        return plan_published(args)
    if not args or args[0].startswith("-"):
        raise BadInput("plan: name a size (zoo models) or a recipe (zoo train --help) before the options")
    request = parse_options(args[0], args[1:])
    target = target_devices.parse_target(request.target)
    run = request.run
    require_one_process(run.machine)
    require(run.machine.devices == 0, "devices", run.machine.devices, f"choose --target cpu:{run.machine.devices} instead")
    require(request.minutes > 0, "minutes", request.minutes, "choose more than 0")
    require(request.top >= 1, "top", request.top, "choose 1 or more")
    fix = "--search writes no page; leave out --page, and run zoo plan for the mesh that the search finds"
    require(not (request.search and request.page), "page", request.page, fix)
    if request.page:
        check_output_file(Path(request.page), "page")
    data: dict[str, Any] = {"batch": request.batch or run.data.batch, "length": request.seq or run.data.length}
    # The smaller batches of a recipe grow to its own.
    data |= {"ramp": ()} if request.batch else {}
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, **data))
    target_devices.prepare_target(target)
    from benchmarks.plan import plan_command

    flags = {"named": named_mesh_axes(args), "fresh": request.fresh, "as_json": request.json}
    try:
        if request.search:
            return plan_command.run_mesh_search(run, request.mode, target, minutes=request.minutes, top=request.top, **flags)
        return plan_command.run_plan(run, request.mode, target, file=request.page, **flags)
    except BadInput as error:
        message = str(error)
        # Name the option that the user wrote.
        for value, long, short in ((request.batch, "--data.batch ", "--batch "), (request.seq, "--data.length ", "--seq ")):
            if value and message.startswith(long):
                message = short + message.removeprefix(long)
        raise BadInput(message) from None


def plan_published(args: list[str]) -> int:
    """Run `zoo plan --published FILE [options]`."""

    @dataclasses.dataclass(frozen=True)
    class Published:
        """Plan published training steps, and compare the plans with their measured times and memory."""

        published: Path
        """CSV file of training steps; docs/plan-checks.md describes its columns."""
        rows: str = "*"
        """Names of rows, as a pattern with * and ?."""
        half: Literal["both", "improve", "judge"] = "both"
        """improve: the half of the rows that the planner may be changed by. judge: the other half."""
        minutes: float = 10.0
        """Time limit; plans are stored, so the same command goes on."""
        fresh: bool = False
        """Compile again instead of reusing stored results."""
        page: str = ""
        """File to write, HTML or (.md) Markdown; empty = no page."""
        json: bool = False
        """Print JSON."""

    request = parse(Published, args=args, prog="zoo plan")
    require(request.minutes > 0, "minutes", request.minutes, "choose more than 0")
    if request.page:
        check_output_file(Path(request.page), "page")
    from benchmarks.published import published_command

    return published_command.run_published(
        request.published,
        pattern=request.rows,
        half="" if request.half == "both" else request.half,
        minutes=request.minutes,
        fresh=request.fresh,
        file=request.page,
        as_json=request.json,
    )


def parse_options(name: str, args: list[str]) -> Any:
    """Parse the options of `zoo plan NAME`.

    Raises:
        BadInput: see `find_run.find_run` and `option_parser.parse`.
        SystemExit: with 0, after --help.
    """
    import tyro

    from benchmarks.plan import find_run
    from train.config.optim_options import check_used
    from train.config.run_config import kind_of

    default, args = take_objective(find_run.find_run(name, option_value(args, "--init")), args)

    @dataclasses.dataclass(frozen=True)
    class Plan:
        """Compile a job for devices that this machine lacks: memory, FLOPs, communication, and a bound on its MFU."""

        run: Annotated[kind_of(default), tyro.conf.arg(name="", prefix_name=False)]  # pyright: ignore[reportInvalidTypeForm]
        target: str = ""
        """TPU slice (v4, v5e, v5p, v6e, tpu7x, as in v5p:8x8x8), GPUs (a100, h100, h200, b200, as in h100:64) or CPUs (cpu:8)."""
        mode: Literal["train", "forward", "decode"] = "train"
        """train: the trainer's step. forward: the loss of a batch. decode: one token of each row after --data.length others."""
        batch: int = 0
        """Number of rows of a step over all devices; 0 = --data.batch."""
        seq: int = 0
        """Number of tokens of a row; 0 = --data.length."""
        search: bool = False
        """Try meshes, remat and micro-batches, and rank those that fit."""
        minutes: float = 10.0
        """Time limit of a search; its compiled programs are stored, so the next search continues from there."""
        top: int = 10
        """Number of candidates that a search shows."""
        fresh: bool = False
        """Compile again instead of reusing stored results."""
        page: str = ""
        """HTML file to write; empty = no page."""
        json: bool = False
        """Print JSON."""

    unlisted, plan = unlisted_fields(default, args), Plan(run=default)
    request = parse(Plan, default=plan, prog=f"zoo plan {name}", args=args, objective=default.objective, unlisted=unlisted)
    check_used(request.run.optim, explicit_names(args))
    return request


HELP = """\
usage: zoo plan MODEL|RECIPE --target T [options]
       zoo plan --published FILE [options]

Compile a job for devices that this machine lacks: memory, FLOPs, communication, and a bound on its MFU.

  zoo plan gpt3-175b --target v5p:8x8x8
  zoo plan bert-large-uncased --target h100:8 --search
  zoo plan gpt2 --target cpu:8 --mesh.fsdp 4 --batch 32 --page plan.html

`zoo models` lists the sizes, `zoo train --help` the recipes. zoo plan NAME --help lists the options of a job.
--published compares plans with training steps that others measured; zoo plan --published FILE --help lists its options.
"""
