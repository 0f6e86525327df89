"""The text of a card: names of others mean nothing, scores have intervals, folders of a machine are left out."""

import dataclasses
import html.parser
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.inference._generated import types as hub_types
from markdown_it import MarkdownIt

from eval.metrics.standard_error import mean_and_error, ratio_and_error
from eval.model_card import card_metadata, card_text
from eval.model_card.write_card import write_card
from tests.eval.report.run_folder import RUN, folder, rows
from train.run.item_outcomes import HELD_OUT, Outcomes, write_outcomes
from train.run.run_dir import RunDir
from train.weights.import_export import Exported
from zoo import configs, models

CONFIG = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
SCORES = {"loss": 3.1, "perplexity": 22.198, "bits_per_byte": 1.5, "tokens": 300, "step": 100}
SOURCE = {"name": "book.txt", "weight": 1.0, "tokens": 5000, "rows": 20, "share": 1.0, "epochs": 2.0}
HOSTILE = "a|b `x` <img src=x onerror=alert(1)> ![p](//x/y)\n# [c](//z)"


def card_of(tmp_path: Path, *, step: int = 100, average: str = "", run: Any = RUN, **files: Any) -> tuple[ModelCard, str]:
    """Return the card of a run with 100 steps, as the hub's library reads it, and its text."""
    source, target = folder(tmp_path / "run", run, rows(10), 2, **{"scores.json": SCORES, **files}), tmp_path / "out"
    count = np.array([100, 100, 100])
    nats = np.array([3.0, 3.1, 3.2])
    write_outcomes(RunDir(source), HELD_OUT, Outcomes(("a", "b", "c"), nats * np.nan, nats * count, count))
    target.mkdir()
    (target / "config.json").write_text(json.dumps(CONFIG))
    write_card(target, Exported(source=source, config=run.model, run=run, step=step, average=average), name="a_b")
    return ModelCard.load(target / "README.md"), (target / "README.md").read_text()


class Tags(html.parser.HTMLParser):
    """The tags of a page, with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_scores_of_the_exported_step_have_intervals(tmp_path: Path) -> None:
    card, text = card_of(tmp_path)
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        name: SCORES[name] for name in ("bits_per_byte", "perplexity", "loss")
    }
    half = 1.959964 * np.std([3.0, 3.1, 3.2], ddof=1) / np.sqrt(3)
    low, high = 3.1 - half, 3.1 + half
    assert f"| Loss | 3.1000 | {low:.4f} to {high:.4f} | 3 |" in text
    assert f"| Perplexity | 22.20 | {np.exp(low):.2f} to {np.exp(high):.2f} | 3 |" in text
    assert f"| Bits per byte | 1.5000 | {1.5 * low / 3.1:.4f} to {1.5 * high / 3.1:.4f} | 3 |" in text


@pytest.mark.planted(3)
def test_scores_of_other_parameters_are_not_listed(tmp_path: Path) -> None:
    """Those of another step, and those of a run whose export is an average."""
    card, text = card_of(tmp_path / "step", step=50)
    assert card.data.eval_results is None and "The run's own score is of step 100, not of these weights" in text
    assert "the best validation" not in text
    card, text = card_of(tmp_path / "average", average="the mean of the 3 newest checkpoints")
    assert card.data.eval_results is None and "The weights are the mean of the 3 newest checkpoints." in text
    # Outcomes that are not those of the score give no interval.
    _, text = card_of(tmp_path / "other", **{"scores.json": SCORES | {"loss": 2.0}})
    assert "| Loss | 2.0000 |  |  |" in text


def test_the_chosen_checkpoint_is_marked(tmp_path: Path) -> None:
    _, text = card_of(tmp_path, step=50, **{"scores.json": SCORES | {"step": 50}})
    assert "the best validation at step 50](curve.png)" in text and "| Loss | 3.1000 |" in text


@pytest.mark.planted(2)
def test_names_of_others_mean_nothing(tmp_path: Path) -> None:
    """Neither in Markdown, nor in HTML, nor in the metadata."""
    result = {"step": 100, "metrics": {"accuracy": 0.5, "accuracy_stderr": 0.1}, "examples": 9}
    tasks = {f"x\n---\nlicense: mit\n---\n{HOSTILE}": result, f"[a](//b){HOSTILE}": result | {"step": 1}}
    card, text = card_of(tmp_path, **{"data.json": [SOURCE | {"name": HOSTILE}], "evaluations.json": tasks})
    assert card.data.license is None and card.data.eval_results[-1].dataset_name == next(iter(tasks))
    page = Tags(MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text))
    assert [tag for tag, _ in page.tags if tag in ("h1", "a", "script")] == ["h1"]
    assert [attrs["src"] for tag, attrs in page.tags if tag == "img"] == ["curve.png"]
    assert (tmp_path / "out" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert sum("<img src=x onerror=alert(1)>" in words for words in page.words) == 3
    assert text.count("\n# ") == 1 and "0.5000 | 0.3040 to 0.6960 | 9" in text


@pytest.mark.planted
def test_folders_of_a_machine_are_left_out(tmp_path: Path) -> None:
    paths = ("/home/zoe/secret/book.txt", "../clients/b.txt", "s3://bucket/c.txt", "hub:org/corpus", "own/d.txt")
    run = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, paths=paths), init="/home/zoe/start")
    card, text = card_of(tmp_path, run=run, **{"data.json": [SOURCE | {"name": ", ".join(paths)}]})
    assert not any(word in text for word in ("zoe", "secret", "clients", "bucket"))
    assert "`book.txt, b.txt, c.txt, hub:org/corpus, own/d.txt`" in text and "those of `start`" in text
    assert card.data.datasets == ["org/corpus"]
    run = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, paths=(path := "/home/zoe, b/secret/x.txt",)))
    assert "`x.txt`" in (text := card_of(tmp_path / "comma", run=run, **{"data.json": [SOURCE | {"name": path}]})[1])
    assert "secret" not in text
    (block, remark) = card_text.command_blocks(
        ["zoo", "train", "gpt-nano", "--init=/home/zoe/start", "--data.paths", *paths], "a"
    )
    assert block == "```sh\nzoo train gpt-nano --init start --data.paths book.txt b.txt c.txt hub:org/corpus own/d.txt\n```"
    assert remark == "Folders of files are left out."


@pytest.mark.planted(2)
def test_a_damaged_file_costs_a_part_of_the_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, text = card_of(tmp_path, **{"evaluations.json": [], "data.json": {}})
    notices = capsys.readouterr().err.splitlines()
    assert any(line.startswith("! ") and "evaluations.json" in line and line.endswith("no scores") for line in notices)
    assert any("data.json" in line and line.endswith("no sources of data") for line in notices)
    assert "## Training curve" in text and "## Scores" not in text


def test_every_published_class_has_a_task_of_the_hub(tmp_path: Path) -> None:
    """The list of the hub has two names that its library does not have as modules."""
    names = {name.replace("_", "-") for name in vars(hub_types)} | {"text-ranking", "multiple-choice"}
    assert {*card_metadata.TASKS.values(), *card_metadata.ADAPTER_TASKS.values()} <= names
    without = set()
    for family in configs.families():
        size = next(iter(configs.family(family).SIZES.values())).config
        for task in ("causal", "text_to_text", "body", "masked", "pretraining", "next", "sequence", "tokens", "span", "choice"):
            published = models.model(size).definition.names.get(task)
            if published is None or not published.architecture:
                continue
            (tmp_path / "config.json").write_text(json.dumps({"architectures": [published.architecture]}))
            library, name = card_metadata.library_and_task(tmp_path)
            assert library == "transformers"
            if name is None:
                without.add(task)
    assert without == {"next"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config.json": CONFIG | {"sentence_transformers": {}}}, ("sentence-transformers", "text-ranking")),
        (
            {"config.json": CONFIG, "modules.json": [], "config_sentence_transformers.json": {}},
            ("sentence-transformers", "sentence-similarity"),
        ),
        (
            {"config.json": CONFIG, "modules.json": [], "config_sentence_transformers.json": {"model_type": "ColBERT"}},
            ("PyLate", "sentence-similarity"),
        ),
        ({"adapter_config.json": {"task_type": "SEQ_CLS"}}, ("peft", "text-classification")),
        ({"adapter_config.json": {"task_type": None}}, ("peft", None)),
    ],
)
def test_the_library_is_that_of_the_files(tmp_path: Path, files: dict[str, Any], expected: tuple[str, str | None]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert card_metadata.library_and_task(tmp_path) == expected


def test_the_error_of_a_ratio_is_that_of_leaving_out_single_items() -> None:
    rng = np.random.default_rng(0)
    count = rng.integers(1, 50, 400)
    sums = rng.gamma(2.0, 1.0, 400) * count
    ratio, error = ratio_and_error(sums, count)
    left_out = (sums.sum() - sums) / (count.sum() - count)
    jackknife = np.sqrt((len(sums) - 1) / len(sums) * ((left_out - left_out.mean()) ** 2).sum())
    assert ratio == sums.sum() / count.sum() and error == pytest.approx(jackknife, rel=0.02)
    assert ratio_and_error(sums, np.ones(400)) == pytest.approx(mean_and_error(sums.tolist()))
