"""MXFP4, in which gpt-oss publishes its experts' kernels (Open Compute Project, Microscaling Formats 1.0, section 5.2).

A kernel X [E, 32 G, R] is published as `X_blocks`, uint8 [E, R, G, 16], and `X_scales`, uint8 [E, R, G]. A block has 32 numbers
of 4 bits (sign, 2 bits of exponent, 1 of mantissa), two in each byte, the lower half first, and a scale, 2^(byte - 127). Blocks
run along the summed axis of the kernel. All numbers are exact in bfloat16.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from zoo.errors import BadInput
from zoo.hf.safetensors_dir import Tensor

BLOCKS, SCALES = "_blocks", "_scales"
BYTES = 16
"""Number of bytes of a block."""
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
VALUES = np.concatenate([VALUES, -VALUES])


@dataclasses.dataclass(frozen=True)
class Mxfp4Tensor(Tensor):
    """A tensor that is stored as blocks, at `file` and `start`, and scales."""

    blocks: Tensor
    scales: Tensor

    @classmethod
    def of(cls, blocks: Tensor, scales: Tensor) -> "Mxfp4Tensor":
        experts, rows, groups, _ = blocks.shape
        return cls(blocks.file, blocks.start, (experts, 2 * BYTES * groups, rows), "BF16", blocks, scales)

    def view(self) -> np.ndarray:
        """Return the decoded tensor, bfloat16 [E, 32 G, R]; the last ones are cached, since every shard of a leaf reads them."""
        return _decoded(self, tuple(part.file.stat().st_mtime_ns for part in (self.blocks, self.scales)))


def decode_mxfp4(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder, in which each pair of blocks and scales is one tensor that is decoded when it is read.

    Raises:
        BadInput: blocks without scales or the reverse, or of a wrong type or shape; the message names the tensor.
    """
    result = dict(tensors)
    for name in sorted({name.removesuffix(end) for name in tensors for end in (BLOCKS, SCALES) if name.endswith(end)}):
        pair = [tensors.get(name + end) for end in (BLOCKS, SCALES)]
        for end, tensor, rank in zip((BLOCKS, SCALES), pair, (4, 3), strict=True):
            if tensor is None:
                raise BadInput(f"{folder}: {name}{end} is missing; MXFP4 stores a tensor as {BLOCKS} and {SCALES}")
            if tensor.dtype != "U8" or len(tensor.shape) != rank:
                form = "[experts, rows, groups, 16]" if rank == 4 else "[experts, rows, groups]"
                shape = list(tensor.shape)
                raise BadInput(f"{folder}: {name}{end} is {tensor.dtype} of shape {shape}; MXFP4 has U8 of shape {form}")
        blocks, scales = (tensor for tensor in pair if tensor is not None)
        if blocks.shape[:3] != scales.shape or blocks.shape[3] != BYTES:
            shape = [*scales.shape, BYTES]
            raise BadInput(f"{folder}: {name}{BLOCKS} has shape {list(blocks.shape)}; with its scales it must be {shape}")
        if name in tensors:
            raise BadInput(f"{folder}: holds both {name} and {name}{BLOCKS}, the same tensor twice; remove one of them")
        del result[name + BLOCKS], result[name + SCALES]
        result[name] = Mxfp4Tensor.of(blocks, scales)
    return result


@functools.lru_cache(maxsize=2)
def _decoded(tensor: Mxfp4Tensor, modified: tuple[int, ...]) -> np.ndarray:
    """Return a decoded tensor; `modified` has the times of its files, so that the cache has no old content."""
    blocks, scales = tensor.blocks.view(), tensor.scales.view()
    experts, rows, groups, _ = blocks.shape
    result = np.empty((experts, 2 * BYTES * groups, rows), jnp.bfloat16)
    for expert in range(experts):
        halves = np.stack([blocks[expert] & 15, blocks[expert] >> 4], axis=-1).reshape(rows, groups, 2 * BYTES)
        # A scale of 255 is the format's NaN.
        exponent = scales[expert].astype(np.int32)
        scale = np.where(exponent == 255, np.nan, np.ldexp(np.float32(1), np.minimum(exponent, 254) - 127))
        result[expert] = (VALUES[halves] * scale[..., None]).reshape(rows, -1).T.astype(jnp.bfloat16)
    return result


def forget_decoded() -> None:
    """Free the decoded tensors that are cached: one of gpt-oss-120b has up to 4.2 GB."""
    _decoded.cache_clear()
