"""A decoder that reconstructs a text from its vector alone (Wang et al. 2021, "TSDAE", section 3).

It belongs to training alone: the leaves `sentence_decoder/layers/...` lie beside those of the model, in checkpoints too, and no
export has them. Its layers are those of Vaswani et al. 2017, section 3.1. Attention to a single key has the weight 1 whatever the
query is, so cross-attention to the vector v is a linear map of it, W_o W_v v, which all positions add; here it is one matrix.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from train.engine.state_init import TrainedParams
from zoo.attention.masks import Mask
from zoo.batch import Batch
from zoo.configs._encoder import BodyConfig
from zoo.nn.encoder import initializer
from zoo.nn.kv_cache import self_mask
from zoo.nn.layer_stack import Layer, init_stack, run_stack
from zoo.nn.layers import (
    LayerNorm,
    Linear,
    Mlp,
    Seeds,
    SelfAttention,
    dropout,
    fold_seeds,
    lookup,
    tied_logits,
    token_positions,
)
from zoo.ops import positions
from zoo.sharding import constrain_tokens

DECODER = "sentence_decoder"
STREAM = 1 << 16
"""Number of the decoder's stream of dropout, above those of a model's layers."""
EMBEDDING_SITE = 0
WEIGHTS_SITE, ATTENTION_SITE, VECTOR_SITE, MLP_SITE = range(4)


@dataclasses.dataclass(frozen=True)
class SentenceDecoder:
    """A causal decoder over the word embeddings of an encoder, without parameters; heads and widths are those of the encoder."""

    config: BodyConfig
    layers: int

    def params(self) -> TrainedParams:
        """Return new parameters, initialized like those of the encoder, with their sharding."""

        def init(key: Array) -> Any:
            # The model's own parameters are sampled from the same key.
            key = jax.random.fold_in(key, STREAM)
            return {DECODER: {"layers": init_stack(functools.partial(DecoderLayer, self.config), key, self.layers)}}

        rules = ((f"{DECODER}/layers/vector/kernel", ("fsdp", None)), (f"{DECODER}/layers/vector/bias", (None,)))
        return TrainedParams(init, rules, has_use=True)

    def states(self, params: Any, vectors: Float[Array, "B D"], batch: Batch, seeds: Seeds = None) -> Float[Array, "B T D"]:
        """Return the hidden states that predict `batch.targets` from the vectors and from `batch.tokens` up to each position.

        Embeddings are multiplied by sqrt(D) and have sinusoids added (Vaswani et al. 2017, sections 3.4 and 3.5).

        Args:
            params: the parameters of the model and of the decoder.
            vectors: in the dtype of the parameters.
        """
        cfg, seeds, mask = self.config, fold_seeds(seeds, STREAM), self_mask(batch)
        words = lookup(params["embed"]["tokens"]["embedding"], batch.tokens, rows="tensor")
        at = positions.sinusoids_at(token_positions(batch), cfg.width).astype(words.dtype)
        x = dropout(words * jnp.asarray(math.sqrt(cfg.width), words.dtype) + at, cfg.dropout, seeds, EMBEDDING_SITE)

        def body(layer: DecoderLayer, x: Array, place: Layer) -> tuple[Array, None]:
            return constrain_tokens(layer(x, vectors, mask, fold_seeds(seeds, place.index + 1))), None

        return run_stack(
            functools.partial(DecoderLayer, cfg), params[DECODER]["layers"], body, constrain_tokens(x), compute=cfg.compute
        )[0]

    def logits(self, table: Float[Array, "rows D"], hidden: Float[Array, "*B D"]) -> Float[Array, "*B rows"]:
        """Return float32 logits by the table of word embeddings."""
        return tied_logits(hidden, table, self.config.vocab)

    def flops(self, rows: int, length: int) -> float:
        """Return the matrix-product FLOPs of a forward pass with the logits; attention counts in full, T x T."""
        cfg, tokens = self.config, float(rows * length)
        per_token = 4 * cfg.width * cfg.width + 2 * cfg.width * cfg.ffn + 2 * length * cfg.width
        return 2.0 * self.layers * (tokens * per_token + rows * cfg.width**2) + 2.0 * tokens * cfg.width * cfg.vocab


class DecoderLayer(nnx.Module):
    """A layer: norm(x + attention(x)), norm(x + vector . W + b), then norm(x + mlp(x))."""

    def __init__(self, cfg: BodyConfig, rngs: nnx.Rngs):
        init = initializer(cfg)
        self.cfg = cfg
        self.attention = SelfAttention(cfg.width, cfg.heads, cfg.head, init, init, rngs)
        self.norm1 = LayerNorm(cfg.width, cfg.eps)
        self.vector = Linear("bd,de->be", (cfg.width, cfg.width), (cfg.width,), init, rngs)
        self.norm2 = LayerNorm(cfg.width, cfg.eps)
        self.mlp = Mlp(cfg.width, cfg.ffn, cfg.activation, init, init, rngs)
        self.norm3 = LayerNorm(cfg.width, cfg.eps)

    def __call__(self, x: Float[Array, "B T D"], vectors: Float[Array, "B D"], mask: Mask, seeds: Seeds) -> Float[Array, "B T D"]:
        cfg = self.cfg
        weight_seeds = fold_seeds(seeds, WEIGHTS_SITE)
        y, _ = self.attention(x, mask, dropout=cfg.attention_dropout, seeds=weight_seeds, compute=cfg.compute)
        x = self.norm1(x + dropout(y, cfg.dropout, seeds, ATTENTION_SITE))
        added = jnp.broadcast_to(self.vector(vectors)[:, None], x.shape)
        x = self.norm2(x + dropout(added, cfg.dropout, seeds, VECTOR_SITE))
        return self.norm3(x + dropout(self.mlp(x), cfg.dropout, seeds, MLP_SITE))
