"""The traced calls of attention: a run reports the implementations that `auto` chose, and a plan counts what kernels compute."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from zoo.attention import auto
from zoo.attention.auto import Line
from zoo.attention.masks import Mask
from zoo.attention.request import Request
from zoo.sharding import target_device_kind, target_platform

SCOPE = "attention"
"""The `jax.named_scope` of a call, which prefixes its operations in profiles and in compiled programs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """A traced call of `attention`."""

    name: str
    """The implementation it runs on."""
    request: Request
    mask: Mask
    scope: str
    """The name scope of its operations: `SCOPE` and the number of the call."""
    line: Line | None = None
    """The line of `auto` that chose it; None: it was chosen by name."""
    ring: int = 0
    """Number of devices of the ring one of whose calls of the kernel this is; 0: a call with all keys."""
    part: float = 1.0
    """Part of the pairs of the request that this call stands for: those of a ring share them equally."""
    chunk_flops: float = 0.0
    """FLOPs of both products of all pairs of the call's chunk, on all devices; 0: it is not in a ring."""
    distance_flops: float = 0.0
    """FLOPs of the products of queries and distances in a forward pass over all examples, if kernels compute them."""

    @property
    def flops(self) -> float:
        """FLOPs of both matrix products of a forward pass over all examples, for the pairs that causality and a window allow."""
        b, t, s, n, _, h = self.request.shape
        pairs = float(t * s)
        if self.mask.query_positions is None and self.mask.key_positions is None:
            # Up to its own position, query i sees the last `window` of i + 1 keys; without causality, equally many after it.
            window = s if self.mask.window is None else self.mask.window
            before = sum(min(i + 1, window, s) for i in range(t))
            pairs = before if self.mask.causal else pairs if self.mask.window is None else min(pairs, 2 * before - t)
        return 4.0 * b * n * h * pairs * self.part

    @property
    def dense_flops(self) -> float:
        """FLOPs of both matrix products of a forward pass over all examples, for all pairs."""
        b, t, s, n, _, h = self.request.shape
        return 4.0 * b * n * h * t * s * self.part


_recorded: contextvars.ContextVar[list[Call] | None] = contextvars.ContextVar("recorded", default=None)


@contextlib.contextmanager
def record_calls() -> Iterator[list[Call]]:
    """Collect the calls traced inside the block: a run reports what `auto` chose, a plan counts what kernels compute."""
    calls: list[Call] = []
    token = _recorded.set(calls)
    try:
        yield calls
    finally:
        _recorded.reset(token)


def record_call(**fields: Any) -> str:
    """Record a call with these fields but its scope, inside `record_calls`, and return the name scope of its operations."""
    if (calls := _recorded.get()) is None:
        return SCOPE
    calls.append(Call(**fields, scope=f"{SCOPE}{len(calls)}"))
    return calls[-1].scope


def describe_calls(calls: Sequence[Call]) -> str:
    """Name the implementations of calls, on an accelerator with the lines of `auto` that chose them and the reasons."""
    device = auto.device_lines(target_platform(), target_device_kind())
    by_name: dict[str, list[str]] = {}
    for call in sorted(calls, key=lambda call: call.name):
        name = f"{call.name} in a ring of {call.ring} devices" if call.ring else call.name
        reasons = by_name.setdefault(name, [])
        if call.line is not None and device is not auto.CPU:
            reasons.append(f"{call.line.requests}: {call.line.reason}")
    note = f"; {device.note}" if device.note and any(by_name.values()) else ""
    texts = [f"{name} (auto, {'; '.join(dict.fromkeys(reasons))})" if reasons else name for name, reasons in by_name.items()]
    return ", ".join(texts) + note
