"""XLNet generates text as every generator does: the query stream predicts each word from all that is before it."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.generation.generation_options import Decoding
from tests.support.generation import gpt_tokenizer, ids, make_generator
from tests.support.small import decode, following, random_params
from tests.support.xlnet_reference import read_both_ways, tiny
from zoo import published_weights
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.generation import beam_search
from zoo.generation.decoding_settings import GREEDY, Beams
from zoo.models import Model

LIMIT = 6
GREEDILY = Decoding(limit=LIMIT, past_end=True, sampling=GREEDY)
BOTH_WAYS = dataclasses.replace(GREEDILY, read="both-ways")
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
    return jax.jit(lambda tokens: net.unembed(params, following(net, params, Batch(tokens=tokens))))


@pytest.mark.full
@pytest.mark.parametrize("mesh", [{}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["alone", "mesh"])
def test_greedy_text_is_the_most_likely_token_after_token(mesh: dict[str, int]) -> None:
    generator = make_generator(model(), gpt_tokenizer(), batch=4, **mesh)
    texts = generator.generate(PROMPTS, GREEDILY)
    for prompt, text in zip(PROMPTS, ids(texts), strict=True):
        before = prompt.tolist()
        assert len(text) == LIMIT
        for token in text:
            likely = log_probabilities(before)
            assert likely[token] > likely.max() - 1e-4
            before.append(token)


def test_the_logits_of_every_step_that_reads_both_ways() -> None:
    """Padded prompts and then two tokens at a time, against each text alone in float64."""
    net, params = model()
    text, step, longest = np.arange(40, 40 + LIMIT, dtype=np.int32), jax.jit(functools.partial(decode, net)), len(PROMPTS[-1])
    tokens = np.stack([np.pad(np.append(prompt, text), (longest - len(prompt), 0)) for prompt in PROMPTS])
    segments = np.int32(np.arange(longest + LIMIT) >= longest - np.array([[len(prompt)] for prompt in PROMPTS]))
    cache, steps = net.init_cache(len(PROMPTS), longest + LIMIT, jnp.float32), []
    for first, last in [(0, longest), *((at - 2, at) for at in range(longest + 1, longest + LIMIT))]:
        fields = {"tokens": tokens, "segments": segments, "order": np.zeros_like(tokens)}
        read = Batch(**{name: each[:, first:last] for name, each in fields.items()})
        hidden, cache = step(params, read, dataclasses.replace(cache, at=jnp.int32(first)))
        steps.append(jax.nn.log_softmax(net.unembed(params, hidden[:, -1])[:, : net.config.vocab]))
    expected = [read_both_ways(net.config, params, prompt, text) for prompt in PROMPTS]
    np.testing.assert_allclose(np.stack(steps, 1), expected, atol=1e-4, rtol=0)


@pytest.mark.planted
def test_greedy_text_read_both_ways() -> None:
    """Of a padded batch, each word is the likeliest one by the reference for each text alone; read one way, it is not."""
    net, params = model()
    generator = make_generator(model(), gpt_tokenizer(), batch=4)

    def check(decoding: Decoding) -> None:
        for prompt, text in zip(PROMPTS, ids(generator.generate(PROMPTS, decoding)), strict=True):
            likely = read_both_ways(net.config, params, prompt, np.array(text))[:, : gpt_tokenizer().vocab_size]
            assert (likely[np.arange(LIMIT), list(text)] > likely.max(1) - 1e-4).all()

    check(BOTH_WAYS)
    with pytest.raises(AssertionError):
        check(GREEDILY)


@pytest.mark.parity
@pytest.mark.planted
def test_text_read_both_ways_is_that_of_transformers(tmp_path: Path) -> None:
    """24 tokens after 20 random prompts of 1 to 20 tokens are all equal; read from left to right, 2 of the 20 texts are."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    net = tiny(vocab=gpt_tokenizer().vocab_size)
    params, rng = random_params(net), np.random.default_rng(1)
    published_weights.save_published(tmp_path, net.config, params)
    theirs: Any = transformers.XLNetLMHeadModel.from_pretrained(tmp_path)
    theirs.generation_config.eos_token_id = None
    prompts = [rng.integers(0, net.config.vocab, size).astype(np.int32) for size in range(1, 21)]
    # One by one: `transformers` shows the padding of a batch to the text.
    said = [theirs.generate(torch.tensor(each)[None].long(), max_new_tokens=24, do_sample=False)[0] for each in prompts]
    expected = [tuple(row[len(each) :].tolist()) for row, each in zip(said, prompts, strict=True)]
    generator = make_generator((net, params), gpt_tokenizer())
    equal = {}
    for decoding in (BOTH_WAYS, GREEDILY):
        texts = ids(generator.generate(prompts, dataclasses.replace(decoding, limit=24)))
        equal[decoding.read] = sum(ours == text for ours, text in zip(texts, expected, strict=True))
    assert equal["both-ways"] == 20 > 2 * equal["left-to-right"] and len(set(expected)) > 15, equal


@pytest.mark.full
def test_a_search_scores_its_texts_by_their_probability() -> None:
    """What is found has the score that a forward pass gives it; the cached distances have no rows to reorder."""
    net, params = model()
    rows = Batch(**dict.fromkeys(("tokens", "segments", "positions"), jnp.ones((3, 4), jnp.int32)))
    axes = beam_search.batch_axes(net, params, rows, net.init_cache(3, 8, jnp.float32))
    assert vars(axes) == {
        **{"k": 1, "v": 1, "segments": 0, "positions": 0, "order": 0},
        **{"at": None, "source": None, "distances": None},
    }
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
