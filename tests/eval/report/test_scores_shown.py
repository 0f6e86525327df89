"""What a run measured, in its report: figures, tiles, a sentence and a table for whatever quantities there are."""

import math
from pathlib import Path
from typing import Any

import pytest

from eval import report
from tests.eval.report.test_report import folder, page, rows
from train import metrics, quantities


def validated(*quantities: dict[str, float]) -> list[dict[str, Any]]:
    """Rows with these validations, at step 100, 200, ..."""
    made = [row for row in rows(10 * len(quantities)) if row["kind"] == "train"]
    return made + [metrics.valid_row(step=100 * n, seconds=2.0, **each) for n, each in enumerate(quantities, 1)]


# What a validation finds; the figures that it gives beside the loss; those in which a line says what a loss is held against.
KINDS = {
    "bits per byte": ({"loss": 3.0, "perplexity": 20.0, "bits_per_byte": 2.0}, ["Bits per byte, validation"], []),
    "words and pairs": (
        {"loss": 3.0, "masked_loss": 2.5, "perplexity": 12.2, "accuracy": 0.5, "next_accuracy": 0.75, "unigram_loss": 6.25},
        ["Masked loss, validation", "Accuracy, validation", "Next-sentence accuracy, validation"],
        ["Masked loss, validation"],
    ),
    "words": (
        {"loss": 3.0, "masked_loss": 3.0, "perplexity": 20.1, "accuracy": 0.5, "unigram_loss": 6.25},
        ["Accuracy, validation"],
        ["Loss"],
    ),
    "classes": (
        {"loss": 0.5, "accuracy": 0.9, "f1": 0.8, "matthews": 0.7},
        ["Accuracy, validation", "F1, validation", "Matthews, validation"],
        [],
    ),
    "numbers": (
        {"loss": 0.5, "pearson": 0.9, "spearman": 0.8, "mean_squared_error": 0.5},
        ["Pearson, validation", "Spearman, validation"],
        [],
    ),
    "answers": ({"loss": 0.5, "f1": 0.8, "exact": 0.7}, ["F1, validation", "Exact match, validation"], []),
    "nothing but a loss": ({"loss": 0.5}, [], []),
}


@pytest.mark.parametrize(("found", "titles", "held"), KINDS.values(), ids=KINDS.keys())
def test_what_validations_measure_has_figures_a_tile_and_a_place_in_the_sentence(
    found: dict[str, float], titles: list[str], held: list[str], tmp_path: Path
) -> None:
    last = {name: 0.9 * value for name, value in found.items()}
    shown = page(folder(tmp_path, rows=validated(found, last)))
    drawings = [str(each["aria-label"]) for tag, each in shown.tags if tag == "svg" and each.get("class") != "wide"]
    rest = ["Tokens a second; right: MFU", "Learning rate", "Gradient norm, before clipping"]
    assert [drawing.partition(". ")[0] for drawing in drawings] == ["Loss", *titles, *rest]
    assert [drawing.partition(". ")[0] for drawing in drawings if "; unigram loss 5.625" in drawing] == held
    assert [attributes.get("class") for _, attributes in shown.tags].count("key ink dashed") == len(held)
    assert f"at step 200 gave {quantities.told(last)}. There is no final score." in shown.words
    assert f"{quantities.QUANTITIES[quantities.leading(found)[0]].label}, validation " in shown.words


def test_the_best_checkpoint_of_a_run_is_told_and_marked_where_it_is_not_the_last(tmp_path: Path) -> None:
    made = validated({"loss": 1.0, "accuracy": 0.5}, {"loss": 1.5, "accuracy": 0.75}, {"loss": 2.0, "accuracy": 0.25})
    scores = {"loss": 1.5, "accuracy": 0.75, "f1": 0.5, "examples": 20}
    shown = page(folder(tmp_path, rows=made, scores=scores | {"step": 200}))
    told = (
        f"After 300 of 1,000 steps on 1.23M tokens, {tmp_path.name}, as it was at step 200, its best validation, reaches accuracy"
    )
    assert told in shown.words
    assert "the run's choice, step 200 " in shown.words
    drawings = [attributes["aria-label"] for tag, attributes in shown.tags if tag == "svg"]
    assert all(str(drawing).endswith("; the best validation at step 200") for drawing in drawings)
    shown = page(folder(tmp_path, rows=made, scores=scores | {"step": 300}))
    assert f"on 1.23M tokens, {tmp_path.name} reaches accuracy 0.7500, F1 0.5000 on what it held out." in shown.words
    assert "the run's choice" not in shown.words and "best validation" not in (tmp_path / "report.html").read_text()


def test_all_that_a_score_holds_is_explained(tmp_path: Path) -> None:
    assert set(quantities.COUNTS) <= report.COUNTED.keys()
    every = dict.fromkeys(quantities.QUANTITIES, 0.5) | dict.fromkeys(report.COUNTED, 7) | {"has_answer_f1": 0.25}
    words = page(folder(tmp_path, scores=every)).words
    for quantity in quantities.QUANTITIES.values():
        assert f"{quantity.title} {quantity.show(0.5)} {quantity.note} " in words
    for name, note in report.COUNTED.items():
        assert f"{name.capitalize()} 7 {note} " in words
    assert "Has answer f1 0.25 " in words
    # A stride is of windows of a text.
    assert "Stride" not in page(folder(tmp_path, scores={"accuracy": 0.5, "examples": 7, "stride": 64})).words


def test_what_exploded_is_told_in_few_characters() -> None:
    assert quantities.told({"perplexity": math.exp(700), "accuracy": 0.25}) == "perplexity 1.014e+304, accuracy 0.2500"
