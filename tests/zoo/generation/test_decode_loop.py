"""The decode loop without text: greedy tokens are those that the uncached model finds likeliest."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small import GENERATORS, random_params, small
from zoo import models
from zoo.batch import Batch
from zoo.generation import decode_loop
from zoo.generation.decode_loop import Decoder
from zoo.generation.decoding_settings import GREEDY, Sampling
from zoo.models import xlnet
from zoo.nn import kv_cache
from zoo.nn.kv_cache import Cache

COUNT = 6
LIMIT = 14


@pytest.mark.parametrize("vocabulary", [300, 40])
def test_greedy_tokens_are_the_most_likely_ones_without_a_cache(vocabulary: int, rng: np.random.Generator) -> None:
    """Read two prompts of different lengths in one batch; ids that the tokenizer does not have are never sampled."""
    net = small("gpt")
    params, lengths = random_params(net), (5, 3)
    tokens, segments, positions = np.zeros((3, 2, 5), np.int32)
    for row, length in enumerate(lengths):
        tokens[row, 5 - length :] = rng.integers(0, vocabulary, length)
        segments[row, 5 - length :], positions[row, 5 - length :] = 1, np.arange(length)
    decoder, prompts = Decoder(net, vocabulary, np.dtype("float32")), Batch(tokens=tokens, segments=segments, positions=positions)
    state, first = decode_loop.start_decoding(
        decoder, GREEDY, COUNT - 1, params, prompts, np.uint32(0), np.zeros((2, 2), np.uint32)
    )
    _, rest = decode_loop.sample_tokens(decoder, GREEDY, COUNT - 1, params, state)
    sampled = np.concatenate([first.tokens, rest.tokens]).T  # [B, COUNT]
    assert np.asarray(first.finite).all() and np.asarray(rest.finite).all()

    @jax.jit
    def likeliest(text: jax.Array) -> jax.Array:
        return net.unembed(params, net.apply(params, Batch(tokens=text)).hidden)[0, :, :vocabulary].argmax(-1)

    for row, length in enumerate(lengths):
        text = np.concatenate([tokens[row, 5 - length :], sampled[row]])
        assert np.asarray(likeliest(jnp.asarray(text)[None]))[length - 1 : -1].tolist() == sampled[row].tolist()


def continued(family: str, reread: int = 0) -> Any:
    """Return the tokens and log-probabilities that a small model samples after two prompts or sources, padded on the left."""
    net = small(family)
    segments = np.int32([[1, 1, 1, 1], [0, 0, 1, 1]])
    positions = np.maximum(np.cumsum(segments, 1) - 1, 0, dtype=np.int32)
    tokens = np.random.default_rng(0).integers(1, 300, segments.shape).astype(np.int32)
    prompts = Batch(tokens=tokens, segments=segments, positions=positions)
    if net.is_encoder_decoder:
        begin = np.zeros((2, 1), np.int32)
        prompts = Batch(tokens=begin, segments=begin + 1, positions=begin, source=prompts)
    decoder = Decoder(net, 300, np.dtype("float32"), reread=reread, log_probs=True)
    params = jax.jit(decode_loop.decoding_params, static_argnums=1)(random_params(net), decoder.dtype)
    arguments = (params, prompts, np.uint32(3), np.arange(4, dtype=np.uint32).reshape(2, 2))
    parts = list(decode_loop.decode_continuation(decoder, Sampling(), *arguments, limit=LIMIT, chunk=2))
    return tuple(np.concatenate([np.asarray(getattr(part, name)) for part in parts]) for name in ("tokens", "log_probs"))


@pytest.mark.planted
@pytest.mark.parametrize(
    ("family", "reread"),
    [("gpt", 0), ("xlnet", 1), *(pytest.param(family, 0, marks=pytest.mark.slow) for family in GENERATORS if family != "gpt")],
)
def test_a_cache_that_grows_gives_the_tokens_of_one_that_has_all_slots(
    family: str, reread: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has 4, 8 and then 14 slots for the text. Segments that lie one slot beside their tokens are noticed."""
    tokens, log_probs = continued(family, reread)
    assert tokens.shape == (LIMIT + 1, 2)
    monkeypatch.setattr(decode_loop, "FIRST", 4)
    monkeypatch.setattr(decode_loop, "GROWTH", 2)
    grown_tokens, grown_log_probs = continued(family, reread)
    np.testing.assert_array_equal(grown_tokens, tokens)
    np.testing.assert_allclose(grown_log_probs, log_probs, atol=1e-5)
    add_slots = kv_cache.add_slots

    def rolled(cache: Cache, length: int) -> Cache:
        grown = add_slots(cache, length)
        return dataclasses.replace(grown, segments=jnp.roll(grown.segments, 1, axis=1))

    for module in (models, xlnet):
        monkeypatch.setattr(module, "add_slots", rolled)
    # Other numbers of slots, whose programs are not compiled yet.
    monkeypatch.setattr(decode_loop, "GROWTH", 3)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(continued(family, reread)[1], log_probs, atol=1e-5)
