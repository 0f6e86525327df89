"""`zoo generate`."""

import dataclasses
from typing import Annotated

from zoo.cli import early_checks
from zoo.cli.machine import on_machine
from zoo.cli.options import parse


def generate(args: list[str]) -> int:
    """`zoo generate RUN|DIR|hub:ID --prompt ... [options]`."""
    import tyro

    from eval.generation.settings import Decoding, Prompts
    from train.config.run_config import Machine, Mesh, Precision

    @dataclasses.dataclass(frozen=True)
    class Generate:
        """Continue prompts, or say which of given continuations is the likeliest. A single text is shown as it comes. In
        --template and --stop, \\n is a line end and \\t a tab."""

        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|DIR")]
        """Folder of a run or of published weights, or hub:ID."""
        prompts: Annotated[Prompts, tyro.conf.arg(name="", prefix_name=False)]
        decoding: Annotated[Decoding, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Decoding)
        step: int | None = None
        """Checkpoint of a run; None = the best one of a run that keeps it, else the newest; -1 = the newest."""
        batch: int = 16
        """Rows computed at a time; the text does not depend on it."""
        precision: Precision = "auto"
        """Dtype of the arithmetic and the cache. auto: float32 on CPU, else bfloat16."""
        json: bool = False
        """Print an object a line."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    asked = parse(Generate, args=args, prog="zoo generate")
    early_checks.check_source(asked.model, asked.step)
    early_checks.check_files("--prompts-file", (asked.prompts.prompts_file,))
    early_checks.check_files("--examples", (asked.prompts.examples,))
    if (code := on_machine(asked.machine, ["generate", *args])) is not None:
        return code
    from eval.commands import generate as complete

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
