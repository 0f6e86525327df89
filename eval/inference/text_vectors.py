"""Vectors of texts: hidden states of an encoder, pooled, with the dense layers and prompts that its folder has."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from eval.inference.batch_loop import Progress, no_progress
from eval.inference.encoder_inputs import TaskVectors
from eval.inference.encoder_runner import Encoder, EncoderRow, Text
from train.weights.load import Loaded
from train.weights.token_modules import loaded_modules
from zoo.batch import Batch
from zoo.configs._pooling import DOCUMENT_NAMES, QUERY_NAMES, DenseActivation, Pool
from zoo.embedding_modules import DenseLayer, EmbeddingModules
from zoo.errors import BadInput, require
from zoo.models import Model
from zoo.nn.pooling import SMALLEST, pool_tokens

Side = Literal["sentence", "query", "document"]
SIDES: dict[Side, tuple[str, ...]] = {"sentence": (), "query": QUERY_NAMES, "document": DOCUMENT_NAMES}
"""Side of a comparison -> names of the model's prompts for it."""


def modules_of(loaded: Loaded) -> EmbeddingModules:
    """Return the modules in the folder of a model; those of a plain encoder (mean, not normalized) if there are none.

    Raises:
        BadInput: see `zoo.embedding_modules.read_modules`.
    """
    modules = loaded_modules(loaded)
    return EmbeddingModules() if modules is None else modules


def embed_texts(
    encoder: Encoder,
    texts: Sequence[Text],
    modules: EmbeddingModules,
    *,
    prompt: str = "",
    dimensions: int = 0,
    truncate: bool = False,
    cut: list[str] | None = None,
    progress: Progress = no_progress,
) -> Float32[np.ndarray, "N D"]:
    """Return a vector for each text, from the last hidden states.

    Args:
        prompt: text that is put before each of the texts.
        dimensions: number of first dimensions to return, before normalization (Kusupati et al. 2022, "Matryoshka Representation
            Learning"); 0 = all.
        truncate: cut the end off a text that is too long.
        cut: list to which the names of such texts are added.
        progress: called with (texts done, all texts).

    Raises:
        BadInput: a text that is too long, a vector that is not finite, more dimensions than there are, or dense layers of
            another model.
    """
    hidden, where = encoder.loaded.model.config.width, encoder.loaded.where
    if modules.multi_vector:
        fix = "use it with `zoo eval --task retrieval` or `rerank`, or with `zoo search --rerank`"
        raise BadInput(f"{where}: it has a vector for each token, not one for a text; {fix}")
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
    if cut is not None:
        special = len(encoder.special_tokens.single(np.zeros(0, np.int32))[0])
        cut += [where for text_ids, (where, _) in zip(ids, texts, strict=True) if len(text_ids) + special > encoder.room]
    rows = [EncoderRow(number, texts[number].where, text_tokens) for number, text_tokens in enumerate(tokens)]
    pooled = np.empty((len(rows), hidden), np.float32)
    skip = 0
    if prompt and not modules.include_prompt and modules.pool != "last":
        # The special token at the end is not one of the prompt's.
        skip = len(encoder.special_tokens.single(tokenizer.encode(prompt.lower() if modules.lowercase else prompt))[0]) - 1
    for done, (row, (vector,)) in enumerate(encoder.run(rows, _Pooled(modules.pool, skip), by_length=True), 1):
        pooled[row.number] = vector
        progress(done, len(rows))
    vectors = dense_output(modules.dense, pooled)[:, : dimensions or width]
    return unit_rows(vectors) if modules.normalize else np.ascontiguousarray(vectors)


@dataclasses.dataclass(frozen=True, eq=False)
class TaskEmbedder:
    """The vectors of a task's texts, by the files of the model and the options of the task."""

    encoder: Encoder
    modules: EmbeddingModules
    options: TaskVectors
    truncate: bool = True
    """Cut the ends off texts that are too long, as is usual in these tasks."""
    cut: list[str] = dataclasses.field(default_factory=list)
    """Names of the texts that were cut; they are reported."""

    @staticmethod
    def of(loaded: Loaded, options: TaskVectors, *, batch: int, dtype: Any, truncate: bool = True) -> "TaskEmbedder":
        """Return the vectors of a loaded encoder.

        Raises:
            BadInput: see `Encoder.of` and `modules_of`.
        """
        modules = modules_of(loaded)
        pool = modules.pool if options.pool == "auto" else options.pool
        encoder = Encoder.of(loaded, batch=batch, dtype=dtype)
        return TaskEmbedder(encoder, dataclasses.replace(modules, pool=pool), options, truncate)

    def vectors(self, texts: Sequence[Text], side: Side, progress: Progress = no_progress) -> Float32[np.ndarray, "N D"]:
        """Return vectors whose dot product is the similarity of the model, cosine or dot; of "sentence"s always the cosine.

        Raises:
            BadInput: see `embed_texts`; or the model compares vectors in another way.
        """
        is_dot = side != "sentence" and check_similarity(self.encoder.loaded, self.modules) == "dot"
        vectors = embed_texts(
            self.encoder,
            texts,
            self.modules,
            prompt=self.prompt(side),
            dimensions=self.options.dimensions,
            truncate=self.truncate,
            cut=self.cut,
            progress=progress,
        )
        return vectors if is_dot else unit_rows(vectors)

    def prompt(self, side: Side) -> str:
        """Return the text that is put before the texts of a side."""
        own = {"query": self.options.query_prompt, "document": self.options.document_prompt}.get(side)
        return self.modules.side_prompt(SIDES[side]) if own is None else own

    @property
    def longest(self) -> int:
        """Most tokens of a text, special tokens included."""
        return min(self.encoder.room, self.modules.longest or self.encoder.room)

    def details(self) -> dict[str, Any]:
        """Return what a result says about the texts that were cut; nothing if there are none."""
        if not self.cut:
            return {}
        return {"too long": f"{len(self.cut):,} texts were cut to {self.longest:,} tokens, the first at {self.cut[0]}"}


def check_similarity(loaded: Loaded, modules: EmbeddingModules) -> Literal["cosine", "dot"]:
    """Return how the vectors of a model are compared.

    Raises:
        BadInput: by a distance.
    """
    if modules.similarity not in ("cosine", "dot"):
        fix = "write cosine or dot as similarity_fn_name in config_sentence_transformers.json"
        raise BadInput(f"{loaded.where}: search by {modules.similarity} distance is not supported; {fix}")
    return modules.similarity


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
