"""Parts of layers: `product`, its sums and gradients against float64, as layers and tables of words ask for them; activations."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.config.run_config import Mesh
from train.engine import device_mesh
from zoo.nn.layers import ACTIVATIONS
from zoo.ops.products import product

# x, kernel, summed axes, turned: a matrix, heads put together and taken apart, an odd width, a table of words.
SHAPES = [
    ((24, 16), (16, 40), 1, False),
    ((3, 8, 16), (16, 3, 2, 4), 1, False),
    ((3, 8, 2, 4), (2, 4, 16), 2, False),
    ((7, 5), (5, 3), 1, False),
    ((24, 16), (40, 16), 1, True),
    ((3, 8, 16), (40, 16), 1, True),
]
UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
"""The largest relative error of a rounding to a dtype."""


def exact(x: np.ndarray, kernel: np.ndarray, d_y: np.ndarray, summed: int, turned: bool) -> list[np.ndarray]:
    """The sums and both gradients, of matrices of float64."""
    columns = math.prod(x.shape[x.ndim - summed :])
    rows, d_rows = x.reshape(-1, columns).astype(np.float64), d_y.astype(np.float64)
    matrix = kernel.astype(np.float64).reshape((-1, columns) if turned else (columns, -1))
    matrix = matrix.T if turned else matrix
    d_rows = d_rows.reshape(rows.shape[0], -1)
    d_matrix = rows.T @ d_rows
    return [rows @ matrix, d_rows @ matrix.T, d_matrix.T if turned else d_matrix]


@pytest.mark.parametrize(("of_x", "of_kernel", "summed", "turned"), SHAPES)
def test_sums_and_gradients(
    of_x: tuple[int, ...], of_kernel: tuple[int, ...], summed: int, turned: bool, rng: np.random.Generator
) -> None:
    """On one device, where arrays are cut and joined, and on a mesh, where they are not."""
    x, kernel = (rng.standard_normal(shape) for shape in (of_x, of_kernel))
    outputs = of_kernel[: len(of_kernel) - summed] if turned else of_kernel[summed:]
    d_y = rng.standard_normal((*of_x[: len(of_x) - summed], *outputs))
    for devices, dtype in [(1, "float32"), (1, "bfloat16"), (8, "bfloat16" if summed == 2 or turned else "float32")]:
        arrays = [jnp.asarray(each, dtype) for each in (x, kernel, d_y)]
        assert_right(arrays, summed, turned, dtype, devices)


def assert_right(arrays: list[jax.Array], summed: int, turned: bool, dtype: str, devices: int) -> None:
    """Compare with float64. A sum of n products has an error of at most n roundings of the sum of the sizes of its terms."""
    x, kernel, d_y = arrays
    with jax.set_mesh(device_mesh.make_mesh(Mesh(data=devices), jax.devices()[:devices])):
        y, back = jax.vjp(lambda x, kernel: product(x, kernel, summed, transposed=turned), x, kernel)
        found = [y, *jax.jit(back)(d_y.astype(jnp.float32))]
    assert [each.dtype for each in found] == [jnp.float32, dtype, dtype]
    values = [np.asarray(each, np.float64) for each in arrays]
    # No sum of `SHAPES` has more terms than 40; gradients are rounded to the kernel's dtype.
    for each, true, sizes in zip(found, exact(*values, summed, turned), exact(*map(np.abs, values), summed, turned), strict=True):
        rounded = 0 if each is y else UNIT[dtype]
        error = np.abs(np.asarray(each, np.float64).reshape(true.shape) - true)
        assert (error <= 40 * 2.0**-24 * sizes * (1 + rounded) + rounded * np.abs(true)).all()


def test_a_gradient_that_is_used_transposed(rng: np.random.Generator) -> None:
    """XLA on CPU fails where a product of bfloat16 is to write its float32 transposed: the gradient's own dtype is between."""
    x, kernel, d_y = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in ((32, 16), (16, 64), (32, 64)))
    d_kernel = lambda *of: jax.vjp(lambda kernel: product(of[0], kernel, 1), of[1])[1](of[2].astype(jnp.float32))[0]  # noqa: E731
    found = jax.jit(lambda *of: d_kernel(*of).astype(jnp.float32).T)(x, kernel, d_y)
    np.testing.assert_array_equal(found, np.asarray(jax.jit(d_kernel)(x, kernel, d_y), np.float32).T)


def operands(function, *arguments: jax.Array) -> set[str]:
    """The dtypes of what a compiled program multiplies as matrices."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    dtypes = dict(re.findall(r"(%[\w.-]+) = (\w+)\[", text))
    found = re.findall(r" dot\((%[\w.-]+), (%[\w.-]+)\)", text)
    assert found
    return {dtypes[name] for pair in found for name in pair}


@pytest.mark.parametrize("turned", [False, True])
def test_gradients_of_bfloat16_products_are_products_of_bfloat16(turned: bool, rng: np.random.Generator) -> None:
    """In bfloat16 where the processor multiplies it, else in float32; a kernel's gradient was computed in float32 everywhere."""
    x, kernel, d_y = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in ((512, 256), (256, 256), (512, 256)))
    plain = lambda x, y: jax.lax.dot(x, y, preferred_element_type=jnp.float32)  # noqa: E731
    back = lambda x, kernel, d_y: jax.vjp(lambda *of: product(*of, 1, transposed=turned), x, kernel)[1](d_y.astype(jnp.float32))  # noqa: E731
    assert operands(back, x, kernel, d_y) == operands(plain, x, kernel)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_of_bfloat16_is_rounded_once(name: str) -> None:
    """It is computed in float32: what is written in bfloat16 XLA rounds at every step, and is off by several places."""
    x = jnp.linspace(-6, 6, 4096).astype(jnp.bfloat16)
    found, true = (jax.jit(ACTIVATIONS[name])(each).astype(jnp.bfloat16) for each in (x, x.astype(jnp.float32)))
    np.testing.assert_array_equal(found, true)
