"""Products of groups of rows in every form, against a lookup of each row's kernel in float64; Pallas's kernels are interpreted.

The interpreter fills what a kernel has not written, and the part of a block outside of its array, with NaN, so that a read of it
would show.
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

from benchmarks.plan.target_devices import TPUS
from zoo.errors import BadInput
from zoo.ops import grouped_product, grouped_product_gpu, grouped_product_tpu, ragged_product
from zoo.runtime.hardware import DEVICES

TILE, DEPTH, COLUMNS = 16, 200, 300
"""The kernels divide neither axis into whole blocks of 128, nor of 32."""
MEMBERS = {
    "uneven": (20, 1, 40),
    "empty": (0, 30, 0, 0, 17, 0),
    "one has all": (0, 0, 70, 0),
    "nobody": (0, 0, 0),
}
"""Filled rows of each group; the others of its last tile are empty."""
BOUND = 2.0**-18
"""Maximum error as a part of the sum of the absolute values: at most 256 float32 additions, 2^-24 each, less by pairs."""
FORMS = ("tiles", "grouped_tpu", "grouped_gpu", "ragged_dot")
KERNELS: dict[str, Any] = {"grouped_tpu": grouped_product_tpu, "grouped_gpu": grouped_product_gpu}
LIMITS = SMALL, LARGE = tuple(grouped_product_tpu.blocks_of(kind) for kind in ("TPU v4", "TPU v5p"))


class Problem:
    """Rows of groups, each filled up to whole tiles, and two tiles without a group after them."""

    def __init__(
        self, members: tuple[int, ...], dtype: Any = np.float32, tile: int = TILE, depth: int = DEPTH, columns: int = COLUMNS
    ) -> None:
        rng = np.random.default_rng(len(members))
        sizes = [-(-count // tile) * tile for count in members]
        self.rows, self.groups, self.tile = sum(sizes) + 2 * tile, len(members), tile
        self.sizes = jnp.asarray(sizes, jnp.int32)
        self.group = np.append(np.repeat(np.arange(self.groups), sizes), [0] * 2 * tile)
        ends = np.cumsum(sizes)
        self.filled = np.zeros(self.rows, bool)
        for end, size, count in zip(ends, sizes, members, strict=True):
            self.filled[end - size : end - size + count] = True
        x, d_y = (rng.standard_normal((self.rows, size)) * self.filled[:, None] for size in (depth, columns))
        kernels, biases = (rng.standard_normal((self.groups, *shape)) for shape in ((depth, columns), (columns,)))
        self.x, self.kernels, self.biases, self.d_y = (np.asarray(array, dtype) for array in (x, kernels, biases, d_y))

    def run(self) -> tuple[Any, ...]:
        """Return the product and the gradients of rows, kernels and biases."""

        def product(x: Any, kernels: Any, biases: Any) -> Any:
            options: Any = {"sizes": self.sizes, "tile": self.tile, "filled": jnp.asarray(self.filled), "expected_rows": 1.0}
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
        y, d_x = np.zeros_like(d_y), np.zeros_like(x)
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


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the kernels several blocks along both axes, the last of which is not full, and those of a GPU few neighbours."""
    small = SMALL._replace(weight_bytes=128 * DEPTH * 4, gradient=128)
    monkeypatch.setattr(grouped_product_tpu, "device_blocks", lambda: small)
    monkeypatch.setattr(grouped_product_gpu, "NEIGHBOURS", 4)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(ragged_product, "product_form", lambda: request.param)
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


def test_what_fills_a_group_up_need_only_be_finite(form: str) -> None:
    """Rows that are not filled have a cotangent of zero, so that they change no filled row and no gradient."""
    problem = Problem(MEMBERS["uneven"])
    problem.x[~problem.filled] = 1000
    assert problem.error(problem.run()) < BOUND


def test_a_large_tile_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of groups of whole tiles of 64 are multiplied in tiles of 16 and 32 if larger ones do not fit."""
    monkeypatch.setattr(ragged_product, "product_form", lambda: "grouped_tpu")
    limits = grouped_product_tpu.device_blocks()
    fewest = grouped_product_tpu.row_blocks(TILE, 300, 200, np.float32, limits).bytes
    monkeypatch.setattr(grouped_product_tpu, "device_blocks", lambda: limits._replace(vmem_bytes=fewest))
    tiles: list[int] = []
    original = grouped_product_tpu.row_blocks

    def row_blocks(*arguments: Any) -> Any:
        sizes = original(*arguments)
        tiles.append(sizes.tile)
        return sizes

    monkeypatch.setattr(grouped_product_tpu, "row_blocks", row_blocks)
    problem = Problem(MEMBERS["uneven"], tile=4 * TILE)
    assert problem.error(problem.run()) < BOUND
    assert set(tiles) == {TILE, 2 * TILE}


@pytest.mark.parametrize(("depth", "columns"), [(128, 256), (128, 200), (200, 256)])
def test_a_gpu_loops_over_a_large_tile(depth: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of weights take the rows of a tile of 64 in two steps; axes of whole blocks need no mask."""
    monkeypatch.setattr(ragged_product, "product_form", lambda: "grouped_gpu")
    problem = Problem(MEMBERS["uneven"], tile=64, depth=depth, columns=columns)
    assert problem.error(problem.run()) < BOUND


@pytest.mark.parametrize("place", [0, 1, 2])
def test_unequal_dtypes_are_refused(place: int, form: str) -> None:
    """Each form would round or sum another of the arrays differently."""
    problem = Problem(MEMBERS["uneven"])
    name = ("x", "kernels", "biases")[place]
    setattr(problem, name, np.asarray(getattr(problem, name), jnp.bfloat16))
    with pytest.raises(TypeError, match=r"bfloat16 .*cast them to one dtype"):
        problem.run()


def test_float64_is_not_summed_in_float32(form: str) -> None:
    """The other forms sum it in float64; the kernels of a TPU and of a GPU refuse it."""
    problem = Problem(MEMBERS["uneven"], np.float64)
    with jax.enable_x64(True):
        if form in KERNELS:
            with pytest.raises(TypeError, match=f"float64 arrays on a {form[-3:].upper()}"):
                problem.run()
        else:
            assert problem.error(problem.run()) < 2.0**-45


def run_as_on_a_tpu(problem: Problem) -> tuple[Any, ...]:
    """Return the product and its gradients by Pallas's interpreter of TPUs, which refuses some of what a TPU computes wrongly."""
    options = pltpu.InterpretParams(uninitialized_memory="nan")

    @jax.jit
    def run(x: Any, kernels: Any, biases: Any, d_y: Any) -> Any:
        def product(*arrays: Any) -> Any:
            return grouped_product.grouped_product(grouped_product_tpu, *arrays, problem.sizes, TILE, options)

        y, pull = jax.vjp(product, x, kernels, biases)
        return y, *pull(d_y)

    with jax.default_matmul_precision("highest"):
        return jax.device_get(run(problem.x, problem.kernels, problem.biases, problem.d_y))


def test_the_kernels_follow_the_rules_of_a_tpu() -> None:
    problem = Problem(MEMBERS["empty"])
    assert problem.error(run_as_on_a_tpu(problem)) < BOUND


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
            run_as_on_a_tpu(Problem(MEMBERS["uneven"]))
    finally:
        # The failed program is the last of the ordered effects, on which every later one would wait.
        dispatch.runtime_tokens.clear()
        pltpu.reset_tpu_interpret_mode_state()


MISTAKES = ("group", "no bias", "not transposed")
MISTAKES_OF = {
    "grouped_tpu": ("sums not cleared", "empty group not written"),
    "grouped_gpu": ("outside not masked", "last blocks left out", "sums of other groups"),
}


@pytest.mark.planted
@pytest.mark.parametrize(("form", "mistake"), [(form, name) for form, names in MISTAKES_OF.items() for name in MISTAKES + names])
def test_a_planted_mistake_in_the_kernels_is_found(form: str, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged_product, "product_form", lambda: form)
    module = KERNELS[form]
    rows, weights = module.multiply_rows, module.weight_gradients
    problem = Problem(MEMBERS["empty"])
    match mistake:
        case "group":
            original = grouped_product.group_of
            monkeypatch.setattr(grouped_product, "group_of", lambda ends, count: original(ends + 1, count))
        case "sums not cleared":
            monkeypatch.setattr(module, "_is_first_step", lambda _, step: step == 0)
        case "empty group not written":
            monkeypatch.setattr(module, "_steps_of", lambda tiles: tiles)
        case "outside not masked":
            monkeypatch.setattr(module, "_inside", lambda *_: None)
        case "last blocks left out":
            monkeypatch.setattr(module.pl, "cdiv", lambda size, block: max(size // block, 1))
        case "sums of other groups":
            monkeypatch.setattr(module, "weight_gradients", lambda x, d, s, **options: weights(x, d, jnp.roll(s, 1), **options))
        case "no bias":
            monkeypatch.setattr(module, "multiply_rows", lambda x, k, b, *rest, **options: rows(x, k, None, *rest, **options))
        case _:

            def swapped(x: Any, kernels: Any, *rest: Any, transposed: bool = False, **options: Any) -> Any:
                kernels = kernels.reshape(kernels.shape[0], *kernels.shape[:0:-1]) if transposed else kernels
                return rows(x, kernels, *rest, **options)

            monkeypatch.setattr(module, "multiply_rows", swapped)
    assert not problem.error(problem.run()) < BOUND


def test_the_form_depends_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are for NVIDIA's GPUs with matrix units for bfloat16, not for older ones and not for those of others."""
    kinds = {"cpu": "tiles", "TPU v4": "grouped_tpu", "NVIDIA H100": "grouped_gpu", "NVIDIA A10": "grouped_gpu"}
    for kind, expected in {**kinds, "Tesla T4": "ragged_dot", "AMD Instinct MI300X": "ragged_dot"}.items():
        platform = {"tiles": "cpu", "grouped_tpu": "tpu"}.get(expected, "gpu")
        monkeypatch.setattr(ragged_product, "target_platform", lambda platform=platform: platform)
        monkeypatch.setattr(ragged_product, "target_device_kind", lambda kind=kind: kind)
        assert ragged_product.product_form() == expected


@pytest.mark.parametrize(
    ("form", "largest"), [("grouped_tpu", 256), ("grouped_tpu", 512), ("grouped_gpu", grouped_product_gpu.LARGEST_TILE)]
)
def test_tiles_of_kernels_are_mostly_full(form: str, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a tile of each group, at most a sixteenth of its rows, unless groups have fewer rows than eight smallest tiles."""
    monkeypatch.setattr(ragged_product, "product_form", lambda: form)
    monkeypatch.setattr(grouped_product_tpu, "device_blocks", lambda: {limits.tile: limits for limits in LIMITS}.get(largest))
    for rows in (1, 8, 128, 1000, 2048, 10**6):
        tile = ragged_product.choose_tile_rows(rows)
        assert tile & (tile - 1) == 0 and 16 <= tile <= largest
        assert tile / 2 <= rows / 16 or tile == 16
    assert tile == largest


def test_only_newer_tpus_have_large_blocks() -> None:
    """By the names of the devices with published rates and of those that programs are compiled for, which are among them."""
    large = {kind for kind in DEVICES if grouped_product_tpu.blocks_of(kind) == LARGE}
    assert {kind for kind in DEVICES if kind.startswith("TPU")} - large == {"TPU v2", "TPU v3", "TPU v4"}
    assert all(kind.startswith("TPU") for kind in large)
    assert {tpu.kind for tpu in TPUS.values()} - large == {"TPU v4"}


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize(("depth", "columns"), [(2880, 5760), (2880, 2880)])
def test_the_blocks_of_gpt_oss_fit(limits: grouped_product_tpu.Blocks, dtype: Any, depth: int, columns: int) -> None:
    """Both projections, the gradients of their rows, over `columns`, and those of their weights, with the largest tile.

    The bytes of what the grids copy, twice each, and of the sums, computed from the shapes here.
    """
    size = np.dtype(dtype).itemsize
    for contracted, results in ((depth, columns), (columns, depth)):
        tile, block, used = grouped_product_tpu.row_blocks(limits.tile, contracted, results, dtype, limits)
        blocks = size * (tile * contracted + contracted * block + tile * block)
        assert 2 * blocks + 4 * tile * block <= used <= limits.vmem_bytes
        # Halved only where necessary: in float32, and on small devices.
        assert tile == limits.tile or (tile == limits.tile // 2 and size == 4 and limits == SMALL)
    block_d, block_f, used = grouped_product_tpu.gradient_blocks(limits.tile, depth, columns, dtype, limits)
    blocks = size * (limits.tile * (block_d + block_f) + block_d * block_f)
    assert 2 * blocks + 4 * block_d * block_f <= used <= limits.vmem_bytes


def test_an_axis_that_fits_no_tile_is_refused() -> None:
    with pytest.raises(BadInput, match=r"an axis of 20000 float32 numbers need 2\d\.\d MiB .* has 16\.0; choose"):
        grouped_product_tpu.row_blocks(256, 20_000, 256, np.float32, SMALL)


def test_blocks_pad_an_axis_as_little_as_possible() -> None:
    """gpt-oss has 5,760 columns, 5 x 1,152, and 2,880, which are 6 x 512 with 192 columns of padding."""
    expected = {(5760, 1456): 1152, (2880, 728): 512, (2880, 1152): 1024, (300, 512): 300, (5000, 64): 128}
    assert {sizes: grouped_product_tpu._block(*sizes) for sizes in expected} == expected


def test_the_recorded_flops_are_those_of_the_rows_of_a_device() -> None:
    """Two operations for each number of a row and column; rows that fill groups up are not counted."""
    problem = Problem(MEMBERS["uneven"])

    def product(x: Any) -> Any:
        options: Any = {"sizes": problem.sizes, "tile": TILE, "filled": jnp.asarray(problem.filled), "expected_rows": 15.25}
        return ragged_product.ragged_product(x, jnp.asarray(problem.kernels), jnp.asarray(problem.biases), **options)

    with ragged_product.record_products() as recorded:
        jax.eval_shape(product, problem.x)
    assert [(product.form, product.scope, product.flops) for product in recorded] == [
        ("tiles", "ragged_product0", 2 * 15.25 * DEPTH * COLUMNS)
    ]
