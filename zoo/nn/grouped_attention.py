"""Self-attention with grouped heads: several query heads share a head of keys and values (Ainslie et al. 2023)."""

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from zoo.nn.layers import Init, Linear, RMSNorm, SelfAttention


class GroupedSelfAttention(SelfAttention):
    """Self-attention with a projection each for queries, keys and values; `kv_heads` divides `heads`.

    With `norm_eps` each head of queries and of keys is RMS-normalized, before it is rotated (Yang et al. 2025, Qwen3, section 2).
    `qkv_biases` are those of queries, keys and values, `out_bias` that of the output; `sinks` initializes those of `attention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head: int,
        init: Init,
        out_init: Init,
        rngs: nnx.Rngs,
        *,
        qkv_biases: bool = False,
        out_bias: bool = False,
        norm_eps: float | None = None,
        sinks: Init | None = None,
    ):
        def projection(count: int) -> Linear:
            return Linear("btd,dnh->btnh", (width, count, head), (count, head) if qkv_biases else None, init, rngs)

        self.q, self.k, self.v = projection(heads), projection(kv_heads), projection(kv_heads)
        self.sinks = None if sinks is None else nnx.Param(sinks(rngs.params(), (heads,), jnp.float32))
        self.q_norm = None if norm_eps is None else RMSNorm(head, norm_eps)
        self.k_norm = None if norm_eps is None else RMSNorm(head, norm_eps)
        self.out = Linear("btnh,nhd->btd", (heads, head, width), (width,) if out_bias else None, out_init, rngs)

    def split_heads(self, x: Float[Array, "B T D"]) -> list[Float[Array, "B T _ H"]]:
        q, k, v = (checkpoint_name(projection(x), "qkv") for projection in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return [q, k, v]
