"""Vectors of the tokens of texts, by the files of a multi-vector model, and ranking by MaxSim (Khattab and Zaharia 2020)."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int64

from eval.inference.batch_loop import Progress, no_progress
from eval.inference.encoder_inputs import TaskVectors
from eval.inference.encoder_runner import Encoder, EncoderRow, Text
from eval.inference.text_vectors import dense_output, modules_of, unit_rows
from train.engine.max_sim import max_sim
from train.rows.example_rows import TemplateIds
from train.rows.late_interaction_rows import expanded, side_ids, skipped_ids
from train.weights.load import Loaded
from zoo.batch import Batch
from zoo.configs._pooling import DOCUMENT_NAMES, QUERY_NAMES
from zoo.embedding_modules import EmbeddingModules
from zoo.errors import BadInput, require
from zoo.models import Model
from zoo.multi_vector_files import MultiVector

TokenVectors = list[Float32[np.ndarray, "_ E"]]
"""The vectors of the tokens of each text that are compared, of length 1."""
DOCUMENTS = 256
"""Documents of a block, whose vectors are padded to those of the longest of them."""
QUERIES = 64
"""Queries of a block."""


def is_multi_vector(loaded: Loaded) -> bool:
    """Return whether a model has a vector for each token of a text.

    Raises:
        BadInput: see `modules_of`.
    """
    return modules_of(loaded).multi_vector is not None


@dataclasses.dataclass(frozen=True, eq=False)
class TokenEmbedder:
    """The vectors of the tokens of a task's texts, by the files of the model and the options of the task."""

    encoder: Encoder
    modules: EmbeddingModules
    settings: MultiVector
    options: TaskVectors
    truncate: bool
    """Cut the ends off texts that are too long."""
    cut: list[str] = dataclasses.field(default_factory=list)
    """Names of the texts that were cut."""

    @staticmethod
    def of(loaded: Loaded, options: TaskVectors, *, batch: int, dtype: Any, truncate: bool = True) -> "TokenEmbedder":
        """Return the vectors of a loaded multi-vector model.

        Raises:
            BadInput: a model with one vector for a text, options that such models do not have, layers of another model; see also
                `Encoder.of`.
        """
        modules, where = modules_of(loaded), loaded.where
        if (settings := modules.multi_vector) is None:
            fix = "name a folder with 1_Dense and no Pooling (ColBERT), or a run of embed-late-interaction"
            raise BadInput(f"{where}: it has one vector for a text, and MaxSim compares those of tokens; {fix}")
        require(options.pool == "auto", "vectors.pool", options.pool, f"{where} has a vector for each token; remove it")
        fix = f"all {modules.width(loaded.model.config.width)} dimensions of {where} are compared; remove it"
        require(options.dimensions == 0, "vectors.dimensions", options.dimensions, fix)
        width = loaded.model.config.width
        for number, layer in enumerate(modules.dense, 1):
            if layer.kernel.shape[1] != width:
                sizes = f"has {layer.kernel.shape[1]} inputs, and gets {width} dimensions"
                raise BadInput(f"{where}: dense layer {number} {sizes}; use the files of one model")
            width = len(layer.kernel)
        return TokenEmbedder(Encoder.of(loaded, batch=batch, dtype=dtype), modules, settings, options, truncate)

    def vectors(
        self, texts: Sequence[Text], side: Literal["query", "document"], progress: Progress = no_progress
    ) -> TokenVectors:
        """Return the vectors of texts as queries or as documents.

        Raises:
            BadInput: a text that is too long and not to be cut.
        """
        modules, settings, is_query = self.modules, self.settings, side == "query"
        own, names = self.options.document_prompt, DOCUMENT_NAMES
        if is_query:
            own, names = self.options.query_prompt, QUERY_NAMES
        prompt = modules.side_prompt(names) if own is None else own
        room = self.room(side)
        encoder, tokenizer = dataclasses.replace(self.encoder, room=room), self.encoder.loaded.tokenizer
        strings = (text for _, text in texts)
        ids = side_ids(tokenizer, strings, prompt, lowercase=modules.lowercase, any_entry=settings.has_markers)
        special, rows = encoder.special_tokens, []
        for number, (text_ids, (where, _)) in enumerate(zip(ids, texts, strict=True)):
            tokens = encoder.with_special_tokens(text_ids, where, truncate=self.truncate)
            if len(text_ids) + len(special.single(np.zeros(0, np.int32))[0]) > room:
                self.cut.append(where)
            row = EncoderRow(number, where, tokens)
            if is_query and settings.query_expansion:
                query = TemplateIds(tokens, special.single(np.zeros(len(tokens) - 2, np.int32))[1])
                inputs = expanded(query, special, room)
                seen = room if settings.attend_to_expansion_tokens else len(tokens)
                row = EncoderRow(number, where, inputs.ids, types=inputs.types, seen=seen)
            rows.append(row)
        skipped = np.zeros(0, np.int32) if is_query else skipped_ids(tokenizer, settings.skiplist_words)
        vectors: TokenVectors = [np.zeros((0, 0), np.float32)] * len(rows)
        for done, (row, (hidden,)) in enumerate(encoder.run(rows, _hidden), 1):
            compared = ~np.isin(row.tokens, skipped)
            vectors[row.number] = unit_rows(dense_output(modules.dense, hidden[: len(row.tokens)][compared]))
            progress(done, len(rows))
        return vectors

    def room(self, side: Literal["query", "document"]) -> int:
        """Return the most tokens of a text."""
        settings, room = self.settings, self.encoder.room
        lengths = (settings.query_length if side == "query" else settings.document_length, self.modules.longest)
        longest = next((length for length in lengths if length), room)
        fix = "write at most that as query_length in its config_sentence_transformers.json (query_maxlen in artifact.metadata)"
        if side == "query" and settings.query_expansion and longest > room:
            raise BadInput(f"{self.encoder.loaded.where}: its queries have {longest} tokens, and it reads at most {room}; {fix}")
        return min(longest, room)

    def details(self) -> dict[str, Any]:
        """Return what a result says about the texts that were cut; nothing if there are none."""
        if not self.cut:
            return {}
        lengths = f"{self.room('query'):,} tokens (queries) or {self.room('document'):,} (documents)"
        return {"too long": f"{len(self.cut):,} texts were cut to {lengths}, the first at {self.cut[0]}"}


def max_sim_scores(
    queries: TokenVectors, documents: TokenVectors, progress: Progress = no_progress
) -> Float32[np.ndarray, "Q N"]:
    """Return the MaxSim of every document for every query, computed in float32 for blocks of queries and documents.

    In memory are all vectors, without padding, and those of a block with it. Equal documents have equal scores.
    """
    # Documents of similar lengths have little padding.
    order = np.argsort([len(document) for document in documents], kind="stable")
    scores = np.empty((len(queries), len(documents)), np.float32)
    for start in range(0, len(documents), DOCUMENTS):
        rows = order[start : start + DOCUMENTS]
        of_documents = jax.device_put(_padded([documents[row] for row in rows], DOCUMENTS))
        for first in range(0, len(queries), QUERIES):
            group = queries[first : first + QUERIES]
            block = np.asarray(jax.device_get(_scores(*jax.device_put(_padded(group, QUERIES)), *of_documents)))
            scores[first : first + len(group), rows] = block[: len(group), : len(rows)]
        progress(min(start + DOCUMENTS, len(documents)), len(documents))
    return scores


def best_documents(scores: Float32[np.ndarray, "Q N"], k: int) -> Int64[np.ndarray, "Q k"]:
    """Return the columns of the k largest scores of each row in descending order; of equal scores the first comes first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def late_interaction_scores(
    loaded: Loaded, query: Text, documents: Sequence[Text], *, batch: int, dtype: Any, truncate: bool
) -> Float32[np.ndarray, " N"]:
    """Return the MaxSim of texts for a query, by a multi-vector model: the second stage of a search.

    Documents that are too long are cut.

    Raises:
        BadInput: see `TokenEmbedder.of`; or the query is too long, and `truncate` is False.
    """
    options = TaskVectors()
    of_query = TokenEmbedder.of(loaded, options, batch=batch, dtype=dtype, truncate=truncate).vectors([query], "query")
    of_documents = TokenEmbedder.of(loaded, options, batch=batch, dtype=dtype).vectors(documents, "document")
    return max_sim_scores(of_query, of_documents)[0]


def _padded(vectors: TokenVectors, count: int) -> tuple[Float32[np.ndarray, "count T E"], Bool[np.ndarray, "count T"]]:
    """Return the vectors of texts as an array, whose texts are few different numbers, and which of its tokens there are."""
    # At most `count` texts, or the next power of two where there are fewer, so that few programs are compiled.
    rows = min(count, 1 << (len(vectors) - 1).bit_length())
    length = max(len(tokens) for tokens in vectors)
    length = max(8, 1 << (length - 1).bit_length())
    array = np.zeros((rows, length, vectors[0].shape[1]), np.float32)
    compared = np.zeros(array.shape[:2], bool)
    # A text that only fills the array has one token of zeros.
    compared[:, 0] = True
    for row, tokens in enumerate(vectors):
        array[row, : len(tokens)], compared[row, : len(tokens)] = tokens, True
    return array, compared


@jax.jit
def _scores(
    queries: Float32[Array, "Q T E"],
    in_query: Bool[Array, "Q T"],
    documents: Float32[Array, "M S E"],
    in_document: Bool[Array, "M S"],
) -> Float32[Array, "Q M"]:
    return max_sim(queries, documents, in_query, in_document)


def _hidden(model: Model, params: Any, batch: Batch) -> tuple[jax.Array]:
    return (model.apply(params, batch).hidden.astype(jnp.float32),)
