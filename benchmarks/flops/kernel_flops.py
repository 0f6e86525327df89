"""FLOPs of kernels, which no compiler sees: those of the calls of attention and the products of groups that they belong to."""

import dataclasses
import re
from collections.abc import Hashable, Iterable, Sequence

from zoo.attention.recorded_calls import Call
from zoo.ops.ragged_product import Product

BACKWARD = 2.5
"""A fused backward pass has five products, the forward pass two (Dao et al. 2022, appendix B): it computes the scores again."""
RECOMPUTED = "rematted_computation"
"""Part of the path of operations that compute the forward pass again, in JAX's names."""


@dataclasses.dataclass(frozen=True)
class KernelRun:
    """A kernel in a program."""

    origin: str
    """The path of JAX names that it was lowered from."""
    kernel: tuple[Hashable, ...]
    """The name of the kernel, and what else tells those of a pass apart; copies of a kernel share it."""
    group: Hashable
    """The loop that it is in, which its copies share."""
    times: float
    """Number of times that it runs in a step, on each device."""


@dataclasses.dataclass
class Passes:
    """Numbers of passes of a call of attention in a step."""

    forward: float = 0.0
    again: float = 0.0
    """Forward passes that are computed again in the backward pass."""
    backward: float = 0.0

    @property
    def in_forward_passes(self) -> float:
        """Return the number of forward passes that compute as much."""
        return self.forward + self.again + BACKWARD * self.backward

    def flops(self, call: Call) -> float:
        """Return the FLOPs of the passes of a call: with the products of distances, whose backward pass has three of one."""
        return self.in_forward_passes * call.flops + (self.forward + self.again + 3 * self.backward) * call.distance_flops


def scope_of(origin: str, scopes: Iterable[str]) -> str | None:
    """Return the scope that an operation belongs to, by its path; None if it belongs to none of them."""
    return next((part for part in re.split(r"[/()]", origin) if part in scopes), None)


def is_backward(origin: str) -> bool:
    """Return whether an operation belongs to a gradient, and not to a forward pass that is computed again."""
    return "transpose(" in origin and RECOMPUTED not in origin


def attention_passes(kernels: Sequence[KernelRun], scopes: Iterable[str]) -> dict[str, Passes]:
    """Return the passes of the calls of attention that kernels belong to, by their scopes.

    The kernels of a backward pass share its products; each other kernel is a forward pass. Unrolled layers are traced once, so
    they share a call: the number of backward passes is the count of the most frequent kernel.
    """
    passes: dict[str, Passes] = {}
    backward: dict[tuple[str, Hashable], dict[Hashable, float]] = {}
    for run in kernels:
        if (scope := scope_of(run.origin, scopes)) is None:
            continue
        count = passes.setdefault(scope, Passes())
        # What precedes the scope is the transformation of the call; what follows it may have such words too.
        before = run.origin[: run.origin.index(scope)]
        if is_backward(before):
            counts = backward.setdefault((scope, run.group), {})
            counts[run.kernel] = counts.get(run.kernel, 0.0) + run.times
        elif RECOMPUTED in before:
            count.again += run.times
        else:
            count.forward += run.times
    for (scope, _), counts in backward.items():
        passes[scope].backward += max(counts.values())
    return passes


def kernel_flops(
    kernels: Sequence[KernelRun], calls: Sequence[Call], devices: int, products: Sequence[Product]
) -> tuple[float, tuple[KernelRun, ...]]:
    """Return (FLOPs in kernels on a device, kernels that belong to no call of attention and no product of groups).

    Each kernel of a product of groups is that product or one of its two gradients, which have the same FLOPs.
    """
    by_scope = {call.scope: call for call in calls}
    passes = attention_passes(kernels, by_scope)
    single = {product.scope: product.flops for product in products}
    of_products = (run.times * single[scope] for run in kernels if (scope := scope_of(run.origin, single)))
    total = sum((count.flops(by_scope[scope]) / devices for scope, count in passes.items()), sum(of_products, 0.0))
    others = tuple(run for run in kernels if scope_of(run.origin, {**by_scope, **single}) is None)
    return total, others
