"""Small reward models of every family, and preferences as their rows."""

import functools
from typing import Any

import numpy as np

from tests.support.encoder_text import modernbert, roberta, uncased
from tests.support.small import ENCODERS, small
from tests.support.unigram_text import spelled, xlnet
from train.config.data_options import PreferenceData
from train.config.objectives import PreferenceOptions
from train.config.run_config import Run
from train.data.example_types import Preference
from train.inputs import preference_inputs
from train.objectives.feedback.preference import OBJECTIVE
from train.rows.batches import in_order
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.models import Model

WORDS = ("the", "whale", "ship", "is", "white", "old", "seen")


@functools.cache
def tokenizer(family: str) -> Tokenizer:
    kinds = {"roberta": roberta, "modernbert": modernbert, "ettin_decoder": modernbert, "xlnet": lambda: xlnet(WORDS)}
    kinds |= dict.fromkeys(("gpt", "llama"), lambda: Tokenizer.train([], 257))
    kinds |= dict.fromkeys(("t5", "transformer"), lambda: spelled(WORDS))
    return kinds.get(family, lambda: uncased(WORDS))()


def net(family: str, **changes: Any) -> Model:
    """A reward model with room for rows of 96 tokens."""
    head = {"task": "sequence"} if family in ENCODERS else {}
    long = {"context": 96} if hasattr(small(family).config, "context") else {}
    return small(family, labels=("reward",), **head, **long, **changes)


@functools.cache
def examples(count: int = 3) -> tuple[Preference, ...]:
    rng = np.random.default_rng(count)

    def text(least: int, most: int) -> str:
        return " ".join(rng.choice(WORDS, int(rng.integers(least, most))))

    return tuple(
        Preference(origin=f"a.jsonl:{n}", prompt=text(1, 3), chosen=f" {text(1, 2)}", rejected=f" {text(2, 4)}", margin=n % 3 / 2)
        for n in range(count)
    )


def run(family: str, length: int = 40, **changes: Any) -> Run:
    options = dict(options=PreferenceOptions(), data=PreferenceData(length=length, batch=4), **changes)
    return Run(recipe="tiny", **{"model": net(family).config, **options})


def batch(family: str, length: int = 40, pairs: tuple[Preference, ...] | None = None) -> Batch:
    """Return preferences as one batch of a reward model."""
    chosen, words, cfg = pairs or examples(), tokenizer(family), run(family, length)
    rows = preference_inputs.rows_of_preferences(chosen, cfg, words)
    (whole,) = in_order(rows, OBJECTIVE.builder(cfg, words, dict), len(rows), np.arange(len(rows)))  # pyright: ignore
    return whole
