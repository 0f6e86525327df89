"""A feed-forward layer of experts: each token goes to the few experts that its router prefers (Shazeer et al. 2017, section 2).

Tokens are sorted by expert, so that each of the two projections is one product with a kernel for each group of rows. Every token
reaches all of its experts: there is no capacity, and none is dropped. Over the mesh axis `expert` devices have different experts.
Each then computes what its experts give the tokens of all devices along that axis, and the results are summed.

A leaf is `router/...` or `experts/...`; letters of shapes beside those of `zoo.batch`: E experts, X experts of a token.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from zoo.mesh_axes import EXPERT, FSDP, HEADS, POSITIONS
from zoo.nn.layers import Init, Linear, unstacked
from zoo.ops.ragged_product import choose_tile_rows, ragged_product, sum_dtype
from zoo.sharding import BATCH


class Balance(NamedTuple):
    """Evenness of the tokens of each row over the experts, of a layer or the mean of several; both are 1 if all is even."""

    loss: Float[Array, " B"]
    """E times the sum over experts of the share of assignments that an expert gets times its mean probability: the loss of
    Fedus et al. 2021 (Switch Transformer), equation 4, of each row, so that it does not depend on the size of a micro-batch."""
    busiest: Float[Array, " B"]
    """E times the share of assignments of the busiest expert."""


class ExpertKernels(nnx.Module):
    """The kernels of all experts: `gated/kernel` [E, D, 2, F], `down/kernel` [E, F, D], each with a bias."""

    def __init__(self, experts: int, width: int, ffn: int, init: Init, out_init: Init, rngs: nnx.Rngs):
        self.gated = Stacked((experts, width, 2, ffn), (experts, 2, ffn), init, rngs)
        self.down = Stacked((experts, ffn, width), (experts, width), out_init, rngs)


class Stacked(nnx.Module):
    """A kernel and a bias for each expert."""

    def __init__(self, kernel: tuple[int, ...], bias: tuple[int, ...], init: Init, rngs: nnx.Rngs):
        self.kernel = nnx.Param(init(rngs.params(), kernel, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(bias))


class Experts(nnx.Module):
    """A router and its experts, SwiGLU layers with biases whose inputs are clamped (gpt-oss model card, section 2.3).

    Of the E logits of a token the `chosen` largest are taken, and the softmax is over those alone. An expert computes
    `gate * sigmoid(1.702 * gate) * (linear + 1)`, gate at most `limit` and linear within +-limit, and a second projection.
    """

    def __init__(
        self,
        width: int,
        ffn: int,
        experts: int,
        chosen: int,
        init: Init,
        out_init: Init,
        rngs: nnx.Rngs,
        *,
        limit: float = 7.0,
        slope: float = 1.702,
    ):
        self.chosen, self.limit, self.slope = chosen, limit, slope
        self.router = Linear("btd,de->bte", (width, experts), (experts,), init, rngs)
        self.experts = ExpertKernels(experts, width, ffn, init, out_init, rngs)

    def __call__(self, x: Float[Array, "B T D"], segments: Int[Array, "B T"] | None) -> tuple[Float[Array, "B T D"], Balance]:
        """Return the layer's output and the balance of its router, in which tokens of segment 0 do not count."""
        logits = self.router(x).astype(jnp.float32)  # [B, T, E]
        _, chosen = jax.lax.top_k(jax.lax.stop_gradient(logits), self.chosen)  # [B, T, X]
        weights = jax.nn.softmax(jnp.take_along_axis(logits, chosen, axis=-1), axis=-1)
        leaves = self.experts
        kernels = Kernels(leaves.gated.kernel[...], leaves.gated.bias[...], leaves.down.kernel[...], leaves.down.bias[...])
        activation = functools.partial(clamped_swiglu, limit=self.limit, slope=self.slope)
        y = _on_local_arrays(activation, x, chosen, weights.astype(x.dtype), kernels)
        return y, load_balance(logits, chosen, segments)


class Kernels(NamedTuple):
    """The arrays of all experts, or of those of one device."""

    gated: Float[Array, "E D 2 F"]
    gated_bias: Float[Array, "E 2 F"]
    down: Float[Array, "E F D"]
    down_bias: Float[Array, "E D"]


def clamped_swiglu(gated: Float[Array, "R 2 F"], *, limit: float, slope: float) -> Float[Array, "R F"]:
    """Return gate * sigmoid(slope * gate) * (linear + 1), gate at most `limit` and linear within +-limit; float32 inside."""
    gate, linear = unstacked(gated.astype(sum_dtype(gated)), 1)
    gate, linear = jnp.minimum(gate, limit), jnp.clip(linear, -limit, limit)
    return (gate * jax.nn.sigmoid(slope * gate) * (linear + 1)).astype(gated.dtype)


def load_balance(logits: Float[Array, "B T E"], chosen: Int[Array, "B T X"], segments: Int[Array, "B T"] | None) -> Balance:
    """Return the load-balancing loss and the busiest expert's load of each row, without its padding."""
    experts = logits.shape[-1]
    counts = jnp.ones(chosen.shape[:2]) if segments is None else (segments != 0).astype(jnp.float32)  # [B, T]
    counts = counts / jnp.maximum(counts.sum(1, keepdims=True), 1)
    assigned = jax.nn.one_hot(chosen, experts).mean(2)  # [B, T, E]
    shares = (assigned * counts[..., None]).sum(1)  # [B, E]
    probabilities = (jax.nn.softmax(logits) * counts[..., None]).sum(1)
    return Balance(experts * (shares * probabilities).sum(-1), experts * shares.max(-1))


# --- dispatch -------------------------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Slots:
    """The rows of the products: a slot for each assignment of a token to one of the experts here, sorted by expert.

    Each expert's slots are filled up to a multiple of `tile` rows.
    """

    of_assignment: Any
    """Int [tokens, X]: the slot of each assignment; the number of slots for an expert of another device."""
    assignment: Any
    """Int [R]: the assignment in each slot, token * X + place; the number of assignments for an empty slot."""
    sizes: Any
    """Int [E]: the number of slots of each expert, multiples of `tile`."""
    tile: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, chosen: Int[Array, "tokens X"], first: Int[Array, ""] | int, experts: int, tile: int) -> "Slots":
        """Return the slots for the experts `first` ... `first` + `experts` - 1."""
        expert = chosen.reshape(-1) - first
        expert = jnp.where((expert >= 0) & (expert < experts), expert, experts)  # [A]
        count = expert.shape[0]
        order = jnp.argsort(expert, stable=True)
        members = (expert[:, None] == jnp.arange(experts)).sum(0)  # [E]
        sizes = -(-members // tile) * tile
        starts, padded_starts = jnp.cumsum(members) - members, jnp.cumsum(sizes) - sizes
        # The place of each assignment within its expert's group.
        rank = jnp.argsort(order) - jnp.append(starts, 0)[expert]
        slots = (count + experts * (tile - 1)) // tile * tile
        of_assignment = jnp.where(expert < experts, jnp.append(padded_starts, 0)[expert] + rank, slots)
        slot = jnp.arange(slots)
        owner = jnp.minimum(jnp.searchsorted(jnp.cumsum(sizes), slot, side="right"), experts - 1)
        place = slot - padded_starts[owner]
        assignment = jnp.where(place < members[owner], order[jnp.minimum(starts[owner] + place, count - 1)], count)
        return cls(of_assignment=of_assignment.reshape(chosen.shape), assignment=assignment, sizes=sizes, tile=tile)

    @property
    def filled(self) -> Bool[Array, " R"]:
        """True for a slot with an assignment."""
        return self.assignment < self.of_assignment.size


@jax.custom_vjp
def to_slots(x: Float[Array, "tokens D"], slots: Slots) -> Float[Array, "R D"]:
    """Return the token of each slot; zeros in empty slots.

    Its gradient, and that of `from_slots`, is a gather: that of indexing would be a scatter, which is slow on every platform.
    """
    return jnp.take(x, slots.assignment // slots.of_assignment.shape[1], axis=0, mode="fill", fill_value=0)


def _to_slots_fwd(x: Array, slots: Slots) -> tuple[Array, Slots]:
    return to_slots(x, slots), slots


def _to_slots_bwd(slots: Slots, d: Array) -> tuple[Array, None]:
    return from_slots(d, slots).sum(1), None


to_slots.defvjp(_to_slots_fwd, _to_slots_bwd)


@jax.custom_vjp
def from_slots(y: Float[Array, "R D"], slots: Slots) -> Float[Array, "tokens X D"]:
    """Return the row of each assignment; zeros for experts of other devices."""
    return jnp.take(y, slots.of_assignment, axis=0, mode="fill", fill_value=0)


def _from_slots_fwd(y: Array, slots: Slots) -> tuple[Array, Slots]:
    return from_slots(y, slots), slots


def _from_slots_bwd(slots: Slots, d: Array) -> tuple[Array, None]:
    flat = d.reshape(-1, d.shape[-1])  # [tokens * X, D]
    return jnp.take(flat, slots.assignment, axis=0, mode="fill", fill_value=0), None


from_slots.defvjp(_from_slots_fwd, _from_slots_bwd)


WIDTH = (FSDP, POSITIONS)
"""Axes over which the width of the kernels is divided: see `zoo.sharding.shardings`."""


def _on_local_arrays(
    activation: Any, x: Float[Array, "B T D"], chosen: Int[Array, "B T X"], weights: Float[Array, "B T X"], kernels: Kernels
) -> Float[Array, "B T D"]:
    """Run `apply_experts` on each device's tokens, experts and share of F; without a mesh, and inside pmap, call it directly."""
    mesh = jax.sharding.get_abstract_mesh()
    auto_axes = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
    if not auto_axes:
        return apply_experts(x, chosen, weights, kernels, activation=activation)
    others = (axis for axis in mesh.axis_names if axis not in {*BATCH, HEADS, POSITIONS})
    batch = (*(axis for axis in BATCH if axis in auto_axes), *others)
    # One token of each text, in decoding, is on all devices of the axis of positions.
    rows = PartitionSpec(batch, POSITIONS if x.shape[1] % mesh.shape[POSITIONS] == 0 else None)
    gated, gated_bias = PartitionSpec(EXPERT, WIDTH, None, HEADS), PartitionSpec(EXPERT, None, HEADS)
    down, down_bias = PartitionSpec(EXPERT, HEADS, WIDTH), PartitionSpec(EXPERT)
    of_kernels: Any = jax.tree.unflatten(jax.tree.structure(kernels), (gated, gated_bias, down, down_bias))

    def local(x: Array, chosen: Array, weights: Array, kernels: Kernels) -> Array:
        # Gathered here, because the gradient of a gather is a sum of which each device gets its part. That of a spec without the
        # axis is a sum of which every device gets all, twice as many bytes.
        gather = functools.partial(jax.lax.all_gather, axis_name=WIDTH, tiled=True)
        kernels = kernels._replace(gated=gather(kernels.gated, axis=1), down=gather(kernels.down, axis=2))
        return apply_experts(x, chosen, weights, kernels, activation=activation, expert_axis=EXPERT, ffn_axis=HEADS)

    # check_vma=False because the gradients of `to_slots` and `ragged_product` do not declare how they vary over the mesh.
    run = jax.shard_map(local, in_specs=(rows, rows, rows, of_kernels), out_specs=rows, check_vma=False)
    return run(x, chosen, weights, kernels)


def apply_experts(
    x: Float[Array, "B T D"],
    chosen: Int[Array, "B T X"],
    weights: Float[Array, "B T X"],
    kernels: Kernels,
    *,
    activation: Any,
    expert_axis: str | None = None,
    ffn_axis: str | None = None,
) -> Float[Array, "B T D"]:
    """Return the sum, with their weights, of what its experts give each token; dtypes below float32 are summed in float32.

    Args:
        expert_axis: the mesh axis, of the `shard_map` around this call, whose devices have different experts and rows.
        ffn_axis: that whose devices have different parts of F.
    """
    experts, _, _, ffn = kernels.gated.shape
    first: Any = 0
    devices = 1
    if expert_axis is not None:
        first, devices = jax.lax.axis_index(expert_axis) * experts, jax.lax.axis_size(expert_axis)
        x, chosen, weights = (jax.lax.all_gather(array, expert_axis, tiled=True) for array in (x, chosen, weights))
    rows, length, width = x.shape
    chosen, weights = (array.reshape(rows * length, -1) for array in (chosen, weights))  # [tokens, X]
    # Each of the devices, which have other experts, has an equal share of the assignments if all experts are equally busy.
    slots = Slots.of(chosen, first, experts, choose_tile_rows(chosen.size // (experts * devices)))
    multiply = functools.partial(
        ragged_product, sizes=slots.sizes, tile=slots.tile, filled=slots.filled, expected_rows=chosen.size / devices
    )
    gated_bias = kernels.gated_bias.reshape(experts, 2 * ffn)
    gated = multiply(to_slots(x.reshape(-1, width), slots), kernels.gated.reshape(experts, width, 2 * ffn), gated_bias)

    def inner(gated: Array) -> Array:
        return multiply(activation(gated.reshape(-1, 2, ffn)), kernels.down, down_bias)

    down_bias = kernels.down_bias
    if ffn_axis is not None:
        # The devices of a tensor axis sum the products of their shares of F; one of them adds the bias.
        down_bias = jnp.where(jax.lax.axis_index(ffn_axis) == 0, down_bias, 0)
    down = jax.checkpoint(inner, prevent_cse=False)(checkpoint_name(gated, "mlp"))
    by_expert = from_slots(checkpoint_name(down, "down"), slots)  # [tokens, X, D]
    y = jnp.einsum("rx,rxd->rd", weights, by_expert, preferred_element_type=sum_dtype(x)).astype(x.dtype)
    y = y.reshape(rows, length, width)
    if ffn_axis is not None:
        y = jax.lax.psum(y, ffn_axis)
    if expert_axis is not None:
        y = jax.lax.psum_scatter(y, expert_axis, scatter_dimension=0, tiled=True)
    return y
