"""What "equal gradients" means here."""

from typing import Any

import jax
import numpy as np


def assert_equal_gradients(ours: Any, theirs: Any) -> None:
    """DESIGN's "equal": per leaf |dg| <= 1e-5 |g_leaf| + 1e-7 |g_all|."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    whole = np.sqrt(sum(float(np.square(leaf, dtype=np.float64).sum()) for leaf in jax.tree.leaves(theirs)))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.linalg.norm(np.float64(a) - b) <= 1e-5 * np.linalg.norm(np.float64(b)) + 1e-7 * whole
