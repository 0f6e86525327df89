"""The quantities that a model is scored by: their labels, formats, and whether lower or higher is better.

A score is a flat dict of numbers, as in scores.json: quantities, whose names are here, and counts of what they were measured on.
Two scores with different counts were measured on different data.
"""

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from typing import Any, Literal

from zoo.errors import BadInput


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantity:
    """The presentation of one quantity."""

    label: str
    """Name as it is written within a sentence."""
    note: str
    """Definition, with the unit."""
    better: Literal["lower", "higher"] | None
    """The better direction; None for a quantity that does not measure the model."""
    format: str = ".4f"
    unit: str = ""
    """Text that follows the number in a line of text."""
    reference: str = ""
    """The quantity to compare with: the value of a trivial baseline that learned nothing but frequencies."""

    @property
    def title(self) -> str:
        """Label that begins with a capital letter."""
        return self.label[0].upper() + self.label[1:]

    def show(self, value: float | int, sign: Literal["", "+"] = "") -> str:
        """Return the number without its unit; `sign` "+": as a difference."""
        # A diverged value has up to 305 digits before the point.
        return format(value, sign + (self.format if abs(value) < 1e6 else ".4g"))


QUANTITIES: dict[str, Quantity] = {
    "bits_per_byte": Quantity(
        label="bits per byte",
        note="loss in bits over the bytes of the text; comparable between tokenizers",
        better="lower",
        unit="bits/byte",
    ),
    "perplexity": Quantity(
        label="perplexity", note="e to the loss per token; comparable only with the same tokenizer", better="lower", format=".2f"
    ),
    "loss": Quantity(
        label="loss", note="mean of what training minimizes, in nats (for numbers, the squared error)", better="lower"
    ),
    "masked_loss": Quantity(
        label="masked loss", note="mean loss per masked token, in nats", better="lower", reference="unigram_loss"
    ),
    "next_loss": Quantity(label="next-sentence loss", note="mean loss per pair of segments, in nats", better="lower"),
    "accuracy": Quantity(
        label="accuracy", note="share of predictions that are right", better="higher", reference="majority_share"
    ),
    "next_accuracy": Quantity(
        label="next-sentence accuracy", note="share of pairs classified correctly as consecutive or not", better="higher"
    ),
    "f1": Quantity(label="F1", note="harmonic mean of precision and recall", better="higher"),
    "f1_micro": Quantity(label="micro F1", note="F1 of all labels of all examples together", better="higher"),
    "f1_macro": Quantity(label="macro F1", note="mean F1 of the classes or labels, each weighing the same", better="higher"),
    "subset_accuracy": Quantity(label="subset accuracy", note="share of examples whose labels are all right", better="higher"),
    "matthews": Quantity(label="Matthews", note="correlation of predicted and true classes, -1 to 1", better="higher"),
    "pearson": Quantity(label="Pearson", note="linear correlation with the true values, -1 to 1", better="higher"),
    "spearman": Quantity(label="Spearman", note="correlation of the ranks, -1 to 1", better="higher"),
    "entity_f1": Quantity(label="entity F1", note="F1 of whole entities: type, first and last word", better="higher"),
    "exact": Quantity(
        label="exact match", note="share of answers that equal one of the reference answers, normalized", better="higher"
    ),
    "bleu": Quantity(label="BLEU", note="n-grams in common with the reference texts, 0 to 100", better="higher", format=".2f"),
    "chrf": Quantity(label="chrF", note="n-grams of characters in common, 0 to 100", better="higher", format=".2f"),
    "rouge1": Quantity(label="ROUGE-1", note="F1 of words in common", better="higher"),
    "rouge2": Quantity(label="ROUGE-2", note="F1 of pairs of words in common", better="higher"),
    "rougeL": Quantity(label="ROUGE-L", note="F1 of the longest common subsequence of words", better="higher"),
    "mean_squared_error": Quantity(label="squared error", note="mean square of the difference to the true value", better="lower"),
    "majority_share": Quantity(
        label="majority class", note="share of the most frequent class: the accuracy of always predicting it", better=None
    ),
    "predicted_share": Quantity(label="most predicted class", note="share of the predictions that are this class", better=None),
    "unigram_loss": Quantity(label="unigram loss", note="loss of predicting by token frequencies alone, in nats", better=None),
}
"""Name -> quantity, in the order in which they are shown."""

ONE_CLASS = 0.98
"""Share of one class among the predictions from which a model counts as predicting only that class."""

COUNTS = ("tokens", "bytes", "predictions", "examples", "pairs", "words", "entities", "questions")
"""Counts of what quantities were measured on; they agree between scores on the same data."""


def find(name: str, among: Collection[str] = tuple(QUANTITIES), option: str = "--metric") -> Quantity:
    """Return the quantity that an option names, which must be one of `among`.

    Raises:
        BadInput: it is not one of `among`; the nearest is named.
    """
    names = [quantity for quantity in QUANTITIES if quantity in among]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        fix = f"the nearest is {near[0]} (all: {', '.join(names)})" if near else "no metric is"
        raise BadInput(f"{option} {name}: not measured here; {fix}")
    return QUANTITIES[name]


def notices(score: Mapping[str, Any]) -> list[str]:
    """Return reasons to think that a model has learned nothing, from its score; empty for most scores."""
    share, majority, accuracy = (score.get(name) for name in ("predicted_share", "majority_share", "accuracy"))
    fix = "try another --optim.lr, more --steps or, where classes differ much in number, --labelled.class-weights balanced"
    if share is not None and share >= ONE_CLASS and majority is not None and majority < 1:
        return [
            f"one class is predicted for {share:.1%} of the examples, and no class has more than {majority:.1%} of them; {fix}"
        ]
    if accuracy is not None and majority is not None and accuracy <= majority < 1:
        return [f"accuracy {accuracy:.4f} is not above the share of the most frequent class, {majority:.4f}; {fix}"]
    if score.get("f1_micro") == 0:
        return [f"no label is predicted correctly: micro F1 is 0; {fix}"]
    if score.get("entity_f1") == 0:
        return [f"no entity is predicted correctly: entity F1 is 0; {fix}"]
    return []


def leading_metrics(score: Mapping[str, Any]) -> list[str]:
    """Return the names of a score's quantities, the main one first; losses only where there is nothing else."""
    judged = [name for name, quantity in QUANTITIES.items() if name in score and quantity.better is not None]
    return [name for name in judged if not name.endswith("loss")] or judged


def summary(score: Mapping[str, Any], count: int = 2) -> str:
    """Return the leading quantities of a score as text, an accuracy with that of always predicting the most frequent class."""
    texts = []
    for name in leading_metrics(score)[:count]:
        quantity = QUANTITIES[name]
        value = quantity.show(score[name])
        text = f"{value} {quantity.unit}" if quantity.unit else f"{quantity.label} {value}"
        reference = QUANTITIES.get(quantity.reference)
        if reference is not None and quantity.reference in score:
            text += f" ({reference.label} {reference.show(score[quantity.reference])})"
        texts.append(text)
    return ", ".join(texts)
