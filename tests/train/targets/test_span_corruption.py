"""Denoising: how much is left out and where, rows of exact lengths, no token lost, and no target visible to its prediction."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tiny
from tests.support.encoder_text import stream
from tests.support.small import random_params, small
from tests.support.unigram_text import spelled
from train.config.data_options import TextData
from train.config.option_groups import Denoising
from train.objectives.denoising import Denoised
from train.rows import seq2seq_rows
from train.rows.batches import in_order
from train.rows.seq2seq_rows import SourceTarget
from train.targets import span_corruption
from train.tokenizers.tokenizer import Tokenizer
from zoo import configs
from zoo.errors import BadInput

TOKENIZER = spelled()
MARKS = TOKENIZER.text_special_tokens
T5 = configs.find_size("t5-nano")[1].config
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "spans": ((8,), (32,)),
    "iid": ((12,), (32,)),
    "drop": ((7,), (32,)),
    **dict.fromkeys(("bert", "mass", "deshuffle", "prefix"), ((32,), (32,))),
    "lm": ((32,), (0,)),
}
"""Kind -> shapes of the targets and of the source where a row has 32 tokens."""
SHAPED = [(kind, alone) for kind in SHAPES for alone in (False, True) if alone or kind != "lm"]
SPANS = Denoising()


def run(kind: str = "spans", alone: bool = False, length: int = 32, seed: int = 0, data: Any = None, **options: Any) -> Any:
    model = dataclasses.replace(T5, architecture="decoder" if alone else "encoder_decoder")
    chosen = Denoising(kind=kind, **options)  # pyright: ignore[reportArgumentType]
    lengths = TextData(**{"length": length, "batch": 4, **(data or {})})
    return tiny.run(model=model, objective="denoising", data=lengths, denoising=chosen, seed=seed)


def text(*sizes: int) -> Any:
    """Documents of so many ids, none of them special."""
    ids, parts = np.random.default_rng(0).integers(3, 40, sum(sizes)), np.cumsum(sizes)[:-1]
    return stream([part.tolist() for part in np.split(ids, parts)], TOKENIZER)


def rows_of(asked: Any, sizes: tuple[int, ...] = (500, 3, 400)) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """(ids of the text, arrays) of every row."""
    planned, build = Denoised.plan_rows(text(*sizes), asked, TOKENIZER), Denoised.builder(asked, TOKENIZER, never)
    found = []
    for number in range(len(planned)):
        row = planned.row(number)
        ids = np.concatenate([piece.ids for piece in row.pieces])
        found.append((ids, build(np.random.default_rng([asked.seed, number]), row, planned.length)))
    return found


def never() -> Any:
    raise AssertionError("counts are asked for")


def sides_of(row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """(source, target) of an encoder-decoder's row, without padding."""
    source = row["source"]
    return source.tokens[source.segments > 0].tolist(), row["targets"][row["segments"] > 0].tolist()


def test_lengths_are_those_of_t5():
    for length, raw, target in ((64, 70, 14), (128, 141, 29), (256, 284, 58), (512, 568, 114), (1024, 1137, 229)):
        assert span_corruption.row_sizes(SPANS, length)[:3] == (raw, length, target)


@pytest.mark.parametrize("density", [0.15, *(pytest.param(density, marks=pytest.mark.full) for density in (0.05, 0.5, 0.9))])
@pytest.mark.parametrize("mean_span", [1.0, 3.0, 10.0])
def test_the_rows_of_spans_have_the_largest_size_that_fits(density: float, mean_span: float):
    options = Denoising(density=density, mean_span=mean_span)
    marks = tuple(range(1000, 1100))
    for length in (4, 5, 6, 7, 9, 16, 33, 64):
        room = span_corruption.row_sizes(options, length)
        # Where more is left out than stays, a token more may be a span more.
        assert room.source == length or (density >= 0.5 and room.source < length)
        assert span_corruption._sizes(room.raw + 1, options)[0] > length
        for size in range(2, room.raw + 1):
            mask = span_corruption.choose_spans(np.random.default_rng(size), size, options)
            source, target = span_corruption.source_and_target(np.arange(size), mask, marks)
            assert len(source) + 1 <= room.source and len(target) + 1 <= room.target
            assert size < room.raw or (len(source) + 1, len(target) + 1) == (room.source, room.target)


@settings(deadline=None, max_examples=30)
@given(st.integers(4, 60), st.floats(0.01, 0.9), st.integers(0, 1 << 30))
def test_single_tokens_always_fit(length: int, density: float, seed: int):
    room = span_corruption.row_sizes(Denoising(kind="iid", density=density), length)
    for size in range(2, room.raw + 1):
        mask = span_corruption.choose_tokens(np.random.default_rng(seed), size, density)
        source, target = span_corruption.source_and_target(np.arange(size), mask, tuple(range(100, 100 + room.sentinels)))
        assert len(source) + 1 <= room.source and len(target) + 1 <= room.target
        assert mask.sum() == span_corruption.noise_tokens(size, density)


@pytest.mark.parametrize(("kind", "alone"), SHAPED)
def test_rows_have_the_shapes_of_their_kind_and_every_token_once(kind: str, alone: bool):
    rows = rows_of(run(kind, alone))
    targets, source = SHAPES[kind]
    if alone:
        targets, source = ((32,) if kind in ("prefix", "lm") else (targets[0] + source[0],)), (0,)
    for _, row in rows:
        assert row["tokens"].shape == targets and getattr(row.get("source"), "tokens", np.zeros(0)).shape == source
    ids = text(500, 3, 400).ids
    assert np.concatenate([part for part, _ in rows]).tolist() == ids[ids != MARKS.end].tolist()
    if kind in ("spans", "drop") and not alone:
        assert all(row["segments"].all() and row["source"].segments.all() and row["weights"].all() for _, row in rows[:-1])


def test_the_corrupted_share_and_the_mean_span_are_as_requested():
    for density, mean_span in ((0.15, 3.0), (0.5, 3.0), (0.15, 10.0)):
        options, rng = Denoising(density=density, mean_span=mean_span), np.random.default_rng(1)
        masks = np.stack([span_corruption.choose_spans(rng, 568, options) for _ in range(400)])
        assert (masks.sum(1) == round(568 * density)).all()
        begun = masks & ~np.pad(masks, ((0, 0), (1, 0)))[:, :-1]
        assert (begun.sum(1) == round(round(568 * density) / mean_span)).all()
        assert not masks[:, 0].any() and masks[:, -1].all()
        # Away from both ends every place is left out as often: five deviations of a binomial.
        inner, spread = masks[:, 60:-60].mean(0), np.sqrt(density * (1 - density) / 400)
        assert abs(inner - density).max() < 5 * spread


def test_the_sizes_of_spans_are_those_of_all_ways_to_cut():
    """8 tokens in 3 spans: 21 ways, equally likely; the first has k tokens in 7 - k of them."""
    rng = np.random.default_rng(2)
    first = np.array([span_corruption._parts(rng, 8, 3)[0] for _ in range(21_000)])
    for size in range(1, 7):
        expected = 7 - size
        assert abs((first == size).sum() / 1000 - expected) < 5 * np.sqrt(expected / 1000)


def test_single_tokens_are_left_out_anywhere():
    masks = np.stack([span_corruption.choose_tokens(np.random.default_rng([3, n]), 511, 0.15) for n in range(2000)])
    assert abs(masks.mean(0) - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / 2000)
    # A run ends with each token at (1 - 0.15): its mean length is 1 / 0.85.
    runs = (masks & ~np.pad(masks, ((0, 0), (1, 0)))[:, :-1]).sum()
    assert abs(masks.sum() / runs - 1 / 0.85) < 0.01


def test_berts_noise_is_a_sentinel_or_any_token():
    rng, ids = np.random.default_rng(4), np.full(100_000, 7, np.int32)
    mask = span_corruption.choose_tokens(rng, len(ids), 0.15)
    shown = span_corruption.replace_noise(rng, ids, mask, 200, np.arange(3, 43, dtype=np.int32))
    assert (shown[~mask] == 7).all()
    assert abs((shown[mask] == 200).mean() - 0.9) < 5 * np.sqrt(0.9 * 0.1 / mask.sum())
    others = shown[mask][shown[mask] != 200]
    assert {*others.tolist()} == {*range(3, 43)}


def test_a_prefix_ends_anywhere():
    cuts = [len(sides_of(row)[0]) - 1 for ids, row in rows_of(run("prefix"), (32 * 1000,)) if len(ids) == 32]
    assert {*cuts} == {*range(1, 32)}
    assert abs(np.mean(cuts) - 16) < 5 * np.sqrt((31**2 - 1) / 12 / len(cuts))


def restored(source: list[int], target: list[int]) -> list[int]:
    """The text of two sides, each with its end: every sentinel of the source stands for what follows it in the target."""
    assert source[-1] == target[-1] == MARKS.end
    order = {number: nth for nth, number in enumerate(MARKS.sentinels)}
    parts: list[list[int]] = []
    for number in target[:-1]:
        if number in order:
            assert order[number] == len(parts)
            parts.append([])
        else:
            parts[-1].append(number)
    sentinels = [order[number] for number in source if number in order]
    # A last sentinel may stand for nothing.
    assert sentinels == [*range(len(sentinels))] and len(parts) - len(sentinels) in (0, 1) and not any(parts[len(sentinels) :])
    assert all(parts[: len(sentinels)])
    return [each for number in source[:-1] for each in (parts[order[number]] if number in order else [number])]


def check_restored(kind: str) -> None:
    found = rows_of(run(kind), (31 * 350,))
    assert len(found) >= 300
    for ids, row in found:
        assert restored(*sides_of(row)) == ids.tolist()


@pytest.mark.parametrize("kind", ["spans", "iid"])
def test_two_sides_are_the_whole_text(kind: str):
    check_restored(kind)


MUTANTS: dict[str, Callable[[Any], Any]] = {
    "sentinels backwards": lambda real: lambda ids, mask, marks: real(ids, mask, marks[::-1]),
    "one sentinel for all": lambda real: lambda ids, mask, marks: real(ids, mask, marks[:1] * len(marks)),
    "another mask for the target": lambda real: (
        lambda ids, mask, marks: (real(ids, mask, marks)[0], real(ids, np.roll(mask, -1), marks)[1])
    ),
    "a token lost": lambda real: lambda ids, mask, marks: (real(ids, mask, marks)[0], real(ids, mask, marks)[1][:-1]),
    "no sentinels in the target": lambda real: lambda ids, mask, marks: (real(ids, mask, marks)[0], ids[mask].astype(np.int32)),
    "the text kept": lambda real: lambda ids, mask, marks: (ids.astype(np.int32), real(ids, mask, marks)[1]),
}


@pytest.mark.planted
@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_pair_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(span_corruption, "source_and_target", MUTANTS[name](span_corruption.source_and_target))
    with pytest.raises((AssertionError, IndexError, ValueError)):
        check_restored("spans")


def test_dropped_and_masked_tokens_are_those_of_the_papers_table_3():
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    noise = np.isin(words, ["for", "inviting", "last"])
    source, target = span_corruption.drop_noise(np.arange(10), noise)
    assert [" ".join(words[n] for n in side) for side in (source, target)] == [
        "Thank you me to your party week",
        "for inviting last",
    ]
    masked = span_corruption.mask_noise(np.arange(10), noise, 10)
    assert " ".join([*words, "<M>"][n] for n in masked) == "Thank you <M> <M> me to your party <M> week"


def check_single(kind: str) -> None:
    """Each row against a loop over its tokens: 15 % of them, the first of a shuffle with the row's generator, are left out."""
    for number, (ids, row) in enumerate(rows_of(run(kind), (2, 500))):
        left_out = np.random.default_rng([0, number]).permutation(len(ids))[: max(1, round(0.15 * len(ids)))]
        source, target = sides_of(row)
        if kind == "mass":
            assert source == [MARKS.sentinels[0] if n in left_out else token for n, token in enumerate(ids)] + [MARKS.end]
            assert target == [*ids, MARKS.end]
        else:
            assert source == [token for n, token in enumerate(ids) if n not in left_out] + [MARKS.end]
            assert target == [ids[n] for n in sorted(left_out)] + [MARKS.end]


@pytest.mark.parametrize("kind", ["drop", "mass"])
def test_single_tokens_are_dropped_or_masked(kind: str):
    check_single(kind)


@pytest.mark.planted
def test_dropped_tokens_out_of_order_are_noticed(monkeypatch: pytest.MonkeyPatch):
    real = span_corruption.drop_noise
    monkeypatch.setattr(span_corruption, "drop_noise", lambda ids, noise: (real(ids, noise)[0], real(ids, noise)[1][::-1]))
    with pytest.raises(AssertionError):
        check_single("drop")


@pytest.mark.parametrize("kind", ["bert", "mass", "deshuffle", "prefix"])
def test_the_other_kinds_keep_the_text(kind: str):
    for ids, row in rows_of(run(kind)):
        source, target = (np.array(side) for side in sides_of(row))
        assert source[-1] == target[-1] == MARKS.end
        if kind == "prefix":
            assert [*source[:-1], *target[:-1]] == ids.tolist() and len(source) > 1 < len(target)
            continue
        changed = source[:-1] != ids
        assert (target[:-1] == ids).all() and (changed.any() or len(ids) < 4)
        assert sorted(source[:-1]) == sorted(ids) if kind == "deshuffle" else changed.mean() < 0.4


def check_alone(build: Callable[..., dict[str, Any]], causally: bool) -> None:
    """Whatever is written later does not show in what a position may see."""
    example = SourceTarget(np.array([11, 12, 13, 1], np.int32), np.array([21, 22, 1], np.int32))
    row = build(example, 9, 0, causal=causally)
    assert row["tokens"].tolist() == [0, 11, 12, 13, 1, 21, 22, 0, 0]
    assert row["targets"].tolist() == [11, 12, 13, 1, 21, 22, 1, 0, 0]
    assert row["weights"].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0]
    assert row["segments"].tolist() == [1] * 7 + [0, 0]
    at = np.arange(9)
    order = row.get("order", at)
    for here in np.flatnonzero(row["weights"]):
        seen = at[(order <= order[here]) & (row["segments"] > 0)]
        assert seen.tolist() == [*range(here + 1)]
    read = at[(order <= order[0]) & (row["segments"] > 0)]
    assert read.tolist() == ([0] if causally else [0, 1, 2, 3, 4])


@pytest.mark.parametrize("causally", [False, True])
def test_a_decoder_only_model_attends_to_its_prefix_and_earlier_targets(causally: bool):
    check_alone(seq2seq_rows.decoder_only_row, causally)


LEAKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "a target in the prefix": lambda row: row | {"order": np.maximum(row["order"] - 1, 0)},
    "the prefix in order": lambda row: row | {"order": np.arange(9)},
    "not shifted": lambda row: row | {"tokens": row["targets"]},
    "the prefix predicted": lambda row: row | {"weights": (row["segments"] > 0).astype(np.float32)},
}


@pytest.mark.planted
@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_noticed(name: str):
    with pytest.raises(AssertionError):
        check_alone(lambda *args, **how: LEAKS[name](seq2seq_rows.decoder_only_row(*args, **how)), causally=False)


@pytest.mark.parametrize("kind", ["spans", "bert", "lm"])
@pytest.mark.parametrize("causally", [False, True])
def test_a_row_of_a_decoder_only_model_has_both_sides(kind: str, causally: bool):
    """Those of an encoder-decoder; a language model reads nothing and writes the whole text."""
    alone = rows_of(run(kind, True, causal=causally))
    pairs = [sides_of(row) for _, row in rows_of(run(kind))] if kind != "lm" else [([], [*ids, MARKS.end]) for ids, _ in alone]
    for (source, target), (_, row) in zip(pairs, alone, strict=True):
        assert row["targets"][: len(source) + len(target)].tolist() == source + target
        assert row["targets"][row["weights"] > 0].tolist() == target
        assert ("order" in row) != causally
        assert kind != "lm" or causally or row["order"].tolist() == [*range(32)]


@pytest.mark.full
@pytest.mark.parametrize(("alone", "smoothing"), [(False, 0.1), (True, 0.0)])
def test_the_loss_is_the_sum_over_targets_in_any_chunks(alone: bool, smoothing: float):
    asked = run(alone=alone)
    architecture = "decoder" if alone else "encoder_decoder"
    net = small("t5", vocab=TOKENIZER.vocab_size, decoder_layers=1, layers=1, architecture=architecture)
    params, planned = random_params(net), Denoised.plan_rows(text(500), asked, TOKENIZER)
    batch = jax.tree.map(jnp.asarray, next(in_order(planned, Denoised.builder(asked, TOKENIZER, never), 4, np.arange(4))))
    logits = np.float64(jax.jit(lambda params: net.unembed(params, net.apply(params, batch).hidden))(params))
    logits = logits[..., : TOKENIZER.vocab_size]
    logs = logits - np.log(np.exp(logits - logits.max()).sum(-1, keepdims=True)) - logits.max()
    each = (1 - smoothing) * np.take_along_axis(logs, batch.targets[..., None], -1)[..., 0] + smoothing * logs.mean(-1)
    for chunk in (0, 3, 64):
        loss = functools.partial(Denoised().loss, net, frozen={}, seeds=None, carry={}, smoothing=smoothing, chunk=chunk)
        sums, _ = jax.jit(lambda params, loss=loss: loss(params, batch))(params)
        np.testing.assert_allclose(sums["denoising"], -(each * batch.weights).sum(), rtol=1e-5)
    assert float(Denoised().weights(batch)["denoising"]) == batch.weights.sum()


BAD = {
    "another tokenizer": ({}, {}, "--tokenizer.kind gpt: this tokenizer has no sentinels"),
    "a short text": ({}, {"length": 900}, "--data.length 900: a row is made of 999 tokens, and the training text has 903"),
    "too short": ({}, {"length": 3}, "data.length 3: choose 4 tokens or more"),
    "many sentinels": (
        {"kind": "iid"},
        {"length": 800},
        "data.length 800: a row may need 121 sentinels, and the tokenizer has 100; choose a shorter length",
    ),
    "many spans": (
        {},
        {"length": 8192},
        "data.length 8192: a row may need 455 sentinels, and the tokenizer has 100; choose --denoising.mean-span 15 or more",
    ),
    "nothing to read": ({"kind": "lm"}, {}, "--denoising.kind lm: the source of the encoder would be empty; choose prefix"),
    "a causal encoder": ({"causal": True}, {}, "denoising.causal True: an encoder is never causal"),
    "mean span": ({"mean_span": 0.5}, {}, "denoising.mean-span"),
}


@pytest.mark.parametrize("name", BAD)
def test_texts_and_options_that_cannot_be_denoised_are_refused(name: str):
    options, data, message = BAD[name]
    tokenizer = Tokenizer.train(["some words"], 300) if name == "another tokenizer" else TOKENIZER

    def plan() -> None:
        asked = run(data=data, **options)
        asked.options.check_run(asked)
        Denoised.plan_rows(text(500, 3, 400), asked, tokenizer)

    with pytest.raises(BadInput) as refusal:
        plan()
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_single_token_at_the_end_is_left_out_and_two_are_a_row():
    asked = run(length=16)
    raw = span_corruption.row_sizes(SPANS, 16).raw
    for more, rows in ((0, 3), (1, 3), (2, 4)):
        planned = Denoised.scored_rows(text(raw * 2, raw + more), asked, TOKENIZER, 1)
        assert len(planned) == rows
        assert planned.targets == raw * 3 + (more if more > 1 else 0)
