"""What the float64 references of families share: a row of two documents, rotations, and the check that mistakes are noticed."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small import row
from zoo.attention.masks import Mask
from zoo.batch import Batch
from zoo.models import Model
from zoo.nn import grouped_attention, kv_cache
from zoo.nn.layer_stack import run_stack

# Two documents and padding. The positions of the first one have gaps: a rotation shows distances alone, so that where positions
# merely restart, a model that ignored them would be right.
SEGMENTS = np.array([[1] * 9 + [2] * 6 + [0]], np.int32)
POSITIONS = np.array([[0, 1, 2, 5, 6, 9, 11, 12, 13, *range(6), 0]], np.int32)
BATCH = row(16, segments=jnp.asarray(SEGMENTS), positions=jnp.asarray(POSITIONS))
REAL = SEGMENTS[0] > 0
BOUND = 1e-4
Plant = Callable[[pytest.MonkeyPatch], None]


def as_float64(params: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def layer_of(stack: Any, number: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[number], stack)


def same_document(batch: Batch) -> np.ndarray:
    segments = np.asarray(batch.segments)[0]
    return (segments[:, None] == segments) & (segments > 0)


def rms_norm(x: np.ndarray, scale: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def rotate(x: np.ndarray, at: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Rotate [T, N, H] by positions, as complex numbers whose imaginary parts are the second half."""
    half = x.shape[-1] // 2
    rotated = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * at[:, None] * frequencies)[:, None]
    return np.concatenate([rotated.real, rotated.imag], -1)


def relative_error(outputs: Callable[[Any], jax.Array], params: Any, expected: np.ndarray) -> float:
    """Return the largest difference of the real tokens' outputs from the reference, as a share of the largest output."""
    # A new function, because JAX would not trace the same one again.
    computed = np.asarray(jax.jit(lambda params: outputs(params))(params))[0, :, : expected.shape[1]]
    return float(np.abs(computed - expected)[REAL].max() / np.abs(expected[REAL]).max())


def logits_error(net: Model, params: Any, expected: np.ndarray) -> float:
    return relative_error(lambda params: net.unembed(params, net.apply(params, BATCH).hidden), params, expected)


def check_mistakes(monkeypatch: pytest.MonkeyPatch, mistakes: Mapping[str, Plant], error: Callable[[str], float]) -> None:
    """Check that the error with each mistake, by name, is a hundred times the bound."""
    for name, plant in mistakes.items():
        with monkeypatch.context() as patch:
            plant(patch)
            assert error(name) > 100 * BOUND, name


def masks(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Plant:
    return lambda patch: patch.setattr(kv_cache, "Mask", lambda **fields: Mask(**{**fields, **change(fields)}))


def heads(change: Callable[[Any, list[Any]], list[Any]]) -> Plant:
    """Change the parts that a layer of grouped attention multiplies; `change` gets the layer and them."""
    kind = grouped_attention.GroupedSelfAttention
    original = kind.split_heads
    return lambda patch: patch.setattr(kind, "split_heads", lambda self, x: change(self, original(self, x)))


def swapped_groups(_: Any, parts: list[Any]) -> list[Any]:
    return [parts[0], parts[1][:, :, ::-1], parts[2][:, :, ::-1]]


def pattern(module: ModuleType, *kinds: str) -> Plant:
    return lambda patch: patch.setattr(module, "run_stack", lambda *args, **rest: run_stack(*args, **{**rest, "pattern": kinds}))


def positions_ignored(module: ModuleType) -> Plant:
    return lambda patch: patch.setattr(module, "token_positions", lambda batch: jnp.arange(batch.tokens.shape[1])[None])
