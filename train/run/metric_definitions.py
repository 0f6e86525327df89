"""The metrics that a model is scored by: their labels, formats, and whether lower or higher is better.

A score is a flat dict of numbers, as in scores.json: metrics, whose names are here, and counts of what they were measured on.
Two scores with different counts were measured on different data.
"""

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from train.config.objectives import ClassificationOptions
from train.config.run_config import Run
from train.data.example_types import is_iob
from zoo.errors import BadInput


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """The presentation of one metric."""

    label: str
    """Name as it is written within a sentence."""
    note: str
    """Definition, with the unit."""
    better: Literal["lower", "higher"] | None
    """The better direction; None for a metric that does not measure the model."""
    format: str = ".4f"
    unit: str = ""
    """Text that follows the number in a line of text."""
    reference: str = ""
    """The metric to compare with: the value of a trivial baseline that learned nothing but frequencies."""

    @property
    def title(self) -> str:
        """Label that begins with a capital letter."""
        return self.label[0].upper() + self.label[1:]

    def show(self, value: float | int, sign: Literal["", "+"] = "") -> str:
        """Return the number without its unit; `sign` "+": as a difference."""
        # A diverged value has up to 305 digits before the point.
        return format(value, sign + (self.format if abs(value) < 1e6 else ".4g"))


METRICS: dict[str, Metric] = {
    "bits_per_byte": Metric(
        label="bits per byte",
        note="loss in bits over the bytes of the text; comparable between tokenizers",
        better="lower",
        unit="bits/byte",
    ),
    "perplexity": Metric(
        label="perplexity", note="e to the loss per token; comparable only with the same tokenizer", better="lower", format=".2f"
    ),
    "loss": Metric(
        label="loss", note="mean of what training minimizes, in nats (for numbers, the squared error)", better="lower"
    ),
    "masked_loss": Metric(
        label="masked loss", note="mean loss per masked token, in nats", better="lower", reference="unigram_loss"
    ),
    "next_loss": Metric(label="next-sentence loss", note="mean loss per pair of segments, in nats", better="lower"),
    "accuracy": Metric(label="accuracy", note="share of predictions that are right", better="higher", reference="majority_share"),
    "mrr": Metric(
        label="reciprocal rank", note="mean of 1 / the rank of the right text among all candidates, 0 to 1", better="higher"
    ),
    "next_accuracy": Metric(
        label="next-sentence accuracy", note="share of pairs classified correctly as consecutive or not", better="higher"
    ),
    "f1": Metric(label="F1", note="harmonic mean of precision and recall", better="higher"),
    "f1_micro": Metric(label="micro F1", note="F1 of all labels of all examples together", better="higher"),
    "f1_macro": Metric(label="macro F1", note="mean F1 of the classes or labels, each weighing the same", better="higher"),
    "subset_accuracy": Metric(label="subset accuracy", note="share of examples whose labels are all right", better="higher"),
    "matthews": Metric(label="Matthews", note="correlation of predicted and true classes, -1 to 1", better="higher"),
    "pearson": Metric(label="Pearson", note="linear correlation with the true values, -1 to 1", better="higher"),
    "spearman": Metric(label="Spearman", note="correlation of the ranks, -1 to 1", better="higher"),
    "entity_f1": Metric(label="entity F1", note="F1 of whole entities: type, first and last word", better="higher"),
    "exact": Metric(
        label="exact match", note="share of answers that equal one of the reference answers, normalized", better="higher"
    ),
    "bleu": Metric(label="BLEU", note="n-grams in common with the reference texts, 0 to 100", better="higher", format=".2f"),
    "chrf": Metric(label="chrF", note="n-grams of characters in common, 0 to 100", better="higher", format=".2f"),
    "rouge1": Metric(label="ROUGE-1", note="F1 of words in common", better="higher"),
    "rouge2": Metric(label="ROUGE-2", note="F1 of pairs of words in common", better="higher"),
    "rougeL": Metric(label="ROUGE-L", note="F1 of the longest common subsequence of words", better="higher"),
    "mean_squared_error": Metric(label="squared error", note="mean square of the difference to the true value", better="lower"),
    "reward_margin": Metric(
        label="reward margin", note="mean reward of the chosen or desired answers minus that of the others", better="higher"
    ),
    "chosen_reward": Metric(label="chosen reward", note="mean reward that the model implies for the chosen answers", better=None),
    "rejected_reward": Metric(
        label="rejected reward", note="mean reward that the model implies for the rejected answers", better=None
    ),
    "chosen_log_ratio": Metric(
        label="chosen log-ratio",
        note="mean log-probability of the chosen answers relative to the reference, in nats; below 0, they became less likely",
        better=None,
    ),
    "chosen_length": Metric(label="chosen length", note="mean tokens of a chosen answer", better=None, format=".1f"),
    "rejected_length": Metric(label="rejected length", note="mean tokens of a rejected answer", better=None, format=".1f"),
    "desired_reward": Metric(label="desired reward", note="mean reward that the model implies for desired answers", better=None),
    "undesired_reward": Metric(
        label="undesired reward", note="mean reward that the model implies for undesired answers", better=None
    ),
    "reference_point": Metric(
        label="reference point",
        note="mean log-ratio of mismatched answers to the reference, in nats, at least 0: an estimate of the KL divergence",
        better=None,
    ),
    "desired_length": Metric(label="desired length", note="mean tokens of a desired answer", better=None, format=".1f"),
    "undesired_length": Metric(label="undesired length", note="mean tokens of an undesired answer", better=None, format=".1f"),
    "reward": Metric(label="reward", note="mean reward of the model's responses", better="higher"),
    "reward_stderr": Metric(label="its error", note="standard error of the mean reward, over prompts", better=None),
    "reward_deviation": Metric(label="deviation of rewards", note="standard deviation over responses", better=None),
    "kl": Metric(
        label="KL divergence", note="mean log-ratio of responses to the reference, in nats; estimates the divergence", better=None
    ),
    "entropy": Metric(
        label="entropy", note="minus the mean log-probability of a sampled token, in nats; estimates its entropy", better=None
    ),
    "response_length": Metric(
        label="response length", note="mean tokens of a response, its end mark included", better=None, format=".1f"
    ),
    "unended_share": Metric(label="cut off", note="share of responses that are cut off before an end mark", better=None),
    "truncated_share": Metric(
        label="read in part",
        note="share of responses that are too long for a reward model, which reads their beginning",
        better=None,
    ),
    "equal_groups": Metric(
        label="equal groups",
        note="share of prompts whose responses have equal rewards",
        better=None,
    ),
    "explained_variance": Metric(
        label="explained variance",
        note="of the returns of tokens by their values: 1 = all, 0 = no more than by their mean",
        better=None,
    ),
    "mean_value": Metric(label="mean value", note="mean over tokens of the rewards to come, as the model predicts", better=None),
    "mean_return": Metric(label="mean return", note="mean over tokens of the rewards to come, as estimated", better=None),
    "majority_share": Metric(
        label="majority class", note="share of the most frequent class: the accuracy of always predicting it", better=None
    ),
    "predicted_share": Metric(label="most predicted class", note="share of the predictions that are this class", better=None),
    "unigram_loss": Metric(label="unigram loss", note="loss of predicting by token frequencies alone, in nats", better=None),
}
"""Name -> metric, in the order in which they are shown."""

ONE_CLASS = 0.98
"""Share of one class among the predictions from which a model counts as predicting only that class."""

COUNTS = ("tokens", "bytes", "predictions", "examples", "desired", "pairs", "words", "entities", "questions")
"""Counts of what metrics were measured on; they agree between scores on the same data."""


def find_metric(name: str, among: Collection[str] = tuple(METRICS), option: str = "--metric") -> Metric:
    """Return the metric that an option names, which must be one of `among`.

    Raises:
        BadInput: it is not one of `among`; the nearest is named.
    """
    names = [metric for metric in METRICS if metric in among]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        fix = f"the nearest is {near[0]} (all: {', '.join(names)})" if near else "no metric is"
        raise BadInput(f"{option} {name}: not measured here; {fix}")
    return METRICS[name]


def validation_metrics(run: Run) -> tuple[str, ...]:
    """Return the metrics in a validation of this run that have a better direction."""
    labels = getattr(run.model, "labels", ())
    if isinstance(run.options, ClassificationOptions):
        if run.options.labelled.multi_label:
            return "loss", "f1_micro", "f1_macro", "subset_accuracy"
        if len(labels) == 1:
            return "loss", "pearson", "spearman", "mean_squared_error"
        return "loss", "accuracy", "f1" if len(labels) == 2 else "f1_macro", "matthews"
    if run.objective == "tagging":
        return "loss", "entity_f1" if is_iob(labels) else "accuracy"
    pairs = ("next_loss", "next_accuracy") if getattr(run.model, "task", "") == "pretraining" else ()
    return run.options.metrics + pairs


def score_notices(score: Mapping[str, Any]) -> list[str]:
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


def leading_metrics(score: Mapping[str, Any], selected: str = "") -> list[str]:
    """Return the names of a score's metrics, the main one first; losses only where there is nothing else.

    Args:
        selected: the metric that the run selects its best checkpoint by, which is the main one; "" = none.
    """
    judged = [name for name, metric in METRICS.items() if name in score and metric.better is not None]
    names = [name for name in judged if not name.endswith("loss")] or judged
    return list(dict.fromkeys([selected, *names])) if selected in judged else names


def score_summary(score: Mapping[str, Any], count: int = 2, selected: str = "") -> str:
    """Return the leading metrics of a score as text, an accuracy with that of always predicting the most frequent class.

    Args:
        selected: as for `leading_metrics`.
    """
    texts = []
    for name in leading_metrics(score, selected)[:count]:
        metric = METRICS[name]
        value = metric.show(score[name])
        text = f"{value} {metric.unit}" if metric.unit else f"{metric.label} {value}"
        reference = METRICS.get(metric.reference)
        if reference is not None and metric.reference in score:
            text += f" ({reference.label} {reference.show(score[metric.reference])})"
        texts.append(text)
    return ", ".join(texts)


def validation_change(rows: Iterable[Mapping[str, Any]], selected: str = "") -> str:
    """Return the validations before the first and after the last step as text; "" for a run that began with fresh parameters.

    Args:
        rows: the rows of metrics.jsonl.
        selected: as for `leading_metrics`.
    """
    valid = [row for row in rows if row["kind"] == "valid"]
    if not valid or valid[0]["step"] != 0:
        return ""
    first, last = (score_summary(row, 1, selected) for row in (valid[0], valid[-1]))
    return f"validation: {first} before the first step, {last} after step {valid[-1]['step']}"
