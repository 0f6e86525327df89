"""The last word of a passage, which needs the passage to be guessed. LAMBADA and files like it.

Source: Paperno et al. 2016, "The LAMBADA dataset: Word prediction requiring a broad discourse context", sections 2 and 5; scored
over all tokens of the word, as for GPT-2 (Radford et al. 2019, section 3.3, without its filter of stop words) and as
lm-evaluation-harness does.

Format: .jsonl, a line an object with the passage in `text` (or the field that is chosen); or .txt, a passage a line. The last
word is what follows the last white space, punctuation included.

The word is scored with the white space before it, after the tokens of the rest of the passage. A passage longer than the model's
positions loses its beginning.

Metrics:
- accuracy: share of words all of whose tokens are the likeliest ones; accuracy_stderr: its standard error;
- perplexity: e to the mean, over words, of -log p(word | passage);
- cut: passages that lost their beginning.
Details: tokens of the last words in all.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from eval import files, tasks
from eval.files import mean_and_error
from eval.scoring.likelihood import encode, likelihoods
from eval.tasks import Progress, Result, Settings
from train.weights.load import Loaded
from zoo.errors import BadInput

OPTIONS = ("field", "limit")


class Passage(NamedTuple):
    """A passage, divided before the white space that its last word follows."""

    where: str
    """file:line."""
    context: str
    word: str


def read(names: Sequence[str], settings: Settings) -> list[Passage]:
    """The passages of all files.

    Raises:
        BadInput: a passage of a single word; see also `tasks.files`, `tasks.lines` and `tasks.strings`.
    """
    passages = []
    for file in files.files(names, (".jsonl", ".txt")):
        for where, line in files.lines(file):
            text = files.strings(line, where, (settings.field,))[settings.field] if file.suffix.lower() == ".jsonl" else line
            context, *last = text.strip().rsplit(maxsplit=1)
            if not last:
                raise BadInput(f"{where}: a passage of one word; give its last word something to follow")
            passages.append(Passage(where, context, text.strip()[len(context) :]))
    return tasks.first(passages, settings.limit)


def score(subject: Loaded, passages: Sequence[Passage], settings: Settings, progress: Progress) -> Result:
    """Score the last word of each passage.

    Raises:
        BadInput: a last word longer than the model's positions, by file and line; see also `likelihoods`.
    """
    found = likelihoods(
        subject.net,
        subject.params,
        subject.mesh,
        encode(subject.tokenizer, [(passage.context, passage.word) for passage in passages]),
        batch=settings.batch,
        dtype=settings.dtype,
        too_long="cut",
        name=lambda number: passages[number].where,
        progress=progress,
    )
    accuracy, error = mean_and_error([float(each.greedy) for each in found])
    nats = sum(each.nats for each in found) / len(found)
    return Result(
        {
            "accuracy": accuracy,
            **({} if error is None else {"accuracy_stderr": error}),
            "perplexity": math.exp(min(nats, 700.0)),
            "cut": sum(each.cut > 0 for each in found),
        },
        len(found),
        {"tokens": sum(each.tokens for each in found)},
    )
