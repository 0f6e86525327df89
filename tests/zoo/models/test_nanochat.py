"""nanochat against a plain float64 reference that shares no code with it, mistakes that it must notice, and initial values."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import plain_reference as plain
from tests.support.plain_reference import BATCH, BOUND, REAL, Plant
from tests.support.small import patch_family, random_params, small
from zoo.models import Model, model, nanochat
from zoo.ops import rotary_frequencies

NUMBERS: dict[str, Any] = {"base": 50.0, "softcap": 2.0, "kv_heads": 2}


def attention(cfg: Any, p: Any, x: np.ndarray, at: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return the output of an attention layer, head by head; heads are rotated as in the source and then normalized."""
    q, k, v = (np.einsum("td,dnh->tnh", x, p[name]["kernel"]) for name in "qkv")
    angles = at[:, None] * cfg.base ** (-2 * np.arange(cfg.head // 2) / cfg.head)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def rotate(heads: np.ndarray) -> np.ndarray:
        a, b = np.split(heads, 2, -1)
        return np.concatenate([a * cos + b * sin, -a * sin + b * cos], -1)

    q, k = (plain.rms_norm(rotate(heads), 1.0, cfg.eps) for heads in (q, k))
    y = np.zeros_like(x)
    for head in range(cfg.heads):
        group = head // (cfg.heads // cfg.kv_heads)
        weights = np.where(seen, np.exp(q[:, head] @ k[:, group].T / math.sqrt(cfg.head)), 0)
        # A row of padding sees nothing.
        weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
        y += weights @ v[:, group] @ p["out"]["kernel"][head]
    return y


def reference(net: Model, params: Any) -> np.ndarray:
    """Return the logits of the row of `BATCH`, float64 [T, V]."""
    cfg, stored = net.config, plain.as_float64(params)
    at, seen = np.asarray(BATCH.positions)[0], np.tril(plain.same_document(BATCH))
    norm = functools.partial(plain.rms_norm, scale=1.0, eps=cfg.eps)
    x = norm(stored["embed"]["tokens"]["embedding"][np.asarray(BATCH.tokens)[0]])
    for number in range(cfg.layers):
        layer = plain.layer_of(stored["layers"], number)
        x = x + attention(cfg, layer["attention"], norm(x), at, seen)
        x = x + np.maximum(norm(x) @ layer["mlp"]["up"]["kernel"], 0) ** 2 @ layer["mlp"]["down"]["kernel"]
    return cfg.softcap * np.tanh(norm(x) @ stored["unembed"]["embedding"][: cfg.vocab].T / cfg.softcap)


@functools.cache
def example() -> tuple[Model, Any, np.ndarray]:
    net = small("nanochat", **NUMBERS)
    return net, random_params(net), reference(net, random_params(net))


def error(_: str = "") -> float:
    own, params, expected = example()
    # A new model, because a mistake may be in another `FAMILY`.
    return plain.logits_error(model(own.config), params, expected)


def test_logits_are_those_of_a_plain_reference() -> None:
    assert error() < BOUND and np.abs(example()[2][REAL]).max() > 1


def of_config(**changes: Any) -> Plant:
    """Compute the model with other numbers than its configuration has."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        other, family = small("nanochat", **{**NUMBERS, **changes}), nanochat.FAMILY
        patch_family(
            patch,
            nanochat,
            apply=lambda cfg, *args, **rest: family.apply(other.config, *args, **rest),
            unembed=lambda cfg, *args: family.unembed(other.config, *args),
        )

    return plant


def forward_rotations(patch: pytest.MonkeyPatch) -> None:
    original = rotary_frequencies.plain
    patch.setattr(rotary_frequencies, "plain", lambda *args: (-original(*args)[0], 1.0))


def values_normalized(patch: pytest.MonkeyPatch) -> None:
    original = nanochat.Attention.split_heads

    def split_heads(self: Any, x: Any) -> list[Any]:
        q, k, v = original(self, x)
        return [q, k, nanochat._normalize(self.cfg, v)]

    patch.setattr(nanochat.Attention, "split_heads", split_heads)


MISTAKES: dict[str, Plant] = {
    "rotations of other families": forward_rotations,
    "queries and keys not normalized": lambda patch: patch.delattr(nanochat.Attention, "split_heads"),
    "values normalized": values_normalized,
    "embeddings not normalized": lambda patch: patch.setattr(nanochat, "constrain_tokens", lambda x: 2 * x),
    "heads in other groups": plain.heads(plain.swapped_groups),
    "documents see each other": plain.masks(lambda fields: {"query_segments": None, "key_segments": None}),
    "positions ignored": plain.positions_ignored(nanochat),
    "ReLU without a square": of_config(activation="relu"),
    "another bound of the logits": of_config(softcap=3.0),
    "another base": of_config(base=500.0),
}


@pytest.mark.planted(len(MISTAKES))
def test_mistakes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain.check_mistakes(monkeypatch, MISTAKES, error)
    assert error() < BOUND


def test_initial_values_are_those_of_the_source() -> None:
    """`init_weights`: normal kernels of 1/sqrt(inputs), less if there are fewer outputs; zeros into the residual stream."""
    net = small("nanochat", width=128, heads=4, kv_heads=1, ffn=512)
    params = jax.jit(lambda: net.init(jax.random.key(0)))()
    layers = params["layers"]
    expected = {
        "embed": (params["embed"]["tokens"]["embedding"][: net.config.vocab], 1.0),
        "q": (layers["attention"]["q"]["kernel"], 1 / math.sqrt(128)),
        "k": (layers["attention"]["k"]["kernel"], math.sqrt(32 / 128) / math.sqrt(128)),
        "up": (layers["mlp"]["up"]["kernel"], 1 / math.sqrt(128)),
    }
    for name, (leaf, deviation) in expected.items():
        # Four standard errors of the standard deviation of so many numbers.
        assert abs(float(leaf.std()) / deviation - 1) < 4 / math.sqrt(2 * leaf.size), name
    for leaf in (params["unembed"]["embedding"], layers["attention"]["out"]["kernel"], layers["mlp"]["down"]["kernel"]):
        assert not jnp.any(leaf)
