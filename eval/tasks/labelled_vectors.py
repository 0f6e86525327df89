"""Frozen vectors of labelled texts: clusters of them, and a logistic regression on them, as in MTEB (Muennighoff et al. 2023).

Format: .jsonl, or .tsv with a header; the fields `text` and `label`, a string or a whole number. Vectors have length 1; pooling,
dense layers and the default prompt are those of the model's folder. A text that is longer than the model's positions is cut, and
the result says so.

clustering. k-means with as many clusters as there are labels, from `RUNS` seeds. Metrics: v_measure, homogeneity and
completeness, means over the seeds. MTEB takes batches of 512 vectors in each step, or samples of the texts; here each step takes
all.

classification_probe. Two files: texts to learn from, then texts to predict. Metrics: accuracy, with its standard error over
texts, and f1_macro, of a logistic regression (`eval.inference.vector_models.fit_logistic_regression`). With a number after the
colon, as classification_probe:8, of `RUNS` regressions on so many texts of each label, drawn by seeds, and metrics are means over
them. MTEB does that with 8 or 16 texts, and stops each regression after 100 steps.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eval.inference import vector_models
from eval.inference.batch_loop import Progress
from eval.inference.encoder_runner import Text
from eval.inference.text_vectors import TaskEmbedder
from eval.metrics.clusters import v_measure
from eval.metrics.metric_functions import f1_macro
from eval.metrics.standard_error import with_error
from eval.tasks.sentence_pairs import read_fields, refuse_side_prompts
from eval.tasks.task import Result, Settings, Task, first
from train.data.text_files import check_string
from train.run.item_outcomes import Outcomes
from train.weights.load import Loaded
from zoo.errors import BadInput, require

RUNS = 10
"""Number of seeds whose metrics are averaged."""


class LabelledTexts(NamedTuple):
    """Texts with the numbers of their labels; `names` are the labels."""

    texts: list[Text]
    labels: np.ndarray
    """[N], int64."""
    names: list[str]


class Split(NamedTuple):
    """Texts to learn from, and texts to predict, whose labels have the same numbers."""

    train: LabelledTexts
    test: LabelledTexts


def read_labelled_texts(names: Sequence[str], settings: Settings) -> LabelledTexts:
    """Read the texts of all files.

    Raises:
        BadInput: a file or a line that cannot be read, an empty text or label, fewer than two labels, or a prompt of queries or
            documents.
    """
    refuse_side_prompts(settings)
    return _numbered(first(_read(names), settings.limit))


def read_split(names: Sequence[str], settings: Settings) -> Split:
    """Read the texts to learn from in the first file, and those to predict in the second.

    Raises:
        BadInput: see `read_labelled_texts`; not two files, a label of the second file that the first lacks, or an argument that
            is not the number of texts of each label.
    """
    require(len(names) == 2, "files", " ".join(names), "name the file to learn from, then the file to predict")
    per_label = settings.argument
    fix = "choose a number of texts for each label, as classification_probe:8"
    require(not per_label or (per_label.isdecimal() and int(per_label) > 0), "task", f"classification_probe:{per_label}", fix)
    refuse_side_prompts(settings)
    train = _numbered(_read(names[:1]))
    number, test = {name: i for i, name in enumerate(train.names)}, first(_read(names[1:]), settings.limit)
    for text, label in test:
        if label not in number:
            raise BadInput(f"{text.where}: {names[0]} has no label {label!r}; add texts of it there, or remove the line")
    labels = np.array([number[label] for _, label in test])
    return Split(train, LabelledTexts([text for text, _ in test], labels, train.names))


def score_clustering(subject: Loaded, data: LabelledTexts, settings: Settings, progress: Progress) -> Result:
    """Compare the clusters of the vectors with the labels.

    Raises:
        BadInput: the model is no encoder, see `TaskEmbedder`.
    """
    embedder = TaskEmbedder.of(subject, settings.vectors, batch=settings.batch, dtype=settings.dtype)
    vectors = embedder.vectors(data.texts, "sentence", progress)
    runs = [v_measure(data.labels, vector_models.k_means(vectors, len(data.names), seed)) for seed in range(RUNS)]
    homogeneity, completeness, agreement = np.mean(runs, axis=0).tolist()
    metrics = {"v_measure": agreement, "homogeneity": homogeneity, "completeness": completeness}
    return Result(metrics, len(data.texts), {"labels": len(data.names), **embedder.details()})


def score_classification_probe(subject: Loaded, data: Split, settings: Settings, progress: Progress) -> Result:
    """Fit regressions to the vectors of the first file, and predict the labels of the second.

    Raises:
        BadInput: the model is no encoder, see `TaskEmbedder`.
    """
    embedder = TaskEmbedder.of(subject, settings.vectors, batch=settings.batch, dtype=settings.dtype)
    (train, labels, names), test = data.train, data.test
    vectors = embedder.vectors([*train, *test.texts], "sentence", progress)
    seen, unseen = vectors[: len(train)], vectors[len(train) :]
    right, nats, macro = [], [], []
    for rows in _samples(labels, settings.argument):
        weights = vector_models.fit_logistic_regression(seen[rows], labels[rows], len(names))
        log_p = vector_models.class_log_probabilities(weights, unseen)
        predicted = log_p.argmax(1)
        right.append(predicted == test.labels)
        nats.append(-log_p[np.arange(len(log_p)), test.labels])
        macro.append(f1_macro(test.labels, predicted))
    shares = np.mean(right, axis=0)
    metrics = {**with_error("accuracy", shares.tolist()), "f1_macro": float(np.mean(macro))}
    outcomes = Outcomes.of([text.where for text in test.texts], shares, np.mean(nats, axis=0))
    return Result(metrics, len(shares), {"labels": len(names), **embedder.details()}, outcomes=outcomes)


def _samples(labels: np.ndarray, per_label: str) -> list[np.ndarray]:
    """Return the rows that each regression learns from: all, or `per_label` of each label, if it has so many."""
    if not per_label:
        return [np.arange(len(labels))]
    generators = [np.random.default_rng(seed) for seed in range(RUNS)]
    groups = [np.flatnonzero(labels == number) for number in np.unique(labels)]
    return [np.concatenate([rng.permutation(group)[: int(per_label)] for group in groups]) for rng in generators]


def _read(names: Sequence[str]) -> list[tuple[Text, str]]:
    pairs = []
    for where, values in read_fields(names, ("text", "label")):
        text, label = values["text"], values["label"]
        if not check_string(text, f"{where}: field text").strip():
            raise BadInput(f"{where}: field text has no text; write some, or remove the line")
        if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
            raise BadInput(f"{where}: field label is {json.dumps(label)[:40]}; write a string or a whole number")
        pairs.append((Text(where, text), check_string(str(label), f"{where}: field label")))
    if not pairs:
        raise BadInput(f"{names[0]}: no texts, only a header; add lines")
    return pairs


def _numbered(pairs: list[tuple[Text, str]]) -> LabelledTexts:
    unique, labels = np.unique([label for _, label in pairs], return_inverse=True)
    names = unique.tolist()
    if len(names) < 2:
        raise BadInput(f"{pairs[0][0].where}: every text from here on has the label {names[0]!r}; add texts of another one")
    return LabelledTexts([text for text, _ in pairs], labels, names)


CLUSTERING = Task(
    read=read_labelled_texts,
    score=score_clustering,
    metrics=("v_measure", "homogeneity", "completeness"),
    options=("limit", "vectors"),
)
CLASSIFICATION_PROBE = Task(
    read=read_split,
    score=score_classification_probe,
    metrics=("accuracy", "accuracy_stderr", "f1_macro"),
    options=("limit", "vectors"),
    argument="optional",
)
