"""How a fitted model does on labelled examples: the measures of its task, and where it errs."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float64, Integer

from eval.scoring import metric_functions, squad
from train.config import run_config
from train.data.example_types import Choice, Example, Question, Tagged, Text, is_iob
from train.engine import device_mesh
from train.inputs.labelled_inputs import Rows
from train.objectives import choice, span
from train.rows import batches
from train.rows.example_rows import Row
from zoo.batch import IGNORED, Batch
from zoo.models import Model
from zoo.nn import heads

WORST = 20
"""Examples shown with the greatest losses, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """What was measured, and where the model errs."""

    numbers: dict[str, float | int]
    mistakes: dict[str, Any]
    """"labels" and "confusion" (true by found) where classes are told apart, and the "worst" examples."""

    def record(self) -> dict[str, float | int]:
        """The score as metrics and JSON carry it."""
        return self.numbers


def of_run(
    run: run_config.Run, net: Model, mesh: Mesh, data: Any, rows: Rows, build: Callable[..., Any], *, batch: int, dtype: Any
) -> Callable[[Any], Score]:
    """A function of parameters that scores every example of `rows`, `batch` rows at a time over the mesh."""
    batch = device_mesh.fitting(mesh, min(batch, len(rows)))
    forward, tell = Forward.of(net, mesh, run.objective, np.dtype(dtype)), TASKS[run.objective][1]

    def score(params: Any) -> Score:
        logits = np.concatenate(list(forward.logits(forward.cast(params), rows, build, batch)))
        return tell(rows, logits[: len(rows)], getattr(run.model, "labels", ()))

    return score


@dataclasses.dataclass(frozen=True)
class Forward:
    """A model's logits of rows, computed over a mesh; `Forward.of` makes one, so that its programs are compiled once."""

    net: Model
    mesh: Mesh
    objective: str
    dtype: np.dtype
    """Dtype of the arithmetic."""

    @staticmethod
    @functools.lru_cache(maxsize=4)
    def of(net: Model, mesh: Mesh, objective: str, dtype: np.dtype) -> "Forward":
        """Return the same object for the same arguments."""
        return Forward(net, mesh, objective, dtype)

    @functools.cached_property
    def _program(self) -> Callable[[Any, Batch], Array]:
        head = TASKS[self.objective][0]
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return jax.jit(lambda params, batch: head(self.net, params, batch), out_shardings=everywhere)

    @functools.cached_property
    def _cast(self) -> Callable[[Any], Any]:
        return jax.jit(lambda params: jax.tree.map(lambda leaf: leaf.astype(self.dtype), params))

    def cast(self, params: Any) -> Any:
        """Return parameters in the dtype of the arithmetic."""
        with jax.set_mesh(self.mesh):
            return self._cast(params)

    def logits(
        self, params: Any, rows: Rows, build: Callable[..., Any], batch: int
    ) -> Iterator[Float64[np.ndarray, "batch *outputs"]]:
        """Yield the logits of each batch of rows, in order; the last one is filled up.

        Args:
            params: as `cast` returns them.
            build: makes the arrays of a row.
            batch: rows of a batch; the mesh divides it.
        """
        local, before = device_mesh.local_rows(self.mesh, batch), None
        for mine in batches.in_order(rows, build, batch, local):
            with jax.set_mesh(self.mesh):
                now = self._program(params, device_mesh.place(mine, self.mesh, batch))
            # The devices compute this batch while the one before is used and the next one is made.
            if before is not None:
                yield np.asarray(jax.device_get(before), np.float64)
            before = now
        if before is not None:
            yield np.asarray(jax.device_get(before), np.float64)


def judged(labels: Sequence[str]) -> tuple[str, ...]:
    """What a classifier of texts is judged by, of those in `measures.MEASURES`; a single label names a number.

    The F1 of two classes is that of the second one.
    """
    if len(labels) == 1:
        return "pearson", "spearman", "mean_squared_error"
    return "accuracy", "f1" if len(labels) == 2 else "f1_macro", "matthews"


# --- Logits of a batch ----------------------------------------------------------------------------------------------------------


def _of_sequences(net: Model, params: Any, batch: Batch) -> Float[Array, "B O"]:
    hidden = net.apply(params, batch).hidden
    return net.sequence_logits(params, heads.summaries(hidden, batch.summary_at))[:, 0]


def _of_tokens(net: Model, params: Any, batch: Batch) -> Float[Array, "B T O"]:
    return net.token_logits(params, net.apply(params, batch).hidden)


def _of_ends(net: Model, params: Any, batch: Batch) -> Float[Array, "B 2 T"]:
    return span.ends(net, params, net.apply(params, batch).hidden, batch)


# --- What they say --------------------------------------------------------------------------------------------------------------


def _classes(rows: Rows, logits: Float64[np.ndarray, "N O"], labels: tuple[str, ...]) -> Score:
    """Of classes: accuracy, F1, Matthews' correlation, and which class was taken for which. Of numbers: their correlations."""
    truth = np.concatenate([row.labels for row in rows.rows])
    if len(labels) == 1:
        found = logits[:, 0]
        told = metric_functions.score(judged(labels), truth.astype(np.float64), found)
        losses = np.square(found - truth)
        said = [(f"{true:g}", f"{value:g}") for true, value in zip(truth.tolist(), found.tolist(), strict=True)]
        return _score(rows, told, losses, said)
    found = logits.argmax(-1)
    said = [(labels[true], labels[value]) for true, value in zip(truth.tolist(), found.tolist(), strict=True)]
    metrics = {**metric_functions.score(judged(labels), truth, found), **_shares(truth, found)}
    score = _score(rows, metrics, _surprise(logits, truth), said)
    confusion = metric_functions.confusion(truth, found, len(labels)).tolist()
    return dataclasses.replace(score, mistakes={**score.mistakes, "labels": list(labels), "confusion": confusion})


def _tags(rows: Rows, logits: Float64[np.ndarray, "N T O"], labels: tuple[str, ...]) -> Score:
    """F1 of whole entities where the tags are IOB, else the share of right tags. Words that a row has no ids of do not count."""
    truths, founds, losses, words, said = [], [], [], [], []
    for row, each in zip(rows.rows, logits, strict=True):
        asked = np.flatnonzero(row.labels != IGNORED)
        truths.append([labels[label] for label in row.labels[asked].tolist()])
        founds.append([labels[label] for label in each[asked].argmax(-1).tolist()])
        losses.append(_surprise(each[asked], row.labels[asked]).mean())
        words.append(len(asked))
        wrong = [
            (place, true, found) for place, (true, found) in enumerate(zip(truths[-1], founds[-1], strict=True)) if true != found
        ]
        said.append(tuple(", ".join(f"{place + 1} {pair[which]}" for place, *pair in wrong) for which in (0, 1)))
    told: dict[str, Any] = {}
    if is_iob(labels):
        told |= zip(("entity_precision", "entity_recall", "entity_f1"), metric_functions.entity_f1(truths, founds), strict=True)
    else:
        names = {name: number for number, name in enumerate(labels)}
        truth, found = (np.array([names[tag] for tags in each for tag in tags]) for each in (truths, founds))
        told |= {"accuracy": metric_functions.accuracy(truth, found), **_shares(truth, found)}
    return _score(rows, {**told, "words": sum(words)}, np.array(losses), said, counts=words)


def _answers(rows: Rows, logits: Float64[np.ndarray, "N 2 T"], labels: Sequence[str]) -> Score:
    """Exact match and F1 of the best answer of each question over all of its windows."""
    windows: dict[int, list[int]] = {}
    for number, row in enumerate(rows.rows):
        windows.setdefault(row.example, []).append(number)
    decoded, truths, losses, said = [], [], [], []
    for example, numbers in windows.items():
        question = rows.examples[example]
        assert isinstance(question, Question)
        decoded.append(decode(question, [rows.rows[number] for number in numbers], logits[numbers]))
        truths.append([answer.text for answer in question.answers])
        ends = np.array([rows.rows[number].labels for number in numbers])
        losses.append(_surprise(logits[numbers], ends).mean())
    told = squad.score(decoded, truths)
    for each, given in zip(decoded, truths, strict=True):
        said.append((given[0] if given else "(no answer)", each.choose(None if all(truths) else 0.0) or "(no answer)"))
    chosen = dataclasses.replace(rows, examples=[rows.examples[example] for example in windows])
    counts = [len(numbers) for numbers in windows.values()]
    return _score(chosen, told, np.array(losses), said, counts=counts, whole=True)


def decode(question: Question, rows: Sequence[Row], logits: Float64[np.ndarray, "W 2 T"]) -> squad.Decoded:
    """Return the best answers to a question over all of its windows, `rows`."""
    where, places = np.zeros((len(rows), 2), np.int64), np.zeros((len(rows), logits.shape[-1], 2), np.int64)
    cls = np.zeros(len(rows), np.int64)
    for number, row in enumerate(rows):
        context = row.context
        assert context is not None
        where[number], cls[number] = (context.first, context.first + len(context.spans)), context.summary
        places[number, where[number, 0] : where[number, 1]] = context.spans
    start, end = logits.astype(np.float32).swapaxes(0, 1)
    return squad.decode(start, end, context=where, spans=places, text=question.context, cls=cls)


def _options(rows: Rows, logits: Float64[np.ndarray, "N C"], labels: Sequence[str]) -> Score:
    """The share of questions whose right option has the greatest logit."""
    truth, found, said = np.array([int(row.labels) for row in rows.rows]), logits.argmax(-1), []
    for row, true, chosen in zip(rows.rows, truth.tolist(), found.tolist(), strict=True):
        example = rows.examples[row.example]
        assert isinstance(example, Choice)
        said.append((example.options[true], example.options[chosen]))
    return _score(
        rows, {"accuracy": metric_functions.accuracy(truth, found), **_shares(truth, found)}, _surprise(logits, truth), said
    )


def _shares(truth: Integer[np.ndarray, " N"], found: Integer[np.ndarray, " N"]) -> dict[str, float]:
    """Return the shares of the most frequent class among the labels and among the predictions, to compare an accuracy with."""
    return {"majority_share": metric_functions.largest_share(truth), "predicted_share": metric_functions.largest_share(found)}


TASKS: dict[str, tuple[Callable[..., Any], Callable[..., Score]]] = {
    "classification": (_of_sequences, _classes),
    "tagging": (_of_tokens, _tags),
    "span": (_of_ends, _answers),
    "choice": (choice.options, _options),
}
"""Objective -> logits of a batch, and what the logits of all rows say."""


def _score(
    rows: Rows,
    told: dict[str, Any],
    losses: np.ndarray,
    said: Sequence[tuple[str, ...]],
    *,
    counts: Sequence[int] | None = None,
    whole: bool = False,
) -> Score:
    """The score of rows, or of `whole` examples, with a loss and what is (true, found) of each.

    A loss that is a mean itself is one of `counts` words or windows, each of which weighs the same, as in training.
    """
    order = np.argsort(-losses, kind="stable")[:WORST]
    worst = []
    for number in order.tolist():
        example = rows.examples[number if whole else rows.rows[number].example]
        text, pair = _shown(example)
        truth, found = said[number]
        worst.append({"text": text, "pair": pair, "truth": truth, "found": found, "loss": float(losses[number])})
    numbers = {"loss": float(np.average(losses, weights=counts)), **told, "examples": len(losses)}
    return Score(numbers=numbers, mistakes={"labels": [], "confusion": [], "worst": worst})


def _shown(example: Example) -> tuple[str, str]:
    """An example as a person reads it: its text, and its second one."""
    match example:
        case Text():
            return example.text, example.pair or ""
        case Tagged():
            return " ".join(example.words), ""
        case Question():
            return example.question, example.context
        case Choice():
            return example.question, example.article
    raise TypeError(type(example).__name__)


def _surprise(logits: Float64[np.ndarray, "*N O"], truth: Integer[np.ndarray, "*N"]) -> Float64[np.ndarray, "*N"]:
    """-log of the probability of the truth, in nats."""
    logs = logits - logits.max(-1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
    return -np.take_along_axis(logs, truth[..., None], -1)[..., 0]
