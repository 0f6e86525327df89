"""Attention whose queries and keys have another size than its values (Vaswani et al. 2017, Table 3, rows B).

Attention implementations take one head size. The smaller heads are padded with zeros, which do not change any product.
"""

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from zoo.nn.layers import CrossAttention, Init, Linear, SelfAttention


class PaddedHeads(Linear):
    """A projection to heads of size `head`, padded with zeros to `size`."""

    def __init__(self, width: int, heads: int, head: int, size: int, init: Init, rngs: nnx.Rngs, *, biases: bool):
        super().__init__("btd,dnh->btnh", (width, heads, head), (heads, head) if biases else None, init, rngs)
        self.padding = size - head

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T N H"]:
        return jnp.pad(super().__call__(x), [*[(0, 0)] * 3, (0, self.padding)])


class MergedHeads(Linear):
    """The output projection of heads of size `head`, without their padding."""

    def __init__(self, width: int, heads: int, head: int, init: Init, rngs: nnx.Rngs, *, biases: bool):
        super().__init__("btnh,nhd->btd", (heads, head, width), (width,) if biases else None, init, rngs)
        self.head = head

    def __call__(self, x: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        return super().__call__(x[..., : self.head])


class KeySizedHeads(nnx.Module):
    """The projections to queries and keys of size `key` and values of size `head`, and that of the output."""

    def __init__(self, width: int, heads: int, head: int, key: int, inits: tuple[Init, Init], rngs: nnx.Rngs, *, biases: bool):
        key_init, init = inits
        size = max(key, head)
        self.q = PaddedHeads(width, heads, key, size, key_init, rngs, biases=biases)
        self.k = PaddedHeads(width, heads, key, size, key_init, rngs, biases=biases)
        self.v = PaddedHeads(width, heads, head, size, init, rngs, biases=biases)
        self.out = MergedHeads(width, heads, head, init, rngs, biases=biases)


class KeySizedSelfAttention(KeySizedHeads, SelfAttention):
    """Self-attention with queries and keys of size `key` and values of size `head`; its callers pass the scale, 1/sqrt(key)."""

    def split_heads(self, x: Float[Array, "B T D"]) -> list[Float[Array, "B T N H"]]:
        return [checkpoint_name(projection(x), "qkv") for projection in (self.q, self.k, self.v)]


class KeySizedCrossAttention(KeySizedHeads, CrossAttention):
    """Attention over the hidden states of a source, with queries and keys of size `key` and values of size `head`."""

    def read(self, source: Float[Array, "B S D"]) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N H"]]:
        return checkpoint_name(self.k(source), "qkv"), checkpoint_name(self.v(source), "qkv")
