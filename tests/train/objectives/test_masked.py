"""Rows of masked tokens and pairs as a model gets them: nothing leaks, nothing is lost, and the loss is the one in the paper."""

import dataclasses
import itertools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import small, tiny
from tests.support.encoder_text import LETTERS, roberta, stream, uncased
from train.batches import Batches, in_order
from train.config import Data, Masking
from train.mixture import Component, Mixture
from train.objectives import masked
from train.plans import PAIRED, Range, Sequence, plan
from train.tokenizer import Tokenizer
from zoo.batch import IGNORED, Batch
from zoo.errors import BadInput

TOKENIZERS = {"bert": uncased(), "roberta": roberta()}
PLANS = (*PAIRED, "full_sentences", "doc_sentences", "windows", "packed")
SENTENCES = st.lists(st.lists(st.integers(3, 12), min_size=1, max_size=8), min_size=2, max_size=6)


def run(family: str = "bert", task: str = "masked", masking: Masking | None = None, loss_chunk: int = 0, **data: Any) -> Any:
    options = {"rows": "segment_pairs", "length": 32, "batch": 4} | data
    model = small.small(family, task=task, vocab=TOKENIZERS[family].vocab_size, context=512).config
    return tiny.run(model=model, objective="masked", data=Data(**options), masking=masking or Masking(), loss_chunk=loss_chunk)


def text(sizes, tokenizer: Tokenizer):
    letters = itertools.cycle(LETTERS)
    between = " " if tokenizer.kind == "wordpiece" else ""
    return stream(
        ["".join(between.join(itertools.islice(letters, size - 1)) + "! " for size in document) for document in sizes], tokenizer
    )


def never() -> Any:
    raise AssertionError("counts are asked for")


def builder(asked: Any, counts: Any = never) -> Any:
    return masked.builder(asked, TOKENIZERS["roberta" if asked.model.types == 1 else "bert"], counts)


def planned(asked: Any, sizes: Any, seed: int = 0) -> Any:
    tokenizer = TOKENIZERS["roberta" if asked.model.types == 1 else "bert"]
    return plan(text(sizes, tokenizer), asked.data, tokenizer, seed, "held-out")


SHOWN = Masking(masked=0.0, random=0.0)
"""Every token is seen as it is: what is left is the template."""


def sequence(*parts: list[int], label: int | None = None) -> Sequence:
    return Sequence(tuple(Range(number, 0, np.array(ids)) for number, ids in enumerate(parts)), label is not None, label)


# --- the arrays ---


def test_berts_pair_in_its_template():
    asked = run(task="pretraining", masking=SHOWN, length=12)
    row = builder(asked)(np.random.default_rng(0), (sequence([10, 11], [12, 13, 14], label=1),), 12)
    assert row["tokens"].tolist() == [2, 10, 11, 3, 12, 13, 14, 3, 0, 0, 0, 0]
    assert row["types"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    assert row["segments"].tolist() == [1] * 8 + [0] * 4
    assert row["positions"].tolist() == [*range(8), 0, 0, 0, 0]
    assert (row["summary_at"].tolist(), row["labels"].tolist()) == ([0], [1])
    assert row["predict_at"].shape == row["targets"].shape == row["weights"].shape == (2,)
    assert row["weights"].tolist() == [1, 0]
    assert row["targets"][0] == row["tokens"][row["predict_at"][0]] and row["targets"][1] == row["predict_at"][1] == 0
    floats = {name for name, array in row.items() if array.dtype != np.int32}
    assert floats == {"weights"} and row["weights"].dtype == np.float32


def test_robertas_pair_has_two_separators_and_no_types():
    asked = run("roberta", masking=SHOWN, length=12)
    row = builder(asked)(np.random.default_rng(0), (sequence([10, 11], [12, 13, 14], label=0),), 12)
    assert row["tokens"].tolist() == [0, 10, 11, 2, 2, 12, 13, 14, 2, 1, 1, 1]
    assert not row["types"].any()
    # The label is of no use to a model without that head.
    assert not {"summary_at", "labels"} & row.keys()


def test_a_model_of_one_type_gets_none_whatever_its_tokenizer():
    asked = run(length=12)
    asked = dataclasses.replace(asked, model=dataclasses.replace(asked.model, types=1))
    build = masked.builder(asked, TOKENIZERS["bert"], never)
    assert not build(np.random.default_rng(0), (sequence([10, 11], [12, 13, 14], label=1),), 12)["types"].any()


def test_documents_of_a_sequence_have_a_separator_between():
    asked = run(masking=SHOWN, rows="full_sentences", length=12)
    row = builder(asked)(np.random.default_rng(0), (sequence([10, 11], [12], [13, 14, 15]),), 12)
    assert row["tokens"].tolist() == [2, 10, 11, 3, 12, 3, 13, 14, 15, 3, 0, 0]
    assert row["segments"].tolist() == [1] * 10 + [0] * 2
    assert not row["types"].any()


def test_packed_pairs_are_apart():
    asked = run(task="pretraining", masking=SHOWN, length=16, pack=True)
    both = (sequence([10, 11], [12], label=1), sequence([13], [14, 15], label=0))
    row = builder(asked)(np.random.default_rng(0), both, 16)
    assert row["tokens"].tolist() == [2, 10, 11, 3, 12, 3, 2, 13, 3, 14, 15, 3, 0, 0, 0, 0]
    assert row["types"].tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]
    assert row["segments"].tolist() == [1] * 6 + [2] * 6 + [0] * 4
    assert row["positions"].tolist() == [*range(6), *range(6), 0, 0, 0, 0]
    # Sixteen tokens have room for three pairs.
    assert (row["summary_at"].tolist(), row["labels"].tolist()) == ([0, 6, 0], [1, 0, IGNORED])


@settings(deadline=None, max_examples=40)
@given(
    SENTENCES,
    st.sampled_from(PLANS),
    st.booleans(),
    st.integers(8, 40),
    st.sampled_from(["bert", "roberta"]),
    st.sampled_from([Masking(), Masking(rate=0.4, most=3), Masking(whole_words=True), Masking(rare=0.7), Masking(rate=0.9)]),
    st.integers(0, 99),
)
def test_nothing_leaks_and_nothing_is_lost(sizes, rows, pack, length, family, masking, seed):
    """A row with its targets put back is the row unmasked; only text is predicted, as often as each sequence's length says."""
    asked = run(family, masking=masking, rows=rows, pack=pack, length=length)
    counts = np.arange(asked.model.vocab)
    build, bare = builder(asked, lambda: counts), builder(dataclasses.replace(asked, masking=SHOWN))
    marks, rows_of = TOKENIZERS[family].marks, planned(asked, sizes)
    for number in range(len(rows_of)):
        row = build(np.random.default_rng(seed), rows_of.row(number), length)
        whole = bare(np.random.default_rng(seed), rows_of.row(number), length)["tokens"]
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
        for segment, each in enumerate(rows_of.row(number), 1):
            size, found = int((row["segments"] == segment).sum()), int((row["segments"][at] == segment).sum())
            texts = sum(len(part.ids) for part in each.parts)
            most = min(max(1, math.ceil(masking.rate * size)), texts, masking.most or size)
            assert found <= most and (found or masking.whole_words)


def test_a_share_of_the_targets_is_seen_and_that_alone(rng):
    """One in ten is shown as it is, and one in ten as a random entry, which is the token itself by chance."""
    asked = run(length=128)
    build, rows = builder(asked), planned(asked, [[9, 12, 10] * 40] * 40)
    seen = masks = total = 0
    for number in range(300):
        row = build(rng, rows.row(number % len(rows)), 128)
        at = row["predict_at"][row["weights"] == 1]
        shown, true = row["tokens"][at], row["targets"][row["weights"] == 1]
        seen, masks, total = seen + (shown == true).sum(), masks + (shown == 4).sum(), total + len(at)
    for found, share in ((seen, 0.1), (masks, 0.8)):
        share += 0.1 / TOKENIZERS["bert"].vocab_size
        assert abs(found - total * share) <= 4 * math.sqrt(total * share * (1 - share))


def test_random_entries_are_special_in_bert_and_never_in_roberta():
    everything = Masking(rate=0.9, masked=0.0, random=1.0)
    for family, special in (("bert", True), ("roberta", False)):
        asked = run(family, rows="windows", masking=everything)
        build, rows = builder(asked), planned(asked, [[9, 12, 10] * 9] * 9)
        shown = []
        for number, seed in itertools.product(range(len(rows)), range(9)):
            row = build(np.random.default_rng(seed), rows.row(number), 32)
            shown.append(row["tokens"][row["predict_at"][row["weights"] == 1]])
        assert np.isin(np.concatenate(shown), TOKENIZERS[family].marks.special).any() == special


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
    a, b = TOKENIZERS["bert"].encode("ab").tolist()
    build = builder(asked)
    found = {tuple(build(np.random.default_rng(seed), (sequence([a, b, a, b]),), 8)["predict_at"].tolist()) for seed in range(30)}
    assert found == {(1, 2, 0, 0), (3, 4, 0, 0)}


@pytest.mark.parametrize(
    ("chunk", "most", "expected"), [(0, 0, 77), (128, 0, 77), (64, 0, 78), (16, 0, 80), (8, 20, 21), (1, 20, 20)]
)
def test_predictions_are_divided_evenly_by_the_losses_chunk(chunk, most, expected):
    """77 predictions in chunks of at most 64 are two chunks of 39, in chunks of at most 16 five of 16."""
    asked = run(length=512, masking=Masking(most=most), loss_chunk=chunk)
    row = builder(asked)(np.random.default_rng(0), (sequence([10, 11], [12], label=1),), 512)
    assert row["targets"].shape == (expected,)


# --- masks over epochs ---


def epochs(asked: Any, count: int, rows: Any) -> list[dict[int, bytes]]:
    """Of each epoch, what each row looks like."""
    batch = Batches(
        Mixture((Component("", 1.0, (), rows),)), builder(asked), 7, len(rows), np.arange(len(rows)), asked.masking.static
    )
    with batch.read(0) as stream:
        return [
            dict(zip(batch.rows_of(step).tolist(), map(bytes, made.tokens), strict=True))
            for step, made in enumerate(itertools.islice(stream, count))
        ]


def test_static_masks_are_used_in_turn_and_dynamic_ones_never_again():
    for static in (0, 1, 3):
        asked = run(masking=Masking(static=static))
        seen = epochs(asked, 7, planned(asked, [[9, 12] * 4] * 5))
        for a, b in itertools.combinations(range(7), 2):
            same = [seen[a][row] == seen[b][row] for row in seen[a]]
            assert all(same) if static and a % static == b % static else not any(same)


def test_what_fills_up_the_last_batch_of_a_score_is_not_counted():
    asked = run(task="pretraining")
    rows = planned(asked, [[9, 12]] * 3)
    batches = list(in_order(rows, builder(asked), len(rows) + 2, np.arange(len(rows) + 2)))
    assert len(batches) == 1 and batches[0].weights.any(1).tolist() == [True] * len(rows) + [False] * 2
    assert (batches[0].labels != IGNORED).any(1).tolist() == [True] * len(rows) + [False] * 2


# --- what is refused ---


@pytest.mark.parametrize("rows", ["full_sentences", "doc_sentences", "windows", "packed"])
def test_a_model_of_next_sentences_needs_pairs(rows):
    with pytest.raises(BadInput, match=rf"--data.rows {rows}: .*segment_pairs or sentence_pairs, or --model.task masked"):
        builder(run(task="pretraining", rows=rows))


def test_rare_tokens_are_no_whole_words():
    with pytest.raises(BadInput, match=r"--masking.rare 0.7: .*--masking.whole-words"):
        builder(run(masking=Masking(rare=0.7, whole_words=True)))


# --- the loss ---


def made(asked: Any, rows: Any, count: int) -> Batch:
    build = builder(asked)
    arrays = [build(np.random.default_rng(number), rows.row(number), rows.length) for number in range(count)]
    return stacked(arrays)


def stacked(arrays: list[dict[str, np.ndarray]]) -> Batch:
    return Batch(**{name: jnp.stack([each[name] for each in arrays]) for name in arrays[0]})


def terms(asked: Any, batch: Batch, chunk: int = 0, smoothing: float = 0.0) -> dict[str, float]:
    net = small.model(asked.model)
    params = small.random_params(net)
    call = small.jit(lambda batch: masked.loss(net, params, batch, {}, seeds=None, carry={}, smoothing=smoothing, chunk=chunk)[0])
    return {name: float(value) for name, value in call(batch).items()}


def surprise(logits: Any, truth: int, smoothing: float = 0.0) -> float:
    """Cross-entropy in float64."""
    logs = np.asarray(logits, np.float64)
    logs -= np.logaddexp.reduce(logs)
    return -(1 - smoothing) * logs[truth] - smoothing * logs.mean()


def test_the_loss_is_the_surprise_of_the_masked_tokens_and_of_the_labels():
    asked, chunk, smoothing = run(task="pretraining", pack=True, loss_chunk=2), 2, 0.1
    batch, net = made(asked, planned(asked, [[5, 9, 7] * 3] * 4), 3), small.model(asked.model)
    params = small.random_params(net)

    def everywhere(batch: Batch) -> Any:
        hidden = net.apply(params, batch).hidden
        return net.unembed(params, hidden)[..., : net.config.vocab], net.sequence_logits(params, hidden)

    words = pairs = predictions = labels = 0
    for row, (logits, told) in enumerate(zip(*small.jit(everywhere)(batch), strict=True)):
        for at, target, weight in zip(
            *(np.asarray(each[row]) for each in (batch.predict_at, batch.targets, batch.weights)), strict=True
        ):
            words += weight * surprise(logits[at], target, smoothing)
            predictions += weight
        for at, label in zip(*(np.asarray(each[row]) for each in (batch.summary_at, batch.labels)), strict=True):
            if label != IGNORED:
                pairs += surprise(told[at], label)
                labels += 1
    assert 3 <= labels < batch.labels.size
    assert terms(asked, batch, chunk, smoothing) == pytest.approx({"masked": words, "next": pairs}, rel=1e-5)
    assert masked.weights(batch) == {"masked": predictions, "next": labels}


def test_a_packed_rows_loss_is_the_sum_of_its_sequences_alone():
    """Each sequence of a packed row is moved into a row of its own, with its predictions."""
    asked = run(task="pretraining", rows="sentence_pairs", pack=True, length=64)
    packed = made(asked, planned(asked, [[5, 9, 7] * 3] * 4), 1)
    row = {name: np.asarray(value[0]) for name, value in vars(packed).items() if value is not None}
    alone = []
    for number in range(row["segments"].max()):
        where = np.flatnonzero(row["segments"] == number + 1)
        one = {name: np.zeros_like(value) for name, value in row.items()}
        for name in ("tokens", "positions", "types"):
            one[name][: len(where)] = row[name][where]
        one["segments"][: len(where)] = 1
        its = np.isin(row["predict_at"], where) * row["weights"].astype(np.int32)
        one |= {"predict_at": (row["predict_at"] - where[0]) * its, "targets": row["targets"] * its, "weights": np.float32(its)}
        one["labels"][:] = [row["labels"][number], *[IGNORED] * (len(row["labels"]) - 1)]
        alone.append(one)
    assert len(alone) > 2
    assert terms(asked, packed) == pytest.approx(terms(asked, stacked(alone)), rel=1e-5)


def test_a_model_without_that_head_has_no_term_of_next_sentences():
    asked = run("roberta", rows="segment_pairs")
    batch = made(asked, planned(asked, [[5, 9, 7] * 3] * 4), 2)
    assert set(terms(asked, batch)) == set(masked.weights(batch)) == {"masked"}
