"""The metrics that a run measured, in its report: figures, tiles, a sentence and a table."""

from pathlib import Path
from typing import Any

import pytest

from eval.report import report
from tests.eval.report.run_folder import folder, page, rows
from train.run import metric_definitions, metrics_file


def validated(*values: dict[str, float]) -> list[dict[str, Any]]:
    """Return rows of training and validations at step 100, 200, ..."""
    made = [row for row in rows(10 * len(values)) if row["kind"] == "train"]
    return made + [metrics_file.valid_row(step=100 * n, seconds=2.0, **each) for n, each in enumerate(values, 1)]


WORDS = {"loss": 3.0, "masked_loss": 3.0, "perplexity": 20.1, "accuracy": 0.5, "unigram_loss": 6.25}
# What a validation measures; the figures that it gets beside the loss; those with a line for the unigram loss.
KINDS: dict[str, tuple[dict[str, float], list[str], list[str]]] = {
    "words and pairs": (
        WORDS | {"masked_loss": 2.5, "next_accuracy": 0.75},
        ["Masked loss", "Accuracy", "Next-sentence accuracy"],
        ["Masked loss, validation"],
    ),
    "words": (WORDS, ["Accuracy"], ["Loss"]),
    "bits per byte": ({"loss": 3.0, "perplexity": 20.0, "bits_per_byte": 2.0}, ["Bits per byte"], []),
    "classes": ({"loss": 0.5, "accuracy": 0.9, "f1": 0.8, "matthews": 0.7}, ["Accuracy", "F1", "Matthews"], []),
    "numbers": ({"loss": 0.5, "pearson": 0.9, "spearman": 0.8, "mean_squared_error": 0.5}, ["Pearson", "Spearman"], []),
    "nothing but a loss": ({"loss": 0.5}, [], []),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(name, marks=[] if name == "words and pairs" else pytest.mark.full) for name in KINDS]
)
def test_validated_metrics_have_figures_a_tile_and_a_place_in_the_sentence(kind: str, tmp_path: Path) -> None:
    measured, titles, compared = KINDS[kind]
    last = {name: 0.9 * value for name, value in measured.items()}
    shown = page(folder(tmp_path, rows=validated(measured, last)))
    drawings = [str(each["aria-label"]) for tag, each in shown.tags if tag == "svg" and each.get("class") != "wide"]
    rest = ["Tokens a second; right: MFU", "Learning rate", "Gradient norm, before clipping"]
    assert [label.partition(". ")[0] for label in drawings] == ["Loss", *(f"{title}, validation" for title in titles), *rest]
    assert [label.partition(". ")[0] for label in drawings if "; unigram loss 5.625" in label] == compared
    assert f"at step 200 gave {metric_definitions.score_summary(last)}. " in shown.words
    assert f"{metric_definitions.METRICS[metric_definitions.leading_metrics(measured)[0]].label}, validation " in shown.words


def test_best_checkpoint_is_named_where_it_is_not_the_last(tmp_path: Path) -> None:
    made = validated({"loss": 1.0, "accuracy": 0.5}, {"loss": 1.5, "accuracy": 0.75}, {"loss": 2.0, "accuracy": 0.25})
    for step, chosen in ((200, True), (300, False)):
        scores = {"loss": 1.5, "accuracy": 0.75, "f1": 0.5, "examples": 20, "step": step}
        shown = page(folder(tmp_path / str(step), rows=made, scores=scores))
        assert "reaches accuracy 0.7500, F1 0.5000 on its held-out data." in shown.words
        assert ("as it was at step 200, its best validation" in shown.words) == chosen


def test_every_number_of_a_score_is_shown_and_explained(tmp_path: Path) -> None:
    assert set(metric_definitions.COUNTS) <= report.COUNTED.keys()
    every = dict.fromkeys(metric_definitions.METRICS, 0.5) | dict.fromkeys(report.COUNTED, 7)
    words = page(folder(tmp_path, scores=every)).words
    for metric in metric_definitions.METRICS.values():
        assert f"{metric.title} {metric.show(0.5)} {metric.note} " in words


@pytest.mark.planted
def test_a_model_that_learned_nothing_is_no_success(tmp_path: Path) -> None:
    scores = {"loss": 0.7, "accuracy": 0.6, "majority_share": 0.6, "predicted_share": 1.0}
    words = page(folder(tmp_path, rows=validated(scores), scores=scores)).words
    assert "reaches accuracy 0.6000 (majority class 0.6000) on its held-out data." in words
    assert "One class is predicted for 100.0% of the examples, and no class has more than 60.0% of them; try" in words
    assert "Majority class 0.6000 share of the most frequent class" in words
