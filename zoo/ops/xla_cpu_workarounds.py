"""Workarounds for XLA's CPU compiler: the forms of products, reductions, selects and loops that it compiles to fast code.

These functions are named after what they compute, so that layers, masks and losses read like their formulas. Every docstring says
what XLA on CPU does wrong, the measured cost, and when the workaround can be removed. The results are as exact as those of the
plain forms. On other devices, and on a mesh where the fast form would split or merge a sharded axis, the plain forms run.

"Time of a step" is relative to the step without the workaround, on two Xeon cores; tables and shapes are in
`benchmarks/results/step-gains_xeon-2-cores_2026-11-26.md`. To see whether a workaround is still needed, compare `zoo bench step
gpt2` with and without it.

One workaround is in another file: `zoo.ops.split_layers`, an array for each layer instead of a stack of parameters or a cache,
from which the compiler copies every slice. Three choices for the CPU are inside other functions: `zoo.nn.layers.gelu` has erf
instead of erfc, `zoo.nn.layer_stack.run_stack` does not reshape a stack of equal layers, and `zoo.generation.sampling` selects
tokens without a sort. The flags that keep the compiler from wrong numbers are in `zoo.runtime.jax_setup`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float, Int, Shaped

from zoo.sharding import single_cpu, target_platform

# --- products -------------------------------------------------------------------------------------------------------------------


def product(
    x: Float[Array, "*BD"], kernel: "Float[Array, '...'] | OutputMajor", summed: int, *, transposed: bool = False
) -> Float[Array, "*BE"]:
    """Return float32 sums of products over the last `summed` axes of x and the first of the kernel; its last if `transposed`.

    The gradients are products in the kernel's dtype too, whatever the cotangent's is; this holds on every platform.

    XLA on CPU: for the derivative that JAX makes of an einsum over [B, T, D] it first transposes dy and then takes twice as long
    for the product. So the kernel's gradient is x^T dy, a product of matrices as they are stored: a gpt2 step takes 0.88 of the
    time. For a product over several axes it first transposes the kernel, so on one device the axes are merged. It has no product
    of a transposed bfloat16 matrix: see `_summed_over_rows`.
    Remove when the gradient of `jnp.einsum` takes as long as this one, in float32 and bfloat16.
    """
    if isinstance(kernel, OutputMajor):
        assert not transposed
        if _has_few_rows(x, summed):
            return _kernel_first(x, kernel.array, summed)
        kernel = kernel.array.T
    y: Any = _product(x, kernel, summed, transposed)
    return y


FEW_ROWS = 64
"""Most rows of x for which the kernel is the first operand of a product."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OutputMajor:
    """A kernel that is stored with its axes reversed, so that all inputs of an output lie together: for inference.

    XLA on CPU: a product of 2 to 64 rows with a kernel that is stored as [in, out] reads it at 0.1 to 0.5 of the rate at which
    memory is copied, and as the first operand, stored as [out, in], at 0.2 to 0.65. With 8 rows, a token of gpt2 takes 0.5 of the
    time. A bfloat16 kernel is multiplied with two equal rows instead of one, which takes 0.4 of the time: about as long as one
    row and a float32 kernel.
    Remove when x [R, in] . kernel [in, out] takes as long.
    """

    array: Any
    """The kernel with its axes in reversed order, or its shape."""

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    def __getitem__(self, key: Any) -> "OutputMajor":
        """Return the object itself, because parameters of a module are read by `[...]`."""
        return self


def _has_few_rows(x: Array, summed: int) -> bool:
    return single_cpu() and math.prod(x.shape[: x.ndim - summed]) <= FEW_ROWS


def _kernel_first(x: Array, reversed_kernel: Array, summed: int) -> Array:
    outputs, leading = reversed_kernel.ndim - summed, x.ndim - summed
    if x.dtype == jnp.bfloat16 and math.prod(x.shape[:leading]) == 1:
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
    d_y, leading = d_y.astype(kernel.dtype), x.ndim - summed
    if single_cpu() and (x.ndim, kernel.ndim) != (2, 2):
        # A mesh cannot shard a merged axis.
        columns = math.prod(x.shape[leading:])
        matrices = x.reshape(-1, columns), kernel.reshape((-1, columns) if transposed else (columns, -1))  # [R, C], [C, E]
        d_x, d_kernel = _product_bwd(1, transposed, matrices, d_y.reshape(matrices[0].shape[0], -1))
        return d_x.reshape(x.shape), d_kernel.reshape(kernel.shape)
    d_x = _contracted(d_y, kernel, range(leading, d_y.ndim), _axes(kernel, kernel.ndim - summed, not transposed))
    rows, d_rows = (array.reshape(-1, *array.shape[leading:]) for array in (x, d_y))  # [R, *D], [R, *E]
    d_kernel = _summed_over_rows(d_rows, rows) if transposed else _summed_over_rows(rows, d_rows)
    return d_x.astype(x.dtype), d_kernel.astype(kernel.dtype)


_product.defvjp(_product_fwd, _product_bwd)


def _axes(kernel: Array, count: int, last: bool) -> range:
    return range(kernel.ndim - count, kernel.ndim) if last else range(count)


def _summed_over_rows(x: Float[Array, "R *D"], y: Float[Array, "R *E"]) -> Float[Array, "*DE"]:
    """Return x^T y in float32.

    XLA on CPU: it has no product of a transposed bfloat16 matrix and computes that in float32. So x is stored transposed first;
    without a layout constraint the transposition would be fused into the product. [1024, 768]^T x [1024, 3072] takes 3.1 instead
    of 18.9 ms, and a step 0.67 to 0.69 of the time in bfloat16.
    Remove when that product of bfloat16 matrices takes as long as without the transposition.
    """
    if target_platform() == "cpu" and x.dtype == jnp.bfloat16:
        if single_cpu() and x.ndim == 2:
            # Without the barrier, an activation that is recomputed for this product would be fused into the transposition, which
            # computes it entry by entry. With it, and gelu's tanh in float32, a gpt2 step takes 0.85 of the time.
            x = lax.optimization_barrier(x)
            return _contracted(with_layout_constraint(x.T, BY_ROWS), y, (1,), (0,))
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return _contracted(x, y, (0,), (0,))


BY_ROWS = Layout(major_to_minor=(0, 1))


def _contracted(x: Array, y: Array, x_axes: Iterable[int], y_axes: Iterable[int]) -> Array:
    return lax.dot_general(x, y, ((tuple(x_axes), tuple(y_axes)), ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def distance_products(q: Float[Array, "B T N H"], r: Float[Array, "N H D"]) -> Float[Array, "B N T D"]:
    """Return q . r, the products of queries with the encodings of distances, in at least float32.

    XLA on CPU: for the einsum and for its gradient it transposes arrays as large as the result; here neither does. The cost was
    not measured alone.
    Remove when the einsum "btnh,nhd->bntd" and its gradient compile without these transpositions.
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

# --- reductions -----------------------------------------------------------------------------------------------------------------


def row_max(x: Shaped[Array, "*B S"]) -> Shaped[Array, "*B"]:
    """Return maxima along the last axis, by repeatedly taking the maximum of its two halves.

    XLA on CPU: it splits a reduction of more than 32 numbers into windows of 32, which it reads one number at a time. For the
    maxima of two halves it uses vector instructions and takes a third to a tenth of the time. It has this form on every platform;
    for rows as long as the vocabulary the functions below have the plain form elsewhere than on one CPU device.
    Remove when `x.max(-1)` is vectorized.
    """
    while x.shape[-1] > 16:
        # The halves of an odd number of columns share the middle one.
        half = -(-x.shape[-1] // 2)
        x = jnp.maximum(x[..., :half], x[..., -half:])
    return x.max(-1)


def row_argmax(x: Float[Array, "*B S"]) -> Int[Array, "*B"]:
    """Return the index of the largest number along the last axis, int32: the first of equal ones, and any in a row with a NaN.

    XLA on CPU: see `row_max`. It also computes x, such as Gumbel noise, in the loop that reads one number at a time. For
    [32, 32128] numbers this takes 0.4 instead of 7.3 ms, and with their noise 4.8 instead of 30 ms.
    Remove when `jnp.argmax` is vectorized.
    """
    if not single_cpu():
        return jnp.argmax(x, axis=-1).astype(jnp.int32)
    # Without the barrier x would be computed twice.
    x, size = lax.optimization_barrier(x), x.shape[-1]
    reversed_index = jnp.arange(size - 1, -1, -1, dtype=jnp.int32)
    return size - 1 - row_max(jnp.where(x == row_max(x)[..., None], reversed_index, 0))


def all_finite(x: Float[Array, "*B S"]) -> Bool[Array, "*B"]:
    """Return whether all numbers along the last axis are finite.

    XLA on CPU: see `row_max`. The gain was not measured alone.
    Remove when `jnp.isfinite(x).all(-1)` is vectorized.
    """
    return max_is_finite(jnp.abs(x)) if single_cpu() else jnp.isfinite(x).all(-1)


def max_is_finite(x: Float[Array, "*B S"]) -> Bool[Array, "*B"]:
    """Return whether the largest number along the last axis is finite, for rows without a NaN: see `all_finite`.

    A maximum over a sharded axis may omit a NaN: on simulated CPU devices it does.

    XLA on CPU: see `row_max`. The gain was not measured alone.
    Remove when `x.max(-1)` is vectorized.
    """
    return jnp.isfinite(row_max(x) if single_cpu() else x.max(-1))


def row_sum(x: Float[Array, "*B S"]) -> Float[Array, "*B"]:
    """Return sums along the last axis, by repeatedly adding its two halves; see `row_max`."""
    while x.shape[-1] % 2 == 0 and x.shape[-1] > 16:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x.sum(-1)


def row_sum_by_product(x: Float[Array, "*B S"]) -> Float[Array, "*B"]:
    """Return sums along the last axis, as a product with ones, for the tiles of `blocked`.

    XLA on CPU: see `row_max`. The gain was not measured alone, and not against `row_sum`.
    Remove when `x.sum(-1)` is vectorized.
    """
    return lax.dot_general(x, jnp.ones(x.shape[-1], x.dtype), (((x.ndim - 1,), (0,)), ((), ())))


@jax.custom_jvp
def log_sum_exp(x: Float[Array, "*B S"]) -> Float[Array, "*B"]:
    """Return log sum exp along the last axis. Its gradient is computed as the softmax, without the halves.

    XLA on CPU: see `row_max`. For [1024, 50304] logits this takes 29.7 instead of 86.9 ms.
    Remove when `jax.nn.logsumexp` is vectorized.
    """
    if not single_cpu():
        return jax.nn.logsumexp(x, axis=-1)
    maximum = row_max(x)
    # The result of a row of -inf, or of one with inf, is its maximum, as in `jax.nn.logsumexp`.
    shift = jnp.where(jnp.isfinite(maximum), maximum, 0)
    return shift + jnp.log(row_sum(jnp.exp(x - shift[..., None])))


@log_sum_exp.defjvp
def _log_sum_exp_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (d_x,) = primals, tangents
    out = log_sum_exp(x)
    return out, (jnp.exp(x - out[..., None]) * d_x).sum(-1)


def square_sum(x: Float[Array, "*D"]) -> Float[Array, ""]:
    """Return the sum of all squares, float32.

    XLA on CPU: see `row_max`; sums over a few rows are vectorized. For [12, 3072, 768] this takes 5.5 instead of 54.9 ms.
    Remove when `jnp.square(x).sum()` is vectorized.
    """
    squares = jnp.square(x.astype(jnp.float32))
    # Rows whose addresses differ by a power of two evict each other from the cache: rows of 512 or 1024 numbers are five to seven
    # times as slow.
    columns = math.gcd(x.size // 16, 768)
    if single_cpu() and x.size % 16 == 0 and columns >= 16:
        squares = squares.reshape(-1, 16, columns).sum(1)  # [R, columns]
        # Otherwise XLA merges the two sums.
        squares = lax.optimization_barrier(squares)
    return squares.sum()


def broadcast_rows(x: Float[Array, "*D"], shape: tuple[int, ...]) -> Float[Array, "*B_D"]:
    """Broadcast an array over leading axes, as `jnp.broadcast_to`; the gradient is the sum over them, in float32.

    XLA on CPU: a sum over several leading axes takes four times as long as over one: 2.6 and 0.7 ms of [8, 128, 3072].
    Remove when both take the same time.
    """
    return _broadcast_rows(shape, x.ndim, x) if single_cpu() else jnp.broadcast_to(x, shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _broadcast_rows(shape: tuple[int, ...], ndim: int, x: Array) -> Array:
    return jnp.broadcast_to(x, shape)


def _broadcast_rows_fwd(shape: tuple[int, ...], ndim: int, x: Array) -> tuple[Any, None]:
    return _broadcast_rows(shape, ndim, x), None


def _broadcast_rows_bwd(shape: tuple[int, ...], ndim: int, _: None, d: Array) -> tuple[Array]:
    x_shape = shape[len(shape) - ndim :]
    # Without the barrier XLA would undo the reshape.
    rows = lax.optimization_barrier(d.astype(jnp.float32).reshape(-1, math.prod(x_shape)))  # [R, x.size]
    return (rows.sum(0).reshape(x_shape).astype(d.dtype),)


_broadcast_rows.defvjp(_broadcast_rows_fwd, _broadcast_rows_bwd)

# --- selects and slices ---------------------------------------------------------------------------------------------------------


def merge_rows(x: Float[Array, "*B D"]) -> Float[Array, "... D"]:
    """Return x with its leading axes merged on one CPU, [R, D], and x itself elsewhere; for `mask_padding`.

    A mesh cannot shard a merged axis.
    """
    return x.reshape(-1, x.shape[-1]) if single_cpu() else x


def mask_padding(logits: Float[Array, "... V"], vocabulary: int) -> Float[Array, "... V"]:
    """Return logits with -1e30 in the columns from `vocabulary` on, which then get no probability and no gradient.

    XLA on CPU: a select copies all logits, and their gradient. A slice of a matrix is updated in place, in the memory of the
    product that made it; of an array of three axes it is not, which costs a copy of 206 MB in a gpt2 step.
    Remove when a select after a product is fused with it or runs in place.
    """
    padding = logits.shape[-1] - vocabulary
    if padding and single_cpu():
        masked = jnp.full((*logits.shape[:-1], padding), -1e30, logits.dtype)
        return lax.dynamic_update_slice_in_dim(logits, masked, vocabulary, axis=-1)
    if padding:
        return jnp.where(jnp.arange(logits.shape[-1]) < vocabulary, logits, -1e30)
    return logits


def select_update(finite: Bool[Array, ""], update: Callable[[], Any], old: Any) -> Any:
    """Return `update()` where a step is finite, else `old`.

    XLA on CPU: it computes an optimizer's moments and the parameters in separate passes. In a branch each is written in place; a
    select first copies all moments. A gpt2 step takes 0.85 to 0.89 of the time, with 1.6 instead of 2.1 GB of temporaries. On
    accelerators they are one kernel, and a branch would make the host wait for `finite`.
    Remove when a select of donated arrays is done in place.
    """
    if target_platform() == "cpu":
        return lax.cond(finite, update, lambda: old)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), update(), old)


def distinct(x: Shaped[Array, "..."], dtype: Any) -> Shaped[Array, "..."]:
    """Return x in another dtype that represents its values, so that XLA does not merge its slices with those of an equal array.

    XLA on CPU: queries and keys often share one array, which a tile slices twice. It merges two equal slices into a function
    that it calls for every entry of the scores, whose exponentials are then not vectorized: 3.3 instead of 0.4 ms for 2 x 12 x
    128 x 128 scores, 148 instead of 40 ms in a bert-base step.
    Remove when tiles with one array for both are as fast as with two.
    """
    return x.astype(dtype)


def rows_of_list(table: Float[Array, "V D"], ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
    """Return `table[ids]`, for one of two lookups in a table: of the source's tokens, where the target's have the plain form.

    XLA on CPU: it merges the gradients of two lookups that have together fewer ids than the table has rows, and concatenates
    what they add to the table. With ids [B, T] a copy follows the concatenation in the same kernel, so that the kernel is a loop
    with a branch for each lookup; of lists it is the kernel's last operation, without a branch. With dropout the kernel contains
    the hashes of the seeds (`zoo.ops.counter_rng`), which LLVM does not move out of a branch. A hash uses x twice in each of its
    three steps x ^ (x >> n), and LLVM's loop vectorizer follows both uses (jaxlib 0.10.2: `vputils::isSingleScalar` does not
    store its results), so that every hash in a chain multiplies its time by 8. A transformer of one layer and width 32 compiled
    in more than 100 s; with a list of the source's ids it takes 5 s and computes the same bits.
    Remove when these steps compile as fast with `table[ids]`.
    """
    # A mesh cannot shard a merged axis.
    return table[ids.reshape(-1)].reshape(*ids.shape, table.shape[-1]) if single_cpu() else table[ids]


# --- loops ----------------------------------------------------------------------------------------------------------------------

BATCHES_PER_STEP, MAX_UNROLLED = 4, 16


def batches_per_step(count: int) -> int:
    """Return the number of batches of small products, of `count` in all, that one step of a loop should compute.

    XLA on CPU: it computes a batch of small products on one core, so that two cores are busy only while several batches do not
    depend on each other; with four of them attention of bert-base takes 18 instead of 31 ms. In a loop they still wait for each
    other: without one, 8 and 16 batches take 0.7 and 0.8 of the time.
    Remove when a batch of small products uses all cores.
    """
    if not single_cpu():
        return 1
    return count if 0 < count <= MAX_UNROLLED else BATCHES_PER_STEP
