"""XLNet generates text as every generator does: the query stream predicts each word from all that is before it."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from eval.generation.settings import Decoding
from tests.support.generation import gpt_tokenizer, ids, make_generator
from tests.support.generation import quickly_compiled as quickly_compiled
from tests.support.small import following, jit, random_params
from tests.support.xlnet_reference import tiny
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.generation import beam_search
from zoo.generation.settings import GREEDY, Beams
from zoo.models import Model

LIMIT = 6
PROMPTS = [np.arange(3, 3 + size, dtype=np.int32) for size in (1, 4, 9)]


@functools.cache
def model() -> tuple[Model, Any]:
    net = tiny(vocab=gpt_tokenizer().vocab_size + 3)
    return net, random_params(net)


def log_probabilities(tokens: list[int]) -> np.ndarray:
    """float64 [V]: log-probabilities of what follows, in a forward pass over the whole text."""
    row = np.array([tokens + [0] * (16 - len(tokens))], np.int32)
    logits = np.float64(_forward()(row)[0, len(tokens) - 1, : gpt_tokenizer().vocab_size])
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


@functools.cache
def _forward() -> Any:
    net, params = model()
    return jit(lambda tokens: net.unembed(params, following(net, params, Batch(tokens=tokens))))


@pytest.mark.full
@pytest.mark.parametrize("mesh", [{}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["alone", "mesh"])
def test_greedy_text_is_the_likeliest_word_after_word(mesh: dict[str, int]) -> None:
    generator = make_generator(model(), gpt_tokenizer(), batch=4, **mesh)
    texts = generator.generate(PROMPTS, Decoding(limit=LIMIT, past_end=True, sampling=GREEDY))
    for prompt, text in zip(PROMPTS, ids(texts), strict=True):
        before = prompt.tolist()
        assert len(text) == LIMIT
        for token in text:
            likely = log_probabilities(before)
            assert likely[token] > likely.max() - 1e-4
            before.append(token)


@pytest.mark.full
def test_a_search_scores_its_texts_by_their_probability() -> None:
    """What is found has the score that a forward pass gives it; the cached distances have no rows to reorder."""
    net, params = model()
    rows = Batch(**dict.fromkeys(("tokens", "segments", "positions"), jnp.ones((3, 4), jnp.int32)))
    axes = beam_search.batch_axes(net, params, rows, net.init_cache(3, 8, jnp.float32))
    assert axes == {"k": 1, "v": 1, "segments": 0, "positions": 0, "at": None, "r": None}
    search = Beams(beams=3, length_penalty=0.0)
    generator = make_generator(model(), gpt_tokenizer(), batch=4)
    for text in generator.generate(PROMPTS, Decoding(limit=LIMIT, samples=2, past_end=True, search=search)):
        before, total = PROMPTS[text.prompt].tolist(), 0.0
        for token in text.ids:
            total += log_probabilities(before)[token]
            before.append(token)
        assert text.score == pytest.approx(total, abs=1e-3)


def test_a_classifier_does_not_generate() -> None:
    assert tiny().generates
    net = tiny(task="sequence", labels=("a", "b"))
    assert not net.generates
    with pytest.raises(BadInput, match=r"^model.task sequence: a xlnet with this head does not generate text$"):
        net.init_cache(1, 4, jnp.float32)
