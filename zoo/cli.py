"""`zoo ...`: the one place where the rooms meet. Imported by nothing; imports jax only once a command needs it."""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from zoo import configs
from zoo.errors import BadInput

USAGE = """\
usage: zoo COMMAND ...

  zoo models [NAME]           every published size with its exact count, or one of them in full
  zoo train [RECIPE] [...]    train (gpt-nano unless told); the same command resumes a run that was stopped
  zoo eval RUN [...]          exact held-out loss, perplexity and bits per byte of a run
  zoo doctor                  versions, devices, attention implementations, and whether this machine computes rightly

Every command takes --help. `zoo train --help` lists the recipes.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for wrong input (one line on stderr), 130 and 143 for signals.

    Raises:
        SystemExit: from tyro, with 0 after --help and 2 after an option it cannot read.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, end="", file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    try:
        if args[0] not in COMMANDS:
            raise BadInput(f"there is no command {args[0]!r}; choose {', '.join(COMMANDS)}")
        return COMMANDS[args[0]](args[1:])
    except BadInput as wrong:
        print(f"zoo: {wrong}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def models(args: list[str]) -> int:
    """`zoo models [NAME] [--json]`."""
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Models:
        """Sizes of the zoo: exact parameter counts and where every number comes from. Nothing is allocated."""

        name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = ""
        """One size, in full."""
        json: bool = False
        """Machine-readable."""

    asked = tyro.cli(Models, args=args, prog="zoo models")
    if asked.name:
        configs.find(asked.name)  # refuses an unknown name before JAX is imported
    from zoo import catalogue

    print(catalogue.render(asked.name, as_json=asked.json), end="")
    return 0


def train(args: list[str]) -> int:
    """`zoo train [RECIPE] [options]`."""
    import tyro

    from train import recipes
    from train.config import Run

    if args[:1] in (["-h"], ["--help"]):
        for name, recipe in sorted(recipes.recipes().items()):
            print(f"{name:14} {(recipe.__doc__ or '').strip().splitlines()[0]}")
        print("\nzoo train RECIPE --help lists the options of a recipe.")
        return 0
    name = args.pop(0) if args and not args[0].startswith("-") else recipes.DEFAULT
    default = recipes.find(name)()
    run = tyro.cli(Run[type(default.model)], default=default, prog=f"zoo train {name}", args=args)
    for option, files in (("--data.paths", run.data.paths), ("--data.valid-paths", run.data.valid_paths)):
        # An empty shell variable must not mean the embedded corpus.
        if not files and option in (arg.replace("_", "-") for arg in args):
            raise BadInput(f"{option}: no file is named; name one, or leave the option out")
    if (code := _on_machine(run.machine, ["train", name, *args])) is not None:
        return code
    from eval import report, score
    from train import loop

    return loop.run(run, evaluate=score.scorer, on_end=report.write)


def evaluate(args: list[str]) -> int:
    """`zoo eval RUN [options]`."""
    import tyro

    from train.config import Machine, Mesh

    @dataclasses.dataclass(frozen=True)
    class Evaluate:
        """Exact held-out loss, perplexity and bits per byte: every token counted once."""

        run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
        """Folder of a run."""
        step: int | None = None
        """Checkpoint to score; None = the newest intact one."""
        batch: int = 16
        """Rows scored at a time; the score does not depend on it."""
        stride: int = 0
        """New tokens per row: smaller gives every token more context, at more rows; 0 = half a row."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    asked = tyro.cli(Evaluate, args=args, prog="zoo eval")
    if (code := _on_machine(asked.machine, ["eval", *args])) is not None:
        return code
    from eval import score

    return score.main(asked.run, step=asked.step, batch=asked.batch, stride=asked.stride, mesh=asked.mesh)


def doctor(args: list[str]) -> int:
    """`zoo doctor`."""
    import tyro

    from train.config import Machine

    machine = tyro.cli(Machine, args=args, prog="zoo doctor")
    if (code := _on_machine(machine, ["doctor", *args], canary=False)) is not None:
        return code
    from zoo import attention
    from zoo import doctor as doctors

    return doctors.doctor(attention.usable())


COMMANDS: dict[str, Callable[[list[str]], int]] = {"models": models, "train": train, "eval": evaluate, "doctor": doctor}


def _on_machine(machine: Any, argv: list[str], *, canary: bool = True) -> int | None:
    """Prepare this process for JAX, or start the processes asked for and return their exit code."""
    from zoo import launch

    return launch.enter(
        argv,
        devices=machine.devices,
        processes=machine.processes,
        coordinator=machine.coordinator,
        process=machine.process,
        canary=canary,
    )


def run() -> None:
    """The console script."""
    from zoo import launch

    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader left (`| head`): nothing more can be said, and flushing at exit must not try.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(launch.leave(code))


if __name__ == "__main__":
    run()
