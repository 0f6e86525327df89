"""Selects, lookups and slices of arrays, and the number of small products in a step of a loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from zoo.ops.cpu_forms import with_cpu_form


@with_cpu_form
def merge_rows(x: Float[Array, "*B D"]) -> Float[Array, "... D"]:
    """Return x, with its leading axes merged where that makes `fill_columns` of a product with it faster."""
    return x


@merge_rows.on_one_cpu
def _merged_rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])  # [R, D]


@with_cpu_form
def fill_columns(x: Float[Array, "*B S"], first: int, value: float) -> Float[Array, "*B S"]:
    """Return x with a value in the columns from `first` on, which then get no gradient."""
    return jnp.where(jnp.arange(x.shape[-1]) < first, x, value)


@fill_columns.on_one_cpu
def _updated_columns(x: Array, first: int, value: float) -> Array:
    """Return x with a slice updated.

    XLA on CPU: a select copies all logits, and their gradient. A slice of a matrix is updated in place, in the memory of the
    product that made it; of an array of three axes it is not, which costs a copy of 206 MB in a gpt2 step: see `merge_rows`.
    Remove when a select after a product is fused with it or runs in place.
    """
    filling = jnp.full((*x.shape[:-1], x.shape[-1] - first), value, x.dtype)
    return lax.dynamic_update_slice_in_dim(x, filling, first, axis=-1)


@with_cpu_form
def lookup_of_two(table: Float[Array, "V D"], ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
    """Return `table[ids]`, for the first of two lookups in a table, such as that of a source; the second is `table[ids]`."""
    return table[ids]


@lookup_of_two.on_one_cpu
def _lookup_of_list(table: Array, ids: Array) -> Array:
    """Return the rows of a list of ids.

    XLA on CPU: it merges the gradients of two lookups that have together fewer ids than the table has rows, and concatenates
    what they add to the table. With ids [B, T] a copy follows the concatenation in the same kernel, so that the kernel is a loop
    with a branch for each lookup; of lists it is the kernel's last operation, without a branch. With dropout the kernel contains
    the hashes of the seeds (`zoo.ops.counter_rng`), which LLVM does not move out of a branch. A hash uses x twice in each of its
    three steps x ^ (x >> n), and LLVM's loop vectorizer follows both uses (jaxlib 0.10.2: `vputils::isSingleScalar` does not
    store its results), so that every hash in a chain multiplies its time by 8. A transformer of one layer and width 32 compiled
    in more than 100 s; with a list of the source's ids it takes 5 s and computes the same bits.
    Remove when these steps compile as fast with `table[ids]`.
    """
    return table[ids.reshape(-1)].reshape(*ids.shape, table.shape[-1])


@with_cpu_form
def update_if_finite(finite: Bool[Array, ""], update: Callable[[], Any], old: Any) -> Any:
    """Return `update()` where a step is finite, else `old`.

    What is in the memory of the host is no operand of a select: `update` itself returns the old arrays there.
    """

    def select(new: Array, old: Array) -> Array:
        return new if jax.typeof(new).memory_space == jax.memory.Space.Host else jnp.where(finite, new, old)

    return jax.tree.map(select, update(), old)


@update_if_finite.on_cpu
def _update_in_a_branch(finite: Array, update: Callable[[], Any], old: Any) -> Any:
    """Return the result of a branch, in which every array is written in place.

    XLA on CPU: it computes an optimizer's moments and the parameters in separate passes, and a select first copies all moments. A
    gpt2 step takes 0.85 to 0.89 of the time, with 1.6 instead of 2.1 GB of temporaries. On accelerators they are one kernel, and
    a branch would make the host wait for `finite`.
    Remove when a select of donated arrays is done in place.
    """
    return lax.cond(finite, update, lambda: old)


@with_cpu_form
def updates_by_layer() -> bool:
    """Return whether moments in the memory of the host come to the device a layer at a time; otherwise all do at once."""
    return True


@updates_by_layer.on_cpu
def _updates_at_once() -> bool:
    """Return False.

    XLA on CPU: the memory of the host is that of the device, so a loop saves nothing, and in one LLVM fuses other multiplications
    and additions than in the update of moments that are not on the host, whose results then differ in the last bit.
    Remove when both round alike.
    """
    return False


def distinct(x: Shaped[Array, "..."], dtype: Any) -> Shaped[Array, "..."]:
    """Return x in another dtype that represents its values, so that XLA does not merge its slices with those of an equal array.

    XLA on CPU: queries and keys often share one array, which a tile slices twice. It merges two equal slices into a function
    that it calls for every entry of the scores, whose exponentials are then not vectorized: 3.3 instead of 0.4 ms for 2 x 12 x
    128 x 128 scores, 148 instead of 40 ms in a bert-base step.
    Remove when tiles with one array for both are as fast as with two.
    """
    return x.astype(dtype)


@with_cpu_form
def batches_per_step(count: int) -> int:
    """Return the number of batches of small products, of `count` in all, that one step of a loop should compute."""
    return 1


BATCHES_PER_STEP, MAX_UNROLLED = 4, 16


@batches_per_step.on_one_cpu
def _independent_batches(count: int) -> int:
    """Return a number of batches that keeps all cores busy.

    XLA on CPU: it computes a batch of small products on one core, so that two cores are busy only while several batches do not
    depend on each other; with four of them attention of bert-base takes 18 instead of 31 ms. In a loop they still wait for each
    other: without one, 8 and 16 batches take 0.7 and 0.8 of the time.
    Remove when a batch of small products uses all cores.
    """
    return count if 0 < count <= MAX_UNROLLED else BATCHES_PER_STEP
