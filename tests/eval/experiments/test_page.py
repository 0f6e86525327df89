"""The page of an experiment: a pure function of experiment.json, for complete and truncated grids."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure as Drawing

from eval import experiments
from eval.experiments.page import RULE, experiment_charts, experiment_tables, render_html, render_markdown, seed_charts
from eval.pages import charts
from eval.pages.charts import Figure
from tests.support.experiment_result import CLAIMS, DOWNSTREAM, METRIC, masks


def entry(verdict: str, estimate: float | None, reference: str, **more: Any) -> dict[str, Any]:
    """Return an entry of a claim as verdicts are written to experiment.json."""
    numbers: dict[str, Any] = dict(bound=estimate, p=0.01, p_holm=0.02, rho=0.5, n=5, mde=0.01, unit=0.01, test="welch")
    interval = None if estimate is None else [estimate - 0.01, estimate + 0.02]
    fields = dict(
        verdict=verdict, estimate=estimate, reference=reference, reason="the reason", interval=interval, outcome="means"
    )
    return numbers | fields | {"exploratory": False, "notes": []} | more


SHARES = {
    "row": {"learned": 1, "seeds": 5, "low": 0.005, "high": 0.716},
    "reference": {"learned": 5, "seeds": 5, "low": 0.478, "high": 1.0},
}
OTHER_METRIC = [
    {"metric": DOWNSTREAM, "estimate": 0.012, "interval": [0.004, 0.02], "p": 0.9, "verdict": "contradicted"},
    {"metric": METRIC, "estimate": -0.0855, "interval": [-0.0955, -0.0655], "p": 0.01, "verdict": "reproduced"},
]
ENTRIES = {
    "loss": entry("depends on the metric", -0.0855, "static1", metrics=OTHER_METRIC, power=0.83),
    "ten": entry("contradicted", 0.4062, "static10", test="tost", p_opposite_holm=0.001),
    "accuracy": entry("direction only", 0.004, "dynamic", seed_error=0.0021, item_error=0.0102),
    "both": entry("not shown", -0.001, "static1"),
    "words": entry("contradicted", 0.9, "dynamic", outcome="shares", shares=SHARES, test="fisher"),
}
VERDICTS = [fields["verdict"] for fields in ENTRIES.values()]
EDITS = [{"claim": "loss", "field": "forecast", "before": "open", "now": "reproduced", "date": "2026-12-02"}]
PILOT = {
    "rows": {
        "dynamic": {"factor": 2.0, "metric": "pretrain/masked_loss", "values": {"1": [5.7, 5.8], "2": [5.61, 5.63]}}
        | {"sd": {"pretrain/masked_loss": 0.0141}}
    }
}
FULL: dict[str, Any] = masks() | {"claims": [{"id": name, **fields} for name, fields in ENTRIES.items()]}


def losses(row: str) -> dict[int, float]:
    """Return the loss of each seed of a row that has one."""
    of_row = [cell for cell in FULL["cells"] if (cell["row"], cell["stage"]) == (row, "pretrain")]
    return {cell["seed"]: cell["scores"]["masked_loss"] for cell in of_row if "masked_loss" in cell["scores"]}


WORST = max(losses("whole"), key=lambda seed: losses("whole")[seed])
"""Seed of the row of whole words that alone is not better than the floor of its claim by more than the margin."""
ENTRIES["words"]["floor"] = {"name": "the unigram loss", "value": losses("whole")[WORST] + 0.02}
FULL["claims"][-1] |= ENTRIES["words"]


def with_registration(**more: Any) -> dict[str, Any]:
    return FULL | {"registration": FULL["registration"] | more}


def drawn(figure: Figure, narrow: bool = False) -> Any:
    """Return matplotlib axes with the drawing of a figure."""
    axes = Drawing(figsize=charts.WIDE).add_subplot()
    (figure.draw_narrow if narrow and figure.draw_narrow else figure.draw)(axes)
    return axes


def points(axes: Any, marker: str, colour: str) -> list[tuple[float, float]]:
    """Return (x, y) of the markers of a kind and colour."""
    lines = [line for line in axes.lines if (line.get_marker(), line.get_color()) == (marker, colour)]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines]


def test_the_page_is_a_pure_function_of_the_file() -> None:
    before = copy.deepcopy(FULL)
    page = render_html(FULL)
    assert page == render_html(json.loads(json.dumps(FULL)))
    assert before == FULL
    for text in (*VERDICTS, *(claim["text"] for claim in CLAIMS), *(cell["command"] for cell in FULL["cells"])):
        assert text in page
    # Nothing is fetched and nothing runs.
    assert not re.search(r"<script|<link(?! rel=\"icon\" href=\"data:,\")|src=|https?://(?!www\.w3\.org)|@import", page)
    # Of the loss and the accuracy the seeds, and twice their differences; the loss over tokens and over FLOPs.
    assert page.count("<svg") == 2 + 4 + 2
    for text in ("Direction only", "beyond its margin", "Fisher", "no seed of either side learned", "at most 5%"):
        assert text in RULE


def test_the_markdown_has_the_same_facts() -> None:
    text = render_markdown(FULL)
    assert text == render_markdown(FULL)
    differences = "-0.0855 to static1 (-0.0955 to -0.0655), +0.4062 to static10 (+0.3962 to +0.4262)"
    assert f"(5 seeds), {differences} |" in text
    assert "| unigram loss (floor) | 6.5600 |" in text
    assert "**not shown (exploratory)**" in text
    failed = next(cell for cell in FULL["cells"] if cell["status"] == "failed")
    assert f"- {failed['row']}, {failed['stage']}: seed {failed['seed']} failed.\n" in text
    assert "Difference -0.0855, 95% interval -0.0955 to -0.0655, n = 5;" in text
    assert "Accuracy, sst2 \N{UPWARDS ARROW}: +0.0120 (+0.0040 to +0.0200), contradicted;" in text
    assert "| 0.0100 (power 83%) |" in text and "| 5 (1 of 5 learned; reference 5 of 5) |" in text
    assert "error 0.0021 over seeds; error 0.0102 over items" in text
    assert "shares of seeds that learned: whole 1 of 5 (0% to 72%), dynamic 5 of 5 (48% to 100%);" in text
    # Every line of a table has the columns of its head.
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


@pytest.mark.planted(3)
def test_differences_are_drawn_on_the_side_of_their_sign_whatever_the_claim_says() -> None:
    """A contradicted equivalence has no side in favour of the claim, and a smaller loss is on the left."""
    loss, accuracy = seed_charts.difference_plots(FULL)
    axes = drawn(loss)
    assert points(axes, "o", charts.FOUR) == [(-0.0855, 0)] and points(axes, "o", charts.THREE) == [(0.4062, 1)]
    assert (
        axes.get_xlabel()
        == "\N{LEFTWARDS ARROW} row lower (better) \N{MIDDLE DOT} nats \N{MIDDLE DOT} row higher \N{RIGHTWARDS ARROW}"
    )
    assert "favour" not in render_html(FULL)
    # The regions of the claims: below -0.02, and within 0.02.
    regions = [end for bar in axes.patches for end in (bar.get_x(), bar.get_x() + bar.get_width())]
    assert regions == pytest.approx([axes.get_xlim()[0], -0.02, -0.02, 0.02])
    # In its second metric the first claim has a verdict of its own.
    assert drawn(accuracy).get_yticklabels()[0].get_text() == "dynamic < static1\ncontradicted"
    assert drawn(accuracy).get_xlabel().endswith("points (of 100) \N{MIDDLE DOT} row higher (better) \N{RIGHTWARDS ARROW}")
    assert [text.get_text() for text in drawn(accuracy, narrow=True).get_yticklabels()] == ["1", "2", "3"]
    assert accuracy.remark.startswith("1: dynamic < static1: contradicted; 2: static1 > dynamic: direction only")
    # A claim that was judged by shares has no difference of means.
    assert "whole" not in loss.label


@pytest.mark.planted
def test_every_seed_is_a_dot_and_one_that_did_not_learn_is_marked() -> None:
    loss, accuracy = seed_charts.seed_strips(FULL)
    axes = drawn(loss)
    named = [cell["scores"]["masked_loss"] for cell in FULL["cells"] if cell["status"] == "did not learn"]
    stuck = {losses("whole")[WORST], *named}
    crosses = points(axes, "x", charts.THREE)
    assert {value for value, _ in crosses} == stuck and {round(place) for _, place in crosses} == {3}
    counted = [cell for row in experiment_tables.results_table(FULL).rows for cell in row[1] if "learned" in cell]
    trained = [cell for cell in FULL["cells"] if (cell["row"], cell["stage"]) == ("whole", "pretrain")]
    ended = [cell for cell in trained if cell["status"] != "missing"]
    assert counted == [f"{len(losses('whole')) - len(stuck)} of {len(ended)} learned"]
    # The seeds of four rows, less the crosses and those without a value.
    count = sum(len(losses(row)) for row in ("dynamic", "static10", "static1", "whole"))
    assert len(points(axes, "o", charts.ONE)) == count - len(stuck)
    # The control and the floor are far from the rows, so they are named at the edge.
    control = f"control {np.mean([*losses('none').values()]):.4g}"
    named = [f"{name} \N{RIGHTWARDS ARROW}" for name in (control, "unigram loss 6.56")]
    assert [text.get_text() for text in axes.texts] == named
    assert [text.get_text() for text in drawn(accuracy).texts] == ["naive Bayes of words 81.5 \N{RIGHTWARDS ARROW}"]
    assert drawn(accuracy).get_xlabel() == "points (of 100)" and "mean of the control none" in accuracy.keys


@pytest.mark.planted
def test_curves_are_those_of_the_judged_metric_and_others_are_apart() -> None:
    judged = [figure.title for figure in experiment_charts.judged_curves(FULL)]
    assert judged == ["Masked loss, pretrain, over input tokens", "Masked loss, pretrain, over training FLOPs"]
    assert experiment_charts.other_curves(FULL) == []
    assert "Measured at the end of the runs alone: Accuracy, sst2" in render_markdown(FULL)
    # Validated in another loss than the judged one.
    cells = [cell | {"curves": {"loss": cell["curves"]["masked_loss"]}} if cell["curves"] else cell for cell in FULL["cells"]]
    other = FULL | {"cells": cells}
    assert experiment_charts.judged_curves(other) == []
    assert [figure.title for figure in experiment_charts.other_curves(other)] == ["Loss, pretrain, over input tokens"]
    assert "No claim is judged by these losses" in render_html(other)
    # The first validations of an accuracy are below the frame, as those of a loss are above it.
    curve = [[step, step, value] for step, value in enumerate((0.1, 0.65, 0.68, 0.69, 0.7), 1)]
    rising = [cell | {"curves": {"accuracy": curve}} if cell["stage"] == "sst2" else cell for cell in FULL["cells"]]
    low, high = drawn(experiment_charts.judged_curves(FULL | {"cells": rising})[2]).get_ylim()
    assert 0.6 < low < 0.65 and 0.815 < high < 0.85


def test_an_interpretation_and_the_command_are_on_the_page() -> None:
    text = "The masks matter.\n\n- first <b>\n- second"
    result = FULL | {"interpretation": text, "command": "zoo experiment masks DIR --tier nano --seeds 5"}
    page, markdown = render_html(result), render_markdown(result)
    assert "<p>The masks matter.</p><ul><li>first &lt;b&gt;</li>" in page
    verdicts, interpretation, results = (
        page.index(part) for part in ("class=verdicts", "written after the runs</h2>", "Results</h2>")
    )
    assert verdicts < interpretation < results
    assert f"## Interpretation, written after the runs\n\n{text}\n" in markdown
    for form in (page, markdown):
        assert "zoo experiment masks DIR --tier nano --seeds 5" in form
    assert "Interpretation" not in render_html(FULL)


@pytest.mark.planted
def test_an_edited_forecast_is_not_printed_as_one_of_before_the_first_run() -> None:
    forecast = FULL["registration"]["forecast"] | {"loss": "reproduced"}
    text = render_markdown(with_registration(edits=EDITS, changed=["loss", "ten"], forecast=forecast))
    assert "Forecast before the first run: open. Forecast as edited on 2026-12-02, after the first run: reproduced." in text
    assert "Forecast before the first run: reproduced" not in text
    assert "**contradicted (exploratory)**" in text


def test_a_pilot_is_a_table() -> None:
    text = render_markdown(with_registration(pilot=PILOT))
    assert "## Pilot\n" in text and "| 5.7000, 5.8000 at 1; 5.6100, 5.6300 at 2 (chosen) |" in text
    assert "## Pilot" not in render_markdown(FULL)


RESULTS = Path(experiments.__file__).parent / "results"


@pytest.mark.parametrize("name", sorted(path.parent.name for path in RESULTS.glob("*/experiment.json")))
def test_committed_pages_are_those_of_their_results(name: str) -> None:
    """The HTML also depends on the version of matplotlib, so that only its text is compared."""
    result = json.loads((RESULTS / name / "experiment.json").read_text())
    assert (RESULTS / name / "experiment.md").read_text() == render_markdown(result)
    assert without_drawings((RESULTS / name / "experiment.html").read_text()) == without_drawings(render_html(result))


def without_drawings(page: str) -> str:
    return re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


def test_a_table_of_lines_becomes_blocks_on_a_narrow_screen() -> None:
    page = render_html(FULL)
    assert '<td class=number data-name="SQuAD 2.0 F1, paper">78.7</td>' in page
    assert '<td class=number data-name="Masked loss, pretrain \N{DOWNWARDS ARROW}">' in page
    assert ".lined td[data-name]::before{content:attr(data-name)" in page


@pytest.mark.parametrize("first", [0, 7, pytest.param(1, marks=pytest.mark.full), pytest.param(20, marks=pytest.mark.full)])
def test_a_truncated_grid_is_rendered(first: int) -> None:
    result = masks(seeds=3, first=first)
    assert f"<dd>{first} of {first}</dd>" in render_html(result)
    lines = [row[1][1] for row in experiment_tables.results_table(result).rows[:5]]
    assert lines[:2] == {0: ["0 of 3 seeds"] * 2, 1: ["1 of 3 seeds", "0 of 3 seeds"]}.get(first, ["3 seeds", lines[1]])
    assert lines[1] == {7: "1 of 3 seeds", 20: "3 seeds"}.get(first, lines[1])
    assert "## Verdicts" in render_markdown(result)


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
    # A claim about a fit compares no rows, so it is not among the differences.
    fitted = result | {"claims": [{"id": "loss", **entry("contradicted", 3.0, "")}]}
    assert seed_charts.difference_plots(fitted) == [] and "Estimate +3.0000" in render_markdown(fitted)


def test_differences_in_each_held_out_domain_are_a_table() -> None:
    assert experiment_tables.domains_table(FULL).rows == []
    assert "differences by domain" not in render_html(FULL)
    domains = [
        {"domain": "austen", "items": 120, "estimate": -0.1, "interval": [-0.12, -0.08]},
        {"domain": "plays", "items": 80, "estimate": 0.05, "interval": None},
    ]
    item = {"row": "dynamic", "reference": "static1", "metric": METRIC, "domains": domains}
    assert CLAIMS[0]["row"] == "dynamic"
    with_domains = FULL | {"items": [item]}
    table = experiment_tables.domains_table(with_domains)
    assert table.head == ["Claim", "austen", "plays"]
    of_domains = [["-0.1000 to static1", "-0.1200 to -0.0800", "120 items"], ["+0.0500 to static1", "80 items"]]
    assert of_domains in [row[1:] for row in table.rows]
    for page in (render_html(with_domains), render_markdown(with_domains)):
        assert "differences by domain" in page and "120 items" in page
