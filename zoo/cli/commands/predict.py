"""The command `zoo predict`."""

import dataclasses
from typing import Annotated

from zoo.cli.command_setup import prepare_model_command
from zoo.cli.option_parser import parse


def predict(args: list[str]) -> int:
    """Run `zoo predict RUN|DIR|hub:ID TEXT ... | --files ... [options]`."""
    import tyro

    from eval.commands.model_options import ModelOptions
    from eval.scoring.encoder_inputs import Unlabelled
    from train.config.option_groups import Labelled

    @dataclasses.dataclass(frozen=True)
    class Predict:
        """Predict classes, lists of labels, numbers, scores, tags, answers or choices for texts or files without labels.

        The output is one line of JSON per example, in order, with probabilities. A list has the labels of probability 0.5 or
        more. An answer has its characters [start, end) in the context; an entity has its words [first, end).
        """

        model: Annotated[ModelOptions, tyro.conf.arg(name="", prefix_name=False)]
        inputs: Annotated[Unlabelled, tyro.conf.arg(name="", prefix_name=False)]
        out: str = ""
        """File to write (.jsonl); it appears when all predictions are done. Empty = stdout."""
        null_threshold: float | None = None
        """Threshold for no answer (span): null if the score of "no answer" exceeds that of the best answer by more than this.
        SQuAD 2.0 usually has 0. None = answer every question."""
        length: int = 0
        """Largest number of tokens in a row; 0 = as the run was trained, or the model's positions for published weights."""
        labelled: Labelled = Labelled()
        """Options for reading files and cutting long texts. Without any of them, files are read with the run's options."""

    options = parse(Predict, args=args, prog="zoo predict")
    files = {"--files": options.inputs.files}
    if (code := prepare_model_command(options.model, ["predict", *args], files, _check_model)) is not None:
        return code
    from eval.commands import predict

    return predict.main(
        options.model,
        options.inputs,
        out=options.out,
        length=options.length,
        labelled=options.labelled,
        null_threshold=options.null_threshold,
    )


def _check_model(name: str) -> None:
    """Refuse a model without labels and without a score, before JAX is imported."""
    from train.weights.pretrained_config import may_have_labels, text_model_error

    if not may_have_labels(name):
        raise text_model_error(name)
