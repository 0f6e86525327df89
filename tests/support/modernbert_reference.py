"""ModernBERT and Ettin's decoders in float64, sharing no code with the models, and mistakes that comparisons must notice."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.plain_reference import REAL, Plant, as_float64, layer_of, masks, rotate, same_document
from tests.support.small import small
from zoo import sharding
from zoo.batch import Batch
from zoo.models import Model
from zoo.nn import layers, modernbert_layer
from zoo.nn.layer_stack import run_stack
from zoo.ops import positions


def norm(x: np.ndarray, scale: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * scale


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def reference(net: Model, params: Any, batch: Batch) -> np.ndarray:
    """Return the hidden states of a row, float64 [T, D], layer by layer: of an encoder, or of a decoder, which has a `window`."""
    cfg = net.config
    stored, at, same = as_float64(params), np.asarray(batch.positions)[0], same_document(batch)
    place, pairs = np.arange(len(at)), np.arange(cfg.head // 2) / (cfg.head // 2)
    before = place[:, None] - place
    if hasattr(cfg, "window"):
        same = same & (before >= 0)
        near = before < cfg.window
    else:
        near = np.abs(before) <= cfg.local_window // 2
    x = norm(stored["embed"]["tokens"]["embedding"][np.asarray(batch.tokens)[0]], stored["embed"]["norm"]["scale"], cfg.eps)
    for number in range(cfg.layers):
        stack, index = (stored["first"]["layers"], 0) if number == 0 else (stored["layers"], number - 1)
        layer = layer_of(stack, index)
        is_global = number % cfg.global_every == 0
        seen = same if is_global else same & near
        y = x if number == 0 else norm(x, layer["norm1"]["scale"], cfg.eps)
        q, k, v = np.einsum("td,dcnh->ctnh", y, layer["attention"]["qkv"]["kernel"])
        q, k = (rotate(part, at, (cfg.global_base if is_global else cfg.local_base) ** -pairs) for part in (q, k))
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


def wider(by: int) -> Plant:
    return masks(lambda fields: {"window": fields["window"] + by} if fields["window"] else {})


def rotations(change: Callable[[Any, float], tuple[Any, float]]) -> Plant:
    original = positions.rotation

    def rotation(at: Any, width: int, *, base: float) -> Any:
        at, base = change(at, base)
        return original(at, width, base=base)

    return lambda patch: patch.setattr(positions, "rotation", rotation)


def norm_in_the_first_layer(module: ModuleType) -> Plant:
    class Normed(module.Block):
        def __call__(self, x: Any, *others: Any) -> Any:
            if self.norm1 is None:
                self.norm1 = lambda x: layers.layer_norm(x, jnp.ones(32), None, self.cfg.eps)
            return super().__call__(x, *others)

    return lambda patch: patch.setattr(module, "Block", Normed)


def first_layer_local() -> Plant:
    def run(*arguments: Any, pattern: Any, **options: Any) -> Any:
        return run_stack(*arguments, pattern=("local",) if pattern == ("global",) else pattern, **options)

    return lambda patch: patch.setattr(modernbert_layer, "run_stack", run)


def mistakes(module: ModuleType) -> dict[str, Plant]:
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


def check_pattern(family: str) -> None:
    """Check the kinds of layers of every depth: a layer is global if its number is a multiple of the period."""
    for depth in range(2, 9):
        for every in (1, 2, 3, 5):
            cfg = small(family, layers=depth, global_every=every).config
            kinds = [cfg.pattern[index % len(cfg.pattern)] for index in range(depth - 1)]
            assert ["global", *kinds] == ["local" if layer % every else "global" for layer in range(depth)]


def check_fresh_deviations(net: Model, biases: tuple[str, ...], **of_parts: float) -> None:
    """Check fresh parameters of four layers, truncated at two deviations; `biases` are the paths of those that exist, and 0."""
    deviations = dict.fromkeys(("out", "down", "dense"), 0.02 / math.sqrt(8)) | of_parts
    for keys, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(net.init)(jax.random.key(0))):
        *_, part, kind = (path := sharding.path_of(keys)).split("/")
        values = np.asarray(leaf)[:1000] if kind == "embedding" else np.asarray(leaf)
        if kind in ("kernel", "embedding"):
            deviation = deviations.get(part, 0.02)
            assert np.abs(values).max() <= 2 * deviation, path
            # The cut leaves 0.88 of it; a classifier has 768 numbers, and the estimate a deviation of 2.6 %.
            assert values.std() == pytest.approx(0.8796 * deviation, rel=0.1 if part == "classifier" else 0.02), path
        else:
            assert (values == (kind == "scale")).all() and (kind == "scale" or path in biases), path
