"""`zoo plan`."""

import dataclasses
from typing import Annotated, Literal

from zoo.commands.machine import alone, option
from zoo.errors import BadInput, require


def plan(args: list[str]) -> int:
    """`zoo plan MODEL|RECIPE --target T [options]`."""
    import tyro

    from benchmarks.plan import subject, targets
    from train.config import Run

    if args[:1] in (["-h"], ["--help"]):
        print(HELP, end="")
        return 0
    if not args or args[0].startswith("-"):
        raise BadInput("zoo plan: say what to plan, a size (zoo models) or a recipe (zoo train --help), before the options")
    name, args = args[0], args[1:]
    default = subject.default(name, option(args, "--init"))

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

    asked = tyro.cli(Plan, default=Plan(run=default), prog=f"zoo plan {name}", args=args)
    target = targets.parse(asked.target)
    run = asked.run
    alone(run.machine)
    require(run.machine.devices == 0, "devices", run.machine.devices, f"--target says them: cpu:{run.machine.devices}")
    require(asked.minutes > 0, "minutes", asked.minutes, "choose more than 0")
    require(asked.top >= 1, "top", asked.top, "choose 1 or more")
    require(not (asked.search and asked.page), "page", asked.page, "a search has none; plan the mesh that it found")
    data = {"batch": asked.batch or run.data.batch, "length": asked.seq or run.data.length}
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, **data))
    targets.prepare(target)
    from benchmarks.plan import main

    if asked.search:
        return main.search(run, asked.mode, target, minutes=asked.minutes, top=asked.top, fresh=asked.fresh, as_json=asked.json)
    return main.plan(run, asked.mode, target, file=asked.page, fresh=asked.fresh, as_json=asked.json)


HELP = """\
usage: zoo plan MODEL|RECIPE --target T [options]

Compile a job for devices that are not here: memory, FLOPs, communication, and what bounds its share of the peak.

  zoo plan gpt3-175b --target v5p:8x8x8
  zoo plan bert-large-uncased --target h100:8 --search
  zoo plan gpt2 --target cpu:8 --mesh.fsdp 4 --batch 32 --page plan.html

`zoo models` lists the sizes, `zoo train --help` the recipes. zoo plan NAME --help lists the options of a job.
"""
