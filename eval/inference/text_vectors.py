"""Vectors of texts: hidden states of an encoder, pooled, with the dense layers and prompts that its folder has."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from eval.inference.batch_loop import Progress, no_progress
from eval.inference.encoder_runner import Encoder, EncoderRow, Text
from train.weights.load import Loaded
from zoo.batch import Batch
from zoo.configs._pooling import DenseActivation, Pool
from zoo.embedding_modules import DenseLayer, EmbeddingModules, read_modules
from zoo.errors import BadInput, require
from zoo.models import Model
from zoo.nn.pooling import SMALLEST, pool_tokens


def modules_of(loaded: Loaded) -> EmbeddingModules:
    """Return the modules in the folder of a model; those of a plain encoder (mean, not normalized) if there are none.

    Raises:
        BadInput: see `zoo.embedding_modules.read_modules`.
    """
    modules = None if loaded.folder is None else read_modules(loaded.folder)
    return EmbeddingModules() if modules is None else modules


def embed_texts(
    encoder: Encoder,
    texts: Sequence[Text],
    modules: EmbeddingModules,
    *,
    prompt: str = "",
    dimensions: int = 0,
    truncate: bool = False,
    progress: Progress = no_progress,
) -> Float32[np.ndarray, "N D"]:
    """Return a vector for each text, from the last hidden states.

    Args:
        prompt: text that is put before each of the texts.
        dimensions: number of first dimensions to return, before normalization (Kusupati et al. 2022, "Matryoshka Representation
            Learning"); 0 = all.
        truncate: cut the end off a text that is too long.
        progress: called with (texts done, all texts).

    Raises:
        BadInput: a text that is too long, a vector that is not finite, more dimensions than there are, or dense layers of
            another model.
    """
    hidden, where = encoder.loaded.model.config.width, encoder.loaded.where
    sizes = [(f"layer {number}", layer.kernel.shape[1]) for number, layer in enumerate(modules.dense, 1)]
    outputs = [hidden, *(len(layer.kernel) for layer in modules.dense)]
    for (name, size), width in zip(sizes, outputs, strict=False):
        if size != width:
            raise BadInput(f"{where}: dense {name} has {size} inputs, and gets {width} dimensions; use the files of one model")
    width = modules.width(hidden)
    require(0 <= dimensions <= width, "dimensions", dimensions, f"choose 1 to {width}, or 0 for all {width} of {where}")
    if modules.longest:
        encoder = dataclasses.replace(encoder, room=min(encoder.room, modules.longest))
    tokenizer = encoder.loaded.tokenizer
    strings = (prompt + text for _, text in texts)
    ids = list(tokenizer.encode_many((text.lower() for text in strings) if modules.lowercase else strings))
    tokens = [
        encoder.with_special_tokens(text_ids, where, truncate=truncate) for text_ids, (where, _) in zip(ids, texts, strict=True)
    ]
    rows = [EncoderRow(number, texts[number].where, text_tokens) for number, text_tokens in enumerate(tokens)]
    pooled = np.empty((len(rows), hidden), np.float32)
    skip = 0
    if prompt and not modules.include_prompt and modules.pool != "last":
        # The special token at the end is not one of the prompt's.
        skip = len(encoder.special_tokens.single(tokenizer.encode(prompt.lower() if modules.lowercase else prompt))[0]) - 1
    for done, (row, (vector,)) in enumerate(encoder.run(rows, _Pooled(modules.pool, skip)), 1):
        pooled[row.number] = vector
        progress(done, len(rows))
    vectors = dense_output(modules.dense, pooled)[:, : dimensions or width]
    return unit_rows(vectors) if modules.normalize else np.ascontiguousarray(vectors)


def dense_output(layers: Sequence[DenseLayer], vectors: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "N E"]:
    """Return the output of dense layers, in float32."""
    for layer in layers:
        vectors = vectors @ layer.kernel.T
        vectors = _activations()[layer.activation](vectors if layer.bias is None else vectors + layer.bias).astype(np.float32)
    return vectors


def unit_rows(vectors: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "N D"]:
    """Return each vector divided by its Euclidean length; zeros stay zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(SMALLEST))


def _activations() -> Mapping[DenseActivation, Callable[[np.ndarray], np.ndarray]]:
    # Imported here, because the import takes a second.
    from scipy import special

    return {
        "identity": lambda x: x,
        "tanh": np.tanh,
        "relu": lambda x: np.maximum(x, 0),
        "gelu": lambda x: x * 0.5 * (1 + special.erf(x / np.sqrt(2))),
        "silu": lambda x: x * special.expit(x),
        "sigmoid": special.expit,
    }


@dataclasses.dataclass(frozen=True)
class _Pooled:
    """The computation of the pooled vectors, float32 [B, D]."""

    pool: Pool
    skip: int
    """Number of first tokens that are not pooled."""

    def __call__(self, model: Model, params: Any, batch: Batch) -> tuple[jax.Array]:
        hidden = model.apply(params, batch).hidden.astype(jnp.float32)
        if self.skip:
            assert batch.segments is not None
            position = jnp.arange(hidden.shape[1])
            batch = dataclasses.replace(batch, segments=jnp.where(position < self.skip, 0, batch.segments))
        return (pool_tokens(hidden, batch, self.pool),)
