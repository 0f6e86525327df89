"""The command `zoo fill-mask`."""

import dataclasses
from typing import Annotated

from zoo.cli import early_checks
from zoo.cli.machine import prepare_process, refuse_shared_stdin
from zoo.cli.options import parse


def fill_mask(args: list[str]) -> int:
    """Run `zoo fill-mask RUN|DIR|hub:ID --text ... [options]`."""
    import tyro

    from eval.scoring.encoder_inputs import Texts
    from train.config.run_config import Machine, Mesh, Precision

    @dataclasses.dataclass(frozen=True)
    class FillMask:
        """Show the likeliest words for each mask of a text. A mask is written [MASK] or <mask>, for any model.

        The masks of one text are predicted independently: all of them stay masked.
        """

        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|DIR")]
        """Folder of a run or of published weights, or hub:ID."""
        texts: Annotated[Texts, tyro.conf.arg(name="", prefix_name=False)]
        top: int = 5
        """Number of words to show for each mask."""
        targets: tuple[str, ...] = ()
        """Show the probabilities of these words instead; each must be an entry of the vocabulary."""
        step: int | None = None
        """Step of the checkpoint to use. None = the best checkpoint if the run keeps one, else the newest; -1 = the newest."""
        batch: int = 16
        """Rows of the model's full length computed at a time; results do not depend on it."""
        precision: Precision = "auto"
        """Dtype of the arithmetic. auto: float32 on CPU, else bfloat16."""
        json: bool = False
        """Print one JSON object per mask."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    options = parse(FillMask, args=args, prog="zoo fill-mask")
    refuse_shared_stdin(options.machine, options.texts)
    early_checks.check_source(options.model, options.step)
    early_checks.check_files("--files", options.texts.files)
    if (code := prepare_process(options.machine, ["fill-mask", *args])) is not None:
        return code
    from eval.commands import fill_mask

    return fill_mask.main(
        options.model,
        options.texts,
        top=options.top,
        targets=options.targets,
        step=options.step,
        batch=options.batch,
        precision=options.precision,
        mesh=options.mesh,
        as_json=options.json,
    )
