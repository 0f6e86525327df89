"""`zoo ...`: the one place where the rooms meet. Imported by nothing; imports jax only once a command needs it."""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from zoo import configs
from zoo.errors import BadInput, require

USAGE = """\
usage: zoo COMMAND ...

  zoo models [NAME]           every published size with its exact count, or one of them in full
  zoo train [RECIPE] [...]    train (gpt-nano unless told); the same command resumes a run that was stopped
  zoo eval RUN [...]          exact held-out loss, perplexity and bits per byte; --task blimp|lambada|... scores local files
  zoo generate RUN|DIR [...]  continue prompts, or choose the likelier of given continuations
  zoo data inspect [...]      rows as a run trains on them, decoded, with their masks and segments
  zoo import DIR|HUB_ID       check published weights and keep them under models/
  zoo export RUN DIR          a run's weights as a folder that transformers loads
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
        from zoo import launch

        return launch.abandon(130)


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
    _refuse_unnamed(run, args)
    if (code := _on_machine(run.machine, ["train", name, *args])) is not None:
        return code
    from eval import report, samples, scores
    from train import loop

    return loop.run(run, evaluate=scores.scorer, sample=samples.of_run, on_end=report.write)


def evaluate(args: list[str]) -> int:
    """`zoo eval RUN [options]`, `zoo eval RUN|DIR|hub:ID --task T --files ... [options]`."""
    import tyro

    from train.config import Machine, Mesh, Precision

    @dataclasses.dataclass(frozen=True)
    class Evaluate:
        """Exact held-out loss, perplexity and bits per byte of a run, every token once. With --task, a task on local files."""

        run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
        """Folder of a run; with --task also a folder of published weights, or hub:ID."""
        task: str = ""
        """blimp, lambada, perplexity, or harness:NAME (a YAML task of lm-evaluation-harness). A run keeps the result."""
        files: tuple[str, ...] = ()
        """Files of the task, or their folders."""
        step: int | None = None
        """Checkpoint to score; None = the newest intact one."""
        batch: int = 16
        """Rows scored at a time; the score does not depend on it."""
        stride: int = 0
        """New tokens per row: smaller gives every token more context, at more rows; 0 = half a row."""
        length: int = 0
        """perplexity: tokens in a row; 0 = the model's positions."""
        words: bool = False
        """perplexity: also that of a word."""
        field: str = "text"
        """lambada, perplexity: field of a .jsonl line that holds the text."""
        precision: Precision = "auto"
        """Dtype of a task's arithmetic. auto: the run's own; of published weights float32 on CPU, else bfloat16."""
        json: bool = False
        """Print a task's result as JSON."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    asked = tyro.cli(Evaluate, args=args, prog="zoo eval")
    if asked.task:
        from eval import tasks

        # Imports no JAX: a wrong name is refused at once.
        tasks.check(asked.task)
    else:
        for name in ("files", "length", "words", "field", "precision", "json"):
            value, default = getattr(asked, name), Evaluate.__dataclass_fields__[name].default
            require(value == default, name, " ".join(value) if isinstance(value, tuple) else value, "it needs a --task")
    if (code := _on_machine(asked.machine, ["eval", *args])) is not None:
        return code
    if not asked.task:
        from eval import scores

        return scores.main(asked.run, step=asked.step, batch=asked.batch, stride=asked.stride, mesh=asked.mesh)
    from eval import run_task, tasks

    given = {name: getattr(asked, name) for name in ("batch", "stride", "length", "words", "field")}
    return run_task.main(
        asked.run,
        task=asked.task,
        files=asked.files,
        step=asked.step,
        settings=tasks.Settings(**given),
        precision=asked.precision,
        mesh=asked.mesh,
        as_json=asked.json,
    )


def generate(args: list[str]) -> int:
    """`zoo generate RUN|DIR|hub:ID --prompt ... [options]`."""
    import tyro

    from eval.settings import Decoding, Prompts
    from train.config import Machine, Mesh, Precision

    @dataclasses.dataclass(frozen=True)
    class Generate:
        """Continue prompts, or say which of given continuations is the likeliest. A single text is shown as it comes. In
        --template and --stop, \\n is a line end and \\t a tab."""

        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|DIR")]
        """Folder of a run or of published weights, or hub:ID."""
        prompts: Annotated[Prompts, tyro.conf.arg(name="", prefix_name=False)]
        decoding: Annotated[Decoding, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Decoding)
        step: int | None = None
        """Checkpoint of a run; None = the newest intact one."""
        batch: int = 16
        """Rows computed at a time; the text does not depend on it."""
        precision: Precision = "auto"
        """Dtype of the arithmetic and the cache. auto: float32 on CPU, else bfloat16."""
        json: bool = False
        """Print an object a line."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    asked = tyro.cli(Generate, args=args, prog="zoo generate")
    if (code := _on_machine(asked.machine, ["generate", *args])) is not None:
        return code
    from eval import complete

    return complete.main(
        asked.model,
        asked.prompts,
        asked.decoding,
        step=asked.step,
        batch=asked.batch,
        precision=asked.precision,
        mesh=asked.mesh,
        as_json=asked.json,
    )


def data(args: list[str]) -> int:
    """`zoo data inspect [RECIPE|RUN] [options]`."""
    import tyro

    from train import recipes
    from train.config import Run
    from train.folder import Folder, read_config

    if args[:1] != ["inspect"]:
        raise BadInput(f"zoo data {' '.join(args[:1])}: write zoo data inspect [RECIPE|RUN]")
    args = args[1:]
    name = args.pop(0) if args and not args[0].startswith("-") else recipes.DEFAULT
    folder = Folder(name) if name not in recipes.recipes() and os.path.isdir(name) else None
    default = read_config(name) if folder else recipes.find(name)()

    @dataclasses.dataclass(frozen=True)
    class Inspect:
        """Rows as a run trains on them: decoded, with what counts in the loss, segments and positions."""

        run: Annotated[Run[type(default.model)], tyro.conf.arg(name="", prefix_name=False)]  # pyright: ignore[reportInvalidTypeForm]
        rows: int = 3
        """Examples shown."""
        first: int = 0
        """Number of the first one in the stream: step x batch + its place in the batch."""

    asked = tyro.cli(Inspect, default=Inspect(run=default), prog=f"zoo data inspect {name}", args=args)
    _refuse_unnamed(asked.run, args)
    from train import inspect

    inspect.inspect(asked.run, folder or Folder.of(asked.run), rows=asked.rows, first=asked.first)
    return 0


def import_weights(args: list[str]) -> int:
    """`zoo import DIR|HUB_ID [options]`."""
    import tyro

    from train.config import Machine, Mesh

    @dataclasses.dataclass(frozen=True)
    class Import:
        """Check published weights (safetensors and JSON only) to the last tensor, and keep them exactly, under models/."""

        where: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR|HUB_ID")]
        """Folder with config.json, safetensors and tokenizer, or a hub id: from the local cache, else fetched."""
        out: str = "models"
        """Folder that holds the imported models."""
        name: str = ""
        """Name there; none: that of the folder or of the hub."""
        explain: bool = False
        """Only print what becomes of each tensor."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    asked = tyro.cli(Import, args=args, prog="zoo import")
    _alone(asked.machine)
    if (code := _on_machine(asked.machine, ["import", *args])) is not None:
        return code
    from train import exchange

    return exchange.import_weights(asked.where, out=asked.out, name=asked.name, explain=asked.explain, mesh=asked.mesh)


def export(args: list[str]) -> int:
    """`zoo export RUN DIR [options]`."""
    import tyro

    from train.config import Machine, Mesh

    @dataclasses.dataclass(frozen=True)
    class Export:
        """Write a run's weights as a folder that transformers loads: config.json, safetensors, tokenizer."""

        run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
        """Folder of a run."""
        target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
        """Folder to make."""
        step: int | None = None
        """Checkpoint; None = the newest intact one."""
        shard: float = 5.0
        """Largest safetensors file, in GB."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    asked = tyro.cli(Export, args=args, prog="zoo export")
    _alone(asked.machine)
    if (code := _on_machine(asked.machine, ["export", *args])) is not None:
        return code
    from train import exchange

    return exchange.export(asked.run, asked.target, step=asked.step, shard=asked.shard, mesh=asked.mesh)


def doctor(args: list[str]) -> int:
    """`zoo doctor`."""
    import tyro

    from train.config import Machine

    machine = tyro.cli(Machine, args=args, prog="zoo doctor")
    if (code := _on_machine(machine, ["doctor", *args], canary=False)) is not None:
        return code
    from zoo import attention
    from zoo import doctor as doctors

    return doctors.doctor(attention.usable(), attention.auto())


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "models": models,
    "train": train,
    "eval": evaluate,
    "generate": generate,
    "data": data,
    "import": import_weights,
    "export": export,
    "doctor": doctor,
}


def _refuse_unnamed(run: Any, args: list[str]) -> None:
    """Refuse an option without its values: an empty shell variable must not mean the embedded corpus."""
    several = {"paths": run.data.paths, "valid-paths": run.data.valid_paths, "weights": run.data.weights}
    for name, values in several.items():
        if not values and f"--data.{name}" in (arg.replace("_", "-") for arg in args):
            raise BadInput(f"--data.{name}: nothing is named; name something, or leave the option out")


def _alone(machine: Any) -> None:
    """Refuse several processes for a command that writes one folder."""
    require(machine.processes == 1, "processes", machine.processes, "this command runs in one process")


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

    launch.heed_interrupts()
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader left (`| head`): nothing more can be said, and flushing at exit must not try.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = launch.abandon(launch.CLOSED_PIPE)
    sys.exit(launch.leave(code))


if __name__ == "__main__":
    run()
