"""The wrong predictions of a fine-tuned model in its report: counts by class, the worst examples, and any text as plain text."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eval.metrics import metric_functions
from eval.pages.html_page import render_page
from eval.report import error_analysis
from tests.eval.report.run_folder import ERRORS, Page, folder, page


def rendered(errors: Mapping[str, Any]) -> str:
    return render_page("", "", error_analysis.error_sections(errors))


def cells(html: str) -> list[tuple[str, str, str]]:
    """Return the class, share and count of each cell of the matrix, in order."""
    return re.findall(r'<td class=(right|wrong|none)(?: style="--share:([\d.]+%)")?>([\d,]+)</td>', html)


def test_matrix_has_a_row_for_each_true_class_with_the_share_of_each_count() -> None:
    html = rendered(ERRORS | {"confusion": [[30, 10], [0, 1234]]})
    assert cells(html) == [("right", "75.0%", "30"), ("wrong", "25.0%", "10"), ("none", "", "0"), ("right", "100.0%", "1,234")]
    assert "true good bad right good 30 10 75.0% bad 0 1,234 100.0% " in Page(html).words
    # A class that never occurs has no share.
    assert "good 0 0 bad 0 7 100.0% " in Page(rendered(ERRORS | {"confusion": [[0, 0], [0, 7]]})).words
    counts = metric_functions.confusion(np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1]), 2).tolist()
    assert [count for _, _, count in cells(rendered(ERRORS | {"confusion": counts}))] == ["1", "2", "0", "1"]


def test_many_classes_are_shown_by_their_most_frequent_confusions() -> None:
    labels = [f"class {number}" for number in range(error_analysis.CLASSES + 1)]
    counts = [[50 if row == column else 0 for column in range(len(labels))] for row in range(len(labels))]
    assert "There is none." in rendered({"labels": labels, "confusion": counts, "worst": []})
    counts[3][5], counts[7][0] = 10, 30
    html = rendered({"labels": labels, "confusion": counts, "worst": []})
    assert "class 7 class 0 30 37.5% class 3 class 5 10 16.7% " in Page(html).words
    assert cells(html) == []


def test_labels_and_examples_are_shown_as_plain_text(tmp_path: Path) -> None:
    hostile = "</td></table><script>alert(1)</script>\" onload='x' & \x00\x1b[1m\udcff"
    worst = dict.fromkeys(("text", "pair", "truth", "found"), hostile) | {"loss": 1.0}
    several = [worst, worst | {"text": f"{hostile} " * 50}]
    for number, labels in enumerate(
        ([hostile, f"{hostile}2"], [f"{hostile}{each}" for each in range(error_analysis.CLASSES + 1)])
    ):
        errors = {"labels": labels, "confusion": [[1] * len(labels)] * len(labels), "worst": several}
        shown = page(folder(tmp_path / str(number), **{"predictions.json": errors}))
        assert {"script", "iframe", "img"}.isdisjoint(tag for tag, _ in shown.tags)
        assert not [name for _, attributes in shown.tags for name in attributes if name.startswith("on")]
        assert shown.words.count("<script>alert(1)</script>\" onload='x' & \ufffd\ufffd[1m?") > 50
