"""The division of positions over a ring of devices, and the arrays that devices send each other for it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from zoo.attention.masks import Mask
from zoo.attention.request import RING, Request
from zoo.mesh_axes import POSITIONS

Layout = Literal["contiguous", "balanced", "neighbours"]
NEIGHBOURS_MULTIPLE = 128
"""A device sends its neighbours a multiple of these positions: the width of a register of a TPU, to which kernels pad."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Division:
    """Division of the positions of a call over the devices of a ring."""

    layout: Layout
    devices: int
    queries: int
    """Number of queries of a device, padding included."""
    keys: int
    nearest: int = 0
    """Number of keys that a neighbour sends, in the layout "neighbours"."""

    @classmethod
    def of(cls, devices: int, t: int, s: int, mask: Mask, bias: Any) -> "Division":
        """Return the division of `t` queries and `s` keys."""
        queries, keys = (-(-length // devices) for length in (t, s))
        has_indices = mask.query_positions is None and mask.key_positions is None and t == s
        if has_indices and mask.window is not None and bias is None and mask.allowed is None:
            nearest = -(-max(1, mask.window - 1) // NEIGHBOURS_MULTIPLE) * NEIGHBOURS_MULTIPLE
            # A device's only neighbour is on both sides of it.
            if mask.window - 1 <= keys and (devices > 2 or mask.causal):
                return cls(layout="neighbours", devices=devices, queries=queries, keys=keys, nearest=min(keys, nearest))
        if has_indices and mask.causal:
            half = -(-t // (2 * devices))
            return cls(layout="balanced", devices=devices, queries=2 * half, keys=2 * half)
        return cls(layout="contiguous", devices=devices, queries=queries, keys=keys)

    @property
    def num_chunks(self) -> int:
        """Return the number of chunks of a device."""
        return 2 if self.layout == "balanced" else 1

    @property
    def part(self) -> float:
        """Return the part that one call of the kernel on all devices has of the work: calls in a ring have equal ones."""
        return {"neighbours": 1.0, "contiguous": 1 / self.devices, "balanced": 1 / (2 * self.devices + 1)}[self.layout]

    def of_chunk(self, request: Request, mask: Mask) -> Request:
        """Return the request that the largest call of the kernel makes: all positions of a device, or a chunk of them."""
        b, _, _, n, groups, h = request.shape
        queries, keys = self.queries // self.num_chunks, self.keys // self.num_chunks
        features = request.features | {RING}
        if mask.window is not None or (mask.causal and self.layout != "balanced"):
            features |= {"positions"}
        shape = b, queries, keys + self.nearest * (1 if mask.causal else 2), n, groups, h
        return dataclasses.replace(request, features=features, shape=shape)


def this_device() -> Any:
    """Return the place of a device in the ring, with the dtype that other indices have: XLA's own number has 32 bits always."""
    return lax.axis_index(POSITIONS).astype(int)


def send(tree: Any, distance: int, devices: int) -> Any:
    """Send the arrays of a tree to the device that is `distance` after this one."""
    route = [(device, (device + distance) % devices) for device in range(devices)]
    return jax.tree.map(lambda x: lax.ppermute(x, POSITIONS, route), tree)


def to_balanced(x: Array, axis: int, devices: int) -> list[Array]:
    """Return the chunks d and 2 N - 1 - d of device d, which has the chunks 2 d and 2 d + 1."""
    even, odd = (_route(half, parity, devices) for parity, half in enumerate(jnp.split(x, 2, axis)))
    is_even = this_device() % 2 == 0
    # A device's first chunk has its own number, and its second chunk has the other parity.
    return [jnp.where(is_even, even, odd), jnp.where(is_even, odd, even)]


def from_balanced(chunks: Sequence[Array], devices: int) -> Array:
    """Return the inverse of `to_balanced`, along axis 1."""
    is_even = this_device() % 2 == 0
    even, odd = jnp.where(is_even, chunks[0], chunks[1]), jnp.where(is_even, chunks[1], chunks[0])
    return jnp.concatenate([_route(half, parity, devices, back=True) for parity, half in enumerate((even, odd))], 1)


def _route(half: Array, parity: int, devices: int, *, back: bool = False) -> Array:
    """Send the chunk 2 d + parity of each device d to the device of that chunk in the balanced layout, or back."""
    chunks = [(device, 2 * device + parity) for device in range(devices)]
    route = [(device, chunk if chunk < devices else 2 * devices - 1 - chunk) for device, chunk in chunks]
    return lax.ppermute(half, POSITIONS, [(there, here) for here, there in route] if back else route)
