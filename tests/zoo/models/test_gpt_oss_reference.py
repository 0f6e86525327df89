"""gpt-oss against a plain float64 reference that shares no code with it, and the mistakes that it must notice."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import plain_reference as plain
from tests.support.plain_reference import BATCH, BOUND, REAL, Plant
from tests.support.small import patch_family, random_params, small
from zoo.batch import Batch
from zoo.models import Model, gpt_oss, model
from zoo.nn import experts, grouped_attention
from zoo.ops import rotary_frequencies

NUMBERS: dict[str, Any] = {
    **{"base": 50.0, "scaling_factor": 4.0, "beta_fast": 2.0, "beta_slow": 0.5, "original_context": 32},
    **{"layers": 4, "limit": 0.5, "kv_heads": 2, "active_experts": 2},
}
"""The ramp of YaRN runs from pair 0.96 to pair 2.37 of the four of a head."""
SLOPE = 1.702


def frequency(cfg: Any, pair: int) -> float:
    """Return the angle by which a pair of dimensions rotates from one position to the next."""
    plain = cfg.base ** (-2 * pair / cfg.head)
    first, last = (
        cfg.head / 2 * math.log(cfg.original_context / (2 * math.pi * turns)) / math.log(cfg.base)
        for turns in (cfg.beta_fast, cfg.beta_slow)
    )
    share = min(max((pair - first) / (last - first), 0.0), 1.0)
    return (1 - share) * plain + share * plain / cfg.scaling_factor


def attention(cfg: Any, p: Any, x: np.ndarray, at: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return the output of an attention layer, head by head; a sink takes a part of each sum of weights."""
    parts = {name: np.einsum("td,dnh->tnh", x, p[name]["kernel"]) + p[name]["bias"] for name in "qkv"}
    frequencies = np.array([frequency(cfg, pair) for pair in range(cfg.head // 2)])
    scale = 0.1 * math.log(cfg.scaling_factor) + 1
    q, k = (scale * plain.rotate(parts[name], at, frequencies) for name in "qk")
    y = np.tile(p["out"]["bias"], (len(x), 1))
    for head in range(cfg.heads):
        group = head // (cfg.heads // cfg.kv_heads)
        weights = np.where(seen, np.exp(q[:, head] @ k[:, group].T / math.sqrt(cfg.head)), 0)
        weights /= weights.sum(-1, keepdims=True) + np.exp(p["sinks"][head])
        y += weights @ parts["v"][:, group] @ p["out"]["kernel"][head]
    return y


def feed_forward(cfg: Any, p: Any, x: np.ndarray) -> np.ndarray:
    """Return the output of a layer of experts, token by token."""
    y, gated, down = np.zeros_like(x), p["experts"]["gated"], p["experts"]["down"]
    for t, token in enumerate(x):
        logits = token @ p["router"]["kernel"] + p["router"]["bias"]
        best = np.argsort(-logits)[: cfg.active_experts]
        for e in best:
            gate, linear = np.einsum("d,dcf->cf", token, gated["kernel"][e]) + gated["bias"][e]
            gate, linear = np.minimum(gate, cfg.limit), np.clip(linear, -cfg.limit, cfg.limit)
            inner = gate / (1 + np.exp(-SLOPE * gate)) * (linear + 1)
            y[t] += np.exp(logits[e]) / np.exp(logits[best]).sum() * (inner @ down["kernel"][e] + down["bias"][e])
    return y


def reference(net: Model, params: Any, batch: Batch) -> np.ndarray:
    """Return the logits of a row, float64 [T, V]."""
    cfg = net.config
    stored, at, seen = plain.as_float64(params), np.asarray(batch.positions)[0], np.tril(plain.same_document(batch))
    places = np.arange(len(at))
    near = places[:, None] - places < cfg.window
    x = stored["embed"]["tokens"]["embedding"][np.asarray(batch.tokens)[0]]
    for number in range(cfg.layers):
        layer = plain.layer_of(stored["layers"], number)
        visible = seen if number % 2 else seen & near
        x = x + attention(cfg, layer["attention"], plain.rms_norm(x, layer["norm1"]["scale"], cfg.eps), at, visible)
        x = x + feed_forward(cfg, layer["mlp"], plain.rms_norm(x, layer["norm2"]["scale"], cfg.eps))
    return plain.rms_norm(x, stored["norm"]["scale"], cfg.eps) @ stored["unembed"]["embedding"][: cfg.vocab].T


@functools.cache
def example() -> tuple[Model, Any, np.ndarray]:
    net = small("gpt_oss", **NUMBERS)
    return net, random_params(net), reference(net, random_params(net), BATCH)


def error(_: str = "") -> float:
    own, params, expected = example()
    # A new model, because a mistake may be in another `FAMILY`.
    return plain.logits_error(model(own.config), params, expected)


def test_logits_are_those_of_a_plain_reference() -> None:
    assert error() < BOUND and np.abs(example()[2][REAL]).max() > 1


def of_config(**changes: Any) -> Plant:
    """Compute the model with other numbers than its configuration has."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        other, apply = small("gpt_oss", **{**NUMBERS, **changes}), gpt_oss.apply
        patch_family(patch, gpt_oss, apply=lambda cfg, *args, **rest: apply(other.config, *args, **rest))

    return plant


def frequencies(change: Callable[[Any], Any]) -> Plant:
    original = rotary_frequencies.yarn
    return lambda patch: patch.setattr(rotary_frequencies, "yarn", lambda *args, **rest: change(original(*args, **rest)))


def sinks(change: Callable[[Any], Any]) -> Plant:
    kind = grouped_attention.GroupedSelfAttention
    original = kind.sink_logits
    return lambda patch: patch.setattr(kind, "sink_logits", lambda self: change(original(self)))


def activation(change: Callable[[Any], Any]) -> Plant:
    """Change the two halves that an expert's activation takes, [R, 2, F]."""
    original = experts.clamped_swiglu
    return lambda patch: patch.setattr(experts, "clamped_swiglu", lambda gated, **rest: original(change(gated), **rest))


def slope(patch: pytest.MonkeyPatch) -> None:
    original = experts.clamped_swiglu
    patch.setattr(experts, "clamped_swiglu", lambda gated, *, limit, slope: original(gated, limit=limit, slope=1.0))


def softmax_over_all(patch: pytest.MonkeyPatch) -> None:
    """Take the weights of the chosen experts from a softmax over all of them."""
    original = jnp.take_along_axis
    patch.setattr(jnp, "take_along_axis", lambda x, index, axis: original(jax.nn.log_softmax(x), index, axis))
    patch.setattr(jax.nn, "softmax", lambda x, axis=-1: jnp.exp(x))


def largest_expert(patch: pytest.MonkeyPatch) -> None:
    """Send each token to the best expert twice, in place of the two best ones."""
    original = jax.lax.top_k

    def chosen(x: Any, count: int) -> Any:
        values, index = original(x, count)
        return values, jnp.repeat(index[..., :1], count, -1)

    patch.setattr(jax.lax, "top_k", chosen)


MISTAKES: dict[str, Plant] = {
    "no sinks": sinks(lambda logits: None),
    "sinks of other heads": sinks(lambda logits: logits[::-1]),
    "windows in the other layers": plain.pattern(gpt_oss, "full", "window"),
    "no window": plain.pattern(gpt_oss, "full"),
    "a wider window": of_config(window=5),
    "documents see each other": plain.masks(lambda fields: {"query_segments": None, "key_segments": None}),
    "positions ignored": plain.positions_ignored(gpt_oss),
    "frequencies not scaled": of_config(beta_slow=1e-3, beta_fast=1e-2),
    "ramp at whole pairs": lambda patch: patch.setattr(
        rotary_frequencies, "yarn", functools.partial(rotary_frequencies.yarn, truncate=True)
    ),
    "no attention factor": frequencies(lambda pair: (pair[0], 1.0)),
    "heads in other groups": plain.heads(plain.swapped_groups),
    "inputs not clamped": of_config(limit=7.0),
    "gate and linear swapped": activation(lambda gated: gated[:, ::-1]),
    "no 1 beside linear": activation(lambda gated: gated.at[:, 1].add(-1)),
    "another slope": slope,
    "softmax over all experts": softmax_over_all,
    "one expert twice": largest_expert,
}


@pytest.mark.planted(len(MISTAKES))
def test_mistakes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain.check_mistakes(monkeypatch, MISTAKES, error)
    assert error() < BOUND
