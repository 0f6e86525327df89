"""What attention looks at: the weights that are watched, those of a decoder over its source, and their picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.generation import cross_attention_weights
from eval.pages.html_page import render_page
from eval.report import run_charts
from tests.support.generation import seq2seq, seq2seq_tokenizer
from zoo.attention.attention import attention, record_weights
from zoo.attention.masks import Mask

CALLS = {
    "full": (Mask(), 4),
    "causal, grouped heads": (Mask(causal=True), 2),
    "segments": (Mask(query_segments=jnp.array([[1, 1, 2, 0]] * 2), key_segments=jnp.array([[1, 2, 2, 0]] * 2)), 4),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("impl", ["xla", pytest.param("blocked", marks=pytest.mark.full)])
def test_recorded_weights_give_the_output_of_attention(call: str, impl: str, rng: np.random.Generator) -> None:
    mask, groups = CALLS[call]
    q, k, v = (jnp.asarray(rng.standard_normal((2, 4, heads, 8)), jnp.float32) for heads in (4, groups, groups))
    with record_weights() as seen:
        out = jax.jit(lambda *given: attention(*given, mask=mask, impl=impl))(q, k, v)
    attention(q, q, q, mask=Mask())
    (weights,) = seen  # Nothing is watched outside the block.
    assert weights.shape == (2, 4, 4, 4)
    expected = np.einsum("bnts,bsnh->btnh", weights, np.repeat(np.asarray(v), 4 // groups, 2))
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize(("family", "size"), [("t5", 5), ("transformer", 8)])
def test_recorded_weights_are_those_over_the_source(family: str, size: int, rng: np.random.Generator) -> None:
    """No weight is that of self-attention or of padding, also where text and source are equally long."""
    net, params = seq2seq(family)
    source, text = rng.integers(3, 100, 5), rng.integers(3, 100, size)
    weights = cross_attention_weights.cross_attention_weights(net, params, source, text, 0)
    assert weights.shape == (size, 5)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    # The first token sees nothing of the text but its start.
    other = cross_attention_weights.cross_attention_weights(
        net, params, source, np.concatenate([text[:1], rng.integers(3, 100, size - 1)]), 0
    )
    np.testing.assert_allclose(weights[:2], other[:2], atol=1e-6)
    assert np.abs(weights[2:] - other[2:]).max() > 1e-6


@pytest.mark.full
def test_the_picture_shows_tokens_as_plain_text() -> None:
    words = seq2seq_tokenizer()
    source, text = words.encode("Call me <b>"), words.encode("years ago")
    record = cross_attention_weights.cross_attention_record(*seq2seq("t5"), words, source, text.tolist())
    page = render_page("", "", {"Attention": [run_charts.attention_chart(record)]})
    assert "<b>" not in page and "&lt;" in page
