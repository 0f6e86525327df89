"""Beam search: equal to trying everything, to greedy with one beam, to `transformers`; the same in any batch and on any mesh."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval import beam
from eval.settings import GREEDY, Beams, Decoding, Sampling
from tests.eval.generation.test_generator import generator, ids, model, prompts, quickly_compiled, tokenizer
from tests.support.small import jit, random_params, small
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.models import Model

__all__ = ["quickly_compiled"]

LIMIT, END = 4, 2


@functools.cache
def tiny() -> tuple[Model, Any]:
    """A model of 5 words, sure enough of itself that the order of texts is no accident of rounding."""
    net = small("gpt", vocab=5)
    return net, jax.tree.map(lambda leaf: 1.5 * leaf, random_params(net))


def padded(rows: list[list[int]]) -> Batch:
    """Prompts padded on the left."""
    width = max(map(len, rows))
    tokens, segments, positions = np.zeros((3, len(rows), width), np.int32)
    for number, row in enumerate(rows):
        at = width - len(row)
        tokens[number, at:], segments[number, at:], positions[number, at:] = row, 1, np.arange(len(row))
    return Batch(tokens=jnp.asarray(tokens), segments=jnp.asarray(segments), positions=jnp.asarray(positions))


def found(
    rows: list[list[int]], beams: Beams, end: int | None = END, limit: int = LIMIT
) -> list[list[tuple[tuple[int, ...], float]]]:
    """The texts of each prompt with their scores, the best first, end marks included."""
    net, params = tiny()
    batch = padded(rows)
    cache = net.init_cache(len(rows), batch.tokens.shape[1] + limit - 1, jnp.float32)
    program = jit(lambda params, batch, cache: beam.search(net, params, batch, cache, beams, limit=limit, entries=5, end=end))
    said = program(params, batch, cache)
    assert np.asarray(said.finite).all()

    def text(tokens: np.ndarray) -> tuple[int, ...]:
        whole = tuple(tokens.tolist())
        return whole[: whole.index(END) + 1] if end is not None and END in whole else whole

    tokens, scores = np.asarray(said.tokens), np.asarray(said.score)
    return [[(text(one), float(score)) for one, score in zip(*row, strict=True)] for row in zip(tokens, scores, strict=True)]


@functools.cache
def every(prompt: tuple[int, ...], penalty: float) -> list[tuple[tuple[int, ...], float]]:
    """Every text there is, by its score; each by a whole forward pass."""
    net, params = tiny()
    texts = [text for text in itertools.product(range(5), repeat=LIMIT) if END not in text[:-1]]
    for size in range(1, LIMIT):
        texts += [(*text, END) for text in itertools.product(range(5), repeat=size - 1) if END not in text]
    rows = np.zeros((len(texts), len(prompt) + LIMIT), np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(prompt) + len(text)] = (*prompt, *text)
    logits = net.unembed(params, net.apply(params, Batch(tokens=jnp.asarray(rows))).hidden)[..., :5]
    nats = np.asarray(jax.nn.log_softmax(logits))
    scored = []
    for row, text in zip(nats, texts, strict=True):
        total = sum(row[len(prompt) - 1 + place, token] for place, token in enumerate(text))
        scored.append((text, float(total / len(text) ** penalty)))
    return sorted(scored, key=lambda each: -each[1])


PROMPTS = [[1, 4, 0], [3], [0, 0, 1, 3, 3]]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -1.0])
def test_a_search_wide_enough_finds_what_trying_everything_finds(penalty: float) -> None:
    beams = Beams(beams=200, length_penalty=penalty, search_until="impossible")
    for prompt, texts in zip(PROMPTS, found(PROMPTS, beams), strict=True):
        best = every(tuple(prompt), penalty)
        assert [text for text, _ in texts[:20]] == [text for text, _ in best[:20]]
        np.testing.assert_allclose([score for _, score in texts[:150]], [score for _, score in best[:150]], rtol=1e-4, atol=1e-4)


@pytest.mark.planted
def test_a_narrow_search_misses_some_of_it() -> None:
    """The test above would pass on any search if the likeliest next token were always the right one."""
    some = np.random.default_rng(0).integers(0, 5, (30, 3)).tolist()
    narrow = found(some, Beams(beams=2, length_penalty=2.0, search_until="impossible"))
    assert any(texts[0][0] != every(tuple(prompt), 2.0)[0][0] for prompt, texts in zip(some, narrow, strict=True))


def test_one_beam_is_greedy() -> None:
    some = [prompt.tolist() for prompt in prompts()[:40]]
    net, params = model()
    batch, entries = padded(some), tokenizer().vocab_size
    cache = net.init_cache(len(some), batch.tokens.shape[1] + 19, jnp.float32)
    program = jit(
        lambda params, batch, cache: beam.search(net, params, batch, cache, Beams(), limit=20, entries=entries, end=None)
    )
    said = program(params, batch, cache)
    greedy = generator().generate(some, Decoding(limit=20, past_end=True, sampling=GREEDY))
    assert [tuple(row[0].tolist()) for row in np.asarray(said.tokens)] == ids(greedy)


def scores(texts: list[Any]) -> list[float]:
    return [each.score for each in texts]


SEARCH = Decoding(limit=12, samples=3, search=Beams(beams=4))


@functools.cache
def alone() -> list[Any]:
    """The best of each prompt, searched one at a time."""
    return [each for prompt in prompts()[:12] for each in generator(batch=4).generate([prompt], SEARCH)]


@pytest.mark.parametrize("shape", [{"batch": 40}, {"batch": 16, "data": 4}, {"batch": 40, "data": 2, "fsdp": 2, "tensor": 2}])
def test_a_search_is_its_prompts_whatever_is_searched_beside_it(shape: dict[str, int]) -> None:
    together = generator(**shape).generate(prompts()[:12], SEARCH)
    assert ids(together) == ids(alone())
    assert [each.ended for each in together] == [each.ended for each in alone()]
    np.testing.assert_allclose(scores(together), scores(alone()), rtol=1e-5)


def test_a_search_gives_its_best_first_and_each_once() -> None:
    for start in range(0, len(alone()), 3):
        best = alone()[start : start + 3]
        assert sorted(scores(best), reverse=True) == scores(best)
        assert len(set(ids(best))) == 3


@pytest.mark.parametrize("until", ["full", "unlikely", "impossible"])
def test_a_search_ends_when_told(until: Any) -> None:
    """Never later than when nothing better is possible, and with nothing better than that finds."""
    beams = Beams(beams=3, search_until=until)
    best = found(PROMPTS, dataclasses.replace(beams, search_until="impossible"))
    for texts, most in zip(found(PROMPTS, beams), best, strict=True):
        assert all(score <= limit + 1e-6 for (_, score), (_, limit) in zip(texts, most, strict=True))


REFUSED = {
    "beams 300: the vocabulary has": Decoding(limit=2, search=Beams(beams=300)),
}


@pytest.mark.parametrize("said", REFUSED)
def test_a_search_that_cannot_be_is_refused(said: str) -> None:
    with pytest.raises(BadInput, match=said):
        generator().generate(prompts()[:1], REFUSED[said])


@pytest.mark.parametrize(
    ("said", "given"),
    [
        ("beams 0: choose 1", lambda: Beams(beams=0)),
        ("length-penalty nan", lambda: Beams(length_penalty=float("nan"))),
        ("samples 5: a search gives at most as many as --beams 4", lambda: Decoding(samples=5, search=Beams(beams=4))),
        ("top-k 3: beam search draws nothing", lambda: Decoding(search=Beams(beams=4), sampling=Sampling(top_k=3))),
        ("length-penalty 2.0: it needs beam search", lambda: Decoding(search=Beams(length_penalty=2.0))),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(said: str, given: Any) -> None:
    with pytest.raises(BadInput, match=said):
        given()
