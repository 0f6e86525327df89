"""`python -m benchmarks.micro.attention_products`: it times the products of `blocked` itself, of the tiles that it computes."""

from typing import Any

import numpy as np
import pytest

from benchmarks.attention.problems import FEATURES, Problem, Shape
from benchmarks.micro import attention_products
from zoo.attention import masks
from zoo.attention.kernels import blocked
from zoo.ops import tile_sizes


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tile_sizes.forced, "blocked", {"queries": 32, "keys": 32})
    monkeypatch.setattr(masks, "NARROW_WINDOW", 16)


def count_products(feature: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the number of products of a group of examples and heads, for 64 queries and keys."""
    shapes = []

    def record(*args: Any) -> Any:
        shapes.append(args[0].shape)
        return blocked.dot(*args)

    monkeypatch.setattr(attention_products, "dot", record)
    out, (d_q, _, _) = attention_products._products(Problem.of(FEATURES[feature], Shape(1, 64, 64, 2, 2, 16), "float32"))()
    assert out.shape == d_q.shape and np.isfinite(out).all()
    return len(shapes)


@pytest.mark.parametrize(("feature", "tiles"), [("full", 2 * 2), ("causal", 2 + 4)])
def test_two_products_of_a_tile_are_computed_forward_and_five_backward(
    feature: str, tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 64 queries in blocks of 32; the keys have blocks of 32, and causal ones of 16."""
    assert count_products(feature, monkeypatch) == 7 * tiles
