"""Where a fitted model errs, in the report: counts on shades that can be read, and any text as text."""

import re
from pathlib import Path
from typing import Any

import pytest

from eval import measures, mistakes
from eval import page as pages
from tests.eval.report.test_report import Page, contrast, folder, page

WORST = {"text": "not bad", "pair": "", "truth": "good", "found": "bad", "loss": 4.5}
FOUND: dict[str, Any] = {"labels": ["good", "bad"], "confusion": [[40, 10], [0, 7]], "worst": [WORST]}


def cells(html: str) -> list[tuple[str, str, str]]:
    """(class, share, count) of the cells of the matrix, in order."""
    return re.findall(r'<td class=(right|wrong|none)(?: style="--share:([\d.]+%)")?>([\d,]+)</td>', html)


def test_a_matrix_has_a_row_for_each_true_class_shaded_by_its_share() -> None:
    html = mistakes.render(FOUND | {"confusion": [[30, 10], [0, 1234]]})
    assert cells(html) == [("right", "75.0%", "30"), ("wrong", "25.0%", "10"), ("none", "", "0"), ("right", "100.0%", "1,234")]
    words = Page(html).words
    assert "true good bad right good 30 10 75.0% bad 0 1,234 100.0% " in words
    assert "Examples by their true class, a row each, and by the class that was found, a column each." in words


def test_rows_are_the_truth_as_they_are_counted() -> None:
    import numpy as np

    counts = measures.confusion(np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1]), 2).tolist()
    assert [count for _, _, count in cells(mistakes.render(FOUND | {"confusion": counts}))] == ["1", "2", "0", "1"]


def test_a_class_that_never_occurs_has_no_share() -> None:
    assert "good 0 0 bad 0 7 100.0% " in Page(mistakes.render(FOUND | {"confusion": [[0, 0], [0, 7]]})).words


def test_many_classes_give_their_most_frequent_confusions() -> None:
    labels = [f"class {number}" for number in range(mistakes.CLASSES + 1)]
    counts = [[50 if row == column else 0 for column in range(len(labels))] for row in range(len(labels))]
    assert "There is none." in mistakes.render({"labels": labels, "confusion": counts, "worst": []})
    counts[3][5], counts[7][0] = 10, 30
    html = mistakes.render({"labels": labels, "confusion": counts, "worst": []})
    words = Page(html).words
    assert "The most frequent of 2 confusions between 21 classes. True class Found" in words
    assert "Share of the class class 7 class 0 30 37.5% class 3 class 5 10 16.7% " in words
    assert cells(html) == []


def test_the_worst_examples_have_all_that_is_known_of_them() -> None:
    pair = WORST | {"text": "Where is it?", "pair": "It is \n  there.", "loss": 12}
    html = mistakes.render(FOUND | {"worst": [pair, WORST]})
    assert re.search(r"Example True Found Loss Where is it\? It is\s+there. good bad 12 not bad good bad 4.5 $", Page(html).words)
    assert "It is \n  there.</div>" in html
    assert re.search(r"\.worst \.texts\{[^}]*white-space:pre-wrap", pages.STYLE)
    assert html.count("<div dir=auto>") == 3


@pytest.mark.parametrize("unit", ["word ", "x", "\u4e2d"])
def test_a_long_text_is_folded_and_whole(unit: str) -> None:
    text = unit * 600
    html = mistakes.render(FOUND | {"worst": [WORST | {"text": text}]})
    found = re.search(r"<summary>(.*?) \u2026</summary>(.*?)</details>", html)
    assert found
    assert found[1] + found[2] == text
    assert mistakes.SHORT // 2 < len(found[1]) <= mistakes.SHORT
    assert unit != "word " or found[2].startswith(" word")
    assert "<details>" not in mistakes.render(FOUND | {"worst": [WORST | {"text": text[: mistakes.SHORT]}]})


def test_nothing_is_shown_of_what_there_is_not(tmp_path: Path) -> None:
    assert mistakes.render({"labels": [], "confusion": [], "worst": []}) == ""
    shown = page(folder(tmp_path, **{"predictions.json": FOUND | {"labels": [], "confusion": []}}))
    assert "Worst examples" in shown.words and "Confusion" not in shown.words
    shown = page(folder(tmp_path, **{"predictions.json": FOUND | {"worst": []}}))
    assert "Worst examples" not in shown.words and "Confusion" in shown.words


def test_whatever_a_text_holds_is_text(tmp_path: Path) -> None:
    hostile = "</td></table><script>alert(1)</script>\" onload='x' & \x00\x1b[1m\udcff"
    worst = dict.fromkeys(("text", "pair", "truth", "found"), hostile) | {"loss": 1.0}
    several = [worst, worst | {"text": f"{hostile} " * 50}]
    for labels in ([hostile, f"{hostile}2"], [f"{hostile}{number}" for number in range(mistakes.CLASSES + 1)]):
        counts = [[1] * len(labels)] * len(labels)
        shown = page(folder(tmp_path, **{"predictions.json": {"labels": labels, "confusion": counts, "worst": several}}))
        assert {"script", "iframe", "img"}.isdisjoint(tag for tag, _ in shown.tags)
        assert not [name for _, attributes in shown.tags for name in attributes if name.startswith("on")]
        assert shown.words.count("<script>alert(1)</script>\" onload='x' & \ufffd\ufffd[1m?") > 50


def test_counts_can_be_read_on_the_darkest_shade() -> None:
    """WCAG 2.2: 4.5 to 1, with the whole of a class in one cell, on light and dark."""
    shades = dict(
        re.findall(r"\.confusion \.(right|wrong)\{background:color-mix\(in srgb,var\(--(?:one|two)\) calc\((.*?)\*", pages.STYLE)
    )
    assert shades.keys() == {"right", "wrong"}
    for part in pages.STYLE.split("@media (prefers-color-scheme:dark)"):
        colours = dict(re.findall(r"--(\w+):(#\w{6})", part))
        for kind, name in (("right", "one"), ("wrong", "two")):
            mixed = mix(colours[name], colours["card"], float(shades[kind]))
            assert contrast(colours["ink"], mixed) >= 4.5
            assert contrast(mixed, colours["card"]) >= 1.3


def mix(one: str, other: str, share: float) -> str:
    parts = [(int(one[at : at + 2], 16), int(other[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in parts)
