"""The choice between all logits of a loss at once and a part of the positions at a time.

All at once is faster: a loss by parts computes the logits again in its backward pass, four products in place of three. See
benchmarks/results/cross-entropy_published_2026-12-01.md for what others have measured.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from train.config.declaration import AUTO_CHUNK
from zoo.sharding import local_positions, num_shards, target_memory, target_platform

SHARE = 4
"""`auto` computes all logits at once if they take at most one part in this number of a device's memory. The rest is for the
parameters, the optimizer, and the activations of the layers."""
BYTES = {"tpu": 4, "gpu": 8, "cpu": 12}
"""Bytes for each logit that the compiled loss and its gradient need at once, in float32 and in bfloat16 (JAX 0.10.2): a float32
number for the logit, on a GPU also one for its gradient, and on a CPU a third one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logits:
    """The logits of a traced loss."""

    positions: int
    """Number of predictions in a row, or in the part of it that a device has."""
    bytes: float
    """Memory on a device for all of them, with their gradient."""
    memory: int | float | None
    """Memory of a device in bytes; None: unknown."""
    option: int
    """Positions at a time as the user says: 0 = all, `AUTO_CHUNK` = chosen here."""

    @property
    def chunk(self) -> int:
        """The number of positions whose logits are computed at a time; 0 = all.

        An option is the largest number, and the parts are as equal as possible. `auto` divides all positions by the smallest
        power of two with which they take at most their share of the memory.
        """
        if self.option != AUTO_CHUNK:
            parts = -(-self.positions // self.option) if self.option else 1
            return -(-self.positions // parts) if parts > 1 else 0
        parts = math.ceil(SHARE * self.bytes / self.memory) if self.memory else 1
        return 0 if parts <= 1 else max(1, -(-self.positions // (1 << (parts - 1).bit_length())))

    def __str__(self) -> str:
        """Describe the choice, and the reason if it is that of `auto`."""
        text = f"{self.chunk:,} of {self.positions:,} positions at a time" if self.chunk else "all at once"
        if self.option != AUTO_CHUNK:
            return text
        if self.memory is None:
            return f"{text} (auto: the memory of the device is not known)"
        relation = "more than" if self.chunk else "at most"
        sizes = f"all take {_gib(self.bytes)} of a device, {relation} 1/{SHARE} of its {_gib(self.memory)}"
        return f"{text} (auto: {sizes})"


_traced: contextvars.ContextVar[list[Logits] | None] = contextvars.ContextVar("logits", default=None)


@contextlib.contextmanager
def record_logits() -> Iterator[list[Logits]]:
    """Collect the logits of the losses traced inside the block."""
    traced: list[Logits] = []
    token = _traced.set(traced)
    try:
        yield traced
    finally:
        _traced.reset(token)


def traced_logits(heads: Sequence[Callable[[Any], Any]], hidden: Sequence[Any], option: int) -> Logits:
    """Return the logits that LM heads compute from hidden states [B, T, D], one array for each head."""
    shapes = [jax.eval_shape(head, states).shape for head, states in zip(heads, hidden, strict=True)]
    size = sum(map(math.prod, shapes)) * BYTES[target_platform()] / num_shards()
    logits = Logits(positions=local_positions(hidden[0].shape[1]), bytes=size, memory=target_memory(), option=option)
    if (traced := _traced.get()) is not None:
        traced.append(logits)
    return logits


def describe_logits(traced: Sequence[Logits], parts: int = 1) -> str:
    """Describe the largest of some logits; "": there are none.

    Args:
        parts: number of parts of the traced batch that are computed one after the other or on other devices.
    """
    if not traced:
        return ""
    largest = max(traced, key=lambda logits: logits.bytes)
    return str(dataclasses.replace(largest, bytes=largest.bytes / parts))


def describe_rule() -> str:
    """Describe what `auto` does on this device."""
    if (memory := target_memory()) is None:
        return "all at once; the memory of the device is not known"
    return f"all at once if they take at most {_gib(memory / SHARE)}, 1/{SHARE} of a device's memory, else by parts"


def _gib(size: int | float) -> str:
    return f"{size / 2**30:.3g} GiB"
