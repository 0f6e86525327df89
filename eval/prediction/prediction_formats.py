"""Predictions as lines of JSON, or as a table of tabs or commas with the same names of columns."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from train.data.example_types import is_iob
from train.weights.load import Loaded

Format = Literal["jsonl", "tsv", "csv"]
ANSWER = ("answer", "start", "end", "score", "null_score")


def json_line(prediction: Mapping[str, Any]) -> str:
    """Return a prediction as a line of JSON."""
    return json.dumps(prediction, ensure_ascii=False) + "\n"


def header_and_line(form: Format, columns: Sequence[str]) -> tuple[str, Callable[[Mapping[str, Any]], str]]:
    """Return the first line of a file, and the function that returns the line of a prediction.

    In a table, an object has a column for each of its names, `probabilities.yes`; a list is written as JSON; null, and what a
    prediction does not have, is empty. In a .tsv, which has no quotation marks, a tab, line feed or carriage return in a text is
    written with a backslash and t, n or r.
    """
    if form == "jsonl":
        return "", json_line
    row = _tsv_row if form == "tsv" else _csv_row

    def line(prediction: Mapping[str, Any]) -> str:
        cells: dict[str, Any] = {}
        for name, value in prediction.items():
            cells |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        return row([_cell(cells.get(name)) for name in columns])

    return row(columns), line


def table_columns(
    subject: Loaded, *, files: bool, several: bool = False, pair: bool = False, with_text: bool = False, skip_bad: bool = False
) -> list[str]:
    """Return the columns of a table of a model's predictions; see `eval.prediction.prediction_records` for their content.

    Args:
        files: the examples are read from files.
        several: from more than one.
        pair: they have two texts.
        with_text, skip_bad: see `eval.prediction.predictor.Predictor`.
    """
    place = ["index", *["file"] * several, *["line", "id"] * files]
    cfg = subject.model.config
    # A reward model on a decoder has no field for its task.
    task, labels = getattr(cfg, "task", "sequence"), tuple(getattr(cfg, "labels", ()))
    names = {"span": ["question", "context"], "choice": ["article", "question", "options"]}
    texts = names.get(task, ["text", *["pair"] * pair])
    probabilities = [f"probabilities.{label}" for label in labels]
    match task:
        case "tokens":
            result = ["tags", *["entities"] * is_iob(labels)]
        case "span":
            result = list(ANSWER)
        case "choice":
            result = ["choice", "option", "probabilities"]
        case _ if getattr(cfg, "multi_label", False):
            result = ["labels", *probabilities]
        case _:
            result = ["label", *probabilities] if len(labels) > 1 else ["number"]
    return place + texts * with_text + result + ["error"] * skip_bad


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)


def _tsv_row(cells: Sequence[str]) -> str:
    escaped = (cell.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r") for cell in cells)
    return "\t".join(escaped) + "\n"


def _csv_row(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
