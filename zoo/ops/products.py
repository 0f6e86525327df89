"""Products of arrays and kernels, summed in float32, whose gradients are products in the kernel's dtype."""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from zoo.ops.cpu_forms import with_cpu_form


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OutputMajor:
    """A kernel that is stored with its axes reversed, so that all inputs of an output lie together: for inference."""

    array: Any
    """The kernel with its axes in reversed order, or its shape."""

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    def __getitem__(self, key: Any) -> "OutputMajor":
        """Return the object itself, because parameters of a module are read by `[...]`."""
        return self


def product(
    x: Float[Array, "*BD"], kernel: Float[Array, "..."] | OutputMajor, summed: int, *, transposed: bool = False
) -> Float[Array, "*BE"]:
    """Return float32 sums of products over the last `summed` axes of x and the first of the kernel; its last if `transposed`.

    The gradients are products in the kernel's dtype too, whatever the cotangent's is. That of the kernel is x^T dy, a product of
    matrices as they are stored. XLA on CPU transposes dy first for the derivative that JAX makes of an einsum over [B, T, D], and
    then takes twice as long for the product: a gpt2 step takes 0.88 of the time without.
    """
    if isinstance(kernel, OutputMajor):
        assert not transposed
        return _output_major_product(x, kernel.array, summed)
    y: Any = _product(x, kernel, summed, transposed)
    return y


FEW_ROWS = 64
"""Most rows of x for which the kernel is the first operand of a product on one CPU device."""


@with_cpu_form
def _output_major_product(x: Array, reversed_kernel: Array, summed: int) -> Array:
    return _product(x, reversed_kernel.T, summed, False)


@_output_major_product.on_one_cpu
def _kernel_first(x: Array, reversed_kernel: Array, summed: int) -> Array:
    """Return the product of few rows with the kernel as its first operand.

    XLA on CPU: a product of 2 to 64 rows with a kernel that is stored as [in, out] reads it at 0.1 to 0.5 of the rate at which
    memory is copied, and as the first operand, stored as [out, in], at 0.2 to 0.65. With 8 rows, a token of gpt2 takes 0.5 of the
    time. A bfloat16 kernel is multiplied with two equal rows instead of one, which takes 0.4 of the time: about as long as one
    row and a float32 kernel.
    Remove when x [R, in] . kernel [in, out] takes as long.
    """
    outputs, leading = reversed_kernel.ndim - summed, x.ndim - summed
    rows = math.prod(x.shape[:leading])
    if rows > FEW_ROWS:
        return _output_major_product.plain(x, reversed_kernel, summed)
    if x.dtype == jnp.bfloat16 and rows == 1:
        # Along a new axis, because x may have none but those that are summed.
        return _kernel_first(jnp.stack([x, x]), reversed_kernel, summed)[0]
    # In the order of the kernel's axes: the compiler transposes x, which is small, to fit it.
    y = _contracted(reversed_kernel, x, range(outputs, reversed_kernel.ndim), range(x.ndim - 1, leading - 1, -1))  # [*E, *B]
    return jnp.transpose(y, (*range(outputs, y.ndim), *range(outputs - 1, -1, -1)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x: Array, kernel: Array, summed: int, transposed: bool) -> Array:
    return _contracted(x, kernel, range(x.ndim - summed, x.ndim), _axes(kernel, summed, transposed))


def _product_fwd(x: Array, kernel: Array, summed: int, transposed: bool) -> tuple[Any, tuple[Array, Array]]:
    return _product(x, kernel, summed, transposed), (x, kernel)


def _product_bwd(summed: int, transposed: bool, residuals: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    return _gradients(x, kernel, d_y.astype(kernel.dtype), summed, transposed)


_product.defvjp(_product_fwd, _product_bwd)


@with_cpu_form
def _gradients(x: Array, kernel: Array, d_y: Array, summed: int, transposed: bool) -> tuple[Array, Array]:
    leading = x.ndim - summed
    d_x = _contracted(d_y, kernel, range(leading, d_y.ndim), _axes(kernel, kernel.ndim - summed, not transposed))
    # The leading axes are not merged here: a mesh may divide both rows and positions, and no sharding of one axis has both.
    d_kernel = _summed_over_rows(d_y, x, leading) if transposed else _summed_over_rows(x, d_y, leading)
    return d_x.astype(x.dtype), d_kernel.astype(kernel.dtype)


@_gradients.on_one_cpu
def _gradients_of_matrices(x: Array, kernel: Array, d_y: Array, summed: int, transposed: bool) -> tuple[Array, Array]:
    """Return the gradients by products of matrices.

    XLA on CPU: for a product over several axes it first transposes the kernel.
    Remove when such a product takes as long as that of matrices.
    """
    columns = math.prod(x.shape[x.ndim - summed :])
    rows, matrix = x.reshape(-1, columns), kernel.reshape((-1, columns) if transposed else (columns, -1))  # [R, C], [C, E]
    d_x, d_kernel = _gradients.plain(rows, matrix, d_y.reshape(rows.shape[0], -1), 1, transposed)
    return d_x.reshape(x.shape), d_kernel.reshape(kernel.shape)


def _axes(kernel: Array, count: int, last: bool) -> range:
    return range(kernel.ndim - count, kernel.ndim) if last else range(count)


@with_cpu_form
def _summed_over_rows(x: Float[Array, "*BD"], y: Float[Array, "*BE"], leading: int) -> Float[Array, "*DE"]:
    """Return the sum of x y over the first `leading` axes of both, in float32."""
    return _contracted(x, y, range(leading), range(leading))


@_summed_over_rows.on_cpu
def _summed_in_float32(x: Array, y: Array, leading: int) -> Array:
    """Return the sum of float32 arrays: XLA on CPU has no product of a transposed bfloat16 matrix and computes this itself."""
    if x.dtype == jnp.bfloat16:
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return _summed_over_rows.plain(x, y, leading)


@_summed_over_rows.on_one_cpu
def _summed_after_transposition(x: Array, y: Array, leading: int) -> Array:
    """Return x^T y with x stored transposed first, if it is a bfloat16 matrix.

    XLA on CPU: it computes the product of a transposed matrix in float32. Without a layout constraint the transposition would be
    fused into the product. [1024, 768]^T x [1024, 3072] takes 3.1 instead of 18.9 ms, and a step 0.67 to 0.69 of the time in
    bfloat16.
    Remove when that product of bfloat16 matrices takes as long as without the transposition.
    """
    if x.dtype != jnp.bfloat16 or x.ndim != 2:
        return _summed_in_float32(x, y, leading)
    # Without the barrier, an activation that is recomputed for this product would be fused into the transposition, which
    # computes it entry by entry. With it, and gelu's tanh in float32, a gpt2 step takes 0.85 of the time.
    x = lax.optimization_barrier(x)
    return _contracted(with_layout_constraint(x.T, BY_ROWS), y, (1,), (0,))


BY_ROWS = Layout(major_to_minor=(0, 1))


def _contracted(x: Array, y: Array, x_axes: Iterable[int], y_axes: Iterable[int]) -> Array:
    return lax.dot_general(x, y, ((tuple(x_axes), tuple(y_axes)), ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def distance_products(q: Float[Array, "B T N H"], r: Float[Array, "N H D"]) -> Float[Array, "B N T D"]:
    """Return q . r, the products of queries with the encodings of distances, in at least float32.

    For the einsum "btnh,nhd->bntd" and its gradient XLA on CPU transposes arrays as large as the result; here neither does. The
    cost was not measured alone.
    """
    acc_dtype = jnp.promote_types(q.dtype, jnp.float32)
    products = lax.dot_general(q, r, (((3,), (1,)), ((2,), (0,))), preferred_element_type=acc_dtype)  # [N, B, T, D]
    return jnp.moveaxis(products, 0, 1)  # [B, N, T, D]


def _distance_products_fwd(q: Array, r: Array) -> tuple[Array, tuple[Array, Array]]:
    return distance_products(q, r), (q, r)


def _distance_products_bwd(inputs: tuple[Array, Array], d: Float[Array, "B N T D"]) -> tuple[Array, Array]:
    q, r = inputs
    narrow = d.astype(q.dtype)
    d_q = lax.dot_general(narrow, r, (((3,), (2,)), ((1,), (0,))), preferred_element_type=d.dtype)  # [N, B, T, H]
    d_r = lax.dot_general(q, narrow, (((0, 1), (0, 2)), ((2,), (1,))), preferred_element_type=d.dtype)  # [N, H, D]
    return d_q.transpose(1, 2, 0, 3).astype(q.dtype), d_r.astype(r.dtype)  # [B, T, N, H], [N, H, D]


distance_products.defvjp(_distance_products_fwd, _distance_products_bwd)
