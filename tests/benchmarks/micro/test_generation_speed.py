"""The measurement of generation: which matrices count as read for a token."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks.micro import generation_speed
from tests.support.small import random_params, small

OPTIONS = SimpleNamespace(precision="float32", tokens=4, prompt=5)


@pytest.mark.planted
@pytest.mark.parametrize(("family", "in_a_layer"), [("gpt", 4), ("t5", 6), ("xlnet", 5)])
def test_the_matrices_of_a_token(family: str, in_a_layer: int) -> None:
    """Those of the decoder's layers and the vocabulary, not those that read a source or positions; a missing one is noticed."""
    model = small(family)
    params, prompts = random_params(model), np.ones((2, OPTIONS.prompt), np.int32)
    _, matrices = generation_speed._generation_program(model, params, prompts, OPTIONS)

    def check(matrices: list[jax.Array]) -> None:
        layers = getattr(model.config, "decoder_layers", model.config.layers)
        assert len(matrices) == in_a_layer * layers + 1
        assert all(matrix.ndim == 2 for matrix in matrices) and matrices[-1].shape[1] == model.config.width
        assert sum(matrix.size for matrix in matrices) < sum(leaf.size for leaf in jax.tree.leaves(params))

    check(matrices)
    for missing in range(len(matrices)):
        with pytest.raises(AssertionError):
            check([*matrices[:missing], *matrices[missing + 1 :]])
