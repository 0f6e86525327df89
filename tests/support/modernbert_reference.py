"""ModernBERT and Ettin's decoders in float64, sharing no code with the models, and mistakes that comparisons must notice."""

import math
from collections.abc import Callable
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
from zoo.nn import kv_cache, layers, modernbert_layer
from zoo.nn.layer_stack import run_stack
from zoo.ops import positions

# Two documents and padding. The positions of the first one have gaps: a rotation shows distances alone, so that where positions
# merely restart, a model that ignored them would be right.
SEGMENTS = np.array([[1] * 9 + [2] * 6 + [0]], np.int32)
POSITIONS = np.array([[0, 1, 2, 5, 6, 9, 11, 12, 13, *range(6), 0]], np.int32)
BATCH = row(16, segments=jnp.asarray(SEGMENTS), positions=jnp.asarray(POSITIONS))
REAL = SEGMENTS[0] > 0
BOUND = 1e-4


def norm(x: np.ndarray, scale: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * scale


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def turned(x: np.ndarray, at: np.ndarray, base: float) -> np.ndarray:
    """Rotate [T, N, H] by positions, as complex numbers whose imaginary parts are the second half."""
    half = x.shape[-1] // 2
    angles = at[:, None] * base ** (-np.arange(half) / half)  # [T, H / 2]
    rotated = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
    return np.concatenate([rotated.real, rotated.imag], -1)


def reference(net: Model, params: Any, batch: Batch) -> np.ndarray:
    """Return the hidden states of a row, float64 [T, D], layer by layer: of an encoder, or of a decoder, which has a `window`."""
    cfg = net.config
    stored = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    at, segments = np.asarray(batch.positions)[0], np.asarray(batch.segments)[0]
    place = np.arange(len(at))
    same = (segments[:, None] == segments) & (segments > 0)
    before = place[:, None] - place
    if hasattr(cfg, "window"):
        same = same & (before >= 0)
        near = before < cfg.window
    else:
        near = np.abs(before) <= cfg.local_window // 2
    x = norm(stored["embed"]["tokens"]["embedding"][np.asarray(batch.tokens)[0]], stored["embed"]["norm"]["scale"], cfg.eps)
    for number in range(cfg.layers):
        stack, index = (stored["first"]["layers"], 0) if number == 0 else (stored["layers"], number - 1)
        layer = jax.tree.map(lambda leaf, index=index: leaf[index], stack)
        is_global = number % cfg.global_every == 0
        seen = same if is_global else same & near
        y = x if number == 0 else norm(x, layer["norm1"]["scale"], cfg.eps)
        q, k, v = np.einsum("td,dcnh->ctnh", y, layer["attention"]["qkv"]["kernel"])
        q, k = (turned(part, at, cfg.global_base if is_global else cfg.local_base) for part in (q, k))
        scores = np.where(seen[None], np.einsum("tnh,snh->nts", q, k) / math.sqrt(cfg.head), -np.inf)
        weights = np.exp(scores - np.where(REAL[None, :, None], scores.max(-1, initial=-1e9, keepdims=True), 0))
        weights = np.where(seen[None], weights, 0) / np.maximum(weights.sum(-1, keepdims=True), 1e-300)
        x = x + np.einsum("nts,snh,nhd->td", weights, v, layer["attention"]["out"]["kernel"])
        inner, gate = np.einsum("td,dcf->ctf", norm(x, layer["norm2"]["scale"], cfg.eps), layer["mlp"]["gated"]["kernel"])
        x = x + (gelu(inner) * gate) @ layer["mlp"]["down"]["kernel"]
    return norm(x, stored["norm"]["scale"], cfg.eps)


def swapped_gate(patch: pytest.MonkeyPatch) -> None:
    def unstacked(x: Any, axis: int) -> Any:
        parts = original(x, axis)
        return parts[::-1] if len(parts) == 2 else parts

    original = layers.unstacked
    patch.setattr(layers, "unstacked", unstacked)


def masks(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(kv_cache, "Mask", lambda **fields: Mask(**{**fields, **change(fields)}))


def wider(by: int) -> Callable[[pytest.MonkeyPatch], None]:
    return masks(lambda fields: {"window": fields["window"] + by} if fields["window"] else {})


def rotations(change: Callable[[Any, float], tuple[Any, float]]) -> Callable[[pytest.MonkeyPatch], None]:
    original = positions.rotation

    def rotation(at: Any, width: int, *, base: float) -> Any:
        at, base = change(at, base)
        return original(at, width, base=base)

    return lambda patch: patch.setattr(positions, "rotation", rotation)


def norm_in_the_first_layer(module: ModuleType) -> Callable[[pytest.MonkeyPatch], None]:
    class Normed(module.Block):
        def __call__(self, x: Any, *others: Any) -> Any:
            if self.norm1 is None:
                self.norm1 = lambda x: layers.layer_norm(x, jnp.ones(32), None, self.cfg.eps)
            return super().__call__(x, *others)

    return lambda patch: patch.setattr(module, "Block", Normed)


def first_layer_local() -> Callable[[pytest.MonkeyPatch], None]:
    def run(*arguments: Any, pattern: Any, **options: Any) -> Any:
        return run_stack(*arguments, pattern=("local",) if pattern == ("global",) else pattern, **options)

    return lambda patch: patch.setattr(modernbert_layer, "run_stack", run)


def mistakes(module: ModuleType) -> dict[str, Callable[[pytest.MonkeyPatch], None]]:
    """Return mistakes of the module of a family, whose model has the bases 50 and 3 of global and local rotations."""
    return {
        "gate and input swapped": swapped_gate,
        "window one token wider": wider(1),
        "window one token narrower": wider(-1),
        "documents see each other": masks(lambda fields: {"query_segments": None, "key_segments": None}),
        "local base used globally": rotations(lambda at, base: (at, 3.0)),
        "global base used locally": rotations(lambda at, base: (at, 50.0)),
        "positions ignored": rotations(lambda at, base: (jnp.arange(16)[None], base)),
        "a norm in the first layer": norm_in_the_first_layer(module),
        "the first layer local": first_layer_local(),
        "no rotation": lambda patch: patch.setattr(positions, "rotate", lambda x, rotation: x),
    }
