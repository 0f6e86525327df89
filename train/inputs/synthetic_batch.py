"""What a run's batches look like, without its data: rows made by the run's own code from a few texts of nonsense."""

import dataclasses
import functools
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from train import recipes
from train.config import run_config
from train.data.example_types import Answer, Choice, Example, Pair, Question, Tagged, Text
from train.data.text_files import Document
from train.inputs import labelled_inputs, pair_inputs
from train.objectives import objective
from train.rows.batches import Batches
from train.rows.mixture import Component, Mixture
from train.rows.token_cache import prepare
from train.tokenizers.tokenizer import Kind, Tokenizer
from zoo import configs
from zoo.batch import Batch
from zoo.configs._encoder import LABELLED

DOCUMENTS = 8
OPTIONS = 4
"""Of a question of many choices, as RACE has."""
WORDS = ("the", "old", "white", "whale", "sea", "ship", "storm", "captain", "sail", "mast", "boat", "man", "night", "wind", "of")


def settled(run: run_config.Run) -> run_config.Run:
    """The run with two labels, or one number, where its data would say which."""
    if getattr(run.model, "task", "") not in LABELLED or run.model.labels:
        return run
    labels = ("score",) if run.labelled.regression else ("0", "1")
    return dataclasses.replace(run, model=dataclasses.replace(run.model, labels=labels))


def batch(run: run_config.Run) -> Batch:
    """Shapes and dtypes of a global batch of a settled run. They depend on its numbers and on the kind of its tokenizer alone.

    Raises:
        BadInput: numbers that its rows cannot have.
    """
    goal, tokenizer = objective(run.objective), _tokenizer(_kind(run))
    # Rows are planned for as few streams as there may be; a batch is then as large as the run's.
    small = dataclasses.replace(run, accumulate=1, data=dataclasses.replace(run.data, batch=2))
    with tempfile.TemporaryDirectory() as folder:
        rows = _ROWS[goal.DATA](small, tokenizer, Path(folder))
        mixture = Mixture((Component("nonsense", 1.0, (), rows),))
        build = goal.builder(run, tokenizer, lambda: np.ones(tokenizer.vocab_size, np.int64))
        return Batches(mixture, build, run.seed, run.data.batch, np.arange(1)).shapes()


def _kind(run: run_config.Run) -> Kind:
    """Of the tokenizer: what labels are read with is what its family's text is."""
    if objective(run.objective).DATA != "labelled":
        return run.tokenizer.kind
    family = configs.family_of(run.model)
    of_text = (recipe for make in recipes.recipes().values() if configs.family_of((recipe := make()).model) == family)
    return next(recipe.tokenizer.kind for recipe in of_text if objective(recipe.objective).DATA == "text")


@functools.cache
def _tokenizer(kind: Kind) -> Tokenizer:
    return Tokenizer.train([_nonsense(400)], 512, kind)


def _nonsense(words: int, number: int = 0) -> str:
    """Sentences of twelve words."""
    rng = random.Random(number)
    return " ".join(" ".join(rng.choices(WORDS, k=12)) + "." for _ in range(-(-words // 12)))


def _text(run: run_config.Run, tokenizer: Tokenizer, folder: Path) -> Any:
    # A token is a word or less.
    documents = [Document(str(number), _nonsense(2 * run.data.length, number)) for number in range(DOCUMENTS)]
    return objective(run.objective).plan(prepare(documents, tokenizer, folder), run, tokenizer)


def _labelled(run: run_config.Run, tokenizer: Tokenizer, folder: Path) -> Any:
    text, where = _nonsense(12), {"origin": "nonsense"}
    label = next(iter(getattr(run.model, "labels", ())), "")
    known: dict[str, Example] = {
        "classification": Text(text=text, label=0.0 if run.labelled.regression else label, **where),
        "tagging": Tagged(words=WORDS, tags=(label,) * len(WORDS), **where),
        "span": Question(id="0", question=text, context=text, answers=(Answer(text.split()[0], 0),), **where),
        "choice": Choice(article=text, question=text, options=(text,) * OPTIONS, answer=0, **where),
    }
    return labelled_inputs.rows_of([known[run.objective]], run, tokenizer)


def _pairs(run: run_config.Run, tokenizer: Tokenizer, folder: Path) -> Any:
    return pair_inputs.rows_of([Pair(origin="nonsense", source=_nonsense(2), target=_nonsense(2))], run, tokenizer)


_ROWS = {"text": _text, "labelled": _labelled, "pairs": _pairs}
"""What an objective calls its data -> the rows of some."""
