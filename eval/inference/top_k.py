"""Exact search: the documents with the largest dot products, by blocks of documents over a mesh."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32, Integer

from eval.inference.batch_loop import Progress, no_progress
from zoo.errors import BadInput, require
from zoo.sharding import BATCH

GROUP = 32
"""Documents of a group, of which the largest score is found first; a tile has several groups."""
TILE = 1024
"""Documents of a matrix product. Its shape is always the same, so that a score does not depend on the block or the devices."""
BLOCK = 65536
"""Documents of a block."""
HIGHEST = jax.lax.Precision.HIGHEST
QUERIES = 256
"""Most queries whose products are computed at once."""


def top_k(
    queries: Float32[np.ndarray, "Q D"],
    documents: Float32[np.ndarray, "N E"],
    k: int,
    *,
    mesh: Mesh,
    block: int = BLOCK,
    progress: Progress = no_progress,
) -> tuple[Float32[np.ndarray, "Q k"], Int32[np.ndarray, "Q k"]]:
    """Return (scores, row numbers) of the k documents with the largest dot product with each query, in descending order.

    Of equal scores the lowest row comes first. The dot products are float32 on every platform, and computed by matrix products of
    one shape, so that the result does not depend on the block and the number of devices.

    Args:
        documents: an array or a memory map, of which a block is in memory at a time.
        k: at most N; larger values are reduced to N.
        mesh: the documents of a block are divided over its axes data and fsdp.
        block: about the documents of a block, which has a multiple of `TILE` for each of these devices.
        progress: called with (documents done, all documents).

    Raises:
        BadInput: a vector or a dot product that is not finite, by its row; or vectors of different dimensions.
    """
    require(k >= 1, "k", k, "choose 1 or more documents")
    if queries.shape[1] != documents.shape[1]:
        sizes = f"queries of {queries.shape[1]} dimensions and documents of {documents.shape[1]}"
        raise BadInput(f"{sizes}: choose one number of dimensions for both")
    check_finite(queries, "query vector")
    count, k = len(documents), min(k, len(documents))
    shards = int(np.prod([mesh.shape[axis] for axis in BATCH]))
    step = TILE * shards
    # Equal blocks, so that the last one has little padding.
    num_blocks = max(1, -(-count // max(block, step)))
    block = -(-max(count, 1) // (num_blocks * step)) * step
    groups = [queries[start : start + QUERIES] for start in range(0, len(queries), QUERIES)]
    scores = [np.full((len(group), k), -np.inf, np.float32) for group in groups]
    rows = [np.full((len(group), k), np.iinfo(np.int32).max, np.int32) for group in groups]
    merge = _merge(mesh, k)
    for start, part in _blocks(documents, block):
        with jax.set_mesh(mesh):
            shard = jax.device_put(part, NamedSharding(mesh, PartitionSpec(BATCH)))
            for number, group in enumerate(groups):
                scores[number], rows[number] = merge(group, shard, scores[number], rows[number], np.int32(start), np.int32(count))
        progress(min(start + block, count), count)
    if not groups:
        return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
    best, best_rows = (np.concatenate([np.asarray(jax.device_get(part)) for part in parts]) for parts in (scores, rows))
    check_finite(best, "the score of query")
    return best, best_rows


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


def _blocks(documents: Float32[np.ndarray, "N D"], block: int) -> Iterator[tuple[int, Float32[np.ndarray, "block D"]]]:
    """Yield (number of the first row, rows of a block; zeros behind the last document)."""
    for start in range(0, len(documents), block):
        part = np.ascontiguousarray(documents[start : start + block], np.float32)
        check_finite(part, "document vector", start)
        if len(part) < block:
            part = np.concatenate([part, np.zeros((block - len(part), part.shape[1]), np.float32)])
        yield start, part


def _best_of_row(scores: Float32[Array, "Q M"], k: int) -> tuple[Float32[Array, "Q k"], Int32[Array, "Q k"]]:
    """Return the k largest scores of each row and their columns, as `jax.lax.top_k`, which takes several times as long on a CPU.

    The k groups with the largest maxima have them all: another group has no score that k others do not precede, because of equal
    maxima the first groups are taken, and of equal scores the first column.
    """
    num_rows, size = scores.shape
    if size // GROUP <= k:
        best, at = jax.lax.top_k(scores, k)
        return best, at
    groups = scores.reshape(num_rows, size // GROUP, GROUP)
    chosen = jnp.sort(jax.lax.top_k(groups.max(2), k)[1], axis=1)
    candidates = jnp.take_along_axis(groups, chosen[:, :, None], axis=1).reshape(num_rows, k * GROUP)
    columns = (chosen[:, :, None] * GROUP + jnp.arange(GROUP, dtype=jnp.int32)).reshape(num_rows, k * GROUP)
    best, at = jax.lax.top_k(candidates, k)
    return best, jnp.take_along_axis(columns, at, axis=1)


@functools.lru_cache(maxsize=8)
def _merge(mesh: Mesh, k: int) -> Callable[..., Any]:
    """Return the compiled function that adds the documents of a block to the best so far; its results are replicated."""

    def local_best(queries: jax.Array, documents: jax.Array, first: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the best of each device's documents [M, D], joined in the order of the devices: [Q, devices * k]."""
        size, width = documents.shape
        tiles = documents.reshape(size // TILE, TILE, width)
        tile_products = jax.lax.map(lambda tile: jnp.einsum("qd,md->qm", queries, tile, precision=HIGHEST), tiles)  # [m, Q, TILE]
        products = jnp.moveaxis(tile_products, 0, 1).reshape(-1, size)
        rows = first + jax.lax.axis_index(BATCH) * size + jnp.arange(size, dtype=jnp.int32)
        # The two zeros are one score, as in numpy.
        products = jnp.where(rows < count, jnp.where(products == 0, 0.0, products), -jnp.inf)
        best, at = _best_of_row(products, min(k, size))
        return tuple(jax.lax.all_gather(part, BATCH, axis=1, tiled=True) for part in (best, rows[at]))

    replicated, over_documents = PartitionSpec(), PartitionSpec(BATCH)
    specs = (replicated, over_documents, replicated, replicated)
    all_best = jax.shard_map(local_best, mesh=mesh, in_specs=specs, out_specs=(replicated, replicated), check_vma=False)

    def merge(
        queries: Float32[Array, "Q D"],
        documents: Float32[Array, "M D"],
        scores: Float32[Array, "Q k"],
        rows: Int32[Array, "Q k"],
        first: Integer[Array, ""],
        count: Integer[Array, ""],
    ) -> tuple[Float32[Array, "Q k"], Int32[Array, "Q k"]]:
        best, best_rows = all_best(queries, documents, first, count)
        # top_k prefers the first of equal values; the best so far have lower rows, and come first.
        values, at = jax.lax.top_k(jnp.concatenate([scores, best], axis=1), k)
        return values, jnp.take_along_axis(jnp.concatenate([rows, best_rows], axis=1), at, axis=1)

    return jax.jit(merge, out_shardings=NamedSharding(mesh, replicated))
