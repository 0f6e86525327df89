"""The FLOPs of optimizers in compiled steps, against a count of Muon's products."""

import jax
import pytest

from benchmarks.micro import optimizer_steps, recipe_step
from tests.support import tiny
from train.engine import optimizers
from train.engine.matrix_axes import matrix_kinds, matrix_sizes
from zoo.models import model
from zoo.sharding import path_of


def flops(name: str) -> float:
    run = optimizer_steps.with_optimizer(tiny.run(precision="float32"), name)
    return optimizer_steps.product_flops(recipe_step.compile_step(run, tiny.batch(0))[0])


def newton_schulz_flops() -> int:
    """Return the FLOPs of five iterations for each matrix of the layers: two products with it, and the square of the first."""
    params, total = jax.eval_shape(lambda: model(tiny.run().model).init(jax.random.key(0))), 0
    kinds = jax.tree.leaves(matrix_kinds(params))
    for (keys, leaf), kind in zip(jax.tree_util.tree_leaves_with_path(params), kinds, strict=True):
        if kind == "matrix":
            small, large = sorted(matrix_sizes(path_of(keys), leaf.shape))
            total += 5 * leaf.size // (small * large) * (4 * small**2 * large + 2 * small**3)
    return total


@pytest.mark.planted
def test_the_products_of_muon_are_those_of_its_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = flops("adamw")
    assert flops("schedule_free_adamw") == plain
    assert flops("muon") - plain == newton_schulz_flops()
    iterate = optimizers.newton_schulz
    monkeypatch.setattr(optimizers, "newton_schulz", lambda matrices: iterate(matrices, steps=4))
    assert flops("muon") - plain == pytest.approx(0.8 * newton_schulz_flops())
