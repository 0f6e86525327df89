"""What attention looks at: the weights that are watched, those of a decoder over its source, and their picture."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval import alignment, plots
from tests.eval.generation.test_encoder_decoders import FAMILIES, model, words
from zoo.attention import attention, watched
from zoo.masks import Mask

CALLS = {
    "full": (Mask(), 4),
    "causal, grouped heads": (Mask(causal=True), 2),
    "segments": (Mask(query_segments=jnp.array([[1, 1, 2, 0]] * 2), key_segments=jnp.array([[1, 2, 2, 0]] * 2)), 4),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("impl", ["xla", "blocked"])
def test_watched_weights_make_what_attention_gives(call: str, impl: str, rng: np.random.Generator) -> None:
    mask, groups = CALLS[call]
    q, k, v = (jnp.asarray(rng.standard_normal((2, 4, heads, 8)), jnp.float32) for heads in (4, groups, groups))
    with watched() as seen:
        out = jax.jit(lambda *given: attention(*given, mask=mask, impl=impl))(q, k, v)
    (weights,) = seen
    assert weights.shape == (2, 4, 4, 4)
    expected = np.einsum("bnts,bsnh->btnh", weights, np.repeat(np.asarray(v), 4 // groups, 2))
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_nothing_is_watched_outside_the_block(rng: np.random.Generator) -> None:
    q = jnp.asarray(rng.standard_normal((1, 4, 2, 8)), jnp.float32)
    with watched() as seen:
        pass
    attention(q, q, q, mask=Mask())
    assert seen == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [5, 8])
def test_a_text_looks_at_its_source(family: str, size: int, rng: np.random.Generator) -> None:
    """Also where both are equally long: no weight is of another attention, or of padding."""
    net, params = model(family)
    source, written = rng.integers(3, 100, 5), rng.integers(3, 100, size)
    found = alignment.weights(net, params, source, written, 0)
    assert found.shape == (size, 5)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    # The first token sees nothing of the text but its start.
    other = alignment.weights(net, params, source, np.concatenate([written[:1], rng.integers(3, 100, size - 1)]), 0)
    np.testing.assert_allclose(found[:2], other[:2], atol=1e-6)
    assert np.abs(found[2:] - other[2:]).max() > 1e-6


def test_the_picture_has_a_square_for_each_weight_and_names_its_tokens() -> None:
    net, params = model("t5")
    source = words().encode("Call me <b>")
    drawn = plots.alignment(alignment.record(net, params, words(), source, words().encode("years ago").tolist()))
    assert "<b>" not in drawn and "&lt;" in drawn
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    assert len(texts) == len(source) + len(words().encode("years ago")) + 1
    assert texts[-len(source) :][0].startswith("\u2581")
    assert 0 < drawn.count("<rect") - 1 <= len(source) * (len(texts) - len(source))
