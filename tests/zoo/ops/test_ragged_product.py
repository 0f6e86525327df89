"""Products of groups of rows in every form, against a lookup of each row's kernel in float64; kernels of a TPU are interpreted.

The interpreter fills what a kernel has not written with NaN, so that a read of it would show.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import dispatch
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from zoo.ops import grouped_product_tpu, ragged_product

TILE, DEPTH, COLUMNS = 16, 200, 300
"""The kernels divide neither axis into whole blocks of 128."""
MEMBERS = {
    "uneven": (20, 1, 40),
    "empty": (0, 30, 0, 0, 17, 0),
    "one has all": (0, 0, 70, 0),
    "nobody": (0, 0, 0),
}
"""Filled rows of each group; the others of its last tile are empty."""
BOUND = 2.0**-18
"""Maximum error as a part of the sum of the absolute values: at most 256 float32 additions, 2^-24 each, less by pairs."""


class Problem:
    """Rows of groups, each filled up to whole tiles, and two tiles without a group after them."""

    def __init__(self, members: tuple[int, ...], dtype: Any = np.float32) -> None:
        rng = np.random.default_rng(len(members))
        sizes = [-(-count // TILE) * TILE for count in members]
        self.rows, self.groups = sum(sizes) + 2 * TILE, len(members)
        self.sizes = jnp.asarray(sizes, jnp.int32)
        self.group = np.append(np.repeat(np.arange(self.groups), sizes), [0] * 2 * TILE)
        ends = np.cumsum(sizes)
        self.filled = np.zeros(self.rows, bool)
        for end, size, count in zip(ends, sizes, members, strict=True):
            self.filled[end - size : end - size + count] = True
        x, d_y = (rng.standard_normal((self.rows, size)) * self.filled[:, None] for size in (DEPTH, COLUMNS))
        kernels, biases = (rng.standard_normal((self.groups, *shape)) for shape in ((DEPTH, COLUMNS), (COLUMNS,)))
        self.x, self.kernels, self.biases, self.d_y = (np.asarray(array, dtype) for array in (x, kernels, biases, d_y))

    def run(self) -> tuple[Any, ...]:
        """Return the product and the gradients of rows, kernels and biases."""

        def product(x: Any, kernels: Any, biases: Any) -> Any:
            options: Any = {"sizes": self.sizes, "tile": TILE, "filled": jnp.asarray(self.filled)}
            return ragged_product.ragged_product(x, kernels, biases, **options)

        @jax.jit
        def both(x: Any, kernels: Any, biases: Any, d_y: Any) -> Any:
            y, pull = jax.vjp(product, x, kernels, biases)
            return y, *pull(d_y)

        with jax.default_matmul_precision("highest"):
            return jax.device_get(both(self.x, self.kernels, self.biases, self.d_y))

    def expected(self) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """Return the same in float64, and the sums of absolute values."""
        arrays = [np.asarray(array, np.float64) for array in (self.x, self.kernels, self.biases, self.d_y)]
        return self._by_rows(*arrays), self._by_rows(*map(np.abs, arrays))

    def _by_rows(self, x: np.ndarray, kernels: np.ndarray, biases: np.ndarray, d_y: np.ndarray) -> tuple[np.ndarray, ...]:
        y, d_x = np.zeros((self.rows, COLUMNS)), np.zeros((self.rows, DEPTH))
        d_kernels, d_biases = np.zeros_like(kernels), np.zeros_like(biases)
        for row in np.flatnonzero(self.filled):
            e = self.group[row]
            y[row] = x[row] @ kernels[e] + biases[e]
            d_x[row] = kernels[e] @ d_y[row]
            d_kernels[e] += np.outer(x[row], d_y[row])
            d_biases[e] += d_y[row]
        return y, d_x, d_kernels, d_biases

    def error(self, results: tuple[Any, ...]) -> float:
        """Return the largest error of a filled row or a weight as a part of its sum of absolute values; infinity for NaN."""
        largest = 0.0
        for place, (result, exact, scale) in enumerate(zip(results, *self.expected(), strict=True)):
            rows = self.filled if place < 2 else slice(None)
            difference, scale = np.abs(np.asarray(result, np.float64) - exact)[rows], scale[rows]
            if not (difference[scale == 0] == 0).all() or np.isnan(difference).any():
                return math.inf
            largest = max(largest, float((difference / np.where(scale == 0, 1, scale)).max(initial=0)))
        return largest


@pytest.fixture(params=["tiles", "grouped_tpu", "ragged_dot"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(ragged_product, "product_form", lambda: request.param)
    # Several blocks along both axes, the last of which is not full.
    small = grouped_product_tpu.SMALL._replace(weights=128 * DEPTH * 4, gradient=128)
    monkeypatch.setattr(grouped_product_tpu, "blocks", lambda: small)
    return request.param


@pytest.mark.parametrize("members", MEMBERS)
def test_each_row_is_multiplied_with_the_kernel_of_its_group(form: str, members: str) -> None:
    """The product and all gradients; those of empty groups are zeros."""
    problem = Problem(MEMBERS[members])
    assert problem.error(problem.run()) < BOUND


def test_bfloat16_is_summed_in_float32(form: str) -> None:
    """One rounding of the result, 2^-9, and nothing that grows with the number of rows."""
    problem = Problem(MEMBERS["uneven"], jnp.bfloat16)
    results = problem.run()
    assert all(result.dtype == jnp.bfloat16 for result in results)
    assert problem.error(results) < 2.0**-8


def run_as_on_a_tpu(problem: Problem, patch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """Return the product and its gradients by Pallas's interpreter of TPUs, which refuses some of what a TPU computes wrongly."""
    small = grouped_product_tpu.SMALL._replace(weights=128 * DEPTH * 4, gradient=128)
    patch.setattr(grouped_product_tpu, "blocks", lambda: small)
    options = pltpu.InterpretParams(uninitialized_memory="nan")

    @jax.jit
    def run(x: Any, kernels: Any, biases: Any, d_y: Any) -> Any:
        def product(*arrays: Any) -> Any:
            return grouped_product_tpu.grouped_product(*arrays, problem.sizes, TILE, options)

        y, pull = jax.vjp(product, x, kernels, biases)
        return y, *pull(d_y)

    with jax.default_matmul_precision("highest"):
        return jax.device_get(run(problem.x, problem.kernels, problem.biases, problem.d_y))


def test_the_kernels_follow_the_rules_of_a_tpu(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(MEMBERS["empty"])
    assert problem.error(run_as_on_a_tpu(problem, monkeypatch)) < BOUND


@pytest.mark.planted
def test_a_block_that_is_written_again_later_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a TPU a block of a result must be complete before another one is begun."""
    original = pl.BlockSpec

    def block_spec(shape: Any, index: Any) -> Any:
        at = index if len(shape) < 4 else lambda *grid: (*index(*grid)[:1], 0, *index(*grid)[2:])
        return original(shape, at)

    monkeypatch.setattr(pl, "BlockSpec", block_spec)
    try:
        with pytest.raises(jax.errors.JaxRuntimeError, match="Revisited block"):
            run_as_on_a_tpu(Problem(MEMBERS["uneven"]), monkeypatch)
    finally:
        # The failed program is the last of the ordered effects, on which every later one would wait.
        dispatch.runtime_tokens.clear()
        pltpu.reset_tpu_interpret_mode_state()


@pytest.mark.planted
@pytest.mark.parametrize("mistake", ["owner", "sums not cleared", "empty group not written", "no bias", "not transposed"])
def test_a_planted_mistake_in_the_kernels_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged_product, "product_form", lambda: "grouped_tpu")
    module: Any = grouped_product_tpu
    problem = Problem(MEMBERS["empty"])
    match mistake:
        case "owner":
            original = module._owner
            monkeypatch.setattr(module, "_owner", lambda ends, count: original(ends + 1, count))
        case "sums not cleared":
            monkeypatch.setattr(module.jnp, "zeros_like", lambda ref: ref[...])
        case "empty group not written":
            monkeypatch.setattr(module.jnp, "maximum", lambda a, b: a)
        case "no bias":
            rows = module.multiply_rows
            monkeypatch.setattr(module, "multiply_rows", lambda x, k, b, *rest, **options: rows(x, k, None, *rest, **options))
        case _:
            rows = module.multiply_rows

            def swapped(x: Any, kernels: Any, *rest: Any, transposed: bool = False, **options: Any) -> Any:
                kernels = kernels.reshape(kernels.shape[0], *kernels.shape[:0:-1]) if transposed else kernels
                return rows(x, kernels, *rest, **options)

            monkeypatch.setattr(module, "multiply_rows", swapped)
    assert not problem.error(problem.run()) < BOUND


def test_the_form_depends_on_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    for platform, expected in {"cpu": "tiles", "tpu": "grouped_tpu", "gpu": "ragged_dot"}.items():
        monkeypatch.setattr(ragged_product, "target_platform", lambda platform=platform: platform)
        assert ragged_product.product_form() == expected


def test_tiles_of_a_tpu_are_mostly_full() -> None:
    """Half a tile of each group, at most a sixteenth of its rows, unless groups have fewer rows than eight smallest tiles."""
    for rows in (1, 8, 128, 1000, 2048, 10**6):
        tile = grouped_product_tpu.tile_rows(rows)
        assert tile & (tile - 1) == 0 and 16 <= tile <= 512
        assert tile / 2 <= rows / 16 or tile == 16


def test_blocks_pad_an_axis_as_little_as_possible() -> None:
    """gpt-oss has 5,760 columns, 5 x 1,152, and 2,880, which are 6 x 512 with 192 columns of padding."""
    expected = {(5760, 1456): 1152, (2880, 728): 512, (2880, 1152): 1024, (300, 512): 300, (5000, 64): 128}
    assert {sizes: grouped_product_tpu._block(*sizes) for sizes in expected} == expected


def test_the_recorded_flops_are_those_of_the_rows_of_a_device() -> None:
    """Two operations for each number of a row and column; of rows that four devices share, a quarter."""
    problem = Problem(MEMBERS["uneven"])

    def product(x: Any) -> Any:
        options: Any = {"sizes": problem.sizes, "tile": TILE, "filled": jnp.asarray(problem.filled), "devices": 4}
        return ragged_product.ragged_product(x, jnp.asarray(problem.kernels), jnp.asarray(problem.biases), **options)

    with ragged_product.record_products() as recorded:
        jax.eval_shape(product, problem.x)
    assert [(product.form, product.scope, product.flops) for product in recorded] == [
        ("tiles", "ragged_product0", 2 * problem.rows / 4 * DEPTH * COLUMNS)
    ]
