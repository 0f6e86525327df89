"""Likelihoods of continuations: what a plain loop over the tokens gives, whatever they are computed together with."""

import dataclasses
import functools
import types
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from eval import likelihood
from eval.likelihood import Likelihood, encode, likelihoods
from tests.support.small import jit, random_params, small
from train import config
from train import mesh as meshes
from train.tokenizer import Tokenizer
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
    return meshes.make(config.Mesh(tensor=tensor), jax.devices()[:devices])


def found(pairs: Sequence[Any], *, batch: int = 4, on: Mesh | None = None, net: Model | None = None, **options: Any):
    model, params = subject()
    return likelihoods(net or model, params, on or mesh(), pairs, batch=batch, dtype=jnp.float32, **options)


def make(rng: np.random.Generator, context: int, continuation: int) -> Pair:
    ids = rng.integers(0, 300, context + continuation).tolist()
    return ids[:context], ids[context:]


def logits_after(ids: Sequence[int]) -> np.ndarray:
    """float64[tokens, V]: alone in a row that goes on with something else."""
    rest = np.full(CONTEXT - len(ids), 7)
    return np.float64(_logits(subject()[1], np.int32([[*ids, *rest]])))[0, : len(ids)]


@jit
def _logits(params: Any, tokens: Any) -> Any:
    net = small("gpt")
    return net.unembed(params, net.apply(params, Batch(tokens=tokens)).hidden)[..., : net.config.vocab]


def by_hand(pair: Pair) -> Likelihood:
    """Token by token, log-softmax in float64."""
    context, continuation = pair
    ids = [*context, *continuation]
    logits = logits_after(ids[:-1])
    largest = logits.max(-1, keepdims=True)
    log_p = logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))
    places = range(len(context) - 1, len(ids) - 1)
    nats = -sum(log_p[place, ids[place + 1]] for place in places)
    return Likelihood(float(nats), len(continuation), all(logits[place].argmax() == ids[place + 1] for place in places))


def greedy(context: list[int], size: int) -> Pair:
    """A context and what greedy decoding makes of it."""
    ids = list(context)
    for _ in range(size):
        ids.append(int(logits_after(ids)[-1].argmax()))
    return ids[: len(context)], ids[len(context) :]


def same(one: Likelihood, other: Likelihood) -> bool:
    return one.nats == pytest.approx(other.nats, rel=1e-5) and dataclasses.replace(one, nats=other.nats) == other


def test_a_likelihood_is_that_of_a_loop(rng: np.random.Generator) -> None:
    """Of contexts and continuations from one token to all positions; some are what greedy decoding gives, or nearly."""
    pairs = [make(rng, context, size) for context, size in [(1, 1), (1, 7), (1, 32), (32, 1), (4, 5), (30, 3)]]
    certain = greedy([5, 6], 3)
    nearly = (certain[0], [*certain[1][:-1], (certain[1][-1] + 1) % 300])
    pairs += [certain, nearly, ([5], [6, *certain[1]])]
    expected = [by_hand(pair) for pair in pairs]
    assert [each.greedy for each in expected[-3:]] == [True, False, expected[-1].greedy]
    result = found([(np.array(context), continuation) for context, continuation in pairs])
    assert all(map(same, result, expected))


def test_neither_company_nor_order_nor_devices_enter_it(rng: np.random.Generator) -> None:
    pairs = [make(rng, *sizes) for sizes in rng.integers(1, 5, (12, 2)).tolist()]
    expected = [by_hand(pair) for pair in pairs]
    order = rng.permutation(len(pairs)).tolist()
    shuffled = found([pairs[number] for number in order], batch=3, on=mesh(8))
    assert all(same(shuffled[place], expected[number]) for place, number in enumerate(order))
    assert all(map(same, found(pairs, batch=1, on=mesh(8, tensor=4)), expected))
    assert same(found(pairs[5:6])[0], expected[5])


def test_equal_pairs_tie_exactly_and_are_told_apart_by_their_border(rng: np.random.Generator) -> None:
    pairs = [make(rng, 3, 4) for _ in range(9)]
    context, continuation = pairs[4]
    result = found([*pairs, pairs[4], ([*context, continuation[0]], continuation[1:])], batch=2)
    assert result[9] == result[4]
    assert result[10].tokens == 3 and result[10].nats < result[4].nats


def test_lengths_share_few_programs() -> None:
    shapes = [likelihood.row_length(length, 1000) for length in range(1, 1001)]
    assert sorted(set(shapes)) == [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1000]
    assert all(length <= shape <= max(8, 1.5 * length) for length, shape in enumerate(shapes, 1))
    assert likelihood.row_length(1001, None) == 1024


def test_progress_counts_pairs(rng: np.random.Generator) -> None:
    done: list[tuple[int, int]] = []
    pairs = [make(rng, 1, 3) for _ in range(20)]
    found([*pairs, pairs[0]], batch=1, progress=lambda *counts: done.append(counts))
    assert [count for count, _ in done] == [5, 9, 13, 17, 21] and {whole for _, whole in done} == {21}


def test_logits_in_pieces_are_the_same(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [make(rng, 2, 30), make(rng, 8, 24)]
    monkeypatch.setattr(likelihood, "LOGITS", 2 * 8 * 300)
    assert likelihood.chunk_of(2, 32, 300, mesh()) == 8
    assert likelihood.chunk_of(2, 31, 300, mesh()) == 1
    likelihood._Program.of.cache_clear()
    assert all(map(same, found(pairs), map(by_hand, pairs)))
    likelihood._Program.of.cache_clear()


def test_what_is_too_long_is_refused_or_cut_and_told(rng: np.random.Generator) -> None:
    context, continuation = make(rng, 40, 5)
    with pytest.raises(BadInput, match=r"^book\.txt:2: 45 tokens, but the model has 32 positions; "):
        found([([1], [2]), (context, continuation)], name=["book.txt:1", "book.txt:2"].__getitem__)
    cut, whole = found([(context, continuation), (context[-28:], continuation)], too_long="cut")
    assert (cut.cut, whole.cut) == (12, 0)
    assert (cut.nats, cut.greedy) == (whole.nats, whole.greedy)
    with pytest.raises(BadInput, match="pair 0: 33 tokens to be scored, but the model has 32 positions"):
        found([make(rng, 9, 33)], too_long="cut")
    assert found([make(rng, 9, 32)], too_long="cut")[0].cut == 8


@pytest.mark.planted
def test_what_has_no_likelihood_is_refused() -> None:
    net, params = subject()
    masked = types.ModuleType("masked")
    masked.OBJECTIVES = ("mlm",)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(BadInput, match="gpt predicts no text from left to right"):
        found([([1], [2])], net=dataclasses.replace(net, module=masked))
    for empty in (([], [1]), ([1], [])):
        with pytest.raises(ValueError, match="both need one"):
            found([([1], [2]), empty])
    broken = {**params, "norm": jax.tree.map(lambda leaf: leaf * jnp.nan, params["norm"])}
    with pytest.raises(BadInput, match="pair 0: its log-probability is not finite"):
        likelihoods(net, broken, mesh(), [([1], [2])], batch=1, dtype=jnp.float32)
    with pytest.raises(BadInput, match="--batch 0"):
        found([([1], [2])], batch=0)
    assert found([]) == []


@functools.cache
def tokenizer() -> Tokenizer:
    """One that knows "abab" and " the" as single tokens."""
    return Tokenizer.train(["abab the abab the naïve 鯨 \n\n x"] * 4, 300)


@settings(max_examples=60, deadline=None)
@given(st.text("ab the\nï鯨", max_size=12), st.text("ab the\nï鯨", min_size=1, max_size=8))
def test_tokens_spell_the_text_and_break_at_its_border(context: str, continuation: str) -> None:
    ((before, after),) = encode(tokenizer(), [(context, continuation)])
    whole = tokenizer().encode(context + continuation).tolist()
    start = [tokenizer().end_of_text] if before.tolist() == [tokenizer().end_of_text] else before.tolist()
    assert (after.tolist() if start == [tokenizer().end_of_text] else start + after.tolist()) == whole
    assert len(after)
    # What lm-evaluation-harness does wherever no token reaches over the border.
    known = tokenizer().encode(context.rstrip()).tolist()
    if known and whole[: len(known)] == known:
        assert before.tolist() == known


def test_the_border_of_texts() -> None:
    end = tokenizer().end_of_text

    def words(*texts: str) -> list[list[int]]:
        return [tokenizer().encode(text).tolist() for text in texts]

    pairs = [("", "abab"), ("abab", " the"), ("abab ", "the"), ("  ", "abab"), ("ab", "ab the")]
    result = [[ids.tolist() for ids in pair] for pair in encode(tokenizer(), pairs)]
    assert result[0] == [[end], *words("abab")]
    assert result[1] == result[2] == words("abab", " the")
    assert result[3] == [[end], *words("  abab")]
    # "abab" is one token: it belongs to the continuation whole.
    assert result[4] == [[end], *words("abab the")]
