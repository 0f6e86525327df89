"""Exact search returns what sorting all dot products returns, on every number of devices."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.inference import top_k as search
from eval.inference.top_k import top_k
from train.config import run_config
from train.engine import device_mesh
from zoo.errors import BadInput


@functools.cache
def mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> jax.sharding.Mesh:
    shape = run_config.Mesh(data=data, fsdp=fsdp, tensor=tensor)
    return device_mesh.make_mesh(shape, jax.devices()[: data * fsdp * tensor])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BLOCK", 8)
    monkeypatch.setattr(search, "GROUP", 2)
    search._merge.cache_clear()


def by_sorting(queries: np.ndarray, documents: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    products = queries.astype(np.float64) @ documents.astype(np.float64).T
    rows = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(products, rows, 1), rows


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 5, 8, 23]), st.sampled_from([1, 3, 40]))
def test_result_is_that_of_sorting_all_products_with_ties_by_row(seed: int, count: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    # Products of small integers are exact, and many are equal.
    queries, documents = (rng.integers(-1, 2, (rows, 3)).astype(np.float32) for rows in (2, count))
    scores, rows = top_k(queries, documents, k, mesh=mesh())
    expected_scores, expected_rows = by_sorting(queries, documents, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_devices_and_memory_maps_do_not_change_a_bit(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, documents = (rng.normal(size=(rows, 48)).astype(np.float32) for rows in (5, 203))
    documents[150:170] = documents[:20]
    np.save(tmp_path / "vectors.npy", documents)
    stored = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    scores, rows = top_k(queries, documents, 30, mesh=mesh())
    np.testing.assert_array_equal(rows, by_sorting(queries, documents, 30)[1])
    for shape in ((1,), (2, 2, 2), (8,), (1, 4)):
        again = top_k(queries, stored, 30, mesh=mesh(*shape))
        np.testing.assert_array_equal(again[0], scores)
        np.testing.assert_array_equal(again[1], rows)
    monkeypatch.setattr(search, "QUERIES", 2)
    np.testing.assert_array_equal(top_k(queries, documents, 30, mesh=mesh())[1], rows)


@pytest.mark.planted
def test_equal_scores_of_several_groups_are_in_the_order_of_their_rows() -> None:
    """The group with the largest maximum has another score, which is that of an earlier row in a group after it."""
    documents = np.array([[3], [1], [5], [3], [0], [0], [0], [0]], np.float32)
    scores, rows = top_k(np.ones((1, 1), np.float32), documents, 2, mesh=mesh())
    assert (scores.tolist(), rows.tolist()) == ([[5, 3]], [[2, 0]])


@pytest.mark.planted(5)
def test_vectors_that_are_not_finite_are_refused_by_row() -> None:
    queries, documents = np.ones((2, 3), np.float32), np.ones((11, 3), np.float32)
    for row, value in ((9, np.nan), (0, np.inf), (3, -np.inf)):
        wrong = documents.copy()
        wrong[row, 1] = value
        with pytest.raises(BadInput, match=f"document vector {row} .*has NaN or infinity"):
            top_k(queries, wrong, 2, mesh=mesh())
    with pytest.raises(BadInput, match=r"query vector 1 .*has NaN"):
        top_k(np.array([[1, 1, 1], [1, np.nan, 1]], np.float32), documents, 2, mesh=mesh())
    # The sum of a row may overflow although its numbers are finite.
    large = np.full((3, 3), 3e38, np.float32)
    assert top_k(np.array([[1, 0, 0]], np.float32), large, 1, mesh=mesh())[0] == np.float32(3e38)
    for sign in (1, -1):
        with pytest.raises(BadInput, match="a dot product with one of the documents 0 to 2 overflows"):
            top_k(sign * queries[:1], large, 1, mesh=mesh())
    with pytest.raises(BadInput, match="queries of 3 dimensions and documents of 2"):
        top_k(queries, documents[:, :2], 2, mesh=mesh())
