"""Attention kernels, one file each: functions of the arrays on one device, with the signature `Kernel`.

`zoo.attention.attention.IMPLEMENTATIONS` lists them. A file whose kernel does not support every request of its features has a
function `unsupported_reason(request)`, which returns the reason, or None.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float, UInt32

from zoo.attention.biases import Bias
from zoo.attention.masks import Mask
from zoo.attention.totals import Totals


@runtime_checkable
class Kernel(Protocol):
    """An implementation of attention on one device: its own examples and heads, if a mesh shards them."""

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K V"],
        mask: Mask,
        bias: Bias | None,
        seed: UInt32[Array, "B 2"] | None,
        heads: UInt32[Array, " N"],
        sinks: Float[Array, " N"] | None = None,
        /,
        *,
        scale: float,
        rate: float,
    ) -> Float[Array, "B T N V"]:
        """Return softmax(scale * q k^T + bias, over the pairs that `mask` allows) v; K divides N, and V is H in `attention`.

        A query without a visible key has a zero output and a zero gradient.

        Args:
            seed: seeds of dropout by example; None: no dropout.
            heads: indices of the query heads among those of all devices, on which dropout depends.
            sinks: a logit for each query head, which takes part in the softmax and has no value; an implementation without the
                feature "sinks" has no such parameter.
            rate: rate of dropout.
        """
        ...


@runtime_checkable
class ChunkKernel(Protocol):
    """A kernel that also computes a chunk of the queries and of the keys of a larger call: those with the feature `RING`."""

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K V"],
        mask: Mask,
        bias: Bias | None,
        seed: UInt32[Array, "B _"] | None,
        heads: UInt32[Array, " N"],
        sinks: Float[Array, " N"] | None = None,
        /,
        *,
        scale: float,
        rate: float,
        return_totals: bool = False,
        totals: Totals | None = None,
    ) -> Float[Array, "B T N V"] | Totals:
        """Return the same as a `Kernel`, or the `Totals` of a chunk.

        Args:
            seed: of a chunk uint32[B, 4]: after both seeds, the indices of its first query and key among those of the larger
                call.
            return_totals: return the `Totals` of these queries and keys, which have no gradient.
            totals: those of these queries and all keys of the larger call: `totals.out` is returned without computing anything,
                and its gradient is the part that these keys have in that of the larger call.
        """
        ...
