"""XLNet's layer: attention by content, distance and type for two streams of queries (Yang et al. 2019, sections 2.3, 2.4).

The memory of earlier rows is a prefix of the keys that `zoo/models/xlnet.py` passes in.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from zoo.attention.attention import attention
from zoo.attention.biases import Relative
from zoo.attention.masks import Mask
from zoo.configs import Compute
from zoo.configs.xlnet import Config
from zoo.nn.encoder import initializer
from zoo.nn.layers import Init, LayerNorm, Linear, Mlp, Seeds, dropout, fold_seeds, unstacked
from zoo.ops.reductions import broadcast_rows

ATTENTION_SITE, RESIDUAL_SITE, INNER_SITE, MLP_SITE = range(4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """The mask, positions and types of the queries of a stream."""

    mask: Mask
    first: int
    """The largest distance; see `zoo.attention.biases.Distanced`."""
    at: Int[Array, "B T"] | None = None
    """Index of each query among the keys, if the queries are scattered."""
    types: Int[Array, "B T"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keys:
    """The keys, values and encodings that the queries of both streams attend to in a layer."""

    k: Float[Array, "B S N H"]
    v: Float[Array, "B S N H"]
    r: Float[Array, "N E X"]
    """Projected encodings of X distances; E is H, or 2 H if rows may run from right to left."""
    sign: Float[Array, " B"] | None = None
    """-1 for rows that run from right to left, else 1."""
    types: Int[Array, "B S"] | None = None

    @classmethod
    def of(cls, layer: "Attention", x: Float[Array, "B S D"], encodings: Array, sign: Any, types: Any) -> "Keys":
        k, v = layer.read(x)
        return cls(k=k, v=v, r=layer.distances(encodings, parts=1 if sign is None else 2), sign=sign, types=types)


class Vectors(nnx.Module):
    """Learned vectors that do not depend on the token."""

    def __init__(self, shape: tuple[int, ...], init: Init, rngs: nnx.Rngs):
        self.embedding = nnx.Param(init(rngs.params(), shape, jnp.float32))


class Attention(nnx.Module):
    """Attention by content, distance and equality of types; each of the three adds a learned vector to every query."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        init, width, heads = initializer(cfg), cfg.width, (cfg.heads, cfg.head)
        self.q = Linear("btd,dnh->btnh", (width, *heads), None, init, rngs)
        self.kv = Linear("bsd,dcnh->bscnh", (width, 2, *heads), None, init, rngs)
        self.r = Linear("xd,dnh->xnh", (width, *heads), None, init, rngs)
        self.out = Linear("btnh,nhd->btd", (*heads, width), None, init, rngs)
        self.content, self.distance, self.type = (Vectors(heads, init, rngs) for _ in range(3))
        self.types = Vectors((2, *heads), init, rngs)

    def read(self, x: Float[Array, "B S D"]) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N H"]]:
        """Return the keys and values of hidden states."""
        k, v = unstacked(checkpoint_name(self.kv(x), "qkv"), 2)
        return k, v

    def distances(self, encodings: Float[Array, "X D"], *, parts: int) -> Float[Array, "N E X"]:
        """Return the keys of distances: in one part, or in two, for the sines alone and for the cosines alone."""
        kernel = self.r.kernel[...]
        encodings = encodings.astype(kernel.dtype)
        if parts == 1:
            return jnp.moveaxis(self.r(encodings), 0, -1)  # [N, H, X]
        halves = encodings.reshape(len(encodings), parts, -1)  # [X, 2, D/2]
        kernels = kernel.reshape(parts, -1, *kernel.shape[1:])  # [2, D/2, N, H]
        r = jnp.einsum("xcd,cdnh->nchx", halves, kernels, preferred_element_type=jnp.float32).astype(kernel.dtype)
        return r.reshape(len(r), -1, len(encodings))  # [N, 2 H, X]

    def __call__(
        self, x: Float[Array, "B T D"], keys: Keys, stream: Stream, *, dropout: float, seeds: Seeds, compute: Compute
    ) -> Float[Array, "B T D"]:
        q = checkpoint_name(self.q(x), "qkv")
        q_r, q_s = q + broadcast_rows(self.distance.embedding[...], q.shape), None
        if keys.sign is not None:
            # The opposite distance has the opposite sines and the same cosines.
            q_r = jnp.concatenate([keys.sign[:, None, None, None].astype(q.dtype) * q_r, q_r], axis=-1)
        if stream.types is not None:
            by_type = q + broadcast_rows(self.type.embedding[...], q.shape)
            q_s = jnp.einsum("btnh,cnh->btnc", by_type, self.types.embedding[...], preferred_element_type=jnp.float32)
        bias = Relative(
            q_r=q_r,
            r=keys.r,
            first=stream.first,
            query_positions=stream.at,
            q_s=None if q_s is None else q_s.astype(q.dtype),
            query_types=stream.types,
            key_types=keys.types,
        )
        drop = None if seeds is None else (dropout, seeds)
        q = q + broadcast_rows(self.content.embedding[...], q.shape)
        y = attention(
            q,
            keys.k,
            keys.v,
            mask=stream.mask,
            bias=bias,
            dropout=drop,
            impl=compute.attention,
            sequence=compute.sequence,
        )
        return checkpoint_name(self.out(y), "out")


class Block(nnx.Module):
    """A layer: norm(x + attention(x)), then norm(x + mlp(x)), for the queries of either stream."""

    def __init__(self, cfg: Config, rngs: nnx.Rngs):
        self.cfg = cfg
        self.attention = Attention(cfg, rngs)
        self.norm1 = LayerNorm(cfg.width, cfg.eps)
        self.mlp = Mlp(cfg.width, cfg.ffn, cfg.activation, initializer(cfg), initializer(cfg), rngs)
        self.norm2 = LayerNorm(cfg.width, cfg.eps)

    def __call__(self, x: Float[Array, "B T D"], keys: Keys, stream: Stream, seeds: Seeds) -> Float[Array, "B T D"]:
        cfg, attention_seeds = self.cfg, fold_seeds(seeds, ATTENTION_SITE)
        y = self.attention(x, keys, stream, dropout=cfg.attention_dropout, seeds=attention_seeds, compute=cfg.compute)
        x = self.norm1(x + dropout(y, cfg.dropout, seeds, RESIDUAL_SITE))
        y = self.mlp(x, dropped=lambda inner: dropout(inner, cfg.dropout, seeds, INNER_SITE))
        return self.norm2(x + dropout(y, cfg.dropout, seeds, MLP_SITE))
