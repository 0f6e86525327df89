"""`flash_tpu`: Pallas kernels for TPU that store nothing of size T x S.

They have the biases of T5 and XLNet, dropout, sinks, and masks but explicit ones.

The forward pass is algorithm 1 of FlashAttention-2 (Dao 2023), the backward pass its algorithm 2 as one kernel of five products
per tile. `_flash_tpu_calls` has the calls of the kernels, `_flash_tpu_bodies` what runs in them, `_flash_tpu_xlnet_bias` XLNet's
bias. `Mask.block_states` says which tiles are skipped, and which need no mask.

A bias by distance is constant far from the diagonal, so that a head has few different tiles, whatever T is: XLA makes them from
the table, the kernel reads the one that it needs, the backward pass adds up their gradients, and the gradient of the table is the
transpose of making them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, UInt32

from zoo.attention.biases import Bias, Buckets, ByDistance, Relative
from zoo.attention.kernels._flash_common import number_names, pad_axis, pad_mask, sink_logits, without_arrays
from zoo.attention.kernels._flash_tpu_calls import Operands, attend, forward
from zoo.attention.kernels._flash_tpu_plan import LANES, Plan
from zoo.attention.kernels._flash_tpu_xlnet_bias import Positions, num_distances
from zoo.attention.masks import Mask
from zoo.attention.request import RING, Request, kernel_call
from zoo.attention.totals import Totals, padded_lse
from zoo.ops.tile_sizes import tile_sizes
from zoo.sharding import target_platform

LONGEST = 16384
"""Maximum number of queries: the backward pass keeps the gradient of those of a head in the vector memory."""
LARGEST_HEAD = 256
"""Maximum size of a head, which the kernels pad to a multiple of the lanes."""
PALLAS = {pl: ("Buffered", "BlockSpec"), pltpu: ("CompilerParams", "PrefetchScalarGridSpec", "VMEM", "roll")}
"""Module of Pallas -> what the kernels need of it; its interface still changes between versions of JAX."""
LONGEST_RELATIVE = 4096
"""Maximum number of queries, and of keys, with a relative bias: the gradients of keys, values and distances are kept."""
SCATTERED = 2**19
"""Maximum number of scores by distance of a block of scattered queries, which the kernels keep in the vector memory. A block has
at least as many queries as there are lanes, so that there are up to 4,096 distances: with twice as many, the backward kernel fits
the vector memory with a row of bfloat16 heads of 64, and does not with four."""


def flash_tpu(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    bias: Bias | None,
    seed: UInt32[Array, "B _"] | None,
    heads: UInt32[Array, " N"],
    sinks: Float[Array, " N"] | None = None,
    *,
    scale: float,
    rate: float,
    return_totals: bool = False,
    totals: Totals | None = None,
) -> Any:
    """Compute attention (see `ChunkKernel`). Scores, softmax and sums are float32. Without a TPU the kernels are interpreted."""
    b, t, n, _ = q.shape
    s = k.shape[1]
    assert bias is None or isinstance(bias, Buckets | ByDistance | Relative)
    relative = _with_existing_distances(bias, s) if isinstance(bias, Relative) else None
    prepared = bias.prepare(t, s) if isinstance(bias, Buckets | ByDistance) else None
    largest = tile_sizes(kernel_call("flash_tpu", q, k, mask, bias, rate))["block"]
    block_q, block_k = _block_sizes(t, s, bias, largest)
    num_q, num_k = -(-t // block_q), -(-s // block_k)
    padded_t, padded_s = num_q * block_q, num_k * block_k
    mask = pad_mask(mask, b, t, s, padded_t, padded_s)
    tiles, diagonal = (None, 0) if prepared is None else prepared.square_tiles(block_q, num_q, num_k)
    plan = Plan(
        block_q=block_q,
        block_k=block_k,
        num_q=num_q,
        num_k=num_k,
        shared=n // k.shape[2],
        diagonal=diagonal,
        num_tiles=0 if tiles is None else tiles.shape[1],
        position="" if relative is None else "consecutive" if relative.query_positions is None else "scattered",
        first=0 if relative is None else relative.first,
        has_types=relative is not None and relative.query_types is not None and relative.q_s is not None,
        mask=without_arrays(mask),
        has_lengths=mask.key_lengths is not None,
        numbers=number_names(mask),
        rate=rate if seed is not None else 0.0,
        is_chunk=seed is not None and seed.shape[1] > 2,
        interpret=target_platform() != "tpu",
    )
    operands = Operands.of(plan, mask, relative, b, jnp.zeros((b, 2), jnp.uint32) if seed is None else seed, heads)
    added = tiles if relative is None else Positions.of(relative, plan, scale, q.dtype)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * jnp.asarray(scale, q.dtype), k, v))  # [B, N or K, T or S, H]
    q, k, v = (pad_axis(x, 2, length) for x, length in ((q, padded_t), (k, padded_s), (v, padded_s)))
    if return_totals:
        out, (*_, lse) = forward(plan, q, k, v, added, sink_logits(sinks), operands, None)
        return Totals(jnp.swapaxes(out[:, :, :t], 1, 2), lse[:, :, 0, :t])
    if totals is not None:
        out = pad_axis(jnp.swapaxes(totals.out, 1, 2), 2, padded_t)
        totals = Totals(out, padded_lse(totals, padded_t)[:, :, None])
    out: Any = attend(plan, q, k, v, added, sink_logits(sinks), operands, totals)
    return jnp.swapaxes(out[:, :, :t], 1, 2)  # [B, T, N, H]


def unsupported_reason(request: Request) -> str | None:
    """Return why the kernels refuse a request; None if they do not."""
    _, t, s, _, _, h = request.shape
    distances = 0
    if request.scattered_distances:
        distances = _padded_distances(request.scattered_distances - s, s, tile_sizes(request.kernel_call("flash_tpu"))["block"])
    if missing := [name for module, names in PALLAS.items() for name in names if not hasattr(module, name)]:
        return f"Pallas of JAX {jax.__version__} has no {', no '.join(missing)}; install the version of constraints.txt"
    if h > LARGEST_HEAD:
        return f"it takes heads of up to {LARGEST_HEAD}, and these are {h}"
    if request.scattered_distances and RING in request.features:
        return "in a ring it has no relative bias of scattered queries"
    if request.dtype not in ("bfloat16", "float32"):
        return f"it takes bfloat16 and float32, and this is {request.dtype}"
    if t * max(h, LANES) > LONGEST * LANES:
        longest = LONGEST * LANES // max(h, LANES)
        return f"its backward pass takes up to {longest} queries of heads of {h}, and these are {t}"
    if "relative bias" in request.features and max(t, s) * max(h, LANES) > LONGEST_RELATIVE * LANES:
        longest = LONGEST_RELATIVE * LANES // max(h, LANES)
        return f"with a relative bias it takes up to {longest} queries and keys of heads of {h}, and these are {t} and {s}"
    if distances > SCATTERED // LANES:
        limit = SCATTERED // LANES
        return f"with scattered queries it takes up to {limit} distances of padded keys, and these are {distances}"
    return None


def _with_existing_distances(bias: Relative, s: int) -> Relative:
    """Return a bias whose scattered queries are NaN where they need distances that it does not have; a roll would wrap around."""
    if bias.query_positions is None:
        return bias
    return dataclasses.replace(bias, q_r=jnp.where(bias.distances_exist(s)[..., None, None], bias.q_r, jnp.nan))


def _block_sizes(t: int, s: int, bias: Bias | None, largest: int) -> tuple[int, int]:
    """Return the numbers of queries and of keys in a tile, at most `largest`."""
    if bias is None:
        return _block(t, largest), _block(s, largest)
    if isinstance(bias, Relative) and bias.query_positions is not None:
        fitting = max(LANES, SCATTERED // _padded_distances(bias.first, s, largest) // LANES * LANES)
        return _block(t, min(fitting, largest)), _block(s, largest)
    block = _block(max(t, s), largest)  # the tiles of a bias by distance, and of the distances of consecutive queries, are square
    return block, block


def _padded_distances(first: int, s: int, largest: int) -> int:
    """Return the number of distances of scattered queries to `s` keys, padded to tiles, from distance `first` on."""
    block_k = _block(s, largest)
    return num_distances(first, -(-s // block_k) * block_k)


def _block(length: int, largest: int) -> int:
    """Return the size of as few equal blocks of at most `largest` as possible, a multiple of the lanes."""
    blocks = -(-length // largest)
    return -(-length // (blocks * LANES)) * LANES
