"""Late interaction: each query finds its document by the vectors of tokens (Khattab and Zaharia 2020, "ColBERT")."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int64

from train.config.late_interaction_options import LateInteraction, LateInteractionOptions
from train.config.run_config import Run
from train.engine.embedding_losses import candidate_losses
from train.engine.max_sim import max_sim
from train.engine.state_init import TrainedParams
from train.engine.token_projection import projected_tokens, token_projection
from train.objectives.choice import option_rows
from train.objectives.embedding import EmbeddingObjective
from train.rows.batches import Build
from train.rows.example_rows import ExampleRow, special_tokens_of
from train.rows.late_interaction_rows import skipped_ids, without_expansion
from train.tokenizers.tokenizer import Tokenizer
from train.weights.token_modules import read_projection
from zoo.batch import Batch
from zoo.models import Model
from zoo.ops import counter_rng


@dataclasses.dataclass(frozen=True)
class LateInteractionObjective(EmbeddingObjective):
    """Training of the vectors of tokens; see `train.config.late_interaction_options.LateInteraction`.

    The texts of a row are a query, its positive and its negatives; labels, int32 [C], are their numbers in the data. The
    method `vectors` returns those of all tokens of a row: of the `query_length` tokens of its query, then of the T tokens of each
    of its documents. extra["compared"] is float32 [C, T]. key_segments differ from segments in the masks that expand a query.
    """

    OPTIONS = LateInteractionOptions

    # The base class reads its temperature alone; `vectors` has no pooling.
    options: LateInteraction  # pyright: ignore[reportIncompatibleVariableOverride]
    source: str = ""
    """The model whose projection a new run begins with, if it has one."""

    @classmethod
    def bind(cls, run: Run, mesh: Mesh) -> "LateInteractionObjective":
        """Return the objective of a run."""
        return cls(run.options.late_interaction, run.accumulate > 1, run.init)

    @classmethod
    def builder(cls, run: Run, tokenizer: Tokenizer, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Build:
        """Return `build(rng, row, length)` as of the base class, with key_segments and extra["compared"]."""
        build_texts, options = super().builder(run, tokenizer, counts), run.options.late_interaction
        special, skipped = special_tokens_of(tokenizer), skipped_ids(tokenizer, options.skip_punctuation)

        def build(rng: np.random.Generator, row: ExampleRow, length: int) -> dict[str, Any]:
            fields = build_texts(rng, row, length)
            compared = (fields["segments"] > 0) & ~np.isin(fields["tokens"], skipped)
            compared[0] = fields["segments"][0] > 0
            seen = fields["segments"].copy()
            if not options.attend_to_expansion_tokens:
                seen[0, without_expansion(row.inputs[0].ids, special) :] = 0
            return fields | {"key_segments": seen, "extra": {"compared": compared.astype(np.float32)}}

        return build

    def added_params(self, model: Model) -> TrainedParams:
        """Return the projection of tokens, which belongs to the trained model."""
        read = functools.partial(read_projection, self.source) if self.source else None
        return token_projection(model.config.width, self.options.dimensions, read)

    def vectors(self, model: Model, params: Any, batch: Batch, seeds: Any = None) -> Float[Array, "B N E"]:
        """Return the vectors of the tokens of each row, float32, of length 1. Texts of a row have different dropout."""
        parts = []
        for number, part in enumerate(text_sides(batch, self.options.query_length)):
            own = None if seeds is None else counter_rng.fold(seeds, number)
            rows, own = option_rows(part, own)
            states = projected_tokens(params, model.apply(params, rows, seeds=own).hidden)
            parts.append(states.reshape(len(batch.tokens), -1, states.shape[-1]))  # [B, texts * tokens, E]
        return jnp.concatenate(parts, axis=1)

    def row_losses(self, vectors: Float[Array, "B N E"], log_scale: Float[Array, ""], batch: Batch) -> Float[Array, " B"]:
        """Return the cross-entropy of each row's positive among the documents of all rows, in nats."""
        assert batch.labels is not None and batch.extra is not None
        queries, documents, in_query, in_document = split_tokens(vectors, batch.extra["compared"], self.options.query_length)
        scores = jnp.exp(log_scale) * max_sim(queries, documents, in_query, in_document)
        return candidate_losses(scores, batch.labels, mask_duplicates=self.options.mask_duplicates)

    def forward_flops(self, model: Model, batch: Batch) -> float:
        """Return the FLOPs of the model, of the projection and of the products of tokens."""
        rows, texts, length = batch.tokens.shape
        first, documents, size = self.options.query_length, rows * (texts - 1), self.options.dimensions
        shapes = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((rows, first), (documents, length))]
        body = sum(model.flops(Batch(tokens=shape)) for shape in shapes)
        projection = 2.0 * (rows * first + documents * length) * model.config.width * size
        return body + projection + 2.0 * rows * first * documents * length * size


OBJECTIVE = LateInteractionObjective


def text_sides(batch: Batch, query_length: int) -> tuple[Batch, Batch]:
    """Return the queries [B, 1, `query_length`] and the documents [B, C - 1, T] of a batch [B, C, T]."""
    names = ("tokens", "segments", "key_segments", "positions", "types")
    fields = {name: field for name in names if (field := getattr(batch, name)) is not None}
    queries = Batch(**{name: field[:, :1, :query_length] for name, field in fields.items()})
    # A document has no tokens that are not seen.
    return queries, Batch(**{name: field[:, 1:] for name, field in fields.items() if name != "key_segments"})


def split_tokens(
    vectors: Float[Array, "B N E"], compared: Float[Array, "B C T"], query_length: int
) -> tuple[Float[Array, "B Q E"], Float[Array, "M T E"], Bool[Array, "B Q"], Bool[Array, "M T"]]:
    """Return the vectors of queries and of all documents, M = B * (C - 1), and which of them are compared."""
    length = compared.shape[-1]
    documents = vectors[:, query_length:].reshape(-1, length, vectors.shape[-1])
    return vectors[:, :query_length], documents, compared[:, 0, :query_length] > 0, compared[:, 1:].reshape(-1, length) > 0
