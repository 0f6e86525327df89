"""`zoo plan`."""

import dataclasses
from typing import Annotated, Any, Literal

from zoo.cli.machine import alone, option
from zoo.cli.options import parse
from zoo.errors import BadInput, require


def plan(args: list[str]) -> int:
    """`zoo plan MODEL|RECIPE --target T [options]`."""
    from benchmarks.plan import targets

    if args[:1] in (["-h"], ["--help"]):
        print(HELP, end="")
        return 0
    if not args or args[0].startswith("-"):
        raise BadInput("zoo plan: say what to plan, a size (zoo models) or a recipe (zoo train --help), before the options")
    request = asked(args[0], args[1:])
    target = targets.parse(request.target)
    run = request.run
    alone(run.machine)
    require(run.machine.devices == 0, "devices", run.machine.devices, f"--target says them: cpu:{run.machine.devices}")
    require(request.minutes > 0, "minutes", request.minutes, "choose more than 0")
    require(request.top >= 1, "top", request.top, "choose 1 or more")
    require(not (request.search and request.page), "page", request.page, "a search has none; plan the mesh that it found")
    data = {"batch": request.batch or run.data.batch, "length": request.seq or run.data.length}
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, **data))
    targets.prepare(target)
    from benchmarks.plan import main

    how = {"fresh": request.fresh, "as_json": request.json}
    try:
        if request.search:
            return main.search(run, request.mode, target, minutes=request.minutes, top=request.top, **how)
        return main.plan(run, request.mode, target, file=request.page, **how)
    except BadInput as refused:
        message = str(refused)
        # By the name that it was asked by.
        for given, long, short in ((request.batch, "--data.batch ", "--batch "), (request.seq, "--data.length ", "--seq ")):
            if given and message.startswith(long):
                message = short + message.removeprefix(long)
        raise BadInput(message) from None


def asked(name: str, args: list[str]) -> Any:
    """What the options behind a name ask for.

    Raises:
        BadInput: see `subject.default` and `options.parse`.
        SystemExit: with 0, after --help.
    """
    import tyro

    from benchmarks.plan import planned_run
    from train.config.run_config import Run

    default = planned_run.default(name, option(args, "--init"))

    @dataclasses.dataclass(frozen=True)
    class Plan:
        """Compile a job for devices that are not here: memory, FLOPs, communication and what bounds its share of the peak."""

        run: Annotated[Run[type(default.model)], tyro.conf.arg(name="", prefix_name=False)]  # pyright: ignore[reportInvalidTypeForm]
        target: str = ""
        """TPU slice (v4, v5e, v5p, v6e, tpu7x, as v5p:8x8x8), GPUs (a100, h100, h200, b200, as h100:64) or simulated cpu:8."""
        mode: Literal["train", "forward", "decode"] = "train"
        """train: the trainer's step. forward: the loss of a batch. decode: a token of each row behind --data.length others."""
        batch: int = 0
        """Rows of a step over all devices; 0 = --data.batch."""
        seq: int = 0
        """Tokens of a row; 0 = --data.length."""
        search: bool = False
        """Try meshes, remat and micro-batches, and rank those that fit."""
        minutes: float = 10.0
        """Time that a search takes at most; what it compiled is kept, so that the next one goes on."""
        top: int = 10
        """Candidates of a search that are shown."""
        fresh: bool = False
        """Compile again what was compiled before."""
        page: str = ""
        """HTML file to write."""
        json: bool = False
        """Print JSON."""

    return parse(Plan, default=Plan(run=default), prog=f"zoo plan {name}", args=args)


HELP = """\
usage: zoo plan MODEL|RECIPE --target T [options]

Compile a job for devices that are not here: memory, FLOPs, communication, and what bounds its share of the peak.

  zoo plan gpt3-175b --target v5p:8x8x8
  zoo plan bert-large-uncased --target h100:8 --search
  zoo plan gpt2 --target cpu:8 --mesh.fsdp 4 --batch 32 --page plan.html

`zoo models` lists the sizes, `zoo train --help` the recipes. zoo plan NAME --help lists the options of a job.
"""
