"""Shapes of the batches of a run, computed without its data: the code of the run makes rows of a few synthetic texts."""

import dataclasses
import functools
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from train import recipes
from train.config import run_config
from train.data.example_types import (
    Answer,
    Choice,
    Example,
    Pair,
    Preference,
    Prompt,
    Question,
    Ranked,
    ScoredPair,
    Tagged,
    TaughtRanked,
    Text,
    UnpairedPreference,
)
from train.data.text_files import Document
from train.inputs import labelled_inputs
from train.inputs.run_inputs import EXAMPLES
from train.objectives import check_run, objective
from train.rows.row_source import RowSource
from train.rows.token_cache import tokenize_documents
from train.tokenizers.tokenizer import Tokenizer, TrainedKind
from zoo import configs
from zoo.batch import Batch
from zoo.configs._encoder import LABELLED

DOCUMENTS = 8
OPTIONS = 4
"""Options of a multiple-choice question, as in RACE."""
WORDS = ("the", "old", "white", "whale", "sea", "ship", "storm", "captain", "sail", "mast", "boat", "man", "night", "wind", "of")


def resolve_config(run: run_config.Run) -> run_config.Run:
    """Return the run with two labels, or one for regression, if its data would determine them."""
    if getattr(run.model, "task", "") not in LABELLED:
        return run
    regression, multi_label = labelled_inputs.outputs(run)
    model = dataclasses.replace(
        run.model, labels=run.model.labels or (("score",) if regression else ("0", "1")), multi_label=multi_label
    )
    return dataclasses.replace(run, model=model)


def batch(run: run_config.Run) -> Batch:
    """Return the shapes and dtypes of a global batch, which depend only on the run and the kind of its tokenizer.

    Raises:
        BadInput: the sizes in the run are impossible for its rows.
    """
    check_run(run)
    objective_class, tokenizer = objective(run.objective), _tokenizer(_kind(run))
    # Rows are planned for the smallest possible batch; the batch of shapes below has the size in the run.
    small = dataclasses.replace(run, accumulate=1, data=dataclasses.replace(run.data, batch=2, ramp=()))
    kind = EXAMPLES.get(run.data.kind)
    rows = _text_rows(small, tokenizer) if kind is None else kind.rows_of(_examples(small), small, tokenizer, [])
    return objective_class.abstract_batch(run, tokenizer, rows)


def _kind(run: run_config.Run) -> TrainedKind:
    """Return the kind of the tokenizer; for labelled data, preferences and prompts, the one that the family uses for text."""
    own = ("text", "pairs")
    if run.data.kind in own:
        return run.tokenizer.kind
    family = configs.family_of(run.model)
    of_family = (recipe for make in recipes.recipes().values() if configs.family_of((recipe := make()).model) == family)
    return next(recipe.tokenizer.kind for recipe in of_family if recipe.data.kind in own)


@functools.cache
def _tokenizer(kind: TrainedKind) -> Tokenizer:
    return Tokenizer.train([_nonsense(400)], 512, kind)


def _nonsense(words: int, number: int = 0) -> str:
    """Return sentences of twelve random words."""
    rng = random.Random(number)
    return " ".join(" ".join(rng.choices(WORDS, k=12)) + "." for _ in range(-(-words // 12)))


def _text_rows(run: run_config.Run, tokenizer: Tokenizer) -> RowSource:
    # Every token is a word or a part of one.
    documents = [Document(str(number), _nonsense(2 * run.data.length, number)) for number in range(DOCUMENTS)]
    with tempfile.TemporaryDirectory() as folder:
        return objective(run.objective).plan_rows(tokenize_documents(documents, tokenizer, Path(folder)), run, tokenizer)


def _examples(run: run_config.Run) -> Sequence[Example]:
    """Return the fewest examples of a run's kind of data that make a row."""
    text, origin = _nonsense(12), "nonsense"
    match run.data.kind:
        case "pairs":
            return [Pair(source=_nonsense(2), target=_nonsense(2), origin=origin)]
        case "dialogue":
            return [Pair(source=_nonsense(2), target=" the end", origin=origin)]
        case "preference":
            return [Preference(prompt=WORDS[0], chosen=WORDS[1], rejected=WORDS[2], origin=origin)]
        case "unpaired":
            texts = ((WORDS[0], WORDS[1], True), (WORDS[2], WORDS[3], False))
            return [UnpairedPreference(prompt=a, completion=b, desired=label, origin=origin) for a, b, label in texts]
        case "prompts":
            return [Prompt(prompt=WORDS[0], columns={}, origin=origin)]
    label = next(iter(getattr(run.model, "labels", ())), "")
    regression, multi_label = labelled_inputs.outputs(run)
    match run.objective:
        case "classification":
            of_text = (label,) if multi_label else label
            return [Text(text=text, label=0.0 if regression else of_text, origin=origin)]
        case "tagging":
            return [Tagged(words=WORDS, tags=(label,) * len(WORDS), origin=origin)]
        case "span":
            return [Question(id="0", question=text, context=text, answers=(Answer(text.split()[0], 0),), origin=origin)]
        case "contrastive" | "rerank" | "late_interaction":
            negatives = WORDS[2:3] * getattr(run.options, run.objective).negatives
            return [Ranked(query=WORDS[0], positive=WORDS[1], negatives=negatives, origin=origin)]
        case "ranking":
            count = run.options.ranking.negatives
            texts = {"query": WORDS[0], "positive": WORDS[1], "negatives": WORDS[2:3] * count}
            return [TaughtRanked(**texts, scores=(0.0,) * (1 + count), origin=origin)]
        case "sentence_denoising":
            return [Ranked(query=text, origin=origin)]
        case "similarity":
            return [ScoredPair(first=WORDS[0], second=WORDS[1], score=0.0, origin=origin)]
    return [Choice(article=text, question=text, options=(text,) * OPTIONS, answer=0, origin=origin)]
