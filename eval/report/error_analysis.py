"""Errors of a fine-tuned model for the report: the confusion matrix, and the examples with the greatest losses."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.report.html_elements import escape_text, format_number, section, table

CLASSES = 20
"""Maximum number of classes of a matrix; with more, the most frequent confusions are listed."""
FREQUENT = 20
"""Maximum number of confusions that are listed."""
SHORT = 280
"""Number of characters of a text that are shown unfolded."""


def size_mismatch(errors: Mapping[str, Any]) -> str:
    """Return how the sizes in the content of predictions.json disagree, as text; "" if they agree."""
    classes, sizes = len(errors["labels"]), [len(row) for row in errors["confusion"]]
    return "" if sizes == [classes] * classes else f"confusion: rows of {format_number(sizes)} for {classes} labels"


def render(errors: Mapping[str, Any]) -> str:
    """Return the sections "Confusion" and "Worst examples" as HTML, without empty ones."""
    labels, counts, worst = errors["labels"], errors["confusion"], errors["worst"]
    sections = ""
    if labels:
        sections += section("Confusion", _matrix(labels, counts) if len(labels) <= CLASSES else _frequent(labels, counts))
    if worst:
        sections += section("Worst examples", _worst(worst))
    return sections


def _matrix(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Return the confusion matrix as an HTML table.

    A cell is shaded by its share of its true class; the diagonal has one colour and the errors another.
    """
    lines = ""
    for place, (label, row) in enumerate(zip(labels, counts, strict=True)):
        total = sum(row)
        cells = "".join(_cell(count, total, right=column == place) for column, count in enumerate(row))
        share = f"{row[place] / total:.1%}" if total else ""
        lines += f"<tr><th scope=row dir=auto>{escape_text(label)}</th>{cells}<td class=share>{share}</td></tr>"
    head = "".join(f"<th scope=col class=class dir=auto>{escape_text(label)}</th>" for label in labels)
    caption = "Examples by their true class, a row each, and by their predicted class, a column each."
    head = f"<th scope=col>true</th>{head}<th scope=col class=share>right</th>"
    matrix = f"<caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{lines}</tbody>"
    return f"<div class=scroll><table class=confusion>{matrix}</table></div>"


def _cell(count: int, total: int, *, right: bool) -> str:
    if not count:
        return "<td class=none>0</td>"
    return f'<td class={"right" if right else "wrong"} style="--share:{count / total:.1%}">{format_number(count)}</td>'


def _frequent(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Return the most frequent confusions, as a list."""
    wrong = [
        (count, true, predicted)
        for true, row in enumerate(counts)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    wrong.sort(key=lambda item: (-item[0], *item[1:]))
    rows = [
        (labels[true], labels[predicted], count, f"{count / sum(counts[true]):.1%}")
        for count, true, predicted in wrong[:FREQUENT]
    ]
    note = f"The most frequent of {len(wrong):,} confusions between {len(labels):,} classes." if wrong else "There is none."
    return f"<p class=note>{note}</p>" + (
        table(("True class", "Predicted class", "Examples", "Share of the class"), rows, words=2) if rows else ""
    )


def _worst(examples: Sequence[Mapping[str, Any]]) -> str:
    """Return a line for each example: its text or texts, the truth, the prediction, and the loss."""
    lines = ""
    for example in examples:
        texts = "".join(f"<div dir=auto>{fold_text(part)}</div>" for part in (example["text"], example["pair"]) if part)
        answers = (("True", example["truth"]), ("Predicted", example["found"]))
        cells = "".join(f'<td data-name="{name}" dir=auto>{escape_text(value)}</td>' for name, value in answers)
        loss = escape_text(format_number(example["loss"]))
        lines += f'<tr><td class=texts>{texts}</td>{cells}<td class=number data-name="Loss">{loss}</td></tr>'
    head = "".join(f"<th scope=col>{name}</th>" for name in ("Example", "True", "Predicted"))
    head += "<th scope=col class=number>Loss</th>"
    note = "Held-out examples with the greatest losses."
    return f"<p class=note>{note}</p><table class=worst><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def fold_text(content: str) -> str:
    """Return a text whose end is folded if it is long; the cut is before a word, if possible."""
    if len(content) <= 1.2 * SHORT:
        return escape_text(content)
    end = content.rfind(" ", SHORT // 2, SHORT)
    end = SHORT if end < 0 else end
    return (
        f"<details><summary>{escape_text(content[:end])} \N{HORIZONTAL ELLIPSIS}</summary>{escape_text(content[end:])}</details>"
    )
