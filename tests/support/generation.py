"""Small models that generate text, with their tokenizers and prompts, for the tests of generated text."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.generation.generation_options import Decoding
from eval.generation.generator import Generator
from tests.support.small import random_params, small
from train.config import run_config
from train.engine import device_mesh
from train.tokenizers.tokenizer import Tokenizer
from train.weights.load import Loaded
from zoo import sharding
from zoo.generation.decoding_settings import GREEDY, Processors, Sampling
from zoo.models import Model

LIMIT, LONGEST = 20, 12
"""New tokens and the longest prompt: together all positions. The last dispatch draws tokens beyond the limit."""
RANDOM = Sampling(temperature=20.0, top_k=280, top_p=0.995, min_p=0.001)
"""All filters on, and so hot that every token is drawn somewhere."""
PENALIZED = Processors(repetition_penalty=1.2)
GREEDILY = Decoding(limit=LIMIT, past_end=True, sampling=GREEDY)
RANDOMLY = Decoding(limit=LIMIT, past_end=True, samples=2, seed=3, sampling=RANDOM, processors=PENALIZED)


def ids(generated: Sequence[Any]) -> list[tuple[int, ...]]:
    return [text.ids for text in generated]


def make_generator(
    model: tuple[Model, Any],
    tokenizer: Tokenizer,
    *,
    batch: int = 40,
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    first: int | None = None,
) -> Generator:
    net, params = model
    mesh = device_mesh.make_mesh(run_config.Mesh(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])
    params = jax.device_put(params, sharding.shardings(mesh, params, net.definition.sharding))
    return Generator(net, params, mesh, tokenizer, dtype=jnp.float32, batch=batch, first=first)


@functools.cache
def gpt_tokenizer() -> Tokenizer:
    return Tokenizer.train(["Call me Ishmael. Some years ago, never mind how long: ≈ 3 µm of 鯨 fat. "] * 4, 290)


@functools.cache
def gpt() -> tuple[Model, Any]:
    """A model with more entries than its tokenizer, one layer of which sees a window."""
    net = small("gpt", pattern=("full", "window"), window=5)
    return net, random_params(net)


@functools.cache
def gpt_generator(**machine: int) -> Generator:
    return make_generator(gpt(), gpt_tokenizer(), **machine)


@functools.cache
def prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, gpt_tokenizer().vocab_size, rng.integers(1, LONGEST + 1)).astype(np.int32) for _ in range(200)]


@functools.cache
def seq2seq_tokenizer() -> Tokenizer:
    text = ["Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse."]
    return Tokenizer.train(text * 8, 200, "sentencepiece")


@functools.cache
def seq2seq(family: str) -> tuple[Model, Any]:
    net = small(family, vocab=seq2seq_tokenizer().vocab_size)
    return net, random_params(net)


@functools.cache
def seq2seq_generator(family: str, **machine: int) -> Generator:
    return make_generator(seq2seq(family), seq2seq_tokenizer(), **machine)


def seq2seq_loaded(family: str) -> Loaded:
    return Loaded(family, *seq2seq(family), seq2seq_tokenizer(), seq2seq_generator(family).mesh)
