"""Small runs on labelled examples: the examples, their rows and their batches."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from tests.support.encoders import KINDS, POSITIONS, tokenizer
from tests.support.labelled_files import put
from tests.support.small import LABELS, random_params, small
from train.config.data_options import LabelledData
from train.config.find_objective import find_options
from train.config.option_groups import Labelled
from train.config.run_config import Run
from train.data.example_types import Answer, Choice, Example, Question, Tagged, Text
from train.inputs import labelled_inputs
from train.inputs.labelled_inputs import LabelledRows
from train.objectives import objective
from train.rows.batches import in_order
from zoo.batch import Batch
from zoo.configs._encoder import LABELLED, Task
from zoo.models import Model, model

TASKS: dict[str, Task] = {"classification": "sequence", "tagging": "tokens", "span": "span", "choice": "choice"}
"""Objective -> the head it trains."""
WORDS = ["the", "whale", "is", "seen", "by", "old", "men", "of", "ship", "capital", "france", "and", "white", "sleeps", "naive"]
IOB = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
STRIDE = 5


def run(goal: Any, *, family: str = "bert", labels: tuple[str, ...] = LABELS, length: int = 32, **changes: Any) -> Run:
    """Return a run of a small model with a vocabulary larger than the tokenizer's; `changes` are of `labelled` or the run.

    Those that the objective does not use are left out.
    """
    task, fields, kind = TASKS[goal], set(Labelled.__dataclass_fields__), find_options(goal)
    named = {"labels": labels, "multi_label": changes.get("multi_label", False)} if task in LABELLED else {}
    net = small(family, task=task, vocab=tokenizer(KINDS[family]).vocab_size + 5, context=POSITIONS, **named)
    labelled = type(kind().labelled)
    options = {"stride": STRIDE} | {name: value for name, value in changes.items() if name in fields}
    options = {name: value for name, value in options.items() if name in labelled.__dataclass_fields__}
    return Run(
        recipe="tiny",
        model=net.config,
        options=kind(labelled=labelled(**options)),
        **({"data": LabelledData(length=length, batch=8)} | {name: changes[name] for name in changes if name not in fields}),
    )


def rows(cfg: Run, examples: Sequence[Example]) -> LabelledRows:
    return labelled_inputs.rows_of_labels(examples, cfg, tokenizer(KINDS[family_of(cfg)]))


def family_of(cfg: Run) -> str:
    return model(cfg.model).family


def build(cfg: Run) -> Any:
    """Return the function that makes the arrays of a row."""
    return objective(cfg.objective).builder(cfg, tokenizer(KINDS[family_of(cfg)]), lambda: np.zeros(0, np.int64))


def batch(cfg: Run, made: LabelledRows) -> Batch:
    """Return all rows as one batch."""
    (whole,) = in_order(made, build(cfg), len(made), np.arange(len(made)))
    return whole


def net(cfg: Run) -> Model:
    return model(cfg.model)


@functools.cache
def answers(made: Model) -> Callable[..., Array]:
    """Return a function of logits of sequences [B, O] or of tokens [B, T, O]."""

    def of(params: Any, batch: Batch) -> Array:
        hidden = made.apply(params, batch).hidden
        if made.task in ("tokens", "span"):
            return made.token_logits(params, hidden)
        return made.sequence_logits(params, hidden[:, :1])[:, 0]

    return jax.jit(of)


def logits(cfg: Run, batch: Batch) -> np.ndarray:
    """Return the logits for random parameters in float64; of options [B, C], each option in its own batch."""
    made, fields = net(cfg), ("tokens", "segments", "positions", "types")
    params, one = random_params(made), answers(made)
    if cfg.objective != "choice":
        return np.asarray(one(params, Batch(**{name: getattr(batch, name) for name in fields})), np.float64)
    each = [Batch(**{name: getattr(batch, name)[:, option] for name in fields}) for option in range(batch.tokens.shape[1])]
    return np.stack([np.asarray(one(params, option), np.float64)[:, 0] for option in each], 1)


def entropy(values: np.ndarray, truth: int, smoothing: float) -> float:
    """Return the cross-entropy in nats of the true class, mixed with the uniform distribution, under the softmax of logits."""
    logs = values - values.max() - np.log(np.exp(values - values.max()).sum())
    wanted = np.full(len(values), smoothing / len(values))
    wanted[truth] += 1 - smoothing
    return float(-(wanted * logs).sum())


@functools.cache
def examples(goal: str, count: int = 11, labels: Any = LABELS, pairs: bool = False, several: bool = False) -> tuple[Any, ...]:
    """Return examples of random words. One question in three has no answer; contexts have several windows."""
    rng = np.random.default_rng(count)

    def some(least: int, most: int) -> list[str]:
        return rng.choice(WORDS, int(rng.integers(least, most))).tolist()

    def one(number: int) -> Example:
        where = f"file:{number}"
        if goal == "classification":
            if several:
                return Text(origin=where, text=" ".join(some(4, 9)), label=tuple(x for x in labels if rng.random() < 0.5))
            label = float(rng.normal()) if labels == ("score",) else labels[int(rng.integers(len(labels)))]
            return Text(origin=where, text=" ".join(some(4, 9)), pair=" ".join(some(1, 9)) if pairs else None, label=label)
        if goal == "tagging":
            words = some(1, 14)
            return Tagged(origin=where, words=tuple(words), tags=tuple(rng.choice(labels, len(words)).tolist()))
        if goal == "choice":
            options = tuple(" ".join(some(1, 4)) for _ in range(3))
            text = dict(article=" ".join(some(3, 9)), question=" ".join(some(1, 3)))
            return Choice(origin=where, **text, options=options, answer=int(rng.integers(3)))
        context = some(20, 40)
        first, size = int(rng.integers(15)), int(rng.integers(1, 4))
        answer = Answer(" ".join(context[first : first + size]), len(" ".join([*context[:first], ""])))
        answers = () if number % 3 == 0 else (answer, Answer(context[0], 0))
        return Question(origin=where, id=str(number), question=" ".join(some(1, 4)), context=" ".join(context), answers=answers)

    return tuple(one(number) for number in range(count))


def write(folder: Path, goal: str, several: bool = False) -> Path:
    """Write 27 examples of a task to a file and return it."""
    rows: list[dict[str, Any]] = []
    for each in examples(goal, 27, several=several):
        match each:
            case Text():
                rows.append({"text": each.text, "labels" if several else "label": each.label})
            case Tagged():
                rows.append({"tokens": each.words, "tags": each.tags})
            case Choice():
                letter = "ABC"[each.answer]
                rows.append({"article": each.article, "question": each.question, "options": each.options, "answer": letter})
            case Question():
                answers = {"text": [text for text, _ in each.answers], "answer_start": [start for _, start in each.answers]}
                rows.append({"id": each.id, "question": each.question, "context": each.context, "answers": answers})
    return put(folder / f"{goal}.jsonl", rows)
