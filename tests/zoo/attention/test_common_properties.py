"""What all implementations share exactly: rows without a visible key, and the entries that dropout removes.

Kernels for TPU and GPU are run by the interpreter of Pallas.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import compilation
from zoo.attention import attention
from zoo.attention.biases import Buckets
from zoo.attention.kernels import blocked
from zoo.attention.masks import Mask
from zoo.attention.tiles import Tile
from zoo.ops import counter_rng, tile_sizes

OPTIONS = {"xla_backend_optimization_level": 0, **compilation.OPTIONS}
RUNNABLE = [name for name, row in attention.IMPLEMENTATIONS.items() if "cpu" in row.platforms or row.is_interpretable]
INTERPRETED = [name for name in RUNNABLE if attention.IMPLEMENTATIONS[name].is_interpretable]
SEED = np.array([[1, 2], [3, 4]], np.uint32)


def run(impl: str, function: Any, *arrays: Any) -> Any:
    with attention.interpreted(impl) if impl in INTERPRETED else contextlib.nullcontext():
        return jax.tree.map(np.asarray, jax.jit(function, compiler_options=OPTIONS)(*arrays))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- rows without a visible key -------------------------------------------------------------------------------------------------

LENGTH, HEADS, HEAD = 24, 2, 16
SEGMENTS = np.array([[1] * 10 + [2] * 8 + [0] * 6, [0] * 3 + [1] * 21])
LENGTHS = np.array([0, 20])
QUERIES_WITH_KEY = np.array([[False] * 24, [False] * 3 + [True] * 21])
KEYS_WITH_QUERY = np.array([[False] * 24, [False] * 3 + [True] * 17 + [False] * 4])


def check_unseen(impl: str, dtype: Any, with_sinks: bool = False) -> None:
    """Check the output and all gradients: zero where nothing is seen, even of huge inputs, and finite and not zero elsewhere."""
    names = ("q", "k", "v", "table", *(["sinks"] if with_sinks else []))
    q, k, v = (normal(seed, 2, LENGTH, HEADS, HEAD) for seed in range(3))
    huge = 1e18  # whose products are finite in float32
    q = np.where(QUERIES_WITH_KEY[:, :, None, None], q, huge)
    k, v = (np.where(KEYS_WITH_QUERY[:, :, None, None], x, huge) for x in (k, v))
    no_sink = -np.inf  # of one head, which adds nothing to the sums of its rows
    arrays = [jnp.asarray(x, dtype) for x in (q, k, v, normal(3, 32, HEADS), np.array([1.0, no_sink]))]
    segments, probe = jnp.asarray(SEGMENTS, jnp.int32), normal(5, 2, LENGTH, HEADS, HEAD)
    lengths = jnp.asarray(LENGTHS, jnp.int32)
    mask = Mask(causal=True, query_segments=segments, key_segments=segments, key_lengths=lengths)

    def value(arrays: dict[str, Any]) -> Any:
        q, k, v, table = (arrays[name] for name in ("q", "k", "v", "table"))
        dropout = (0.2, jnp.asarray(SEED))
        bias = Buckets(table=table)
        out = attention.attention(q, k, v, mask=mask, bias=bias, dropout=dropout, sinks=arrays.get("sinks"), impl=impl)
        return (out.astype(jnp.float32) * probe).sum(), out

    gradient = jax.value_and_grad(value, has_aux=True)
    (_, out), d = run(impl, gradient, dict(zip(names, arrays, strict=False)))
    results = {"out": out, **{f"d_{name}": d[name] for name in names}}
    for name, result in results.items():
        assert np.isfinite(result.astype(np.float32)).all(), name
    for name, seen in (("out", QUERIES_WITH_KEY), ("d_q", QUERIES_WITH_KEY), ("d_k", KEYS_WITH_QUERY), ("d_v", KEYS_WITH_QUERY)):
        is_zero = (results[name] == 0).all((2, 3))
        assert is_zero[~seen].all(), name
        # A query with a single key has weight 1, whatever its score, and so has the last key of no other query.
        assert is_zero[seen].sum() <= 3, name
    assert results["d_table"].any() and (not with_sinks or (results["d_sinks"] != 0).tolist() == [True, False])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("impl", [pytest.param(impl, marks=pytest.mark.full if impl in INTERPRETED else ()) for impl in RUNNABLE])
def test_rows_without_a_visible_key_are_zero_and_so_is_their_gradient(impl: str, dtype: Any) -> None:
    check_unseen(impl, dtype)


@pytest.mark.parametrize("impl", [pytest.param(impl, marks=pytest.mark.full if impl in INTERPRETED else ()) for impl in RUNNABLE])
def test_rows_without_a_visible_key_are_zero_with_sinks(impl: str) -> None:
    check_unseen(impl, jnp.float32, with_sinks=True)


@pytest.mark.planted
def test_a_row_whose_largest_score_is_infinite_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The difference of the score and the largest one of its row is then not a number."""
    monkeypatch.setattr(blocked, "MASKED", -jnp.inf)
    with pytest.raises(AssertionError, match="out"):
        check_unseen("blocked", jnp.float32)


@pytest.mark.planted
def test_a_row_that_averages_all_values_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "MASKED", -1.0)
    with pytest.raises(AssertionError, match="out"):
        check_unseen("blocked", jnp.float32)


# --- dropout --------------------------------------------------------------------------------------------------------------------

TILES: dict[str, tuple[tuple[str, ...], int, tuple[int, ...]]] = {
    "reference": ((), 64, (0,)),
    "xla": ((), 64, (0,)),
    "blocked": (("queries", "keys"), 64, (16, 64)),
    "flash_tpu": (("block",), 256, (128, 256)),
    "flash_gpu": (("block",), 128, (32, 64)),
}
"""Implementation -> the names of its tile's sizes, the number of queries, of keys and of a head's channels, and the sizes."""


def check_dropped(impl: str, size: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare the entries that are zero with the hash: with one-hot values and cotangents both passes show the weights."""
    monkeypatch.setitem(tile_sizes.forced, impl, dict.fromkeys(TILES[impl][0], tile))
    q, k = (jnp.asarray(normal(seed, 2, size, HEADS, size) * size**-0.5) for seed in range(2))
    one_hot = jnp.broadcast_to(jnp.eye(size)[:, None], (2, size, HEADS, size))

    def both(q: Any, k: Any, v: Any, d_out: Any) -> Any:
        def attend(v: Any) -> Any:
            return attention.attention(q, k, v, mask=Mask(), dropout=(0.3, jnp.asarray(SEED)), impl=impl)

        out, pull = jax.vjp(attend, v)
        return out, pull(d_out)[0]

    out, d_v = run(impl, both, q, k, one_hot, one_hot)  # [B, T, N, S] and [B, S, N, T]
    kept = np.asarray(counter_rng.keep(jnp.asarray(SEED), 0.3, *(jnp.arange(x, dtype=jnp.uint32) for x in (HEADS, size, size))))
    np.testing.assert_array_equal(out.transpose(0, 2, 1, 3) > 0, kept)
    np.testing.assert_array_equal(d_v.transpose(0, 2, 3, 1) > 0, kept)


@pytest.mark.parametrize(
    ("impl", "tile"),
    [
        pytest.param(impl, tile, marks=pytest.mark.full if impl in INTERPRETED else ())
        for impl, (*_, tiles) in TILES.items()
        for tile in tiles
    ],
)
def test_the_same_entries_are_dropped_whatever_the_tiles(impl: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(TILES) == RUNNABLE
    check_dropped(impl, TILES[impl][1], tile, monkeypatch)


@pytest.mark.planted
def test_a_hash_of_the_place_within_the_tile_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = blocked._dropped

    def within_tile(p: Any, seed: Any, heads: Any, tile: Tile, rate: float) -> Any:
        return dropped(p, seed, heads, tile.along("S", jnp.int32(0), tile.size["S"]), rate)

    monkeypatch.setattr(blocked, "_dropped", within_tile)
    with pytest.raises(AssertionError):
        check_dropped("blocked", 64, 16, monkeypatch)
