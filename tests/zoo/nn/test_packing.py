"""Sequences that share a row: their loss and its gradients are those of the same sequences in rows of their own."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import tiny
from tests.support.encoder_text import LETTERS, modernbert, roberta, stream, uncased
from tests.support.gradients import assert_equal_gradients
from tests.support.small import random_params, small
from train.config.data_options import EncoderData, RowPlan
from train.config.option_groups import Masking
from train.objectives.masked import Masked
from train.rows.encoder_rows import EncoderRows, Sequence, plan_rows
from train.rows.token_cache import Tokens
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import IGNORED, Batch
from zoo.models import Model

LENGTH = 32
ROWS: dict[str, RowPlan] = {"bert": "sentence_pairs", "roberta": "doc_sentences", "distilbert": "doc_sentences"}
ROWS |= {"modernbert": "doc_sentences"}

PREDICTED = ("predict_at", "targets", "weights")
SUMMARIES = {"summary_at": 0, "labels": IGNORED}
"""What has an entry for each sequence of a row -> the entry of none."""

Arrays = dict[str, np.ndarray]
"""The fields of a `Batch`, rows first."""


@functools.cache
def tokenizer_of(family: str) -> Tokenizer:
    return {"roberta": roberta, "modernbert": modernbert}.get(family, uncased)()


@functools.cache
def net_of(family: str) -> Model:
    return small(family, task="pretraining" if family == "bert" else "masked")


def text(tokenizer: Tokenizer) -> Tokens:
    """Documents of one or two short sentences, of as many lengths as there are."""
    sentences = [" ".join(LETTERS[first : first + 1 + first % 3]) + "." for first in range(12)]
    return stream([" ".join(sentences[first : first + 2]) for first in range(0, 12, 2)], tokenizer)


def planned(family: str, pack: bool) -> EncoderRows:
    data = EncoderData(rows=ROWS[family], length=LENGTH, pack=pack, short=0.0)
    return plan_rows(text(tokenizer_of(family)), data, tokenizer_of(family), 0, "held-out")


@functools.cache
def alone(family: str) -> Arrays:
    """Every sequence in a row of its own, its masks drawn."""
    options = EncoderData(rows=ROWS[family], length=LENGTH, short=0.0)
    run = tiny.run(model=net_of(family).config, objective="masked", data=options, masking=Masking(rate=0.3))
    build, rows = Masked.builder(run, tokenizer_of(family), lambda: np.zeros(0, np.int64)), planned(family, pack=False)
    made = [build(np.random.default_rng(number), rows.row(number), LENGTH) for number in range(len(rows))]
    return {name: np.stack([row[name] for row in made]) for name in made[0]}


def together(family: str, rows: Arrays) -> Arrays:
    """The same, but those sequences moved into one row that the packed plan has in one."""
    marks, taken = tokenizer_of(family).special_tokens, shared(family)
    assert marks is not None
    most, fills = max(map(len, taken)), {"tokens": marks.pad, **SUMMARIES}
    packed = {}
    for name, values in rows.items():
        size = values.shape[1] * (most if name in (*PREDICTED, *SUMMARIES) else 1)
        packed[name] = np.full((len(taken), size), fills.get(name, 0), values.dtype)
    for row, numbers in enumerate(taken):
        start = 0
        for nth, number in enumerate(numbers):
            size = int((rows["segments"][number] > 0).sum())
            there = slice(start, start + size)
            for name in ("tokens", "positions", "types"):
                packed[name][row, there] = rows[name][number, :size]
            packed["segments"][row, there] = nth + 1
            predicted = rows["targets"].shape[1]
            its = slice(nth * predicted, (nth + 1) * predicted)
            for name in PREDICTED:
                packed[name][row, its] = rows[name][number]
            packed["predict_at"][row, its] += start * (rows["weights"][number] > 0)
            if "labels" in rows:
                packed["summary_at"][row, nth], packed["labels"][row, nth] = start, rows["labels"][number, 0]
            start += size
    return packed


def shared(family: str) -> list[list[int]]:
    """Which sequences the packed plan puts into one row, by their numbers in the plan that packs nothing."""

    def name(sequence: Sequence) -> tuple[Any, ...]:
        return sequence.label, *((part.document, part.start, len(part.ids)) for part in sequence.parts)

    single, packed = planned(family, pack=False), planned(family, pack=True)
    numbers = {name(single.row(number)[0]): number for number in range(len(single))}
    assert len(numbers) == len(single)
    found = [[numbers[name(sequence)] for sequence in packed.row(row)] for row in range(len(packed))]
    assert sorted(itertools.chain.from_iterable(found)) == list(range(len(single)))
    return found


@functools.cache
def call(family: str) -> Callable[[Any, Batch], Any]:
    net = net_of(family)

    def terms(params: Any, batch: Batch) -> tuple[jax.Array, Any]:
        sums, _ = Masked().loss(net, params, batch, {}, seeds=None, carry={}, smoothing=0.0, chunk=0)
        return sum(sums.values(), jnp.float32(0)), sums

    return jax.jit(jax.grad(terms, has_aux=True))


def gradients(family: str, arrays: Arrays) -> tuple[Any, dict[str, float]]:
    """(gradients of all terms' sum, each term's sum)"""
    whole: dict[str, Any] = {
        name: jnp.asarray(_filled(name, values, len(alone(family)["tokens"]))) for name, values in arrays.items()
    }
    grads, sums = jax.device_get(call(family)(random_params(net_of(family)), Batch(**whole)))
    return grads, {name: float(value) for name, value in sums.items()}


def _filled(name: str, values: np.ndarray, rows: int) -> np.ndarray:
    """Rows of nothing, and entries for nothing, up to one shape for all: a program compiles for seconds."""
    more = 2 * LENGTH - values.shape[1] if name in (*PREDICTED, *SUMMARIES) else 0
    return np.pad(values, [(0, rows - len(values)), (0, more)], constant_values=SUMMARIES.get(name, 0))


@functools.cache
def expected(family: str) -> tuple[Any, dict[str, float]]:
    return gradients(family, alone(family))


every_family = pytest.mark.parametrize(
    "family", [family if family == "bert" else pytest.param(family, marks=pytest.mark.full) for family in ROWS]
)


@pytest.mark.full
@every_family
def test_gradients_of_a_packed_row_are_those_of_its_sequences_alone(family: str) -> None:
    packed = together(family, alone(family))
    assert packed["segments"].max() > 1 and len(packed["tokens"]) < len(alone(family)["tokens"])
    assert packed["weights"].sum() == alone(family)["weights"].sum() > len(alone(family)["tokens"])
    (ours, sums), (theirs, their_sums) = gradients(family, packed), expected(family)
    assert sums == pytest.approx(their_sums, rel=1e-5)
    assert sums.keys() == ({"masked", "next"} if family == "bert" else {"masked"})
    assert_equal_gradients(ours, theirs)


MISTAKES: dict[str, Callable[[Arrays], Arrays]] = {
    "segments that see each other": lambda rows: rows | {"segments": np.minimum(rows["segments"], 1)},
    "positions that go on": lambda rows: rows | {"positions": np.where(rows["segments"] > 0, np.arange(LENGTH), 0)},
    "one summary for all": lambda rows: rows | {"summary_at": np.zeros_like(rows["summary_at"])},
}


@pytest.mark.planted
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_packing_is_caught(mistake: str) -> None:
    wrong = MISTAKES[mistake](together("bert", alone("bert")))
    (ours, sums), (theirs, their_sums) = gradients("bert", wrong), expected("bert")
    assert sums != pytest.approx(their_sums, rel=1e-3)
    with pytest.raises(AssertionError):
        assert_equal_gradients(ours, theirs)


@every_family
def test_the_builder_packs_like_the_reference(family: str) -> None:
    """Without masks drawn there is one right array, but for what is predicted."""
    tokenizer, pack = tokenizer_of(family), EncoderData(rows=ROWS[family], length=LENGTH, pack=True, short=0.0)
    run = tiny.run(model=net_of(family).config, objective="masked", data=pack, masking=Masking(masked=0.0, random=0.0))
    rows, unmasked = planned(family, pack=True), alone(family)
    tokens = unmasked["tokens"].copy()
    for row, (at, targets, weights) in enumerate(zip(*(unmasked[name] for name in PREDICTED), strict=True)):
        tokens[row, at[weights > 0]] = targets[weights > 0]
    hand = together(family, unmasked | {"tokens": tokens})
    build = Masked.builder(run, tokenizer, lambda: np.zeros(0, np.int64))
    made = [build(np.random.default_rng(0), rows.row(number), LENGTH) for number in range(len(rows))]
    for name in ("tokens", "segments", "positions", "types"):
        np.testing.assert_array_equal(np.stack([row[name] for row in made]), hand[name])
    if "labels" in hand:
        most = hand["labels"].shape[1]
        for name, fill in SUMMARIES.items():
            found = np.stack([row[name] for row in made])
            np.testing.assert_array_equal(found[:, :most], hand[name])
            assert (found[:, most:] == fill).all()
