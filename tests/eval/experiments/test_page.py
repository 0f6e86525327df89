"""The page of an experiment: a pure function of experiment.json, for complete and truncated grids."""

import copy
import json
import re

import pytest

from eval.experiments.page import experiment_tables, render_html, render_markdown
from tests.support.experiment_result import CLAIMS, VERDICTS, masks

FULL = masks()


def test_the_page_is_a_pure_function_of_the_file() -> None:
    before = copy.deepcopy(FULL)
    page = render_html(FULL)
    assert page == render_html(json.loads(json.dumps(FULL)))
    assert before == FULL
    assert [entry["verdict"] for entry in FULL["claims"]] == VERDICTS
    for text in (*VERDICTS, *(claim["text"] for claim in CLAIMS), *(cell["command"] for cell in FULL["cells"])):
        assert text in page
    # Nothing is fetched and nothing runs.
    assert not re.search(r"<script|<link(?! rel=\"icon\" href=\"data:,\")|src=|https?://(?!www\.w3\.org)|@import", page)
    # Curves over tokens and over FLOPs, and two drawings of the differences.
    assert page.count("<svg") == 4


def test_the_markdown_has_the_same_facts() -> None:
    text = render_markdown(FULL)
    assert text == render_markdown(FULL)
    assert "(5 seeds) | -0.0877 (to static1; bound -0.0816), -0.0007 (to static10; bound 0.0091) |" in text
    assert "| unigram loss (floor) | 6.5600 |" in text
    assert "**not shown (exploratory)**" in text
    assert "- static10, sst2: seed 4 failed.\n" in text
    # Every line of a table has the columns of its head.
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


@pytest.mark.parametrize("first", [0, 7, pytest.param(1, marks=pytest.mark.full), pytest.param(20, marks=pytest.mark.full)])
def test_a_truncated_grid_is_rendered(first: int) -> None:
    result = masks(seeds=3, first=first)
    assert f"<dd>{first} of {first}</dd>" in render_html(result)
    lines = [row[1][1] for row in experiment_tables.results_table(result).rows[:5]]
    assert lines[:2] == {0: ["0 of 3 seeds"] * 2, 1: ["1 of 3 seeds", "0 of 3 seeds"]}.get(first, ["3 seeds", lines[1]])
    assert lines[1] == {7: "1 of 3 seeds", 20: "3 seeds"}.get(first, lines[1])
    assert "not testable" in render_markdown(result)


def test_a_page_without_verdicts_and_with_hostile_text() -> None:
    hostile = "<script>alert(1)</script> | \x00"
    result = FULL | {
        "claims": [],
        "question": hostile,
        "cells": [],
        "paper": [],
        "floors": [],
        "budget": {},
        "deviations": [hostile],
    }
    page = render_html(result)
    assert "<script" not in page
    assert page.count("&lt;script") >= 2
    assert page.count("<div class=mark>not judged") == len(CLAIMS)
    assert "not judged" in render_markdown(result)


def test_shared_cells_and_scores_without_a_direction() -> None:
    teacher = {**FULL["cells"][0], "row": "", "stage": "teacher"}
    listed = {**FULL["registration"], "claims": [{**CLAIMS[0], "metric": "pretrain/exponent", "reference": []}]}
    result = FULL | {"cells": [teacher, *FULL["cells"]], "registration": listed, "claims": []}
    assert [row[:2] for row in experiment_tables.costs_table(result).rows[:2]] == [
        [["all rows"], ["teacher"]],
        [["dynamic"], ["pretrain"]],
    ]
    assert experiment_tables.results_table(result).head[1] == "Exponent, pretrain"
