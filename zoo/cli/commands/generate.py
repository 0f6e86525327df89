"""The command `zoo generate`."""

import dataclasses
from typing import Annotated

from zoo.cli import early_checks
from zoo.cli.machine import prepare_process
from zoo.cli.options import parse


def generate(args: list[str]) -> int:
    """Run `zoo generate RUN|DIR|hub:ID --prompt ... [options]`."""
    import tyro

    from eval.generation.settings import Decoding, Prompts
    from train.config.run_config import Machine, Mesh, Precision

    @dataclasses.dataclass(frozen=True)
    class Generate:
        """Continue prompts, or compare the likelihoods of the continuations in --choices.

        A single text is printed while it is generated. In --template and --stop, \\n stands for a line end and \\t for a tab.
        """

        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|DIR")]
        """Folder of a run or of published weights, or hub:ID."""
        prompts: Annotated[Prompts, tyro.conf.arg(name="", prefix_name=False)]
        decoding: Annotated[Decoding, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Decoding)
        step: int | None = None
        """Step of the checkpoint to use. None = the best checkpoint if the run keeps one, else the newest; -1 = the newest."""
        batch: int = 16
        """Rows computed at a time; the generated text does not depend on it."""
        precision: Precision = "auto"
        """Dtype of the arithmetic and the cache. auto: float32 on CPU, else bfloat16."""
        json: bool = False
        """Print one JSON object per line."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    options = parse(Generate, args=args, prog="zoo generate")
    early_checks.check_source(options.model, options.step)
    early_checks.check_files("--prompts-file", (options.prompts.prompts_file,))
    early_checks.check_files("--examples", (options.prompts.examples,))
    if (code := prepare_process(options.machine, ["generate", *args])) is not None:
        return code
    from eval.commands import generate as complete

    return complete.main(
        options.model,
        options.prompts,
        options.decoding,
        step=options.step,
        batch=options.batch,
        precision=options.precision,
        mesh=options.mesh,
        as_json=options.json,
    )
