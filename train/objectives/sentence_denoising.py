"""Denoising of sentences: a text is reconstructed from the vector of what is left of it (Wang et al. 2021, "TSDAE").

As in the paper the decoder sees of the encoder's output one vector only, and deletion is the only noise. Unlike the paper's, it
is not the encoder itself with its weights and an additional cross-attention: it has layers of its own, by default one, and shares
the word embeddings alone. Its logits are products with these, without the transform of BERT's head.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Int32, Int64

from train.config.run_config import Run
from train.config.sentence_denoising_options import SentenceDenoising, SentenceDenoisingOptions
from train.engine.losses import token_losses
from train.engine.sentence_decoder import SentenceDecoder
from train.engine.state_init import TrainedParams
from train.objectives.base import LabelledObjective
from train.rows.batch_counts import counted_targets
from train.rows.batches import Build
from train.rows.example_rows import ExampleRow, TemplateIds, is_typed, padded_row, special_tokens_of
from train.rows.seq2seq_rows import concatenate_texts
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.models import Model
from zoo.nn.pooling import pool_tokens


@dataclasses.dataclass(frozen=True)
class DenoisedSentences(LabelledObjective):
    """Training of the vectors of texts; see `train.config.sentence_denoising_options.SentenceDenoising`.

    source is the noisy text with special tokens: tokens, segments, positions and types, int32 [T], with XLNet's special tokens
    also summary_at, int32 [1]. targets is the text and `sep`, and tokens the input of the decoder at each of them, `cls` and the
    text; both are int32 [T], with segments and positions. weights, float32 [T], is 1, or 0 for padding.
    """

    OPTIONS = SentenceDenoisingOptions

    options: SentenceDenoising

    @classmethod
    def bind(cls, run: Run, mesh: Mesh) -> "DenoisedSentences":
        """Return the objective of a run."""
        return cls(run.options.sentence_denoising)

    @classmethod
    def builder(cls, run: Run, tokenizer: Tokenizer, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Build:
        """Return `build(rng, row, length)`, which deletes other words in each epoch."""
        special, share = special_tokens_of(tokenizer), run.options.sentence_denoising.deletion
        typed, starts = is_typed(run.model.types, special), tokenizer.word_starts()

        def build(rng: np.random.Generator, row: ExampleRow, length: int) -> dict[str, Any]:
            (inputs,) = row.inputs
            # The template of a text has two special tokens.
            ids = inputs.ids[special.before : special.before + len(inputs.ids) - 2]
            noisy = TemplateIds(*special.single(ids[left_tokens(rng, ids, starts, share)]))
            decoder: dict[str, Any] = {**concatenate_texts([np.append(special.cls, ids)], length, special.pad)}
            targets = concatenate_texts([np.append(ids, special.sep)], length, special.pad)["tokens"]
            weights = (decoder["segments"] > 0).astype(np.float32)
            source: dict[str, Any] = {**padded_row(noisy, length, special, typed=typed)}
            return decoder | {"targets": targets, "weights": weights, "source": Batch(**source)}

        return build

    @classmethod
    def text_ids(cls, run: Run, batch: Batch) -> list[Int[np.ndarray, " _"]]:
        """Return the ids of the text of a batch: the targets, of which the source is a part."""
        return [counted_targets(batch)]

    @classmethod
    def target_options(cls, run: Run, counts: Callable[[], Int64[np.ndarray, " V"]]) -> dict[str, Any]:
        """Return the share of deleted words, on which held-out losses depend."""
        return super().target_options(run, counts) | {"sentence_denoising.deletion": run.options.sentence_denoising.deletion}

    def decoder(self, model: Model) -> SentenceDecoder:
        """Return the decoder of a model's vectors."""
        return SentenceDecoder(model.config, self.options.decoder_layers)

    def added_params(self, model: Model) -> TrainedParams:
        """Return the decoder, which belongs to training and to its scores alone."""
        return self.decoder(model).params()

    def vectors(self, model: Model, params: Any, batch: Batch, seeds: Any = None) -> Float[Array, "B D"]:
        """Return the pooled vectors of the noisy texts, float32."""
        source = batch.source
        assert source is not None
        return pool_tokens(model.apply(params, source, seeds=seeds).hidden.astype(jnp.float32), source, self.options.pool)

    def token_nats(
        self, model: Model, params: Any, batch: Batch, *, seeds: Any = None, smoothing: float = 0.0, chunk: int = 0
    ) -> Float[Array, "B T"]:
        """Return the cross-entropy in nats of each target, float32, padding included; the arguments are those of `loss`."""
        assert batch.targets is not None
        decoder, table = self.decoder(model), params["embed"]["tokens"]["embedding"]
        vectors = self.vectors(model, params, batch, seeds).astype(table.dtype)
        hidden = decoder.states(params, vectors, batch, seeds)
        sizes = {"vocabulary": model.config.vocab, "smoothing": smoothing, "chunk": chunk}
        return token_losses(Partial(decoder.logits, table), hidden, batch.targets, **sizes)

    def loss(
        self, model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
    ) -> tuple[dict[str, jax.Array], Any]:
        """Return the summed cross-entropy of the tokens of the texts, in nats, and the model's carry."""
        assert batch.weights is not None
        nats = self.token_nats(model, params, batch, seeds=seeds, smoothing=smoothing, chunk=chunk)
        return {self.target_term: (nats * batch.weights).sum()}, carry

    def forward_flops(self, model: Model, batch: Batch) -> float:
        """Return the FLOPs of a forward pass of the model and of the decoder."""
        assert batch.source is not None
        return model.flops(batch.source) + self.decoder(model).flops(*batch.tokens.shape)


OBJECTIVE = DenoisedSentences


def left_tokens(
    rng: np.random.Generator, ids: Int32[np.ndarray, " n"], starts: Bool[np.ndarray, " V"], share: float
) -> Bool[np.ndarray, " n"]:
    """Return which tokens of a text are left if each word is deleted with the probability `share`, but never the last one left.

    Args:
        starts: whether each entry of the vocabulary begins a word. The first token of a text does too.
    """
    if not len(ids):
        return np.zeros(0, bool)
    words = np.cumsum(starts[ids])
    words -= words[0]
    left = rng.random(words[-1] + 1) >= share
    if not left.any():
        left[rng.integers(len(left))] = True
    return left[words]
