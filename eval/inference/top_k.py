"""Exact search: the documents with the largest dot products, by blocks of documents over a mesh."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float32, Int32, Integer

from eval.inference.batch_loop import Progress, no_progress
from zoo.errors import BadInput, require
from zoo.sharding import BATCH

GROUP = 32
"""Documents of a group, of which the largest score is found first."""
BLOCK = 131072
"""Most documents of a device at a time."""
HIGHEST = jax.lax.Precision.HIGHEST
QUERIES = 256
"""Most queries whose products are computed at once."""


def top_k(
    queries: Float32[np.ndarray, "Q D"],
    documents: Float32[np.ndarray, "N E"],
    k: int,
    *,
    mesh: Mesh,
    progress: Progress = no_progress,
) -> tuple[Float32[np.ndarray, "Q k"], Int32[np.ndarray, "Q k"]]:
    """Return (scores, row numbers) of the k documents with the largest dot product with each query, in descending order.

    Of equal scores the lowest row comes first. The dot products are float32 on every platform. Every device computes matrix
    products of one shape, which depends on Q, N and D alone, so that the result does not depend on the number of devices.

    Args:
        documents: an array or a memory map, of which a block is in memory at a time. One CPU device reads a float32 map of a .npy
            file in place; an array that does not begin at a multiple of 64 bytes is copied first.
        k: at most N; larger values are reduced to N.
        mesh: blocks of documents are divided over its axes data and fsdp.
        progress: called with (documents done, all documents).

    Raises:
        BadInput: a vector or a dot product that is not finite, by its rows; or vectors of different dimensions.
    """
    require(k >= 1, "k", k, "choose 1 or more documents")
    if queries.shape[1] != documents.shape[1]:
        sizes = f"queries of {queries.shape[1]} dimensions and documents of {documents.shape[1]}"
        raise BadInput(f"{sizes}: choose one number of dimensions for both")
    check_finite(queries, "query vector")
    count, k = len(documents), min(k, len(documents))
    shards = int(np.prod([mesh.shape[axis] for axis in BATCH]))
    # Equal blocks, so that the last one has little padding.
    num_blocks = max(1, -(-count // BLOCK))
    step = max(1, -(-count // (num_blocks * GROUP))) * GROUP * shards
    groups = [queries[start : start + QUERIES] for start in range(0, len(queries), QUERIES)]
    scores = [np.full((len(group), k), -np.inf, np.float32) for group in groups]
    rows = [np.full((len(group), k), np.iinfo(np.int32).max, np.int32) for group in groups]
    merge = _merge(mesh, k)
    for start in range(0, count, step):
        part = np.ascontiguousarray(documents[start : start + step], np.float32)
        stop = start + len(part)
        if len(part) < step:
            # Copies of the last document do not change the maximum of its group.
            part = np.concatenate([part, np.broadcast_to(part[-1:], (step - len(part), part.shape[1]))])
        with jax.set_mesh(mesh):
            shard = jax.device_put(part, NamedSharding(mesh, PartitionSpec(BATCH)))
            for number, group in enumerate(groups):
                best = scores[number], rows[number]
                scores[number], rows[number], finite = merge(group, shard, *best, np.int32(start), np.int32(count))
                # Reading it waits for the block, so that one block at a time is in memory.
                if not finite:
                    check_finite(part, "document vector", start)
                    overflow = f"a dot product with one of the documents {start} to {stop - 1} overflows"
                    raise BadInput(f"{overflow}; scale the vectors down")
        progress(stop, count)
    if not groups:
        return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
    all_scores, all_rows = (np.concatenate([np.asarray(jax.device_get(part)) for part in parts]) for parts in (scores, rows))
    return all_scores, all_rows


def check_finite(vectors: Float32[np.ndarray, "N D"], name: str, first: int = 0) -> None:
    """Refuse vectors with NaN or infinity.

    Args:
        first: row number of the first of them.

    Raises:
        BadInput: names the row.
    """
    # A row with NaN or infinity has no finite sum, and a matrix product is several times as fast as a test of each number.
    with np.errstate(all="ignore"):
        if np.isfinite(vectors @ np.ones(vectors.shape[1], np.float32)).all():
            return
    if not (finite := np.isfinite(vectors).all(1)).all():
        row = first + int(np.argmin(finite))
        raise BadInput(f"{name} {row} (the first is 0) has NaN or infinity; compute the vectors again")


def _best_of_groups(
    products: Float32[Array, "M Q"],
    maxima: Float32[Array, "groups Q"],
    rows: Int32[Array, " M"],
    count: Integer[Array, ""],
    k: int,
) -> tuple[Float32[Array, "Q k"], Int32[Array, "Q k"]]:
    """Return the k largest scores of each query and their rows; `jax.lax.top_k` of all scores takes several times as long.

    The k groups with the largest maxima have them all: another group has no score that k others do not precede, because of equal
    maxima the first groups are taken, and of equal scores the first row.
    """
    size, num_queries = products.shape
    _, chosen = jax.lax.top_k(maxima.T, min(k, size // GROUP))
    members = jnp.sort(chosen, axis=1)[:, :, None] * GROUP + jnp.arange(GROUP, dtype=jnp.int32)
    members = members.reshape(num_queries, -1)  # [Q, candidates]
    candidates = products.at[members, jnp.arange(num_queries)[:, None]].get(mode="promise_in_bounds")
    # The two zeros are one score, as in numpy.
    candidates = jnp.where(rows[members] < count, jnp.where(candidates == 0, 0.0, candidates), -jnp.inf)
    best, at = jax.lax.top_k(candidates, min(k, size))
    return best, rows[jnp.take_along_axis(members, at, axis=1)]


@functools.lru_cache(maxsize=8)
def _merge(mesh: Mesh, k: int) -> Callable[..., Any]:
    """Return the compiled function that adds the documents of a block to the best so far; its results are replicated.

    Its third result is False if a product is not finite.
    """

    def local_best(
        queries: jax.Array, documents: jax.Array, first: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the best of each device's documents [M, D], in the order of the devices, [Q, devices * k]; see `_merge`."""
        size = documents.shape[0]
        rows = first + jax.lax.axis_index(BATCH) * size + jnp.arange(size, dtype=jnp.int32)
        products = jnp.einsum("md,qd->mq", documents, queries, precision=HIGHEST)
        # x + (x - x) is x (0 for -0), or NaN if x is not finite, and a maximum with NaN is NaN: one pass is enough for both.
        maxima = (products + (products - products)).reshape(size // GROUP, GROUP, -1).max(1)
        finite = jnp.isfinite(maxima).all()
        maxima = jnp.where((rows[::GROUP] < count)[:, None], maxima, -jnp.inf)
        best, best_rows = _best_of_groups(products, maxima, rows, count, k)
        joined = (jax.lax.all_gather(part, BATCH, axis=1, tiled=True) for part in (best, best_rows))
        return *joined, jax.lax.pmin(finite, BATCH)

    replicated, over_documents = PartitionSpec(), PartitionSpec(BATCH)
    specs = (replicated, over_documents, replicated, replicated)
    all_best = jax.shard_map(local_best, mesh=mesh, in_specs=specs, out_specs=(replicated,) * 3, check_vma=False)

    def merge(
        queries: Float32[Array, "Q D"],
        documents: Float32[Array, "M D"],
        scores: Float32[Array, "Q k"],
        rows: Int32[Array, "Q k"],
        first: Integer[Array, ""],
        count: Integer[Array, ""],
    ) -> tuple[Float32[Array, "Q k"], Int32[Array, "Q k"], Bool[Array, ""]]:
        best, best_rows, finite = all_best(queries, documents, first, count)
        # top_k prefers the first of equal values; the best so far have lower rows, and come first.
        values, at = jax.lax.top_k(jnp.concatenate([scores, best], axis=1), k)
        return values, jnp.take_along_axis(jnp.concatenate([rows, best_rows], axis=1), at, axis=1), finite

    return jax.jit(merge, out_shardings=NamedSharding(mesh, replicated))
