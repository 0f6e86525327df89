"""The quantities that a model is scored by: what they are called, how they are written, and which way is better.

A score is a flat dict of numbers, as scores.json holds it. Its quantities are here by name; beside them it holds counts of what
they were measured on, and two scores with different counts are not of the same thing.
"""

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from typing import Any, Literal

from zoo.errors import BadInput


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantity:
    """How people are told of a number."""

    label: str
    """As it stands within a sentence."""
    note: str
    """What it is, with its unit."""
    better: Literal["lower", "higher"] | None
    """None: it says nothing of the model."""
    format: str = ".4f"
    unit: str = ""
    """What follows the number in a line of text."""
    reference: str = ""
    """The quantity that it is held against: the same number for whoever knows next to nothing."""

    @property
    def title(self) -> str:
        """The label at the head of something."""
        return self.label[0].upper() + self.label[1:]

    def show(self, value: float | int, sign: Literal["", "+"] = "") -> str:
        """The number alone, without its unit; `sign` "+": as a difference."""
        # What exploded has up to 305 digits before the point.
        return format(value, sign + (self.format if abs(value) < 1e6 else ".4g"))


QUANTITIES: dict[str, Quantity] = {
    "bits_per_byte": Quantity(
        label="bits per byte",
        note="loss in bits over the bytes of the text; comparable between tokenizers",
        better="lower",
        unit="bits/byte",
    ),
    "perplexity": Quantity(
        label="perplexity", note="e to the loss of a token; comparable only with the same tokenizer", better="lower", format=".2f"
    ),
    "loss": Quantity(
        label="loss", note="mean of what training minimizes, in nats (of numbers, their squared error)", better="lower"
    ),
    "masked_loss": Quantity(
        label="masked loss", note="mean loss of a masked token, in nats", better="lower", reference="unigram_loss"
    ),
    "next_loss": Quantity(label="next-sentence loss", note="mean loss of a pair of segments, in nats", better="lower"),
    "accuracy": Quantity(
        label="accuracy", note="share of predictions that are right", better="higher", reference="majority_share"
    ),
    "next_accuracy": Quantity(
        label="next-sentence accuracy", note="share of pairs told to be consecutive or not, rightly", better="higher"
    ),
    "f1": Quantity(label="F1", note="harmonic mean of precision and recall", better="higher"),
    "f1_macro": Quantity(label="macro F1", note="F1 of each class, every class weighing the same", better="higher"),
    "matthews": Quantity(label="Matthews", note="correlation of predicted and true classes, -1 to 1", better="higher"),
    "pearson": Quantity(label="Pearson", note="linear correlation with the true values, -1 to 1", better="higher"),
    "spearman": Quantity(label="Spearman", note="correlation of the ranks, -1 to 1", better="higher"),
    "entity_f1": Quantity(label="entity F1", note="F1 of whole entities: type, first and last word", better="higher"),
    "exact": Quantity(label="exact match", note="share of answers that are one of those given, normalized", better="higher"),
    "bleu": Quantity(
        label="BLEU", note="n-grams in common with the texts that were wanted, 0 to 100", better="higher", format=".2f"
    ),
    "chrf": Quantity(label="chrF", note="the same of characters, 0 to 100", better="higher", format=".2f"),
    "rouge1": Quantity(label="ROUGE-1", note="F1 of words in common", better="higher"),
    "rouge2": Quantity(label="ROUGE-2", note="F1 of pairs of words in common", better="higher"),
    "rougeL": Quantity(label="ROUGE-L", note="F1 of the longest words in common, in order", better="higher"),
    "mean_squared_error": Quantity(label="squared error", note="mean square of the difference to the true value", better="lower"),
    "majority_share": Quantity(
        label="majority class", note="share of the most frequent class: the accuracy of always predicting it", better=None
    ),
    "predicted_share": Quantity(label="most predicted class", note="share of the predictions that are this class", better=None),
    "unigram_loss": Quantity(
        label="unigram loss", note="loss of whoever knows only how often each token occurs, in nats", better=None
    ),
}
"""In the order in which they are shown."""

ONE_CLASS = 0.98
"""Share of the predictions that one class has if nothing but that class is predicted, or nearly so."""

COUNTS = ("tokens", "bytes", "predictions", "examples", "pairs", "words", "entities", "questions")
"""What quantities were measured on: numbers that agree between scores of the same thing."""


def find(name: str, among: Collection[str] = tuple(QUANTITIES), option: str = "--metric") -> Quantity:
    """The quantity of a name, given as an option, that has to be one of some.

    Raises:
        BadInput: it is none of them; the nearest is named.
    """
    known = [each for each in QUANTITIES if each in among]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        fix = f"the nearest is {near[0]} (all: {', '.join(known)})" if near else "nothing is"
        raise BadInput(f"{option} {name}: not measured here; {fix}")
    return QUANTITIES[name]


def notices(score: Mapping[str, Any]) -> list[str]:
    """Return the reasons to think that a model has learned nothing, from its score; most scores give none."""
    share, majority, accuracy = (score.get(name) for name in ("predicted_share", "majority_share", "accuracy"))
    fix = "try another --optim.lr, more --steps or, where classes differ much in number, --labelled.class-weights balanced"
    if share is not None and share >= ONE_CLASS and majority is not None and majority < 1:
        return [
            f"one class is predicted for {share:.1%} of the examples, and no class has more than {majority:.1%} of them; {fix}"
        ]
    if accuracy is not None and majority is not None and accuracy <= majority < 1:
        return [f"accuracy {accuracy:.4f} is not above the share of the most frequent class, {majority:.4f}; {fix}"]
    if score.get("entity_f1") == 0:
        return [f"no entity is predicted correctly: entity F1 is 0; {fix}"]
    return []


def leading(score: Mapping[str, Any]) -> list[str]:
    """The quantities of a score, the one that stands for it first; a loss only where there is nothing else."""
    judged = [name for name, quantity in QUANTITIES.items() if name in score and quantity.better is not None]
    return [name for name in judged if not name.endswith("loss")] or judged


def told(score: Mapping[str, Any], most: int = 2) -> str:
    """The leading quantities of a score in words, an accuracy with that of always predicting the most frequent class."""
    shown = []
    for name in leading(score)[:most]:
        quantity = QUANTITIES[name]
        value = quantity.show(score[name])
        text = f"{value} {quantity.unit}" if quantity.unit else f"{quantity.label} {value}"
        reference = QUANTITIES.get(quantity.reference)
        if reference is not None and quantity.reference in score:
            text += f" ({reference.label} {reference.show(score[quantity.reference])})"
        shown.append(text)
    return ", ".join(shown)
