"""The Llama family against a plain float64 reference that shares no code with it, and the mistakes that it must notice."""

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import plain_reference as plain
from tests.support.plain_reference import BATCH, BOUND, REAL, Plant
from tests.support.small import random_params, small
from zoo import configs
from zoo.batch import Batch
from zoo.models import Model, llama
from zoo.nn import grouped_attention, layers
from zoo.ops import positions, rotary_frequencies

FORMS: dict[str, dict[str, Any]] = {
    "llama": {
        **{"base": 50.0, "scaling": "llama3", "scaling_factor": 4.0, "high_freq_factor": 2.0, "original_context": 8},
        "tied": False,
    },
    "qwen2": {"base": 50.0, "qkv_bias": True},
    "qwen3": {"base": 50.0, "query_key_norm": True, "head": 6},
    "smollm3": {
        **{"base": 50.0, "layers": 4, "unrotated_every": 2, "attention_bias": True},
        **{"scaling": "linear", "scaling_factor": 3.0},
    },
    # The ramp runs from pair 0 to pair 3; it would run from 0.6 to 2.3 if it were not truncated.
    "yarn": {
        **{"base": 50.0, "scaling": "yarn", "scaling_factor": 4.0, "original_context": 16, "qkv_bias": True, "context": 64},
        **{"beta_fast": 1.416, "beta_slow": 0.2686},
    },
    # The first document has 14 positions and the second one 6.
    "dynamic": {"base": 50.0, "scaling": "dynamic", "scaling_factor": 4.0, "original_context": 8},
}


def frequency(cfg: Any, pair: int, length: int) -> float:
    """Return the angle by which a pair rotates from one position to the next, in a document of `length` positions."""
    plain = cfg.base ** (-2 * pair / cfg.head)
    if cfg.scaling == "linear":
        return plain / cfg.scaling_factor
    if cfg.scaling == "none":
        return plain
    if cfg.scaling == "dynamic":
        ratio = max(length, cfg.original_context) / cfg.original_context
        base = cfg.base * (cfg.scaling_factor * ratio - (cfg.scaling_factor - 1)) ** (cfg.head / (cfg.head - 2))
        return base ** (-2 * pair / cfg.head)
    if cfg.scaling == "yarn":
        return plain * (1 - pair / 3) + plain / cfg.scaling_factor * pair / 3
    turns = cfg.original_context * plain / (2 * math.pi)
    if turns > cfg.high_freq_factor:
        return plain
    if turns < cfg.low_freq_factor:
        return plain / cfg.scaling_factor
    smooth = (turns - cfg.low_freq_factor) / (cfg.high_freq_factor - cfg.low_freq_factor)
    return (1 - smooth) * plain / cfg.scaling_factor + smooth * plain


def reference(net: Model, params: Any, batch: Batch) -> np.ndarray:
    """Return the logits of a row, float64 [T, V], layer by layer and head by head."""
    cfg = net.config
    stored, at, seen = plain.as_float64(params), np.asarray(batch.positions)[0], np.tril(plain.same_document(batch))
    segments = np.asarray(batch.segments)[0]
    lengths = [int(at[segments == number].max()) + 1 for number in segments]
    frequencies = np.array([[frequency(cfg, pair, length) for pair in range(cfg.head // 2)] for length in lengths])
    attention_factor = 0.1 * math.log(4) + 1 if cfg.scaling == "yarn" else 1.0
    x = stored["embed"]["tokens"]["embedding"][np.asarray(batch.tokens)[0]]
    for number in range(cfg.layers):
        layer = plain.layer_of(stored["layers"], number)
        attention, y = layer["attention"], plain.rms_norm(x, layer["norm1"]["scale"], cfg.eps)
        parts = {name: np.einsum("td,dnh->tnh", y, attention[name]["kernel"]) + attention[name].get("bias", 0) for name in "qkv"}
        for name in "qk":
            if cfg.query_key_norm:
                parts[name] = plain.rms_norm(parts[name], attention[f"{name}_norm"]["scale"], cfg.eps)
            if not cfg.unrotated_every or (number + 1) % cfg.unrotated_every:
                parts[name] = attention_factor * plain.rotate(parts[name], at, frequencies)
        for head in range(cfg.heads):
            group = head // (cfg.heads // cfg.kv_heads)
            scores = np.where(seen, parts["q"][:, head] @ parts["k"][:, group].T / math.sqrt(cfg.head), -1e30)
            weights = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True)), 0)
            weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
            x = x + weights @ parts["v"][:, group] @ attention["out"]["kernel"][head]
        x = x + attention["out"].get("bias", 0)
        gate, linear = np.einsum(
            "td,dcf->ctf", plain.rms_norm(x, layer["norm2"]["scale"], cfg.eps), layer["mlp"]["gated"]["kernel"]
        )
        x = x + (gate / (1 + np.exp(-gate)) * linear) @ layer["mlp"]["down"]["kernel"]
    table = stored["embed"]["tokens"] if cfg.tied else stored["unembed"]
    return plain.rms_norm(x, stored["norm"]["scale"], cfg.eps) @ table["embedding"][: cfg.vocab].T


@functools.cache
def example(form: str) -> tuple[Model, Any, np.ndarray]:
    net = small("llama", **FORMS[form])
    return net, random_params(net), reference(net, random_params(net), BATCH)


def error(form: str) -> float:
    return plain.logits_error(*example(form))


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_a_plain_reference(form: str) -> None:
    assert error(form) < BOUND and np.abs(example(form)[2][REAL]).max() > 1


def swapped_gate(patch: pytest.MonkeyPatch) -> None:
    original = layers.unstacked
    patch.setattr(layers, "unstacked", lambda x, axis: original(x, axis)[::-1])


def no_bias(name: str) -> Callable[[Any, list[Any]], list[Any]]:
    def change(attention: Any, parts: list[Any]) -> list[Any]:
        own = {part: x for part, x in zip("qkv", parts, strict=True)}
        return [*{**own, name: own[name] - getattr(attention, name).bias[...]}.values()]

    return change


def no_norm(name: str) -> Plant:
    def split(self: Any, x: Any) -> list[Any]:
        parts = {part: getattr(self, part)(x) for part in "qkv"}
        other = {"q": "k", "k": "q"}[name]
        return [*({**parts, other: getattr(self, f"{other}_norm")(parts[other])}.values())]

    return lambda patch: patch.setattr(grouped_attention.GroupedSelfAttention, "split_heads", split)


def norm_after_rotation(patch: pytest.MonkeyPatch) -> None:
    """Rotate before the norms, and not after them."""
    kind = grouped_attention.GroupedSelfAttention

    def split(self: Any, x: Any) -> list[Any]:
        rotation = positions.rotation(BATCH.positions, self.q.kernel.shape[-1], base=50.0)  # pyright: ignore[reportArgumentType]
        q, k = (norm(positions.rotate(part(x), rotation)) for part, norm in ((self.q, self.q_norm), (self.k, self.k_norm)))
        return [q, k, self.v(x)]

    patch.setattr(kind, "split_heads", split)
    patch.setattr(llama, "_rotate", lambda cfg, at: {"rotary": lambda x: x})


def of_fields(**changes: Any) -> Plant:
    """Compute the frequencies with other numbers than the configuration has."""
    original = llama._frequencies

    def other(cfg: Any, batch: Batch) -> Any:
        changed = copy.copy(cfg)
        for name, value in changes.items():
            object.__setattr__(changed, name, value)
        return original(changed, batch)

    return lambda patch: patch.setattr(llama, "_frequencies", other)


MISTAKES: dict[str, tuple[str, Plant]] = {
    "gate and linear swapped": ("llama", swapped_gate),
    "documents see each other": ("llama", plain.masks(lambda fields: {"query_segments": None, "key_segments": None})),
    "later tokens are seen": ("llama", plain.masks(lambda fields: {"causal": False})),
    "heads in other groups": ("llama", plain.heads(plain.swapped_groups)),
    "positions ignored": ("llama", plain.positions_ignored(llama)),
    "queries without their biases": ("qwen2", plain.heads(no_bias("q"))),
    "keys without their biases": ("qwen2", plain.heads(no_bias("k"))),
    "values without their biases": ("qwen2", plain.heads(no_bias("v"))),
    "no rotation": ("qwen3", lambda patch: patch.setattr(positions, "rotate", lambda x, rotation: x)),
    "frequencies not scaled": ("llama", lambda patch: patch.setattr(llama, "_frequencies", _plain)),
    "a linear scaling left out": ("smollm3", lambda patch: patch.setattr(llama, "_frequencies", _plain)),
    "YaRN left out": ("yarn", lambda patch: patch.setattr(llama, "_frequencies", _plain)),
    "no attention factor": ("yarn", of_fields(attention_factor=1.0)),
    "a ramp that is not truncated": ("yarn", of_fields(truncate=False)),
    "dynamic scaling left out": ("dynamic", lambda patch: patch.setattr(llama, "_frequencies", _plain)),
    "dynamic scaling by the length of the row": ("dynamic", lambda patch: patch.setattr(llama, "document_lengths", _row_length)),
    "another dynamic factor": ("dynamic", of_fields(scaling_factor=3.9)),
    "queries not normalized": ("qwen3", no_norm("q")),
    "keys not normalized": ("qwen3", no_norm("k")),
    "norms after the rotation": ("qwen3", norm_after_rotation),
    "all layers rotated": ("smollm3", plain.pattern(llama, "rotary")),
    "other layers rotated": ("smollm3", plain.pattern(llama, "none", "rotary")),
}


def _plain(cfg: Any, batch: Batch) -> Any:
    return rotary_frequencies.plain(cfg.head, cfg.base)


def _row_length(batch: Batch) -> Any:
    return jnp.full(batch.tokens.shape, batch.tokens.shape[1])


@pytest.mark.planted(len(MISTAKES))
def test_mistakes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    plants = {name: plant for name, (_, plant) in MISTAKES.items()}
    plain.check_mistakes(monkeypatch, plants, lambda name: error(MISTAKES[name][0]))
    assert all(error(form) < BOUND for form in FORMS)


def test_the_pattern_of_the_layers() -> None:
    """SmolLM3's repeats over its 36 layers; an incomplete last period is written out."""
    assert configs.find_size("smollm3-3b")[1].config.pattern == ("rotary", "rotary", "rotary", "none")
    for depth in range(1, 9):
        for every in (0, 1, 2, 3, 5):
            cfg = small("llama", layers=depth, unrotated_every=every).config
            kinds = [cfg.pattern[layer % len(cfg.pattern)] for layer in range(depth)]
            assert depth % len(cfg.pattern) == 0
            assert kinds == ["none" if every and (layer + 1) % every == 0 else "rotary" for layer in range(depth)]
