"""Rows of masked tokens and pairs as a model gets them: nothing leaks, nothing is lost, and the loss is the one in the paper."""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import small, tiny
from tests.support.encoder_text import LETTERS, roberta, stream, uncased
from train.config.data_options import EncoderData
from train.config.option_groups import Masking
from train.objectives.masked import Masked
from train.rows.batches import Batches
from train.rows.encoder_rows import PAIRED, Range, Sequence, plan_rows
from train.rows.mixture import Component, Mixture
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import IGNORED, Batch
from zoo.errors import BadInput

PLANS = (*PAIRED, "full_sentences", "doc_sentences", "windows", "packed")
SIZES = st.lists(st.lists(st.integers(3, 12), min_size=1, max_size=8), min_size=2, max_size=6)
FAMILIES = st.sampled_from(["bert", "roberta"])
MASKINGS = (Masking(), Masking(rate=0.4, most=3), Masking(whole_words=True), Masking(rare=0.7), Masking(rate=0.9))


@functools.cache
def tokenizer(family: str) -> Tokenizer:
    return uncased() if family == "bert" else roberta()


def run(
    family: str = "bert", task: str = "masked", masking: Masking | None = None, loss_chunk: int | str = 0, **data: Any
) -> Any:
    options = {"rows": "segment_pairs", "length": 32, "batch": 4} | data
    model = small.small(family, task=task, vocab=tokenizer(family).vocab_size, context=512).config
    return tiny.run(
        model=model, objective="masked", data=EncoderData(**options), masking=masking or Masking(), loss_chunk=loss_chunk
    )


def text(sizes: Any, its: Tokenizer) -> Any:
    letters = itertools.cycle(LETTERS)
    between = " " if its.kind == "wordpiece" else ""
    return stream(["".join(between.join(itertools.islice(letters, size - 1)) + "! " for size in each) for each in sizes], its)


def builder(asked: Any, counts: Any = pytest.fail) -> Any:
    return Masked.builder(asked, tokenizer("roberta" if asked.model.types == 1 else "bert"), counts)


def planned(asked: Any, sizes: Any, seed: int = 0) -> Any:
    its = tokenizer("roberta" if asked.model.types == 1 else "bert")
    return plan_rows(text(sizes, its), asked.data, its, seed, "held-out")


SHOWN = Masking(masked=0.0, random=0.0)
"""Every token is seen as it is: what is left is the template."""


def sequence(*parts: list[int], label: int | None = None) -> Sequence:
    return Sequence(tuple(Range(number, 0, np.array(ids)) for number, ids in enumerate(parts)), label is not None, label)


PAIR = ([10, 11], [12, 13, 14])
TEMPLATES = {
    # name: (family, options, sequences, tokens, segments, types, {array: values})
    "a pair of BERT": (
        *("bert", dict(task="pretraining", length=12), (sequence(*PAIR, label=1),)),
        *([2, 10, 11, 3, 12, 13, 14, 3, 0, 0, 0, 0], [1] * 8, [0] * 4 + [1] * 4),
        {"summary_at": [0], "labels": [1]},
    ),
    "a pair of RoBERTa": (
        *("roberta", dict(length=12), (sequence(*PAIR, label=0),)),
        *([0, 10, 11, 2, 2, 12, 13, 14, 2, 1, 1, 1], [1] * 9, [], {}),
    ),
    "documents in a sequence": (
        *("bert", dict(rows="full_sentences", length=12), (sequence([10, 11], [12], [13, 14, 15]),)),
        *([2, 10, 11, 3, 12, 3, 13, 14, 15, 3, 0, 0], [1] * 10, [], {}),
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_sequences_in_their_templates(name: str):
    """A label is of no use to a model without that head, and neither is a type to a family of one."""
    family, options, sequences, tokens, segments, types, head = TEMPLATES[name]
    length = len(tokens)
    row = builder(run(family, masking=SHOWN, **options))(np.random.default_rng(0), sequences, length)
    assert row["tokens"].tolist() == tokens
    assert row["segments"].tolist() == segments + [0] * (length - len(segments))
    assert row["types"].tolist() == types + [0] * (length - len(types))
    positions = [segments[:at].count(segment) for at, segment in enumerate(segments)]
    assert row["positions"].tolist() == positions + [0] * (length - len(segments))
    assert {key: row[key].tolist() for key in ("summary_at", "labels") if key in row} == head
    assert set(Masked().weights(stacked([row]))) == ({"masked", "next"} if head else {"masked"})
    assert row["predict_at"].shape == row["targets"].shape == row["weights"].shape
    assert {name for name, array in row.items() if array.dtype != np.int32} == {"weights"}


def test_a_model_of_one_type_gets_none_whatever_its_tokenizer():
    asked = run(length=12)
    asked = dataclasses.replace(asked, model=dataclasses.replace(asked.model, types=1))
    build = Masked.builder(asked, tokenizer("bert"), pytest.fail)
    assert not build(np.random.default_rng(0), (sequence(*PAIR, label=1),), 12)["types"].any()


def check_row(row: dict[str, Any], whole: np.ndarray, sequences: Any, masking: Masking, marks: Any) -> None:
    """A row with its targets put back is the row unmasked; only text is predicted, as often as each sequence's length says."""
    counted = row["weights"] == 1
    at, rest = row["predict_at"][counted], ~counted
    assert not (row["weights"][rest].any() or row["targets"][rest].any() or row["predict_at"][rest].any())
    assert len(set(at.tolist())) == len(at)
    assert (row["targets"][counted] == whole[at]).all()
    back = row["tokens"].copy()
    back[at] = row["targets"][counted]
    assert (back == whole).all()
    assert not np.isin(whole[at], [marks.pad, marks.cls, marks.sep, marks.mask]).any()
    assert (row["segments"][at] > 0).all()
    for segment, each in enumerate(sequences, 1):
        size, predictions = int((row["segments"] == segment).sum()), int((row["segments"][at] == segment).sum())
        texts = sum(len(part.ids) for part in each.parts)
        most = min(max(1, math.ceil(masking.rate * size)), texts, masking.most or size)
        assert predictions <= most and (predictions or masking.whole_words)


@pytest.mark.full
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(SIZES, st.sampled_from(PLANS), st.booleans(), st.integers(8, 40), FAMILIES, st.sampled_from(MASKINGS), st.integers(0, 99))
def test_no_target_leaks_and_no_token_is_lost(sizes, rows, pack, length, family, masking, seed):
    asked = run(family, masking=masking, rows=rows, pack=pack, length=length)
    counts = np.arange(asked.model.vocab)
    build, bare = builder(asked, lambda: counts), builder(tiny.with_options(asked, masking=SHOWN))
    rows_of = planned(asked, sizes)
    for number in range(len(rows_of)):
        row = build(np.random.default_rng(seed), rows_of.row(number), length)
        whole = bare(np.random.default_rng(seed), rows_of.row(number), length)["tokens"]
        check_row(row, whole, rows_of.row(number), masking, tokenizer(family).special_tokens)


def test_random_entries_are_special_in_bert_and_never_in_roberta():
    everything = Masking(rate=0.9, masked=0.0, random=1.0)
    for family, special in (("bert", True), ("roberta", False)):
        asked = run(family, rows="windows", masking=everything)
        build, rows = builder(asked), planned(asked, [[9, 12, 10] * 9] * 9)
        shown = []
        for number, seed in itertools.product(range(len(rows)), range(9)):
            row = build(np.random.default_rng(seed), rows.row(number), 32)
            shown.append(row["tokens"][row["predict_at"][row["weights"] == 1]])
        assert np.isin(np.concatenate(shown), tokenizer(family).special_tokens.special).any() == special


def test_rare_tokens_are_counted_in_the_training_text():
    """With such an exponent the rarest is always chosen; one that never occurs counts as if it did once, and marks never do."""
    asked = run(rows="full_sentences", masking=Masking(rare=10.0, rate=0.15), length=10)
    counts = np.full(asked.model.vocab, 1000)
    counts[[12, 14, 1]] = 0, 9, 0
    build = builder(asked, lambda: counts)
    rows = [build(np.random.default_rng(seed), (sequence([10, 1, 12, 13, 14, 15]),), 10) for seed in range(20)]
    assert {tuple(row["predict_at"].tolist()) for row in rows} == {(3, 5)}


def test_whole_words_are_the_tokenizers():
    asked = run(rows="full_sentences", masking=Masking(whole_words=True, rate=0.5), length=8)
    a, b = tokenizer("bert").encode("ab").tolist()
    build = builder(asked)
    found = {tuple(build(np.random.default_rng(seed), (sequence([a, b, a, b]),), 8)["predict_at"].tolist()) for seed in range(30)}
    assert found == {(1, 2, 0, 0), (3, 4, 0, 0)}


@pytest.mark.parametrize(("chunk", "most", "expected"), [(0, 0, 77), ("auto", 0, 77), (64, 0, 78), (16, 0, 80), (8, 20, 21)])
def test_predictions_are_divided_evenly_by_the_losses_chunk(chunk, most, expected):
    """77 predictions in chunks of at most 64 are two chunks of 39, in chunks of at most 16 five of 16."""
    asked = run(length=512, masking=Masking(most=most), loss_chunk=chunk)
    row = builder(asked)(np.random.default_rng(0), (sequence([10, 11], [12], label=1),), 512)
    assert row["targets"].shape == (expected,)


def test_static_masks_are_used_in_turn_and_dynamic_ones_never_again():
    for static in (0, 1, 3):
        asked = run(masking=Masking(static=static))
        rows = planned(asked, [[9, 12] * 4] * 5)
        every = np.arange(len(rows))
        batches = Batches(Mixture((Component("", 1.0, (), rows),)), builder(asked), 7, len(rows), every, static)
        with batches.read(0) as stream:
            made = enumerate(itertools.islice(stream, 7))
            seen = [dict(zip(batches.rows_of(step).tolist(), map(bytes, batch.tokens), strict=True)) for step, batch in made]
        for a, b in itertools.combinations(range(7), 2):
            same = [seen[a][row] == seen[b][row] for row in seen[a]]
            assert all(same) if static and a % static == b % static else not any(same)


def test_what_does_not_fit_is_refused():
    with pytest.raises(BadInput, match=r"--data.rows full_sentences: .*--model.task masked"):
        (asked := run(task="pretraining", rows="full_sentences")).options.check_run(asked)
    with pytest.raises(BadInput, match=r"--masking.rare 0.7: .*--masking.whole-words"):
        (asked := run(masking=Masking(rare=0.7, whole_words=True))).options.check_run(asked)


def stacked(arrays: list[dict[str, np.ndarray]]) -> Batch:
    return Batch(**{name: jnp.stack([each[name] for each in arrays]) for name in arrays[0]})


def surprise(logits: Any, truth: int, smoothing: float = 0.0) -> float:
    """Cross-entropy in float64."""
    logs = np.asarray(logits, np.float64)
    logs -= np.logaddexp.reduce(logs)
    return -(1 - smoothing) * logs[truth] - smoothing * logs.mean()


def test_the_loss_is_the_nll_of_the_masked_tokens_and_of_the_labels():
    asked, chunk, smoothing = run(task="pretraining", pack=True, loss_chunk=2), 2, 0.1
    build, rows, net = builder(asked), planned(asked, [[5, 9, 7] * 3] * 4), small.model(asked.model)
    batch = stacked([build(np.random.default_rng(number), rows.row(number), rows.length) for number in range(3)])
    params = small.random_params(net)

    def everywhere(batch: Batch) -> Any:
        hidden = net.apply(params, batch).hidden
        return net.unembed(params, hidden)[..., : net.config.vocab], net.sequence_logits(params, hidden)

    words = pairs = predictions = labels = 0
    for row, (logits, told) in enumerate(zip(*jax.jit(everywhere)(batch), strict=True)):
        said = (np.asarray(each[row]) for each in (batch.predict_at, batch.targets, batch.weights))
        for at, target, weight in zip(*said, strict=True):
            words += weight * surprise(logits[at], target, smoothing)
            predictions += weight
        for at, label in zip(*(np.asarray(each[row]) for each in (batch.summary_at, batch.labels)), strict=True):
            if label != IGNORED:
                pairs += surprise(told[at], label)
                labels += 1
    assert 3 <= labels < batch.labels.size
    options = dict(seeds=None, carry={}, smoothing=smoothing, chunk=chunk)
    found, _ = jax.jit(lambda batch: Masked().loss(net, params, batch, {}, **options))(batch)
    assert {name: float(value) for name, value in found.items()} == pytest.approx({"masked": words, "next": pairs}, rel=1e-5)
    assert Masked().weights(batch) == {"masked": predictions, "next": labels}
