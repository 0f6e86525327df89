"""The report of a run: whole at any moment of it, self-contained, and true to its rows."""

import dataclasses
import html.parser
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval import page as pages
from eval import plots, report
from tests.support.processes import run_python
from train import metrics
from train.config import Data, Run
from train.folder import Folder, write_json
from zoo import configs
from zoo.errors import BadInput

RUN = Run(recipe="gpt-nano", model=configs.find("gpt-nano")[1].config)
SCORES = {
    "bits_per_byte": 2.125,
    "perplexity": 20.0855,
    "loss": 3.0,
    "tokens": 36012,
    "bytes": 120345,
    "stride": 128,
    "step": 1000,
}
FACTS = {"devices": "1 x cpu", "mesh": "data=1"}
SOURCE = {"name": "books.txt", "weight": 0.7, "tokens": 416123, "rows": 6506, "drawn": 1280, "share": 0.75, "epochs": 0.5}
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
MISTAKES = {
    "labels": ["good", "bad"],
    "confusion": [[40, 10], [0, 7]],
    "worst": [{"text": "not bad", "pair": "", "truth": "good", "found": "bad", "loss": 4.5}],
}
MORE = {"predictions.json": MISTAKES, "evaluations.json": TASKS, "samples.json": SAMPLES, "data.json": [SOURCE]}


class Page(html.parser.HTMLParser):
    """What a page holds: tags with their attributes, text, and whether every element is closed in order."""

    VOID = ("meta", "link", "br", "path", "use")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += f"{data.strip()} " if data.strip() else ""


def folder(path: Path, run: Run = RUN, rows: Any = (), starts: int = 0, scores: Any = None, **more: Any) -> Path:
    files = Folder(path)
    files.write_config(run)
    for number in range(starts):
        metrics.started(files, 400 * number, FACTS | {"mesh": f"data={number + 1}"}, 1e9)
    file = metrics.Metrics(files.metrics)
    for row in rows:
        file.write(row)
    file.close()
    if scores is not None:
        write_json(files.scores, scores)
    for name, content in more.items():
        write_json(path / name, content)
    return path


def rows(count: int, every: int = 10, **changed: Any) -> list[dict[str, Any]]:
    made = []
    for number in range(1, count + 1):
        step, loss = number * every, 3 + 4 * math.exp(-number / 20)
        values = {"loss": loss, "grad_norm": 0.5, "skipped": 0, "tokens_per_s": 5000.0, "mfu": 0.4, "seconds": 0.8} | changed
        made.append(metrics.train_row(step=step, lr=1e-3, tokens=step * 4096, **values))
        if number % 10 == 0:
            made.append(metrics.valid_row(step=step, seconds=2.0, loss=loss + 0.1, bits_per_byte=2.0 + 1 / number))
    return made


def page(path: Path) -> Page:
    written = report.write(path)
    assert written == path / "report.html"
    return Page(written.read_text(encoding="utf-8"))


MOMENTS = {
    "before the first row": {},
    "after one row": {"rows": rows(1), "starts": 1},
    "killed early": {"rows": rows(12), "starts": 1},
    "a validation alone": {"rows": [row for row in rows(10) if row["kind"] == "valid"]},
    "finished": {"rows": rows(100), "starts": 2, "scores": SCORES, **MORE},
    "never finite": {"rows": rows(60, loss=math.nan, grad_norm=math.inf, skipped=10), "scores": SCORES},
    "without a rate": {"rows": rows(50, mfu=None)},
    "only compiled": {"rows": rows(1, every=1, seconds=math.nan, tokens_per_s=math.nan, mfu=math.nan)},
    "at rest": {"rows": rows(50, tokens_per_s=0.0, mfu=0.0, grad_norm=0.0)},
    "all but rows": MORE,
    "a score that is not finite": {"rows": rows(5), "scores": SCORES | {"perplexity": 1e308, "note": None, "more": [1, 2.5]}},
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS.keys())
def test_it_can_be_written_at_any_moment_and_needs_nothing_else(moment: dict[str, Any], tmp_path: Path) -> None:
    shown = page(folder(tmp_path, **moment))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|<script|javascript:|\bon[a-z]+=", text)
    references = [
        value for _, attributes in shown.tags for name, value in attributes.items() if name in ("href", "src", "xlink:href")
    ]
    assert all(value == "data:," or str(value).startswith("#") for value in references)
    identities = Counter(attributes["id"] for _, attributes in shown.tags if "id" in attributes)
    used = set(re.findall(r'(?:url\(|href=")#([^")]*)', text))
    assert used <= identities.keys()
    assert set(identities.values()) <= {1}
    assert not list(tmp_path.glob(".*"))


def test_every_figure_is_told_in_words(tmp_path: Path) -> None:
    shown = page(folder(tmp_path, rows=rows(100), starts=2, scores=SCORES))
    drawings = [attributes for tag, attributes in shown.tags if tag == "svg"]
    assert len(drawings) == 6
    assert all(each["role"] == "img" and each["aria-label"] for each in drawings)
    assert "Training loss from" in str(drawings[0]["aria-label"])
    assert re.search(r"validation loss from 5\.\d+ at step 100 to 3\.\d+ at step 1,000", str(drawings[0]["aria-label"]))
    assert dict(shown.tags)["html"] == {"lang": "en"}


def test_it_says_how_the_run_ended(tmp_path: Path) -> None:
    name = tmp_path.name
    assert f"No step of {name} has been recorded yet, of 1,000 planned." in page(folder(tmp_path)).words
    words = page(folder(tmp_path, rows=rows(12))).words
    assert (
        f"{name} has taken 120 of 1,000 steps, on 492k tokens; its validation at step 100 gave 2.1000 bits/byte. There" in words
    )
    assert "There is no final score." in words
    words = page(folder(tmp_path, rows=rows(100), scores=SCORES)).words
    assert f"After 1,000 steps on 4.10M tokens, {name} reaches 2.1250 bits/byte, perplexity 20.09 on what" in words
    assert "training time 13:20 " in words
    assert "Bytes 120,345" in words


def test_interruptions_and_skipped_steps_are_told(tmp_path: Path) -> None:
    made = rows(60)
    made[25]["skipped"] = 3
    words = page(folder(tmp_path, rows=made, starts=3)).words
    step = made[25]["step"]
    assert f"Skipped for a gradient that was not finite: 3, in steps {step - 9} to {step} (3)." in words
    assert "Started 3 times." in words
    assert re.search(r"At step mesh 20\d\d-\d\d-\d\d \d\d:\d\d 0 data=1 .* 400 data=2 .* 800 data=3", words)


def test_a_run_without_interruptions_has_no_word_on_them(tmp_path: Path) -> None:
    assert "Interruptions" not in page(folder(tmp_path, rows=rows(60), starts=1)).words


def test_whatever_a_name_holds_is_text(tmp_path: Path) -> None:
    path = tmp_path / "<b>&'\"run"
    path.mkdir()
    run = dataclasses.replace(RUN, data=Data(paths=("<script>alert(1)</script>.txt", '"><img src=x>')), init="../<a>")
    sample = dict.fromkeys(("prompt", "text", "truth"), "</p><iframe src=x>\x00\x1b[1m\udcff")
    task = {"step": 1, "metrics": {"<s>": 1.0}, "examples": 1, "details": {"<q>": {"<em>": {"<kbd>": "<var>"}}, "<ins>": "<del>"}}
    more = {
        "samples.json": {"step": 1, "samples": [sample]},
        "evaluations.json": {"<tt>": task},
        "data.json": [SOURCE | {"name": "<small>"}],
    }
    shown = page(folder(path, run=run, rows=rows(5), scores=SCORES | {"<i>score": "<u>"}, **more))
    told = ("<b>&'\"run", "<script>alert(1)</script>.txt", "<i>score", "<u>", "<s>", "<q>", "<em>", "<kbd>", "<var>", "<ins>")
    for text in (*told, "<del>", "<tt>", "<small>", "</p><iframe src=x>\ufffd\ufffd[1m?", "../<a>"):
        assert text in shown.words
    assert {"i", "u", "script", "img", "s", "q", "em", "kbd", "var", "ins", "del", "tt", "small", "iframe", "a"}.isdisjoint(
        tag for tag, _ in shown.tags
    )


def test_a_hundred_thousand_rows_make_a_small_file_that_keeps_a_lone_spike(tmp_path: Path, rng: np.random.Generator) -> None:
    step = np.arange(1, 100_001)
    values = np.full(len(step), 3.0)
    values[12_345] = 9.0
    kept = plots._thin(values)
    assert len(kept) <= 2 * plots.BUCKETS + 1
    assert 12_345 in kept
    folder(tmp_path)
    # By hand: checking the types of so many rows would take ten times as long as the report.
    one = rows(1)[0]
    many = [
        one | {"step": int(number), "loss": loss} for number, loss in zip(step, values + rng.normal(size=len(step)), strict=True)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    assert page(tmp_path).words
    assert (tmp_path / "report.html").stat().st_size < 1_500_000


def test_an_average_follows_a_straight_line_to_its_ends_and_leaves_out_what_is_not_finite() -> None:
    line = np.linspace(7, 3, 200)
    np.testing.assert_allclose(plots._smooth(line, 10.0), line)
    holed = line.copy()
    holed[[100, 101]] = np.nan, np.inf
    smooth = plots._smooth(holed, 10.0)
    assert np.isfinite(smooth).all()
    np.testing.assert_allclose(smooth, line, atol=0.05)


def test_a_frame_ignores_a_lone_spike_and_says_so() -> None:
    values = np.concatenate([np.linspace(7, 3, 200), [1e6, math.nan, math.inf]])
    bottom, top, above = plots._limits(values)
    assert 2.5 < bottom < 3
    assert 7 < top < 7.5
    assert above == 1
    assert plots._limits(np.full(5, math.nan)) == (0, 1, 0)
    # The best of what should be high is no spike.
    assert plots._limits(np.array([0.5, 0.5, 0.51, 0.9]), spikes=False)[1:] == (pytest.approx(0.924), 0)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    folder(tmp_path, rows=rows(50), starts=2)
    first = report.write(tmp_path).read_bytes()
    assert report.write(tmp_path).read_bytes() == first


@pytest.mark.planted
def test_a_row_torn_by_a_kill_does_not_matter_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    folder(tmp_path, rows=rows(5))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    assert "has taken 50 of 1,000 steps" in page(tmp_path).words
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(BadInput, match=r"metrics.jsonl:6"):
        report.write(tmp_path)


@pytest.mark.planted
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scores.json", "{", r"scores.json is no JSON that can be read \(.*make it again"),
        ("scores.json", "[]", r"scores.json does not hold what it should \(the whole: list instead of dict\)"),
        ("evaluations.json", "[" * 100_000, r"evaluations.json is no JSON"),
        ("evaluations.json", '{"blimp": {"step": 1}}', r"evaluations.json .* \(no blimp.metrics\)"),
        (
            "evaluations.json",
            '{"a": {"step": null, "metrics": {"x": "1"}, "examples": 1, "details": {}}}',
            r"\(a.metrics.x: str\)",
        ),
        ("predictions.json", '{"labels": ["a"], "confusion": [], "worst": [{"text": ""}]}', r"\(no worst\[0\].pair\)"),
        ("predictions.json", '{"labels": ["a"], "confusion": [[1, 2]], "worst": []}', r"\(confusion: rows of 2 for 1 labels\)"),
        ("samples.json", '{"step": 1, "samples": [{"prompt": "", "text": ""}]}', r"samples.json .* \(no samples\[0\].truth\)"),
        ("samples.json", '{"step": 1, "samples": [{"prompt": "", "text": "", "truth": 1}]}', r"samples\[0\].truth: int"),
        ("data.json", "[1]", r"data.json .* \(\[0\]: int instead of dict\)"),
        ("data.json", "\xff", r"data.json is no JSON"),
    ],
)
def test_a_damaged_file_gets_one_line(name: str, content: str, message: str, tmp_path: Path) -> None:
    (folder(tmp_path) / name).write_text(content, encoding="latin-1")
    with pytest.raises(BadInput, match=message) as refused:
        report.write(tmp_path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "report.html").exists()


def test_tasks_are_a_table_with_errors_and_their_details(tmp_path: Path) -> None:
    words = page(folder(tmp_path, **{"evaluations.json": TASKS})).words
    assert "Tasks Task Metric Value Examples Step blimp accuracy 0.6123 ± 0.0018 67,000 400 ties 3 perplexity loss 5.7 1" in words
    assert "blimp: files blimp/" in words
    assert "blimp: paradigms (1) accuracy pairs wh_island 0.5 1,000" in words
    assert "stderr" not in words


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (0.61234, 0.00184, "0.6123 ± 0.0018"),
        (0.5, 0.0996, "0.500 ± 0.100"),
        (1234.5, 17.0, "1,234 ± 17"),
        (0.5, None, "0.5"),
        (1.0, 0.0, "1"),
        (math.nan, 0.1, "nan"),
        (47193, None, "47,193"),
    ],
)
def test_a_value_is_told_as_exactly_as_it_is_known(value: float, error: float | None, shown: str) -> None:
    assert pages.measured(value, error) == shown


def test_samples_keep_their_white_space(tmp_path: Path) -> None:
    shown = page(folder(tmp_path, **{"samples.json": SAMPLES}))
    assert "continued by the model after step 400, temperature 0.8" in shown.words
    assert " the  whale\n\tand</p>" in (tmp_path / "report.html").read_text()
    assert re.search(r"\.sample p\{[^}]*white-space:pre-wrap", pages.STYLE)
    assert "Samples" not in page(folder(tmp_path, **{"samples.json": SAMPLES | {"samples": []}})).words


def test_it_says_where_parameters_and_text_come_from(tmp_path: Path) -> None:
    more = {"data.json": [SOURCE, SOURCE | {"name": "news.jsonl", "weight": 0.3, "share": 0.25, "epochs": 2.0}]}
    words = page(folder(tmp_path, rows=rows(25), **more)).words
    assert "Parameters at the start drawn at random, seed 0 Tokens trained on 1.02M of 4.10M planned" in words
    assert "Epochs so far Epochs planned books.txt 70.0% 75.0% 416,123 6,506 0.125 0.5 news.jsonl 30.0% 25.0%" in words
    words = page(folder(tmp_path, run=dataclasses.replace(RUN, init="../gpt2"), rows=rows(100), **more)).words
    assert "Parameters at the start as ../gpt2 left them Tokens trained on 4.10M Source" in words
    assert "Rows Epochs books.txt 70.0% 75.0% 416,123 6,506 0.5 news.jsonl 30.0% 25.0% 416,123 6,506 2 Configuration" in words


def test_a_folder_that_is_no_run_gets_no_report(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no run"):
        report.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_text_and_curves_stand_out_on_light_and_dark() -> None:
    """WCAG 2.2: 4.5 to 1 for text, 3 to 1 for the parts of a drawing."""
    light, dark = (
        dict(re.findall(r"--(\w+):(#\w{6})", each)) for each in pages.STYLE.split("@media (prefers-color-scheme:dark)")
    )
    for colours in (light, dark):
        for ground in ("page", "card"):
            for text in ("ink", "muted"):
                assert contrast(colours[text], colours[ground]) >= 4.5
            for curve in ("one", "two", "three"):
                assert contrast(colours[curve], colours[ground]) >= 3


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    brighter, darker = sorted([luminance(one), luminance(other)], reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def test_importing_it_imports_neither_matplotlib_nor_jax() -> None:
    done = run_python("-c", "import sys, eval.report; print(*sys.modules)")
    loaded = done.stdout.split()
    assert "eval.plots" in loaded
    assert {"matplotlib", "jax"}.isdisjoint(loaded)
