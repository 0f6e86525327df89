"""Prediction of the last word of a passage, which requires all of the passage: LAMBADA and files of its format.

Source: Paperno et al. 2016, "The LAMBADA dataset: Word prediction requiring a broad discourse context", sections 2 and 5; scored
over all tokens of the word, as for GPT-2 (Radford et al. 2019, section 3.3, without its filter of stop words) and as
lm-evaluation-harness does.

Format: .jsonl, one object per line with the passage in `text` (or the chosen field); or .txt, one passage per line. The last
word is what follows the last white space, punctuation included.

The word is scored with the white space before it, after the tokens of the rest of the passage, by the methods in
`eval.inference.text_likelihoods`. A passage longer than the model's positions is cut at its beginning.

Metrics:
- accuracy: share of words whose tokens are all the most likely ones; accuracy_stderr: its standard error;
- perplexity: e to the mean, over words, of -log p(word | passage);
- cut: number of passages that were cut.
Details: total tokens of the last words, and the method.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eval import task_data_files
from eval.inference.batch_loop import Progress
from eval.inference.text_likelihoods import find_method, method_items, text_likelihoods
from eval.metrics.standard_error import with_error
from eval.tasks.task import Result, Settings, Task, first
from train.run.item_outcomes import Outcomes
from train.weights.load import Loaded
from zoo.errors import BadInput


class Passage(NamedTuple):
    """A passage, divided before the white space that its last word follows."""

    where: str
    """file:line."""
    context: str
    word: str


def read_passages(names: Sequence[str], settings: Settings) -> list[Passage]:
    """Read the passages of all files.

    Raises:
        BadInput: a passage of a single word; see also `eval.task_data_files`.
    """
    passages = []
    for file, where, line in task_data_files.lines(names, (".jsonl", ".txt")):
        is_object, field = file.suffix.lower() == ".jsonl", settings.field
        text = (task_data_files.text_fields(line, where, (field,))[field] if is_object else line).strip()
        context, *last = text.rsplit(maxsplit=1)
        if not last:
            raise BadInput(f"{where}: a passage of one word; write two words or more")
        passages.append(Passage(where, context, text[len(context) :]))
    return first(passages, settings.limit)


def score_passages(subject: Loaded, passages: Sequence[Passage], settings: Settings, progress: Progress) -> Result:
    """Score the last word of each passage.

    Raises:
        BadInput: a last word longer than the model's positions, by file and line; see also `find_method` and `text_likelihoods`.
    """
    method = find_method(subject, settings.likelihood)
    results = text_likelihoods(
        subject,
        [(passage.context, passage.word) for passage in passages],
        method=method,
        orders=settings.orders,
        batch=settings.batch,
        dtype=settings.dtype,
        too_long="cut",
        name=lambda number: passages[number].where,
        progress=progress,
    )
    right, nats = np.array([result.greedy for result in results]), [result.nats for result in results]
    metrics = with_error("accuracy", right.astype(np.float64).tolist())
    metrics |= {"perplexity": math.exp(min(sum(nats) / len(nats), 700.0)), "cut": sum(result.cut > 0 for result in results)}
    outcomes = Outcomes.of((passage.where for passage in passages), right, np.array(nats))
    details = {"tokens": sum(result.tokens for result in results), "likelihood": method}
    return Result(metrics, len(results), details, items=method_items(method, settings.orders), outcomes=outcomes)


TASK = Task(
    read=read_passages,
    score=score_passages,
    metrics=("accuracy", "accuracy_stderr", "perplexity", "cut"),
    options=("field", "limit", "likelihood", "orders"),
)
