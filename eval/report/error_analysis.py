"""Where a fitted model errs, for the report: which class it took for which, and the examples that it got most wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.report.html_page import number, section, table, text

SHAPE: dict[str, Any] = {
    "labels": [str],
    "confusion": [[int]],
    "worst": [{"text": str, "pair": str, "truth": str, "found": str, "loss": int | float}],
}
"""What predictions.json holds, see `eval.report.report.SHAPES`: names of classes, examples by true class (rows) and found one
(columns), both empty where nothing is classified; examples, the greatest loss first, `pair` "" where there is no second text."""

CLASSES = 20
"""With more of them the matrix gives way to the most frequent confusions."""
FREQUENT = 20
"""Confusions listed at most."""
SHORT = 280
"""Characters of a text that are shown at once; the rest unfolds."""


def differs(found: Mapping[str, Any]) -> str:
    """Where what has the types of `SHAPE` does not fit together, in words; nothing if it does."""
    classes, sizes = len(found["labels"]), [len(row) for row in found["confusion"]]
    return "" if sizes == [classes] * classes else f"confusion: rows of {number(sizes)} for {classes} labels"


def render(found: Mapping[str, Any]) -> str:
    """The sections "Confusion" and "Worst examples" as HTML, each where there is something to show."""
    labels, counts, worst = found["labels"], found["confusion"], found["worst"]
    shown = ""
    if labels:
        shown += section("Confusion", _matrix(labels, counts) if len(labels) <= CLASSES else _frequent(labels, counts))
    if worst:
        shown += section("Worst examples", _worst(worst))
    return shown


def _matrix(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Counts on a shade that says how large a share of its true class each is: one colour for right, another for wrong."""
    lines = ""
    for place, (label, row) in enumerate(zip(labels, counts, strict=True)):
        total = sum(row)
        cells = "".join(_cell(count, total, right=column == place) for column, count in enumerate(row))
        share = f"{row[place] / total:.1%}" if total else ""
        lines += f"<tr><th scope=row dir=auto>{text(label)}</th>{cells}<td class=share>{share}</td></tr>"
    head = "".join(f"<th scope=col class=class dir=auto>{text(label)}</th>" for label in labels)
    caption = "Examples by their true class, a row each, and by the class that was found, a column each."
    head = f"<th scope=col>true</th>{head}<th scope=col class=share>right</th>"
    matrix = f"<caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{lines}</tbody>"
    return f"<div class=scroll><table class=confusion>{matrix}</table></div>"


def _cell(count: int, total: int, *, right: bool) -> str:
    if not count:
        return "<td class=none>0</td>"
    return f'<td class={"right" if right else "wrong"} style="--share:{count / total:.1%}">{number(count)}</td>'


def _frequent(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """The most frequent confusions, as a list."""
    wrong = [
        (count, true, found) for true, row in enumerate(counts) for found, count in enumerate(row) if count and true != found
    ]
    wrong.sort(key=lambda each: (-each[0], *each[1:]))
    rows = [(labels[true], labels[found], count, f"{count / sum(counts[true]):.1%}") for count, true, found in wrong[:FREQUENT]]
    told = f"The most frequent of {len(wrong):,} confusions between {len(labels):,} classes." if wrong else "There is none."
    return f"<p class=note>{told}</p>" + (
        table(("True class", "Found", "Examples", "Share of the class"), rows, words=2) if rows else ""
    )


def _worst(examples: Sequence[Mapping[str, Any]]) -> str:
    """A line for each example: its text or texts, what is true, what was found, and the loss."""
    lines = ""
    for example in examples:
        texts = "".join(f"<div dir=auto>{_folded(part)}</div>" for part in (example["text"], example["pair"]) if part)
        said = (("True", example["truth"]), ("Found", example["found"]))
        cells = "".join(f'<td data-name="{name}" dir=auto>{text(value)}</td>' for name, value in said)
        lines += (
            f'<tr><td class=texts>{texts}</td>{cells}<td class=number data-name="Loss">{text(number(example["loss"]))}</td></tr>'
        )
    head = "".join(f"<th scope=col>{name}</th>" for name in ("Example", "True", "Found"))
    head += "<th scope=col class=number>Loss</th>"
    note = "Held-out examples with the greatest losses."
    return f"<p class=note>{note}</p><table class=worst><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _folded(whole: str) -> str:
    """A text, its end folded away where it is long: cut before a word if there is one."""
    if len(whole) <= 1.2 * SHORT:
        return text(whole)
    end = whole.rfind(" ", SHORT // 2, SHORT)
    end = SHORT if end < 0 else end
    return f"<details><summary>{text(whole[:end])} \N{HORIZONTAL ELLIPSIS}</summary>{text(whole[end:])}</details>"
