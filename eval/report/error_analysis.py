"""Errors of a fine-tuned model for the report: the confusion matrix, and the examples with the greatest losses."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.pages.html_page import Block, Cell, Examples, HeatMap, Table
from eval.pages.value_text import format_number

CLASSES = 20
"""Maximum number of classes of a matrix; with more, the most frequent confusions are listed."""
FREQUENT = 20
"""Maximum number of confusions that are listed."""


def size_mismatch(errors: Mapping[str, Any]) -> str:
    """Return how the sizes in the content of predictions.json disagree, as text; "" if they agree."""
    classes, sizes = len(errors["labels"]), [len(row) for row in errors["confusion"]]
    return "" if sizes == [classes] * classes else f"confusion: rows of {format_number(sizes)} for {classes} labels"


def error_sections(errors: Mapping[str, Any]) -> dict[str, list[Block]]:
    """Return the sections "Confusion" and "Worst examples", without empty ones."""
    labels, counts, worst = errors["labels"], errors["confusion"], errors["worst"]
    sections: dict[str, list[Block]] = {}
    if labels:
        sections["Confusion"] = _matrix(labels, counts) if len(labels) <= CLASSES else _frequent(labels, counts)
    if worst:
        sections["Worst examples"] = ["Held-out examples with the greatest losses.", _examples(worst)]
    return sections


def _matrix(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> list[Block]:
    """Return the confusion matrix.

    A cell is shaded by its share of its true class; the diagonal has one colour and the errors another.
    """
    rows = []
    for place, (label, row) in enumerate(zip(labels, counts, strict=True)):
        total = sum(row)
        cells = [_cell(count, total, right=column == place) for column, count in enumerate(row)]
        rows.append((label, [*cells, Cell(f"{row[place] / total:.1%}" if total else "", look="share")]))
    caption = "Examples by their true class, a row each, and by their predicted class, a column each."
    return [caption, HeatMap([*labels, "right"], rows, corner="true")]


def _cell(count: int, total: int, *, right: bool) -> Cell:
    if not count:
        return Cell("0")
    return Cell(format_number(count), look="right" if right else "wrong", style=f"--share:{count / total:.1%}")


def _frequent(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> list[Block]:
    """Return the most frequent confusions, as a table."""
    wrong = [
        (count, true, predicted)
        for true, row in enumerate(counts)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    if not wrong:
        return ["There is none."]
    wrong.sort(key=lambda item: (-item[0], *item[1:]))
    rows = [
        (labels[true], labels[predicted], count, f"{count / sum(counts[true]):.1%}")
        for count, true, predicted in wrong[:FREQUENT]
    ]
    note = f"The most frequent of {len(wrong):,} confusions between {len(labels):,} classes."
    return [note, Table(("True class", "Predicted class", "Examples", "Share of the class"), rows, words=2)]


def _examples(examples: Sequence[Mapping[str, Any]]) -> Examples:
    """Return the text or texts, the truth, the prediction and the loss of each example."""
    rows = [
        (
            [text for text in (example["text"], example["pair"]) if text],
            [example["truth"], example["found"], format_number(example["loss"])],
        )
        for example in examples
    ]
    return Examples(("Example", "True", "Predicted", "Loss"), rows)
