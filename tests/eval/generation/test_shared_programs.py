"""Programs that serve all limits and settings give the texts of the programs that are compiled for one request."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from eval.generation.generation_options import Decoding
from eval.generation.generator import Generator
from tests.support.chat_models import compiled_programs
from tests.support.generation import (
    gpt,
    gpt_generator,
    gpt_tokenizer,
    ids,
    prompts,
    seq2seq,
    seq2seq_generator,
    seq2seq_tokenizer,
)
from zoo.generation.decoding_settings import GREEDY, Sampling

FILTERED = Sampling(temperature=3.0, top_k=250, top_p=0.95, min_p=0.01)


def shared_generator(family: str) -> Generator:
    model, tokenizer = (gpt(), gpt_tokenizer()) if family == "gpt" else (seq2seq(family), seq2seq_tokenizer())
    return Generator(*model, gpt_generator().mesh, tokenizer, dtype=jnp.float32, batch=4, shared=True)


@pytest.mark.parametrize("family", ["gpt", "t5"])
def test_texts_and_streams_are_those_of_single_requests(family: str) -> None:
    generator = shared_generator(family)
    single = gpt_generator() if family == "gpt" else seq2seq_generator(family)
    entries = gpt_tokenizer().vocab_size if family == "gpt" else seq2seq_tokenizer().vocab_size
    texts = [prompt % entries for prompt in prompts()[:3]]
    for sampling in (GREEDY, FILTERED):
        decoding = Decoding(limit=20, seed=5, sampling=sampling, past_end=True)
        expected = single.generate(texts, decoding)
        assert ids(generator.generate(texts, decoding)) == ids(expected)
        for number, text in enumerate(expected):
            *parts, last = generator.parts(texts[number], decoding, number=number, chunk=4)
            assert last.generated is not None
            assert (last.generated.ids, last.generated.text) == (text.ids, text.text)
            assert "".join(part.text for part in (*parts, last)) == text.text


def test_other_limits_values_and_lengths_compile_nothing() -> None:
    generator, decoding = shared_generator("gpt"), Decoding(limit=9, sampling=FILTERED)
    [*generator.parts(prompts()[0][:3], decoding, chunk=4)]
    with compiled_programs() as compiled:
        for limit, size, temperature in ((2, 1, 0.5), (14, 9, 8.0), (20, 12, 1.25)):
            sampling = dataclasses.replace(FILTERED, temperature=temperature, top_k=limit, top_p=0.5, min_p=0.1)
            prompt = np.resize(prompts()[0], size)
            [*generator.parts(prompt, Decoding(limit=limit, seed=limit, sampling=sampling), chunk=4)]
    assert compiled == []


@pytest.mark.planted
def test_a_request_with_programs_of_its_own_is_counted() -> None:
    generator = gpt_generator()
    with compiled_programs() as compiled:
        generator.generate([prompts()[0]], Decoding(limit=7, sampling=Sampling(temperature=0.8125)))
    assert compiled


def test_a_poll_ends_a_generation() -> None:
    calls = []

    def poll() -> None:
        calls.append(None)
        if len(calls) == 2:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        gpt_generator().generate(prompts()[:1], Decoding(limit=20, past_end=True), poll=poll)
    assert len(calls) == 2
