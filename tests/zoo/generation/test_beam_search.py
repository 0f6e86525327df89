"""Beam search: equal to trying everything; the same in any batch and on any mesh."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.generation import generator
from eval.generation.generation_options import Decoding
from eval.generation.generator import _Text
from tests.support.generation import GREEDILY, gpt_generator, gpt_tokenizer, ids, prompts
from tests.support.small import random_params, small
from zoo.batch import Batch
from zoo.generation import beam_search
from zoo.generation.decoding_settings import Beams
from zoo.models import Model

WORDS, LIMIT, END = 5, 4, 2
PROMPTS = ((1, 4, 0), (3,), (0, 0, 1, 3, 3))
Scored = list[tuple[tuple[int, ...], float]]
"""Texts of a prompt with their scores, the best first."""


@functools.cache
def tiny() -> tuple[Model, Any]:
    """A model of 5 words, sure enough of itself that the order of texts is no accident of rounding."""
    net = small("gpt", vocab=WORDS)
    return net, jax.tree.map(lambda leaf: 1.5 * leaf, random_params(net))


@functools.cache
def searched(rows: tuple[tuple[int, ...], ...], beams: Beams) -> list[Scored]:
    """Texts of each prompt, end-of-text included."""
    net, params = tiny()
    texts = [_Text(gpt_tokenizer(), GREEDILY, 0, 0, np.array(row, np.int32), 0) for row in rows]
    batch = generator._padded(texts, max(map(len, rows)), len(rows))
    cache = net.init_cache(len(rows), batch.tokens.shape[1] + LIMIT - 1, jnp.float32)
    program = jax.jit(lambda *arrays: beam_search.beam_search(net, *arrays, beams, limit=LIMIT, vocabulary=WORDS, ends=(END,)))
    result = jax.tree.map(np.asarray, program(params, batch, cache))
    assert result.finite.all()

    def text(tokens: np.ndarray) -> tuple[int, ...]:
        ids = tuple(tokens.tolist())
        return ids[: ids.index(END) + 1] if END in ids else ids

    return [
        [(text(tokens), float(score)) for tokens, score in zip(*row, strict=True)]
        for row in zip(result.tokens, result.score, strict=True)
    ]


@functools.cache
def log_probabilities(prompt: tuple[int, ...]) -> dict[tuple[int, ...], float]:
    """The log-probability of every text there is, each by a whole forward pass."""
    texts = [text for text in itertools.product(range(WORDS), repeat=LIMIT) if END not in text[:-1]]
    for size in range(1, LIMIT):
        texts += [(*text, END) for text in itertools.product(range(WORDS), repeat=size - 1) if END not in text]
    rows = np.zeros((len(texts), max(map(len, PROMPTS)) + LIMIT), np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(prompt) + len(text)] = (*prompt, *text)
    nats = np.asarray(_forward()(rows))
    return {
        text: float(sum(row[len(prompt) - 1 + place, token] for place, token in enumerate(text)))
        for row, text in zip(nats, texts, strict=True)
    }


@functools.cache
def _forward() -> Any:
    net, params = tiny()
    return jax.jit(
        lambda rows: jax.nn.log_softmax(net.unembed(params, net.apply(params, Batch(tokens=rows)).hidden)[..., :WORDS])
    )


def brute_force(prompt: tuple[int, ...], penalty: float) -> Scored:
    scored = [(text, nats / len(text) ** penalty) for text, nats in log_probabilities(prompt).items()]
    return sorted(scored, key=lambda each: -each[1])


@pytest.mark.parametrize("penalty", [1.0, *(pytest.param(penalty, marks=pytest.mark.full) for penalty in (0.0, 2.0, -1.0))])
def test_a_wide_search_is_brute_force(penalty: float) -> None:
    beams = Beams(beams=200, length_penalty=penalty, search_until="impossible")
    for prompt, texts in zip(PROMPTS, searched(PROMPTS, beams), strict=True):
        best = brute_force(prompt, penalty)
        assert [text for text, _ in texts[:20]] == [text for text, _ in best[:20]]
        np.testing.assert_allclose([score for _, score in texts[:150]], [score for _, score in best[:150]], rtol=1e-4, atol=1e-4)


@pytest.mark.full
@pytest.mark.planted
def test_a_narrow_search_is_not_brute_force() -> None:
    """The test above would pass on any search if the likeliest next token were always the right one."""
    rows = tuple(map(tuple, np.random.default_rng(0).integers(0, WORDS, (30, 3)).tolist()))
    narrow = searched(rows, Beams(beams=2, length_penalty=2.0, search_until="impossible"))
    assert any(texts[0][0] != brute_force(prompt, 2.0)[0][0] for prompt, texts in zip(rows, narrow, strict=True))


def scores(texts: list[Any]) -> list[float]:
    return [text.score for text in texts]


SEARCH = Decoding(limit=12, samples=3, search=Beams(beams=4))


@functools.cache
def alone() -> list[Any]:
    """The best texts of each prompt, searched one at a time."""
    return gpt_generator(batch=4).generate(prompts()[:12], SEARCH)


@pytest.mark.full
@pytest.mark.parametrize("shape", [{"batch": 40}, {"batch": 40, "data": 2, "fsdp": 2, "tensor": 2}], ids=["batch", "mesh"])
def test_a_search_depends_on_its_prompt_alone_and_gives_its_best_first(shape: dict[str, int]) -> None:
    together = gpt_generator(**shape).generate(prompts()[:12], SEARCH)
    assert ids(together) == ids(alone())
    assert [text.ended for text in together] == [text.ended for text in alone()]
    np.testing.assert_allclose(scores(together), scores(alone()), rtol=1e-5)
    for start in range(0, len(together), 3):
        best = together[start : start + 3]
        assert sorted(scores(best), reverse=True) == scores(best) and len(set(ids(best))) == 3


@pytest.mark.full
@pytest.mark.parametrize("until", ["full", "unlikely"])
def test_a_search_that_ends_early_finds_nothing_better(until: Any) -> None:
    beams = Beams(beams=3, search_until=until)
    best = searched(PROMPTS, dataclasses.replace(beams, search_until="impossible"))
    for texts, bounds in zip(searched(PROMPTS, beams), best, strict=True):
        assert all(score <= bound + 1e-6 for (_, score), (_, bound) in zip(texts, bounds, strict=True))
