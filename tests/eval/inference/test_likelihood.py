"""Likelihoods of continuations equal a plain loop over the tokens, whatever they are computed together with."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from scipy.special import log_softmax

from eval.inference import likelihood
from eval.inference.likelihood import Likelihood, encode, likelihoods
from tests.support.small import random_params, small
from train.config import run_config
from train.engine import device_mesh
from train.tokenizers.tokenizer import Tokenizer
from train.weights.load import Loaded
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.models import Model

CONTEXT = 32
Pair = tuple[list[int], list[int]]


@functools.cache
def subject() -> tuple[Model, Any]:
    net = small("gpt")
    return net, random_params(net)


def mesh(devices: int = 1, tensor: int = 1) -> Mesh:
    return device_mesh.make_mesh(run_config.Mesh(tensor=tensor), jax.devices()[:devices])


def loaded(net: Model, params: Any, on: Mesh | None = None) -> Loaded:
    return Loaded("small", net, params, tokenizer(), on or mesh())


def computed(pairs: Sequence[Any], *, batch: int = 1, on: Mesh | None = None, **options: Any) -> list[Likelihood]:
    """The likelihoods of pairs: with one row of 32 tokens in a batch, or four of 8, most tests share their programs."""
    net, params = subject()
    return likelihoods(loaded(net, params, on), pairs, batch=batch, dtype=jnp.float32, **options)


def make(rng: np.random.Generator, context: int, continuation: int) -> Pair:
    ids = rng.integers(0, 300, context + continuation).tolist()
    return ids[:context], ids[context:]


def logits_after(ids: Sequence[int]) -> np.ndarray:
    """Return the logits [tokens, V] after each token of a row that continues with something else."""
    rest = np.full(CONTEXT - len(ids), 7)
    return np.float64(_logits(subject()[1], np.int32([[*ids, *rest]])))[0, : len(ids)]


@jax.jit
def _logits(params: Any, tokens: Any) -> Any:
    net = small("gpt")
    return net.unembed(params, net.apply(params, Batch(tokens=tokens)).hidden)[..., : net.config.vocab]


def by_hand(pair: Pair) -> Likelihood:
    """Sum up token by token, with the log-softmax in float64."""
    context, continuation = pair
    ids = [*context, *continuation]
    logits = logits_after(ids[:-1])
    log_p = log_softmax(logits, -1)
    places = range(len(context) - 1, len(ids) - 1)
    nats = -sum(log_p[place, ids[place + 1]] for place in places)
    return Likelihood(float(nats), len(continuation), all(logits[place].argmax() == ids[place + 1] for place in places))


def greedy(context: list[int], size: int) -> Pair:
    ids = list(context)
    for _ in range(size):
        ids.append(int(logits_after(ids)[-1].argmax()))
    return ids[: len(context)], ids[len(context) :]


def same(one: Likelihood, other: Likelihood) -> bool:
    return one.nats == pytest.approx(other.nats, rel=1e-5) and dataclasses.replace(one, nats=other.nats) == other


def test_likelihood_equals_a_loop_for_contexts_and_continuations_of_1_to_all_positions(rng: np.random.Generator) -> None:
    pairs = [make(rng, context, size) for context, size in [(1, 1), (1, 7), (1, 32), (32, 1), (4, 5), (30, 3)]]
    certain = greedy([5, 6], 3)
    nearly = (certain[0], [*certain[1][:-1], (certain[1][-1] + 1) % 300])
    pairs += [certain, nearly]
    expected = [by_hand(pair) for pair in pairs]
    assert [each.greedy for each in expected[-2:]] == [True, False]
    assert all(map(same, computed([(np.array(context), continuation) for context, continuation in pairs]), expected))


def test_neither_neighbours_nor_order_nor_devices_change_a_likelihood(rng: np.random.Generator) -> None:
    pairs = [make(rng, *sizes) for sizes in rng.integers(1, 5, (12, 2)).tolist()]
    order = rng.permutation(len(pairs)).tolist()
    shuffled = computed([pairs[number] for number in order], on=mesh(8, tensor=4))
    assert all(same(shuffled[place], by_hand(pairs[number])) for place, number in enumerate(order))


def test_equal_pairs_tie_exactly_and_the_border_of_a_pair_matters(rng: np.random.Generator) -> None:
    done: list[tuple[int, int]] = []
    pairs = [make(rng, 3, 4) for _ in range(20)]
    context, continuation = pairs[4]
    pairs += [pairs[4], ([*context, continuation[0]], continuation[1:])]
    result = computed(pairs, progress=lambda *counts: done.append(counts))
    assert result[20] == result[4]
    assert result[21].tokens == 3 and result[21].nats < result[4].nats
    # Equal pairs are computed once, and four pairs at a time.
    assert done == [(count, 22) for count in (4, 9, 13, 17, 21, 22)]


def test_lengths_are_rounded_up_to_few() -> None:
    shapes = [likelihood.row_length(length, 1000) for length in range(1, 1001)]
    assert len(set(shapes)) == 15
    assert all(length <= shape <= max(8, 1.5 * length) for length, shape in enumerate(shapes, 1))


@pytest.mark.full
def test_logits_computed_in_chunks_are_the_same(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [make(rng, 2, 30), make(rng, 8, 24)]
    monkeypatch.setattr(likelihood, "LOGITS", 2 * 8 * 300)
    assert likelihood.chunk_of(2, 32, 300, mesh()) == 8
    assert likelihood.chunk_of(2, 31, 300, mesh()) == 1
    likelihood._compiled.cache_clear()
    assert all(map(same, computed(pairs, batch=2), map(by_hand, pairs)))
    likelihood._compiled.cache_clear()


def test_pair_longer_than_the_positions_is_refused_or_loses_the_beginning_of_its_context(rng: np.random.Generator) -> None:
    context, continuation = make(rng, 40, 5)
    with pytest.raises(BadInput, match=r"^book\.txt:2: 45 tokens, but the model has 32 positions; "):
        computed([([1], [2]), (context, continuation)], name=["book.txt:1", "book.txt:2"].__getitem__)
    cut, whole = computed([(context, continuation), (context[-28:], continuation)], too_long="cut")
    assert (cut.cut, whole.cut) == (12, 0)
    assert (cut.nats, cut.greedy) == (whole.nats, whole.greedy)
    with pytest.raises(BadInput, match="pair 0: 33 tokens to be scored, but the model has 32 positions"):
        computed([make(rng, 9, 33)], too_long="cut")
    assert computed([make(rng, 9, 32)], too_long="cut")[0].cut == 8


@pytest.mark.planted
def test_damaged_weights_other_models_and_empty_texts_are_refused() -> None:
    net, params = subject()
    pairs = [([1], [2]), ([1], [3]), ([1], [4])]
    broken = {**params, "norm": jax.tree.map(lambda leaf: leaf * jnp.nan, params["norm"])}
    with pytest.raises(BadInput, match="pair 0: its log-probability is not finite"):
        likelihoods(loaded(net, broken), pairs, batch=1, dtype=jnp.float32)
    with pytest.raises(BadInput, match="bert predicts no text from left to right"):
        likelihoods(loaded(small("bert"), {}), pairs, batch=1, dtype=jnp.float32)
    for empty in (([], [1]), ([1], [])):
        with pytest.raises(ValueError, match="both need one"):
            computed([*pairs, empty])
    with pytest.raises(BadInput, match="--batch 0"):
        computed(pairs, batch=0)
    assert computed([]) == []


def test_padding_is_no_part_of_a_text_whose_length_counts(rng: np.random.Generator) -> None:
    """With dynamic scaling, a text of 21 tokens is computed as in a row of its length, not of the padded row."""
    net = small("llama", scaling="dynamic", scaling_factor=2.0, original_context=16)
    params, (context, continuation) = random_params(net), make(rng, 12, 10)
    ids = np.array([[*context, *continuation]], np.int32)
    assert likelihood.row_length(ids.size - 1, CONTEXT) > ids.size - 1
    hidden = net.apply(params, Batch(tokens=jnp.asarray(ids[:, :-1]))).hidden
    logits = np.asarray(net.unembed(params, hidden), np.float64)[0, :, : net.config.vocab]
    log_p = log_softmax(logits, -1)[np.arange(ids.size - 1), ids[0, 1:]]
    (computed,) = likelihoods(loaded(net, params), [(context, continuation)], batch=1, dtype=jnp.float32)
    assert computed.nats == pytest.approx(-log_p[len(context) - 1 :].sum(), rel=1e-5)


@functools.cache
def tokenizer() -> Tokenizer:
    """Train one that has "abab" and " the" as single tokens."""
    return Tokenizer.train(["abab the abab the naïve 鯨 \n\n x"] * 4, 300)


def test_encoded_pairs_spell_the_text_and_divide_at_its_border_before_white_space() -> None:
    from hypothesis import example, given, settings
    from hypothesis import strategies as st

    @settings(max_examples=60, deadline=None)
    @example("", "abab")
    @example("abab ", "the")
    @example("  ", "abab")
    @example("ab", "ab the")
    @given(st.text("ab the\nï鯨", max_size=12), st.text("ab the\nï鯨", min_size=1, max_size=8))
    def check(context: str, continuation: str) -> None:
        ((before, after),) = encode(tokenizer(), [(context, continuation)])
        whole = tokenizer().encode(context + continuation).tolist()
        start = [] if before.tolist() == [tokenizer().end_of_text] else before.tolist()
        assert start + after.tolist() == whole
        assert len(after)
        # What lm-evaluation-harness does wherever no token reaches over the border.
        known = tokenizer().encode(context.rstrip()).tolist()
        if known and whole[: len(known)] == known:
            assert before.tolist() == known

    check()
