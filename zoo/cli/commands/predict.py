"""`zoo predict`."""

import dataclasses
from typing import Annotated

from zoo.cli import early_checks
from zoo.cli.machine import on_machine
from zoo.cli.options import parse


def predict(args: list[str]) -> int:
    """`zoo predict RUN|DIR|hub:ID TEXT ... | --files ... [options]`."""
    import tyro

    from eval.generation.settings import Unlabelled
    from train.config.objective_options import Labelled
    from train.config.run_config import Machine, Mesh, Precision

    @dataclasses.dataclass(frozen=True)
    class Predict:
        """Predictions of a fine-tuned model for texts or files without labels: classes, numbers, tags, answers or choices, with
        probabilities, a line of JSON for each example, in order. An answer has its characters [start, end) of the context;
        entities have the words [first, end)."""

        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|DIR")]
        """Folder of a fine-tuned run or of published weights with a head for labels, or hub:ID."""
        inputs: Annotated[Unlabelled, tyro.conf.arg(name="", prefix_name=False)]
        out: str = ""
        """File to write (.jsonl); it appears when all predictions are made. None: stdout."""
        null_threshold: float | None = None
        """span: the answer is null where the score of no answer is above that of the best answer by more than this (SQuAD 2.0;
        0 is usual). None: every question is answered."""
        length: int = 0
        """Tokens of the longest row; 0 = that of the run, of published weights the model's positions."""
        step: int | None = None
        """Checkpoint of a run; None = the best one of a run that keeps it, else the newest; -1 = the newest."""
        batch: int = 16
        """Rows computed at a time; a result depends on it by rounding alone."""
        precision: Precision = "auto"
        """Dtype of the arithmetic. auto: float32 on CPU, else bfloat16."""
        labelled: Labelled = Labelled()
        """How files are read and long texts are cut; without any of these a run reads them as its own."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    asked = parse(Predict, args=args, prog="zoo predict")
    early_checks.check_source(asked.model, asked.step)
    early_checks.check_files("--files", asked.inputs.files)
    _check_model(asked.model)
    if (code := on_machine(asked.machine, ["predict", *args])) is not None:
        return code
    from eval.commands import predict

    return predict.main(
        asked.model,
        asked.inputs,
        out=asked.out,
        length=asked.length,
        labelled=asked.labelled,
        null_threshold=asked.null_threshold,
        step=asked.step,
        batch=asked.batch,
        precision=asked.precision,
        mesh=asked.mesh,
    )


def _check_model(where: str) -> None:
    """Refuse a family that has no heads for labels, before JAX is imported."""
    from train.weights.init_config import numbers, writes_text

    if not hasattr(numbers(where), "task"):
        raise writes_text(where)
