"""Products with a kernel W and the adapters A and B beside it, whose input is dropped out as in peft: W x + B A dropout(x).

Training without dropout multiplies with the sum W + B A instead (`zoo.lora.adapters.merge_adapters`), which is one product.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from zoo.ops import counter_rng
from zoo.ops.products import OutputMajor, product


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptedKernel:
    """A kernel [in, out] and the adapters of P of its parts, the published matrices that it consists of.

    In a stack of layers every array has a first axis over the layers, so that a slice of the tree is the kernel of a layer.
    """

    kernel: Any
    a: Any
    """[P, in, r], with the axes of the kernel's input."""
    b: Any
    """[P, r, out], with the axes of the kernel's output but that of the parts, and multiplied by the scale of the adapters."""
    seeds: Any = None
    """Seeds of dropout, uint32 [B, 2]; None = no dropout."""
    parts: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    """Numbers of the parts that have adapters."""
    count: int = dataclasses.field(metadata={"static": True})
    """Number of parts of the kernel."""
    axis: int | None = dataclasses.field(metadata={"static": True})
    """The axis of the parts among those of the kernel's output; None if it has one part and no such axis."""
    stacked: bool = dataclasses.field(metadata={"static": True})
    """True if the kernel is in a stack of layers."""
    rate: float = dataclasses.field(metadata={"static": True})
    site: int = dataclasses.field(metadata={"static": True})
    """Number with which the seeds of an example are folded, another one for each kernel."""

    @property
    def dtype(self) -> Any:
        return self.kernel.dtype

    def __getitem__(self, key: Any) -> "AdaptedKernel":
        """Return the object itself, because parameters of a module are read by `[...]`."""
        return self


def linear(x: Float[Array, "*BD"], kernel: Float[Array, "..."] | OutputMajor | AdaptedKernel, summed: int) -> Float[Array, "*BE"]:
    """Return the products of x with a kernel over the last `summed` axes of x and the first of the kernel, in the kernel's dtype.

    With an `AdaptedKernel`, x is [B, ...], and every part has its own dropout, as the modules of peft have.
    """
    if not isinstance(kernel, AdaptedKernel):
        return product(x, kernel, summed).astype(kernel.dtype)
    added: dict[int, Array] = {}
    for number, part in enumerate(kernel.parts):
        dropped = x
        if kernel.seeds is not None:
            dropped = counter_rng.dropped(x, kernel.rate, counter_rng.fold(kernel.seeds, part))
        added[part] = linear(linear(dropped, kernel.a[number], summed), kernel.b[number], 1)
    y = linear(x, kernel.kernel, summed)
    if kernel.axis is None:
        return y + added[0]
    zeros = jnp.zeros_like(added[kernel.parts[0]])
    every_part = [added.get(part, zeros) for part in range(kernel.count)]
    return y + jnp.stack(every_part, x.ndim - summed + kernel.axis)


def with_seeds(params: Any, seeds: UInt32[Array, "B 2"] | None) -> Any:
    """Return parameters with the seeds of their adapted kernels, which differ for each example, kernel and layer."""

    def seeded(leaf: Any) -> Any:
        if not isinstance(leaf, AdaptedKernel):
            return leaf
        if seeds is None:
            return dataclasses.replace(leaf, seeds=None)
        own = counter_rng.fold(seeds, leaf.site)
        if leaf.stacked:
            own = jax.vmap(functools.partial(counter_rng.fold, own))(jnp.arange(len(leaf.kernel)))  # [L, B, 2]
        return dataclasses.replace(leaf, seeds=own)

    return jax.tree.map(seeded, params, is_leaf=lambda leaf: isinstance(leaf, AdaptedKernel))
