"""The score head of a decoder or an encoder-decoder reward model: its label, and its keys in a config.json.

A reward model has this head, which gives a text one score, in place of the language-model head: GPT2ForSequenceClassification and
T5ForSequenceClassification of `transformers` with one label. Nothing here imports JAX.
"""

from typing import Any

from zoo.errors import require
from zoo.hf.config_json import PublishedConfig

REWARD = "reward"
"""The label of a new head."""
REGRESSION = "regression"


def check_labels(labels: tuple[str, ...]) -> None:
    """Refuse more than one label."""
    require(len(labels) <= 1, "model.labels", " ".join(labels), f"a reward model has one score; name one label, as {REWARD}")


def read_labels(published: PublishedConfig) -> tuple[str, ...]:
    """Return the label of a folder's reward head; () if the folder has a language-model head.

    Raises:
        BadInput: the head has several outputs, or a `problem_type` other than that of one number.
    """
    if published.task != "sequence":
        return ()
    labels = published.labels()
    if len(labels) != 1:
        raise published.wrong("id2label", list(labels), "this family reads reward heads with one label; use such a model")
    published.choice("problem_type", {REGRESSION: REGRESSION}, REGRESSION, why="of one label this family computes")
    return labels


def label_entries(labels: tuple[str, ...]) -> dict[str, Any]:
    """Return the entries of a config.json that name the label."""
    if not labels:
        return {}
    return {"id2label": {"0": labels[0]}, "label2id": {labels[0]: 0}, "problem_type": REGRESSION}
