"""`zoo fill-mask`."""

import dataclasses
from typing import Annotated

from zoo.cli import early_checks
from zoo.cli.machine import on_machine, one_reader
from zoo.cli.options import parse


def fill_mask(args: list[str]) -> int:
    """`zoo fill-mask RUN|DIR|hub:ID --text ... [options]`."""
    import tyro

    from eval.generation.settings import Texts
    from train.config.run_config import Machine, Mesh, Precision

    @dataclasses.dataclass(frozen=True)
    class FillMask:
        """The likeliest words for each mask of a text, written [MASK] or <mask>, whichever the model. Several masks of a text are
        judged one by one, all of them being masked."""

        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|DIR")]
        """Folder of a run or of published weights, or hub:ID."""
        texts: Annotated[Texts, tyro.conf.arg(name="", prefix_name=False)]
        top: int = 5
        """Words shown for each mask."""
        targets: tuple[str, ...] = ()
        """Show how likely these words are instead, each an entry of the vocabulary."""
        step: int | None = None
        """Checkpoint of a run; None = the best one of a run that keeps it, else the newest; -1 = the newest."""
        batch: int = 16
        """Rows of the model's full length computed at a time; no result depends on it."""
        precision: Precision = "auto"
        """Dtype of the arithmetic. auto: float32 on CPU, else bfloat16."""
        json: bool = False
        """Print an object a line for each mask."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    asked = parse(FillMask, args=args, prog="zoo fill-mask")
    one_reader(asked.machine, asked.texts)
    early_checks.check_source(asked.model, asked.step)
    early_checks.check_files("--files", asked.texts.files)
    if (code := on_machine(asked.machine, ["fill-mask", *args])) is not None:
        return code
    from eval.commands import fill_mask

    return fill_mask.main(
        asked.model,
        asked.texts,
        top=asked.top,
        targets=asked.targets,
        step=asked.step,
        batch=asked.batch,
        precision=asked.precision,
        mesh=asked.mesh,
        as_json=asked.json,
    )
