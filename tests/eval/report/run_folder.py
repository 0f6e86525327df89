"""Folders of runs as far as a report reads them, and what a page contains, for the tests of the report."""

import html.parser
import math
from pathlib import Path
from typing import Any

from eval.report import report
from train.config.data_options import CausalData
from train.config.objectives import CausalOptions
from train.config.run_config import Run
from train.run import metrics_file
from train.run.run_dir import RunDir, write_json
from zoo import configs

NANO = configs.find_size("gpt-nano")[1].config
RUN = Run(recipe="gpt-nano", model=NANO, options=CausalOptions(), data=CausalData())
FACTS = {"devices": "1 x cpu", "mesh": "data=1"}
WORST = {"text": "not bad", "pair": "", "truth": "good", "found": "bad", "loss": 4.5}
ERRORS: dict[str, Any] = {"labels": ["good", "bad"], "confusion": [[40, 10], [0, 7]], "worst": [WORST]}


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text of a page whose elements are all closed in order."""

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

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += f"{data.strip()} " if data.strip() else ""


def folder(path: Path, run: Run = RUN, rows: Any = (), starts: int = 0, scores: Any = None, **more: Any) -> Path:
    """Write the files of a run; `more` are further files of JSON by their names."""
    path.mkdir(parents=True, exist_ok=True)
    files = RunDir(path)
    files.write_config(run)
    for number in range(starts):
        metrics_file.record_start(files, 400 * number, FACTS | {"mesh": f"data={number + 1}"}, 1e9, 0.0)
    file = metrics_file.Metrics(files.metrics)
    for row in rows:
        file.write(row)
    file.close()
    for name, content in (more if scores is None else {"scores.json": scores, **more}).items():
        write_json(path / name, content)
    return path


def rows(count: int, every: int = 10, **changed: Any) -> list[dict[str, Any]]:
    """Return rows of training, and one of validation after ten of them."""
    made = []
    for number in range(1, count + 1):
        step, loss = number * every, 3 + 4 * math.exp(-number / 20)
        values = {"loss": loss, "grad_norm": 0.5, "skipped": 0, "tokens_per_s": 5000.0, "mfu": 0.4, "seconds": 0.8} | changed
        made.append(metrics_file.train_row(step=step, lr=1e-3, tokens=step * 4096, **values))
        if number % 10 == 0:
            made.append(metrics_file.valid_row(step=step, seconds=2.0, loss=loss + 0.1, bits_per_byte=2.0 + 1 / number))
    return made


def page(path: Path) -> Page:
    """Write the report of a folder and read it."""
    written = report.write_report(path)
    assert written == path / "report.html"
    return Page(written.read_text(encoding="utf-8"))
