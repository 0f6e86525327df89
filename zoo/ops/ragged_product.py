"""Products of consecutive groups of rows with a kernel for each group, as the experts of a layer need them.

`product_form` chooses how they are computed, by the platform for which a program is compiled.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.ops import grouped_product_gpu, grouped_product_tpu
from zoo.ops.grouped_product import grouped_product
from zoo.sharding import target_device_kind, target_platform

LARGEST_TILE = 256
"""Maximum number of rows in a tile on CPU."""

Form = Literal["tiles", "grouped_tpu", "grouped_gpu", "ragged_dot"]
"""A scan over tiles of rows; the kernels of `grouped_product_tpu` and `grouped_product_gpu`; JAX's function."""


def product_form() -> Form:
    """Return how products of groups are computed on the device for which a program is compiled.

    `ragged_dot` is for other GPUs than NVIDIA's: the kernels take 96 KiB of shared memory, and those of AMD have 64.
    """
    match target_platform():
        case "cpu":
            return "tiles"
        case "tpu":
            return "grouped_tpu"
        case "gpu" if target_device_kind().startswith("NVIDIA"):
            return "grouped_gpu"
        case _:
            return "ragged_dot"


def choose_tile_rows(rows_per_group: int) -> int:
    """Return the number of rows of which each group must have a multiple: 1 where `jax.lax.ragged_dot` takes groups of any size.

    In tiles on CPU it is a power of two so small that the rows which fill the groups up are at most a sixteenth of all; for the
    kernels of TPUs and GPUs see `grouped_product.choose_tile_rows`.

    Args:
        rows_per_group: the average number of rows of a group, without those that fill it up.
    """
    match product_form():
        case "tiles":
            return min(LARGEST_TILE, 1 << max(rows_per_group // 16, 1).bit_length() - 1)
        case "grouped_tpu":
            return grouped_product_tpu.choose_tile_rows(rows_per_group)
        case "grouped_gpu":
            return grouped_product_gpu.choose_tile_rows(rows_per_group)
        case _:
            return 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product:
    """A traced call of `ragged_product`."""

    form: Form
    scope: str
    """The name scope of its operations: `SCOPE` and the number of the call."""
    flops: float
    """FLOPs of the product on one device, and of each of its two gradients, for the expected number of filled rows. Rows that
    fill groups up are not counted: what a kernel computes is more, by up to a tile for each group."""


SCOPE = "ragged_product"
_products: contextvars.ContextVar[list[Product] | None] = contextvars.ContextVar("products", default=None)


@contextlib.contextmanager
def record_products() -> Iterator[list[Product]]:
    """Collect the calls traced inside the block: a plan counts what kernels compute."""
    products: list[Product] = []
    token = _products.set(products)
    try:
        yield products
    finally:
        _products.reset(token)


def ragged_product(
    x: Float[Array, "R D"],
    kernels: Float[Array, "E D F"],
    biases: Float[Array, "E F"],
    *,
    sizes: Int[Array, " E"],
    tile: int,
    filled: Bool[Array, " R"],
    expected_rows: float,
) -> Float[Array, "R F"]:
    """Return x[r] . kernels[e] + biases[e] for each row r of group e, in the dtype of the kernels, with sums of at least float32.

    Groups are consecutive and have `sizes` rows, multiples of `tile`; rows after them belong to no group. Rows that are not
    `filled` have an undefined result and an undefined gradient; those of a group must be finite in x and have a zero cotangent,
    so that they add nothing to the gradients of the kernels and biases.

    XLA on CPU computes `jax.lax.ragged_dot` as a product with every kernel, E times the arithmetic that is needed (read in the
    compiled program at JAX 0.10.2). So there a scan multiplies tiles of `tile` rows with the kernel of their group. Remove when
    the compiled FLOPs of `ragged_dot` on CPU are those of one kernel for each row. For TPUs and GPUs see `grouped_product_tpu`
    and `grouped_product_gpu`.

    Args:
        expected_rows: the number of filled rows on this device if all groups of all devices have equally many, for
            `record_products`.

    Raises:
        TypeError: the arrays have unequal dtypes, or are float64 and the form is `grouped_tpu` or `grouped_gpu`, which sums in
            float32.
    """
    form, scope = product_form(), SCOPE
    dtypes = [array.dtype.name for array in (x, kernels, biases)]
    if len(set(dtypes)) > 1:
        raise TypeError(f"a product of {dtypes[0]} rows, {dtypes[1]} kernels and {dtypes[2]} biases: cast them to one dtype")
    if form in ("grouped_tpu", "grouped_gpu") and sum_dtype(x) != jnp.float32:
        device = form.removeprefix("grouped_").upper()
        fix = "its kernels sum in float32; cast them to float32 or bfloat16"
        raise TypeError(f"a product of {dtypes[0]} arrays on a {device}: {fix}")
    if (products := _products.get()) is not None:
        scope = f"{SCOPE}{len(products)}"
        _, depth, columns = kernels.shape
        products.append(Product(form=form, scope=scope, flops=2.0 * expected_rows * depth * columns))
    with jax.named_scope(scope):
        match form:
            case "tiles":
                groups = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(0, x.shape[0], tile), side="right")
                return _by_tiles(x, kernels, biases, jnp.minimum(groups, sizes.shape[0] - 1).astype(jnp.int32))
            case "grouped_tpu":
                interpret = target_platform() != "tpu"
                return grouped_product(grouped_product_tpu, x, kernels, biases, sizes, tile, interpret)
            case "grouped_gpu":
                interpret = target_platform() != "gpu"
                return grouped_product(grouped_product_gpu, x, kernels, biases, sizes, tile, interpret)
            case _:
                return _by_ragged_dot(x, kernels, biases, sizes, filled)


def _by_ragged_dot(x: Array, kernels: Array, biases: Array, sizes: Array, filled: Array) -> Array:
    y = jax.lax.ragged_dot(x, kernels, sizes, preferred_element_type=sum_dtype(kernels))
    # A product with one-hot rows, because the gradient of a lookup would be a scatter.
    group = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(x.shape[0]), side="right")
    one_hot = jax.nn.one_hot(group, sizes.shape[0], dtype=biases.dtype)
    y = y + jnp.dot(one_hot, biases, preferred_element_type=sum_dtype(kernels))
    return jnp.where(filled[:, None], y, 0).astype(kernels.dtype)


def sum_dtype(x: Array) -> Any:
    """Return the dtype of sums of an array's numbers."""
    return jnp.promote_types(x.dtype, jnp.float32)


@jax.custom_vjp
def _by_tiles(
    x: Float[Array, "R D"], kernels: Float[Array, "E D F"], biases: Float[Array, "E F"], groups: Int[Array, " tiles"]
) -> Float[Array, "R F"]:
    def one_tile(_: None, tile: tuple[Array, Array]) -> tuple[None, Array]:
        rows, group = tile
        y = jnp.dot(rows, kernels[group], preferred_element_type=sum_dtype(kernels)) + biases[group]
        return None, y.astype(kernels.dtype)

    _, y = jax.lax.scan(one_tile, None, (x.reshape(groups.shape[0], -1, x.shape[1]), groups))
    return y.reshape(x.shape[0], -1)


def _by_tiles_fwd(x: Array, kernels: Array, biases: Array, groups: Array) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    return _by_tiles(x, kernels, biases, groups), (x, kernels, biases, groups)


def _by_tiles_bwd(residuals: tuple[Array, Array, Array, Array], d_y: Array) -> tuple[Array, Array, Array, None]:
    x, kernels, biases, groups = residuals

    def one_tile(sums: tuple[Array, Array], tile: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        (d_kernels, d_biases), (rows, d_rows, group) = sums, tile
        d_kernel = jnp.dot(rows.T, d_rows, preferred_element_type=sum_dtype(kernels))
        sums = d_kernels.at[group].add(d_kernel), d_biases.at[group].add(d_rows.astype(sum_dtype(biases)).sum(0))
        return sums, jnp.dot(d_rows, kernels[group].T, preferred_element_type=sum_dtype(kernels)).astype(x.dtype)

    zeros = jnp.zeros(kernels.shape, sum_dtype(kernels)), jnp.zeros(biases.shape, sum_dtype(biases))
    x_tiles, d_tiles = (array.reshape(groups.shape[0], -1, array.shape[1]) for array in (x, d_y))
    (d_kernels, d_biases), d_x = jax.lax.scan(one_tile, zeros, (x_tiles, d_tiles, groups))
    return d_x.reshape(x.shape), d_kernels.astype(kernels.dtype), d_biases.astype(biases.dtype), None


_by_tiles.defvjp(_by_tiles_fwd, _by_tiles_bwd)
