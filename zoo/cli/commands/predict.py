"""The command `zoo predict`."""

import dataclasses
from typing import Annotated

from zoo.cli import early_checks
from zoo.cli.machine import prepare_process
from zoo.cli.options import parse


def predict(args: list[str]) -> int:
    """Run `zoo predict RUN|DIR|hub:ID TEXT ... | --files ... [options]`."""
    import tyro

    from eval.scoring.encoder_inputs import Unlabelled
    from train.config.objective_options import Labelled
    from train.config.run_config import Machine, Mesh, Precision

    @dataclasses.dataclass(frozen=True)
    class Predict:
        """Predict classes, lists of labels, numbers, tags, answers or choices for texts or files without labels.

        The output is one line of JSON per example, in order, with probabilities. A list has the labels of probability 0.5 or
        more. An answer has its characters [start, end) of the
        context; an entity has its words [first, end).
        """

        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|DIR")]
        """Folder of a fine-tuned run, or of published weights with a head for labels, or hub:ID."""
        inputs: Annotated[Unlabelled, tyro.conf.arg(name="", prefix_name=False)]
        out: str = ""
        """File to write (.jsonl); it appears when all predictions are done. Empty = stdout."""
        null_threshold: float | None = None
        """Threshold for no answer (span): null if the score of "no answer" exceeds that of the best answer by more than this.
        SQuAD 2.0 usually has 0. None = answer every question."""
        length: int = 0
        """Largest number of tokens in a row; 0 = as the run was trained, or the model's positions for published weights."""
        step: int | None = None
        """Step of the checkpoint to use. None = the best checkpoint if the run keeps one, else the newest; -1 = the newest."""
        batch: int = 16
        """Rows computed at a time; results depend on it only by rounding."""
        precision: Precision = "auto"
        """Dtype of the arithmetic. auto: float32 on CPU, else bfloat16."""
        labelled: Labelled = Labelled()
        """Options for reading files and cutting long texts. Without any of them, files are read as the run read its own."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    options = parse(Predict, args=args, prog="zoo predict")
    early_checks.check_source(options.model, options.step)
    early_checks.check_files("--files", options.inputs.files)
    _check_model(options.model)
    if (code := prepare_process(options.machine, ["predict", *args])) is not None:
        return code
    from eval.commands import predict

    return predict.main(
        options.model,
        options.inputs,
        out=options.out,
        length=options.length,
        labelled=options.labelled,
        null_threshold=options.null_threshold,
        step=options.step,
        batch=options.batch,
        precision=options.precision,
        mesh=options.mesh,
    )


def _check_model(name: str) -> None:
    """Refuse a model family without heads for labels, before JAX is imported."""
    from train.weights.init_config import read_init_config, writes_text

    if not hasattr(read_init_config(name), "task"):
        raise writes_text(name)
