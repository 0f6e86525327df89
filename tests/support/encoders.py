"""Small encoders with real tokenizers, in memory and as published folders, for the tests of what is asked of them."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.inference.encoder_runner import Encoder, Text
from tests.support.small import random_params, small
from train.config import run_config
from train.engine import device_mesh
from train.tokenizers import hf_files
from train.tokenizers.tokenizer import Kind, Tokenizer
from train.weights.load import Loaded
from zoo import published_weights
from zoo.batch import Batch
from zoo.models import Model, model
from zoo.sharding import shardings

TEXT = "The whale is seen by the old men of the ship. The capital of France is Paris, and the white whale sleeps; naïve. "
KINDS: dict[str, Kind] = {"bert": "wordpiece", "roberta": "roberta", "distilbert": "wordpiece", "modernbert": "modernbert"}
ANY: dict[str, Kind] = {**KINDS, "xlnet": "xlnet"}
POSITIONS = 40


@functools.cache
def tokenizer(kind: Kind) -> Tokenizer:
    return Tokenizer.train([TEXT] * 5, 400, kind)


@functools.cache
def loaded(family: str, task: str = "masked", shape: tuple[int, int, int] = (1, 1, 1)) -> Loaded:
    """A model of random weights on data x fsdp x tensor devices; its vocabulary is larger than its tokenizer's."""
    words = tokenizer(ANY[family])
    net = small(family, task=task, vocab=words.vocab_size + 5, **({"context": POSITIONS} if family in KINDS else {}))
    data, fsdp, tensor = shape
    mesh = device_mesh.make_mesh(run_config.Mesh(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])
    params = jax.device_put(random_params(net), shardings(mesh, random_params(net), net.definition.sharding))
    return Loaded(f"small {family}", net, params, words, mesh)


def regression() -> Loaded:
    """Return a small BERT whose head gives one number for a text."""
    classifier = loaded("bert", "sequence")
    head = {name: leaf[..., :1] for name, leaf in classifier.params["classifier"].items()}
    cfg = dataclasses.replace(classifier.model.config, labels=("score",))
    return dataclasses.replace(classifier, model=model(cfg), params={**classifier.params, "classifier": head})


def encoder(family: str, batch: int = 4, **which: Any) -> Encoder:
    return Encoder.of(loaded(family, **which), batch=batch, dtype=jnp.float32)


def folder(path: Path, family: str, task: str = "masked") -> Path:
    made = loaded(family, task)
    path.mkdir()
    published_weights.save_published(path, made.model.config, made.params)
    hf_files.write_tokenizer(path, made.tokenizer, longest=POSITIONS)
    return path


def texts(*given: str) -> list[Text]:
    return [Text(f"text {number}", text) for number, text in enumerate(given, 1)]


def hidden(made: Loaded, tokens: Sequence[int]) -> np.ndarray:
    """float32 [T, D]: the hidden states of a row alone, without padding."""
    return np.asarray(_forward(made.model)(made.params, jnp.array([tokens], jnp.int32))[0][0])


def logs(made: Loaded, tokens: Sequence[int], at: int) -> np.ndarray:
    """float64 [V]: log-probabilities of the vocabulary at a position of a row alone, the softmax in numpy."""
    values = np.asarray(_forward(made.model)(made.params, jnp.array([tokens], jnp.int32))[1][0, at], np.float64)
    values = values[: made.model.config.vocab]
    return values - np.log(np.exp(values - values.max()).sum()) - values.max()


@functools.cache
def _forward(net: Model) -> Any:
    def forward(params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        states = net.apply(params, Batch(tokens=tokens)).hidden
        return states, net.unembed(params, states)

    return jax.jit(forward)


def gpt() -> Loaded:
    net, words = small("gpt"), Tokenizer.train([TEXT] * 5, 300)
    return Loaded("gpt", net, {}, words, loaded("bert").mesh)


def with_tokenizer(made: Loaded, words: Tokenizer) -> Loaded:
    return dataclasses.replace(made, tokenizer=words)


def broken(family: str, word: str) -> Encoder:
    made = loaded(family)
    (entry,) = made.tokenizer.encode(word).tolist()
    table = made.params["embed"]["tokens"]["embedding"].at[entry].set(jnp.nan)
    params = {**made.params, "embed": {**made.params["embed"], "tokens": {"embedding": table}}}
    return Encoder.of(dataclasses.replace(made, params=params), batch=4, dtype=jnp.float32)
