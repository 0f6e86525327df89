"""The decode loop without text: greedy tokens are those that the uncached model finds likeliest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small import random_params, small
from zoo.batch import Batch
from zoo.generation import decode_loop
from zoo.generation.decode_loop import Decoder
from zoo.generation.decoding_settings import GREEDY

COUNT = 6


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
    state, first = decode_loop.start(decoder, GREEDY, COUNT - 1, params, prompts, np.uint32(0), np.zeros((2, 2), np.uint32))
    _, rest = decode_loop.sample_tokens(decoder, GREEDY, COUNT - 1, params, state)
    sampled = np.concatenate([first.tokens, rest.tokens]).T  # [B, COUNT]
    assert np.asarray(first.finite).all() and np.asarray(rest.finite).all()

    @jax.jit
    def likeliest(text: jax.Array) -> jax.Array:
        return net.unembed(params, net.apply(params, Batch(tokens=text)).hidden)[0, :, :vocabulary].argmax(-1)

    for row, length in enumerate(lengths):
        text = np.concatenate([tokens[row, 5 - length :], sampled[row]])
        assert np.asarray(likeliest(jnp.asarray(text)[None]))[length - 1 : -1].tolist() == sampled[row].tolist()
