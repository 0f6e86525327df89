"""The command `zoo predict`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from zoo.cli.command_setup import named_fields, prepare_model_command
from zoo.cli.option_parser import parse
from zoo.errors import require
from zoo.file_access import check_output_file

FORMATS = ("jsonl", "tsv", "csv")


def predict(args: list[str]) -> int:
    """Run `zoo predict RUN|DIR|hub:ID TEXT ... | --files ... [options]`."""
    import tyro

    from eval.commands.model_options import ModelOptions
    from eval.inference.encoder_inputs import Unlabelled
    from train.config.option_groups import Labelled

    @dataclasses.dataclass(frozen=True)
    class Predict:
        """Predict classes, lists of labels, numbers, scores, tags, answers or choices for texts or files without labels.

        The output is one line per example, in order, with its number (index), the number of its line in a file (line), its id
        if it has one, and probabilities. A list has the labels of probability 0.5 or more. An answer has its characters
        [start, end) in the context; an entity has its words [first, end).
        """

        model: Annotated[ModelOptions, tyro.conf.arg(name="", prefix_name=False)]
        inputs: Annotated[Unlabelled, tyro.conf.arg(name="", prefix_name=False)]
        out: str = ""
        """File to write (.jsonl, .tsv or .csv); it appears when all predictions are done. Empty = stdout."""
        format: Literal["auto", "jsonl", "tsv", "csv"] = "auto"
        """jsonl: an object per line; tsv, csv: a table, with a column for each probability. auto: as --out ends, else jsonl."""
        json: bool = False
        """The same as --format jsonl."""
        with_text: bool = False
        """Put the texts of an example into its line."""
        null_threshold: float | None = None
        """Threshold for no answer (span): null if the score of "no answer" exceeds that of the best answer by more than this.
        SQuAD 2.0 usually has 0. None = answer every question."""
        length: int = 0
        """Largest number of tokens in a row; 0 = as the run was trained, or the model's positions for published weights."""
        labelled: Labelled = Labelled()
        """Options for reading files and cutting long texts. Those that are not named are the run's. With --labelled.skip-bad, an
        example that is malformed or too long has "error" in place of a prediction."""

    options = parse(Predict, args=args, prog="zoo predict")
    form = _format(options.format, options.out, as_json=options.json)
    if options.out:
        check_output_file(Path(options.out), "out")
    files = {"--files": options.inputs.files}
    if (code := prepare_model_command(options.model, ["predict", *args], files, _check_model)) is not None:
        return code
    from eval.commands import predict

    return predict.run_predict(
        options.model,
        options.inputs,
        out=options.out,
        form=form,
        with_text=options.with_text,
        length=options.length,
        labelled=dataclasses.replace(options.labelled, named=named_fields(args, "labelled")),
        null_threshold=options.null_threshold,
    )


def _format(chosen: Literal["auto", "jsonl", "tsv", "csv"], out: str, *, as_json: bool) -> Literal["jsonl", "tsv", "csv"]:
    """Return the format of the output: the one that is chosen, or that of the name of the file."""
    require(not as_json or chosen in ("auto", "jsonl"), "json", "", f"--format {chosen} is another format; name one of the two")
    form = "jsonl" if as_json else chosen
    ending = Path(out).suffix.removeprefix(".")
    if not out:
        return "jsonl" if form == "auto" else form
    require(ending in FORMATS, "out", out, "name a file that ends in .jsonl, .tsv or .csv")
    require(form in ("auto", ending), "out", out, f"--format {form} is another format; name one of the two")
    return ending  # pyright: ignore[reportReturnType]


def _check_model(name: str) -> None:
    """Refuse a model without labels and without a score, before JAX is imported."""
    from train.weights.pretrained_config import may_have_labels, text_model_error

    if not may_have_labels(name):
        raise text_model_error(name)
