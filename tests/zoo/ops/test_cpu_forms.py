"""Array functions that have a form for XLA's CPU compiler, against float64 numpy, on one device and on a mesh."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.support.processes import ROOT
from train.config.run_config import Mesh
from train.engine import device_mesh
from zoo.nn.layers import gelu, lookup, tied_logits
from zoo.ops import products, reductions
from zoo.ops.cpu_forms import single_cpu, with_cpu_form
from zoo.ops.products import OutputMajor

UNIT = 2.0**-24
"""The largest relative error of a rounding to float32."""
PLACES = {"one device": None, "mesh": PartitionSpec("fsdp", "tensor")}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest):
    """`place(x)` puts a matrix on one device, or cut over a mesh that is then the context's."""
    spec = PLACES[request.param]
    if spec is None:
        assert single_cpu()
        yield jnp.asarray
        return
    mesh = device_mesh.make_mesh(Mesh(fsdp=2, tensor=4))
    with jax.set_mesh(mesh):
        assert not single_cpu()
        yield lambda x: jax.device_put(x, NamedSharding(mesh, spec))


@pytest.mark.parametrize("columns", [4, 72, 1000, pytest.param(50304, marks=pytest.mark.full)])
def test_log_sum_exp_and_its_gradient(place, columns: int, rng: np.random.Generator) -> None:
    x = rng.normal(size=(6, columns)).astype(np.float32) * 20
    x[0, 1:] = -1e30
    value, gradient = jax.jit(jax.value_and_grad(lambda x: reductions.log_sum_exp(x).sum()))(place(x))
    wide = x.astype(np.float64)
    shifted = np.exp(wide - wide.max(-1, keepdims=True))
    true = np.log(shifted.sum(-1)) + wide.max(-1)
    # In units of 2^-24: positive terms added one by one err like a random walk, 4 deviations of which are 4 sqrt(n) / 3.
    of_total = 4 * columns**0.5 / 3 + 4
    assert abs(float(value) - true.sum()) <= 6 * (np.abs(true).sum() + of_total) * UNIT
    # exp(x - lse): the rounding of the difference and the error of lse are relative errors of its exponential.
    units = np.minimum(np.abs(wide - true[:, None]) + np.abs(true[:, None]) + of_total, 1e6)
    right = shifted / shifted.sum(-1, keepdims=True)
    np.testing.assert_array_less(np.abs(gradient - right), right * units * UNIT + 2.0**-126)


@pytest.mark.parametrize("summed", [1, 2])
@pytest.mark.parametrize("rows", [1, 5, products.FEW_ROWS + 1])
def test_products_of_few_rows(rows: int, summed: int, rng: np.random.Generator) -> None:
    """The kernel stored with reversed axes, and as a table, gives the sums of the plain product; 65 rows take the plain form."""
    shapes = ((1, rows, 6, 4), (6, 4, 3, 5)) if summed == 2 else ((1, rows, 4), (4, 3, 5))
    x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    expected = np.tensordot(x.astype(np.float64), kernel, summed)
    bound = 24 * 2 * UNIT * np.tensordot(np.abs(x), np.abs(kernel), summed)
    table = np.moveaxis(kernel, range(summed), range(-summed, 0))
    reversed_axes = OutputMajor(jnp.asarray(kernel.T))
    for product in (
        products.product(jnp.asarray(x), reversed_axes, summed),
        products.product(jnp.asarray(x), jnp.asarray(table), summed, transposed=True),
        products.product(jnp.asarray(x), jnp.asarray(kernel), summed),
    ):
        np.testing.assert_array_less(np.abs(product - expected), bound)


def test_log_sum_exp_of_non_finite_values() -> None:
    rows = np.array([[0, np.inf, 1, 2], [np.nan, 0, 1, 2], [-np.inf, 0, 0, 0], [-np.inf] * 4], np.float32)
    np.testing.assert_allclose(reductions.log_sum_exp(jnp.asarray(rows)), [np.inf, np.nan, np.log(3), -np.inf])


def test_rows(rng: np.random.Generator) -> None:
    for columns in (1, 16, 17, 48, 1024):
        x = rng.normal(size=(3, 2, columns)).astype(np.float32)
        np.testing.assert_array_equal(reductions.row_max(jnp.asarray(x)), x.max(-1))
        error = np.abs(reductions.row_sum(jnp.asarray(x)) - x.sum(-1, dtype=np.float64))
        assert (error <= (16 + np.log2(columns)) * UNIT * np.abs(x).sum(-1)).all(), columns


@pytest.mark.planted
@pytest.mark.parametrize("leading", [(), (1, 1), (2, 1)], ids=str)
def test_products_of_a_bfloat16_row(leading: tuple[int, ...], rng: np.random.Generator) -> None:
    """One row, which is multiplied twice, and two rows have sums in float32 of the products of rounded numbers.

    Sums in bfloat16 are noticed.
    """
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((*leading, 6), (6, 3, 5)))
    wide, exact_kernel = (np.asarray(array, np.float64) for array in (x, kernel))
    product = products.product(x, OutputMajor(kernel.T), 1)
    assert product.dtype == jnp.float32 and product.shape == (*leading, 3, 5)
    bound = 6 * 2 * UNIT * np.tensordot(np.abs(wide), np.abs(exact_kernel), 1)
    exact = np.tensordot(wide, exact_kernel, 1)
    np.testing.assert_array_less(np.abs(product - exact), bound)
    with pytest.raises(AssertionError):
        np.testing.assert_array_less(np.abs(jnp.tensordot(x, kernel, 1).astype(jnp.float32) - exact), bound)


@pytest.mark.planted
@pytest.mark.parametrize("columns", [1, 16, 17, 1000, 4099])
def test_the_index_of_a_row_s_maximum(place, columns: int, rng: np.random.Generator) -> None:
    """Compare with numpy, also where many numbers are equal: the first of them counts, which the last one would not pass."""
    x = np.concatenate([rng.normal(size=(3, columns)), rng.integers(0, 3, (4, columns)), np.full((1, columns), -np.inf)])
    rows = place(x.astype(np.float32)) if columns % 4 == 0 else jnp.asarray(x, jnp.float32)
    index = np.asarray(jax.jit(reductions.row_argmax)(rows))
    assert index.dtype == np.int32 and np.array_equal(index, x.argmax(-1))
    last = columns - 1 - x[:, ::-1].argmax(-1)
    assert columns == 1 or not np.array_equal(index, last)
    damaged = x.astype(np.float32)
    damaged[0, -1] = np.nan
    assert 0 <= int(reductions.row_argmax(jnp.asarray(damaged))[0]) < columns


def test_rows_without_a_number_that_is_not_finite(place) -> None:
    x = np.zeros((8, 20), np.float32)
    x[1, 3], x[2, 19], x[3, 0] = np.nan, np.inf, -np.inf
    finite = jax.jit(reductions.all_finite)(place(x))
    assert np.array_equal(finite, [True, False, False, False, True, True, True, True])


def test_rows_whose_largest_number_is_not_finite(place) -> None:
    x = np.zeros((8, 20), np.float32)
    x[1, 3], x[2, 19], x[3, 0], x[4] = np.inf, np.inf, -np.inf, -np.inf
    finite = jax.jit(reductions.max_is_finite)(place(x))
    assert np.array_equal(finite, [True, False, False, True, False, True, True, True])


def assert_no_slices(function: Callable[[jax.Array], Any], x: jax.Array) -> None:
    assert "slice" not in str(jax.make_jaxpr(function)(x))


@pytest.mark.planted
def test_rows_are_not_halved_on_a_mesh() -> None:
    """A sharded row would be exchanged between devices for every half; `row_max` has this form on every platform."""
    x = jnp.zeros((8, 64))
    with jax.set_mesh(device_mesh.make_mesh(Mesh(fsdp=2, tensor=4))):
        for name in ("log_sum_exp", "row_argmax", "all_finite", "max_is_finite"):
            assert_no_slices(getattr(reductions, name), x)
        with pytest.raises(AssertionError):
            assert_no_slices(lambda x: jnp.isfinite(reductions.row_max(x)), x)


def assert_sum_of_squares(x: np.ndarray, total: jax.Array) -> None:
    """Compare with float64: 16 rows and 4 times windows of 32 err like a random walk: 4 sqrt(144) / 3 units of 2^-24."""
    assert float(total) == pytest.approx(np.square(x, dtype=np.float64).sum(), rel=16 * UNIT)


@pytest.mark.parametrize("shape", [(5,), (3, 8), (64, 40), (6, 34, 4), (2, 512, 1024)])
def test_sum_of_squares(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    x = rng.normal(size=shape).astype(np.float32)
    assert_sum_of_squares(x, jax.jit(reductions.sum_of_squares)(x))


def test_sum_of_squares_on_a_mesh(place, rng: np.random.Generator) -> None:
    x = rng.normal(size=(66, 44)).astype(np.float32)
    assert_sum_of_squares(x, jax.jit(reductions.sum_of_squares)(place(x)))


@pytest.mark.parametrize("within", [(12,), (3, 4)])
def test_broadcast_rows_and_its_gradient(place, within: tuple[int, ...], rng: np.random.Generator) -> None:
    weights = rng.normal(size=(66, 12)).astype(np.float32)
    weights = place(weights).reshape(6, 11, *within)
    x = rng.normal(size=within).astype(np.float32)

    def summed(x):
        everywhere = reductions.broadcast_rows(x, weights.shape)
        return (everywhere * weights).sum(), everywhere

    gradient, everywhere = jax.jit(jax.grad(summed, has_aux=True))(x)
    np.testing.assert_array_equal(everywhere, np.broadcast_to(x, weights.shape))
    # 66 terms of random sign, added one by one: 4 deviations of the errors of as many partial sums.
    wide = np.asarray(weights, np.float64)
    bound = 4 * UNIT * np.sqrt(66 * np.square(wide).sum((0, 1)) / 3)
    np.testing.assert_array_less(np.abs(gradient - wide.sum((0, 1))), bound)


def test_gradients_of_broadcast_rows_are_summed_in_float32() -> None:
    """In bfloat16 a sum of ones ends at 256."""
    x = jnp.zeros(4, jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda x: reductions.broadcast_rows(x, (8, 512, 4)).sum().astype(jnp.float32)))(x)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient.astype(jnp.float32), 4096)


def test_padding_rows_get_no_probability_and_no_gradient(place, rng: np.random.Generator) -> None:
    hidden = rng.normal(size=(6, 8)).astype(np.float32)
    table = place(rng.normal(size=(128, 8)).astype(np.float32))

    def loss(hidden, table):
        logits = tied_logits(hidden, table, 101)
        return jnp.sin(logits).sum(), logits

    (_, logits), (d_hidden, d_table) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(hidden, table)
    real = hidden.astype(np.float64) @ np.asarray(table, np.float64)[:101].T
    # Sums of 8 products; a gradient's terms have the logits' errors too, and sums of 6 or 101 products their own.
    table = np.asarray(table, np.float64)[:101]
    of_logits = 8 * UNIT * (np.abs(hidden) @ np.abs(table).T)
    of_cosine = of_logits + 4 * UNIT
    np.testing.assert_array_less(np.abs(logits[:, :101] - real), of_logits)
    assert (np.asarray(logits[:, 101:]) == np.float32(-1e30)).all()
    assert (np.asarray(d_table[101:]) == 0).all()
    of_table = (of_cosine + 6 * UNIT).T @ np.abs(hidden)
    of_hidden = 4 * np.sqrt((of_cosine**2 + 101 * UNIT**2) @ table**2)
    np.testing.assert_array_less(np.abs(d_table[:101] - np.cos(real).T @ hidden), of_table)
    np.testing.assert_array_less(np.abs(d_hidden - np.cos(real) @ table), of_hidden)


@pytest.mark.planted
def test_gradients_of_lookups_of_a_source_and_of_a_target_are_joined_without_a_branch(rng: np.random.Generator) -> None:
    """The concatenation is the last operation of its kernel, which it is not without the list; both gradients are exact."""
    table, true = np.zeros((64, 2), np.float32), np.zeros((64, 2), np.float32)
    ids, others = rng.integers(0, 8, (2, 4, 4)).astype(np.int32)
    a, b = rng.integers(-9, 9, (2, 4, 4, 2)).astype(np.float32)
    np.add.at(true, ids, 3 * a)
    np.add.at(true, others, 3 * b)
    for source in (True, False):

        def total(table: jax.Array, *arrays: jax.Array, source: bool = source) -> jax.Array:
            ids, others, a, b = arrays
            return (lookup(table, ids, source=source) * (3 * a)).sum() + (lookup(table, others) * (3 * b)).sum()

        program = jax.jit(jax.grad(total)).lower(table, ids, others, a, b).compile()
        np.testing.assert_array_equal(program(table, ids, others, a, b), true)
        joined = re.findall(r"(ROOT )?\S+ = f32\S+ concatenate\(", program.as_text() or "")
        assert joined == (["ROOT "] if source else [""])


def test_gelu_is_x_times_the_normal_distribution() -> None:
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    true = np.array([0.5 * each * (1 + math.erf(each / math.sqrt(2))) for each in x.astype(np.float64)])
    # x / 2 times the sum of 1 and an erf right to 2 units, which is rounded, as are 2 products.
    np.testing.assert_array_less(np.abs(gelu(jnp.asarray(x)) - true), np.abs(x) * 4 * UNIT + 2.0**-40)
    narrow = gelu(jnp.full(1, -2.5, jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    # In bfloat16 1 + erf(x) would be a multiple of 2^-8.
    assert float(narrow[0]) == pytest.approx(-0.0155240, rel=4e-3)


def sources() -> dict[str, str]:
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "zoo").rglob("*.py")}


def test_one_file_chooses_forms_for_the_cpu_and_only_ops_and_decoding_have_any() -> None:
    def files_with(*words: str) -> set[str]:
        return {file for file, source in sources().items() if any(word in source for word in words)}

    assert files_with("single_cpu") == {"zoo/ops/cpu_forms.py"}
    ops = {"zoo/ops/products.py", "zoo/ops/reductions.py", "zoo/ops/selects.py"}
    assert files_with("with_cpu_form") == ops | {"zoo/ops/cpu_forms.py", "zoo/generation/split_layers.py"}
    assert files_with("optimization_barrier", "with_layout_constraint") == {"zoo/ops/products.py", "zoo/ops/reductions.py"}
    assert files_with("SplitLayers") == {"zoo/nn/layer_arrays.py", "zoo/generation/split_layers.py"}


def test_families_layers_and_losses_do_not_mention_the_compiler_for_the_cpu() -> None:
    folders = ("zoo/models", "zoo/nn", "train/engine", "train/step", "train/objectives")
    for file in (file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        assert not re.search(r"XLA on CPU|XLA's CPU|one CPU", file.read_text()), file


@pytest.mark.planted
def test_a_form_is_taken_where_it_is_registered() -> None:
    """A form for one device that a mesh took, or one for all that a mesh did not take, is noticed."""

    @with_cpu_form
    def form(number: int) -> str:
        return f"plain {number}"

    def check(*expected: str) -> None:
        assert form(1) == expected[0]
        with jax.set_mesh(device_mesh.make_mesh(Mesh(fsdp=2, tensor=4))):
            assert form(number=1) == expected[1]

    check("plain 1", "plain 1")
    one = form.on_one_cpu(lambda number: "one")
    check("one", "plain 1")
    form.on_cpu(lambda number: "any")
    check("any", "any")
    form.on_one_cpu(one)
    check("one", "any")
    with pytest.raises(AssertionError):
        check("one", "one")
