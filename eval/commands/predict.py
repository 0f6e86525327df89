"""`zoo predict`: the predictions of a fine-tuned model for examples without labels, a line of JSON or a row of a table for each.

    import zoo

    for prediction in zoo.load("runs/mine").predict(["A good film."]):
        print(prediction["label"], prediction["probabilities"])

Examples are read, computed and written a chunk at a time, so that memory does not grow with their number.
"""

import contextlib
import dataclasses
import functools
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from eval.commands import terminal_output
from eval.commands.model_options import ModelOptions
from eval.inference.encoder_inputs import Unlabelled
from eval.prediction import reward_predictor
from eval.prediction.prediction_formats import Format, header_and_line, table_columns
from eval.prediction.predictor import CHUNK, Predictor
from eval.tasks.labelled import OBJECTIVE_OF_TASK, run_for
from eval.tasks.task import Settings
from train.config.option_groups import ExampleFileOptions, Labelled, LabelledTexts
from train.data import unlabelled_reader
from train.data.unlabelled_reader import ReadCounts, UnlabelledExample
from train.run.progress_display import ProgressBar
from train.run.run_dir import replace_atomically
from train.weights.load import Loaded
from train.weights.pretrained_config import text_model_error
from zoo.errors import BadInput, printable, require
from zoo.file_access import check_output_file
from zoo.hf import hub

READ_AS_IS = Labelled()


def run_predict(
    model: ModelOptions,
    source: Unlabelled,
    *,
    out: str,
    form: Format,
    with_text: bool,
    length: int,
    labelled: Labelled,
    null_threshold: float | None,
) -> int:
    """Write predictions to stdout or to a file, and return the exit code.

    Args:
        out: a file in the format `form`, which appears when all predictions are made, or not at all; "" = stdout.
        with_text, length, labelled, null_threshold: see `predict`.

    Raises:
        BadInput: see `train.weights.load.load_model` and `predict`; a file that does not exist or cannot be written.
    """
    file = Path(out) if out else None
    if file is not None:
        _check_out(file, source.files)
    subject = model.load()
    predictions = predict(
        subject,
        **{field.name: getattr(source, field.name) for field in dataclasses.fields(source)},
        with_text=with_text,
        labelled=labelled,
        length=length,
        batch=model.batch,
        dtype=model.dtype("auto" if subject.run is None else subject.run.precision),
        null_threshold=null_threshold,
    )
    if file is None:
        for line in _lines(predictions, form):
            terminal_output.write_output(line)
    else:
        _write(file, _lines(predictions, form))
        terminal_output.write_output(f"{file}: {predictions.count:,} predictions\n")
    for line in predictions.notices() if jax.process_index() == 0 else ():
        print(f"! {printable(line)}", file=sys.stderr)
    return 0


@dataclasses.dataclass
class Predictions:
    """The predictions of a model, computed as they are read."""

    columns: Sequence[str]
    """See `eval.prediction.prediction_formats.table_columns`."""
    records: Iterator[dict[str, Any]]
    read: ReadCounts
    count: int = 0
    """Number of predictions so far."""
    errors: int = 0
    """Number of those that have `error`."""
    first_error: str = ""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for record in self.records:
            self.count += 1
            if "error" in record:
                self.errors += 1
                self.first_error = self.first_error or record["error"]
            yield record

    def notices(self) -> list[str]:
        """Return what a user must be told at the end: examples without a prediction, and blank lines."""
        notices = []
        if self.errors:
            shares = f"{self.errors:,} of {self.count:,} examples"
            notices.append(f'{shares} have "error" in place of a prediction; the first: {self.first_error}')
        if blank := self.read.blank:
            notices.append(f'blank lines skipped: {blank:,}; "line" is the number of an example\'s line in its file')
        return notices


def predict(
    subject: Loaded,
    *,
    files: Sequence[str] = (),
    texts: Sequence[str] = (),
    pair: str | None = None,
    context: str | None = None,
    options: Sequence[str] = (),
    line: unlabelled_reader.Lines = "auto",
    labelled: Labelled = READ_AS_IS,
    length: int = 0,
    batch: int = 16,
    dtype: Any = "float32",
    null_threshold: float | None = None,
    with_text: bool = False,
) -> Predictions:
    """Return the predictions of a fine-tuned model, in the order of the input.

    Each is a dict with the keys that `eval.prediction.prediction_records` lists for the kind of the model.

    Args:
        files: see `train.data.unlabelled_reader.read_unlabelled_examples`; instead of `texts`.
        texts: texts, sentences (words between spaces) or questions.
        pair: the second text of each text, for a model of pairs.
        context: the text that the questions are about, for a model of answers or choices.
        options: the options of a choice.
        line: the content of a line of a .txt.
        labelled: how files are read and long texts are cut; what it does not choose is as in the run. With `skip_bad`, an example
            that is malformed or too long has `error` in place of a prediction.
        length: maximum number of tokens in a row; 0 = that of the run, or the model's positions.
        batch: rows computed at a time; it affects results only through rounding.
        dtype: dtype of the arithmetic.
        null_threshold: see `eval.prediction.prediction_records.of_example`.
        with_text: see `eval.prediction.prediction_records.prediction_record`.

    Raises:
        BadInput: a model without a head for labels, texts or options that do not fit its kind, files that cannot be read, or a
            text that is too long.
    """
    require(batch >= 1, "batch", batch, "choose 1 or more rows")
    objective = OBJECTIVE_OF_TASK.get(subject.model.task)
    if objective is None:
        raise no_head(subject.where, subject.model.task, generates=subject.model.generates)
    run = None
    if reward_predictor.is_supported(subject):
        reading: Any = reward_predictor.file_options(subject, labelled, length=length)
    else:
        run = run_for(subject, objective, Settings(batch=batch, length=length, labelled=labelled))
        reading = run.options.labelled
    # The run may have skipped examples, and its files may have another format than these.
    reading = dataclasses.replace(reading, skip_bad=False, format=labelled.format)
    settings = {"skip_bad": labelled.skip_bad, "with_text": with_text}
    counts, columns = ReadCounts(), functools.partial(table_columns, subject, **settings)
    _check(objective, reading, texts=texts, pair=pair, context=context, options=options, null_threshold=null_threshold)
    if texts:
        items: Iterable[UnlabelledExample] = unlabelled_reader.examples_of_texts(
            objective, texts, pair=pair, context=context or "", options=options
        )
        names = columns(files=False, pair=pair is not None)
    else:
        for name in files:
            present = name == "-" or name.startswith(hub.PREFIX) or Path(name).exists()
            require(present, "files", name, "no such file")
        labels = getattr(subject.model.config, "labels", ())
        options_of_reading: dict[str, Any] = {"line": line, "labels": labels, "skip_bad": labelled.skip_bad, "counts": counts}
        items = unlabelled_reader.read_unlabelled_examples(objective, files, reading, **options_of_reading)
        several, has_pair = unlabelled_reader.are_several(files), bool(getattr(reading, "pair", ""))
        names = columns(files=True, several=several, pair=has_pair)
    if run is None:
        return Predictions(names, reward_predictor.predict_rewards(subject, items, batch=batch, dtype=dtype, **settings), counts)
    run = dataclasses.replace(run, options=dataclasses.replace(run.options, labelled=reading))
    predictor = Predictor.of(subject, run, batch=batch, dtype=dtype, null_threshold=null_threshold, **settings)
    return Predictions(names, predictor.predict(items), counts)


def no_head(name: str, task: str, *, generates: bool) -> BadInput:
    """Return the error for a model that predicts no labels."""
    if generates:
        return text_model_error(name)
    fix = f"fine-tune it first, as by `zoo train finetune-classification --init {name} --data.paths ...`"
    return BadInput(f"{name}: its task is {task}, without labels; {fix}")


def _check(
    objective: str,
    reading: ExampleFileOptions,
    *,
    texts: Sequence[str],
    pair: str | None,
    context: str | None,
    options: Sequence[str],
    null_threshold: float | None,
) -> None:
    """Refuse options that the model does not use, and texts without the options that it needs."""
    users = {"pair": ("classification",), "context": ("span", "choice"), "options": ("choice",), "null_threshold": ("span",)}
    values = {"pair": pair, "context": context, "options": " ".join(options) or None, "null_threshold": null_threshold}
    for name, value in values.items():
        fix = f"has no effect on a model for {objective}; remove it"
        require(value is None or objective in users[name], name.replace("_", "-"), value, fix)
    if not texts:
        return
    if isinstance(reading, LabelledTexts) and reading.pair and pair is None:
        raise BadInput("--pair: the model was fine-tuned on pairs of texts; name the second text")
    if objective == "span" and not context:
        raise BadInput("--context is missing: give the text in which the answer is to be found")
    if objective == "choice" and len(options) < 2:
        raise BadInput("--options: name 2 or more options to choose from")


def _check_out(file: Path, files: Sequence[str]) -> None:
    """Refuse a file that cannot be written, before anything is computed."""
    check_output_file(file, "out")
    require(file.resolve() not in [Path(name).resolve() for name in files], "out", file, "it is an input; name another file")


def _lines(predictions: Predictions, form: Format) -> Iterator[str]:
    """Yield the lines of a file: of a table the names of its columns, then a line for each prediction."""
    header, line = header_and_line(form, predictions.columns)
    # No example may be left for a header: what is refused, is refused before it.
    first = next(records := iter(predictions), None)
    if header:
        yield header
    yield from map(line, () if first is None else itertools.chain([first], records))


def _write(file: Path, lines: Iterable[str]) -> None:
    """Write lines to a file, which appears when all are made."""
    first = jax.process_index() == 0
    bar = ProgressBar("predicting", "examples", before="compiling", quiet=not first)
    try:
        with replace_atomically(file) if first else contextlib.nullcontext() as stream, bar as progress:
            for count, line in enumerate(lines, 1):
                if stream is not None:
                    stream.write(line.encode())
                if count % CHUNK == 0:
                    progress(count, None)
    except OSError as error:
        raise BadInput(f"--out {file}: cannot be written ({error.strerror})") from None
