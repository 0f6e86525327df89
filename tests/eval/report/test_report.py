"""The report of a run is complete at any moment of it, self-contained, and true to its rows."""

import dataclasses
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.report import report, run_charts
from tests.eval.report.run_folder import ERRORS, RUN, Page, folder, page, rows
from tests.support.processes import run_python
from train.config.data_options import CausalData
from zoo.errors import BadInput

COUNTS = {"tokens": 36012, "bytes": 120345, "stride": 128, "step": 1000}
SCORES = {"bits_per_byte": 2.125, "perplexity": 20.0855, "loss": 3.0, **COUNTS}
SOURCE = {"name": "books.txt", "weight": 0.7, "tokens": 416123, "rows": 6506, "drawn": 1280, "share": 0.75, "epochs": 0.5}
SOURCES = [SOURCE, SOURCE | {"name": "news.jsonl", "weight": 0.3, "share": 0.25, "epochs": 2.0}]
TASKS = {
    "blimp": {
        "step": 400,
        "metrics": {"accuracy": 0.61234, "accuracy_stderr": 0.00184, "ties": 3},
        "examples": 67000,
        "details": {"paradigms": {"wh_island": {"accuracy": 0.5, "pairs": 1000}}, "files": ["blimp/"]},
    },
    "perplexity": {"step": None, "metrics": {"loss": 5.7, "tokens": 47193}, "examples": 1, "details": {}},
}
SAMPLES = {"step": 400, "temperature": 0.8, "samples": [{"prompt": "It was", "text": " the  whale\n\tand", "truth": " not"}]}
MORE = {"predictions.json": ERRORS, "evaluations.json": TASKS, "samples.json": SAMPLES, "data.json": SOURCES}


def assert_self_contained(path: Path) -> None:
    """Check that a page needs no other file and runs nothing, and that each of its references has one target in it."""
    content = Page(text := (path / "report.html").read_text(encoding="utf-8"))
    assert not re.search(r"https?:|//[a-z]|@import|<script|javascript:|\bon[a-z]+=", text)
    attributes = [attribute for _, each in content.tags for attribute in each.items()]
    references = [str(value) for name, value in attributes if name in ("href", "src", "xlink:href")]
    assert all(value == "data:," or value.startswith("#") for value in references)
    identities = Counter(value for name, value in attributes if name == "id")
    assert set(re.findall(r'(?:url\(|href=")#([^")]*)', text)) <= identities.keys()
    assert set(identities.values()) <= {1}
    assert not list(path.glob(".*"))


MOMENTS: dict[str, dict[str, Any]] = {
    "before the first row": {},
    "never finite": {"rows": rows(60, loss=math.nan, grad_norm=math.inf, skipped=10), "scores": SCORES},
    "after one row": {"rows": rows(1), "starts": 1},
    "a validation alone": {"rows": [row for row in rows(10) if row["kind"] == "valid"]},
    "without a rate": {"rows": rows(50, mfu=None)},
    "only compiled": {"rows": rows(1, every=1, seconds=math.nan, tokens_per_s=math.nan, mfu=math.nan)},
    "at rest": {"rows": rows(50, tokens_per_s=0.0, mfu=0.0, grad_norm=0.0)},
    "all but rows": MORE,
    "a score that is not finite": {"rows": rows(5), "scores": SCORES | {"perplexity": 1e308, "note": None, "more": [1, 2.5]}},
}
FAST = ("before the first row", "never finite")


@pytest.mark.parametrize(
    "moment", [pytest.param(each, id=name, marks=[] if name in FAST else pytest.mark.full) for name, each in MOMENTS.items()]
)
def test_report_can_be_written_at_any_moment(moment: dict[str, Any], tmp_path: Path) -> None:
    page(folder(tmp_path, **moment))
    assert_self_contained(tmp_path)


def test_complete_report_contains_scores_tasks_samples_and_sources(tmp_path: Path) -> None:
    """It is self-contained, and the same when it is written again."""
    shown = page(folder(tmp_path, rows=rows(100), starts=2, scores=SCORES, **MORE))
    assert_self_contained(tmp_path)
    first = (tmp_path / "report.html").read_bytes()
    assert report.write_report(tmp_path).read_bytes() == first
    for text in (
        f"1,000 steps on 4.10M tokens, {tmp_path.name} reaches 2.1250 bits/byte, perplexity 20.09",
        "training time 13:20 ",
        "blimp accuracy 0.6123 ± 0.0018 67,000 400 ties 3 perplexity loss 5.7 1",
        "wh_island 0.5 1,000",
        "books.txt 70.0% 75.0% 416,123 6,506 0.5 news.jsonl 30.0% 25.0% 416,123 6,506 2 ",
        "Started 2 times.",
    ):
        assert text in shown.words
    assert re.search(r"At step mesh 20\d\d-\d\d-\d\d \d\d:\d\d 0 data=1 .* 400 data=2", shown.words)
    assert " the  whale\n\tand</div>" in first.decode()


def test_report_of_a_run_under_way_says_how_far_it_is(tmp_path: Path) -> None:
    made = rows(25)
    made[15]["skipped"] = 3
    run, more = dataclasses.replace(RUN, init="../gpt2"), {"data.json": [SOURCE], "samples.json": SAMPLES | {"samples": []}}
    words = page(folder(tmp_path, run=run, rows=made, starts=1, **more)).words
    step = made[15]["step"]
    for text in (
        f"{tmp_path.name} has taken 250 of 1,000 steps, on 1.02M tokens; ",
        "step 200 gave 2.0500 bits/byte",
        "There is no final score.",
        "as ../gpt2 left them",
        "books.txt 70.0% 75.0% 416,123 6,506 0.125 0.5",
        f"not finite: 3, in steps {step - 9} to {step} (3).",
    ):
        assert text in words
    assert "Started" not in words and "Samples" not in words


def test_names_are_shown_as_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "<b>&'\"run"
    run = dataclasses.replace(RUN, data=CausalData(paths=("<script>alert(1)</script>.txt", '"><img src=x>')), init="../<a>")
    sample = dict.fromkeys(("prompt", "text", "truth"), "</p><iframe src=x>\x00\x1b[1m\udcff")
    task = {"step": 1, "metrics": {"<s>": 1.0}, "examples": 1, "details": {"<q>": {"<em>": {"<kbd>": "<var>"}}, "<ins>": "<del>"}}
    more = {
        "samples.json": {"step": 1, "samples": [sample]},
        "evaluations.json": {"<tt>": task},
        "data.json": [SOURCE | {"name": "<small>"}],
    }
    shown = page(folder(path, run=run, rows=rows(1), scores=SCORES | {"<i>score": "<u>"}, **more))
    names = ("s", "q", "em", "kbd", "var", "ins", "del", "tt", "small", "u")
    texts = ("<b>&'\"run", "<script>alert(1)</script>.txt", "<i>score", "</p><iframe src=x>\ufffd\ufffd[1m?", "../<a>")
    assert all(text in shown.words for text in (*texts, *(f"<{name}>" for name in names)))
    assert {"script", "img", "i", "iframe", "a", *names}.isdisjoint(tag for tag, _ in shown.tags)


def test_frame_leaves_out_a_lone_spike_and_counts_it() -> None:
    bottom, top, above = run_charts._limits(np.concatenate([np.linspace(7, 3, 200), [1e6, math.nan, math.inf]]))
    assert 2.5 < bottom < 3 and 7 < top < 7.5 and above == 1
    assert run_charts._limits(np.full(5, math.nan)) == (0, 1, 0)
    # Where higher is better, the best value is no spike.
    assert run_charts._limits(np.array([0.5, 0.5, 0.51, 0.9]), spikes=False)[1:] == (pytest.approx(0.924), 0)


@pytest.mark.planted
def test_row_torn_by_a_kill_is_left_out_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, rows=rows(1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    words = page(tmp_path).words
    assert "has taken 10 of 1,000 steps" in words and "Interruptions" not in words
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(BadInput, match=r"metrics.jsonl:2"):
        report.write_report(tmp_path)


DAMAGED = [
    ("scores.json", "{", r"scores.json is invalid JSON \(.*create it again"),
    ("scores.json", "[]", r"scores.json .* \(the whole: list instead of dict\)"),
    ("evaluations.json", "[" * 100_000, r"evaluations.json is invalid JSON"),
    ("evaluations.json", '{"blimp": {"step": 1}}', r"evaluations.json .* \(no blimp.metrics\)"),
    ("evaluations.json", '{"a": {"step": null, "metrics": {"x": "1"}, "examples": 1, "details": {}}}', r"\(a.metrics.x: str\)"),
    ("predictions.json", '{"labels": ["a"], "confusion": [], "worst": [{"text": ""}]}', r"\(no worst\[0\].pair\)"),
    ("predictions.json", '{"labels": ["a"], "confusion": [[1, 2]], "worst": []}', r"\(confusion: rows of 2 for 1 labels\)"),
    ("samples.json", '{"step": 1, "samples": [{"prompt": "", "text": ""}]}', r"samples.json .* \(no samples\[0\].truth\)"),
    ("samples.json", '{"step": 1, "samples": [{"prompt": "", "text": "", "truth": 1}]}', r"samples\[0\].truth: int"),
    ("data.json", "[1]", r"data.json .* \(\[0\]: int instead of dict\)"),
    ("data.json", "\xff", r"data.json is invalid JSON"),
]


@pytest.mark.planted(len(DAMAGED))
def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    for number, (name, content, message) in enumerate(DAMAGED):
        path = folder(tmp_path / str(number))
        (path / name).write_text(content, encoding="latin-1")
        with pytest.raises(BadInput, match=message) as refused:
            report.write_report(path)
        assert "\n" not in str(refused.value)
        assert not (path / "report.html").exists()


def test_folder_without_a_run_gets_no_report(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not a run"):
        report.write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_importing_it_imports_neither_matplotlib_nor_jax() -> None:
    loaded = run_python("-c", "import sys, eval.report.report; print(*sys.modules)").stdout.split()
    assert "eval.report.run_charts" in loaded
    assert {"matplotlib", "jax"}.isdisjoint(loaded)
