"""The Transformer of the paper against its formulas written out in float64, and its fresh parameters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import tiny
from tests.support.small import decode, random_params, small
from train.config.data_options import PairData
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.models import Model
from zoo.models.transformer import SIDES

PAPER: dict[str, Any] = {"attention_bias": False, "output_bias": False, "sinusoids": "interleaved"}
FORMS: dict[str, dict[str, Any]] = {
    "paper": PAPER,
    "marian": {},
    "short keys, learned positions": {**PAPER, "head_dim": 5, "positions": "learned", "max_positions": 9},
    "long keys": {"head_dim": 12},
}
QUICK = ("paper", "short keys, learned positions")


def reference(net: Model, params: Any, source: np.ndarray, target: np.ndarray, real: int) -> np.ndarray:
    """Logits [T, V] of one pair, loops over heads, positions and layers; of the source only `real` tokens are there."""
    cfg, tree = net.config, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    table = tree["embed"]["tokens"]["embedding"][: cfg.vocab]

    def place(position: int, side: str) -> np.ndarray:
        if cfg.positions == "learned":
            return tree[side]["positions"]["embedding"][position]
        encoding = np.zeros(cfg.width)
        for pair in range(cfg.width // 2):
            angle = position / 10_000 ** (2 * pair / cfg.width)
            at = (2 * pair, 2 * pair + 1) if cfg.sinusoids == "interleaved" else (pair, cfg.width // 2 + pair)
            encoding[at[0]], encoding[at[1]] = np.sin(angle), np.cos(angle)
        return encoding

    def embedded(tokens: np.ndarray, side: str) -> np.ndarray:
        return np.stack([table[token] * np.sqrt(cfg.width) + place(at, side) for at, token in enumerate(tokens)])

    def norm(x: np.ndarray, of: dict[str, np.ndarray]) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + cfg.eps) * of["scale"] + of["bias"]

    def projected(x: np.ndarray, of: dict[str, np.ndarray], part: tuple[Any, ...]) -> np.ndarray:
        y = x @ of["kernel"][(slice(None), *part)]
        return y + of["bias"][part] if "bias" in of else y

    def attend(q: list[np.ndarray], k: list[np.ndarray], v: list[np.ndarray], out: Any, causal: bool, there: int) -> np.ndarray:
        total = np.zeros((len(q[0]), cfg.width)) + out.get("bias", 0)
        for head in range(cfg.heads):
            for t in range(len(q[0])):
                last = t + 1 if causal else there
                scores = k[head][:last] @ q[head][t] / np.sqrt(cfg.head_dim or cfg.width / cfg.heads)
                weights = np.exp(scores - scores.max())
                total[t] += (weights / weights.sum()) @ v[head][:last] @ out["kernel"][head]
        return total

    def self_attend(x: np.ndarray, of: Any, causal: bool, there: int) -> np.ndarray:
        parts = [(of["qkv"], (part,)) for part in range(3)] if "qkv" in of else [(of[name], ()) for name in "qkv"]
        q, k, v = ([projected(x, leaf, (*part, head)) for head in range(cfg.heads)] for leaf, part in parts)
        return attend(q, k, v, of["out"], causal, there)

    def feed_forward(x: np.ndarray, of: Any) -> np.ndarray:
        return np.maximum(projected(x, of["up"], ()), 0) @ of["down"]["kernel"] + of["down"]["bias"]

    x = embedded(source, "encoder")
    for number in range(cfg.layers):
        layer = jax.tree.map(lambda leaf, n=number: leaf[n], tree["encoder"]["layers"])
        x = norm(x + self_attend(x, layer["attention"], False, real), layer["norm1"])
        x = norm(x + feed_forward(x, layer["mlp"]), layer["norm2"])
    y = embedded(target, "decoder")
    for number in range(cfg.layers):
        layer = jax.tree.map(lambda leaf, n=number: leaf[n], tree["decoder"]["layers"])
        y = norm(y + self_attend(y, layer["attention"], True, len(target)), layer["norm1"])
        q = [projected(y, layer["cross"]["q"], (head,)) for head in range(cfg.heads)]
        of = layer["cross"]
        parts = [(of["kv"], (part,)) for part in range(2)] if "kv" in of else [(of[name], ()) for name in "kv"]
        k, v = ([projected(x, leaf, (*part, head)) for head in range(cfg.heads)] for leaf, part in parts)
        y = norm(y + attend(q, k, v, layer["cross"]["out"], False, real), layer["norm3"])
        y = norm(y + feed_forward(y, layer["mlp"]), layer["norm2"])
    return y @ table.T + (tree["unembed"]["bias"][: cfg.vocab] if cfg.output_bias else 0)


@pytest.mark.parametrize("form", [*QUICK, *(pytest.param(form, marks=pytest.mark.full) for form in FORMS if form not in QUICK)])
@pytest.mark.planted
def test_the_model_computes_the_formulas_of_the_paper(form: str) -> None:
    """Logits of a padded pair. Rounding: a dozen layers' sums of 32 to 300 terms of float32."""
    net, rng = small("transformer", **FORMS[form]), np.random.default_rng(0)
    params = random_params(net)
    source, target = rng.integers(1, 300, 9), rng.integers(1, 300, 6)
    segments = jnp.int32(np.arange(9)[None] < 7)
    batch = Batch(tokens=jnp.int32(target[None]), source=Batch(tokens=jnp.int32(source[None]), segments=segments))
    logits = jax.jit(lambda params: net.unembed(params, net.apply(params, batch).hidden))(params)[0, :, : net.config.vocab]
    expected = reference(net, params, source, target, 7)
    np.testing.assert_allclose(logits, expected, atol=3e-6 * np.abs(expected).max(), rtol=0)
    # And token by token, from the cache.
    step, cache, states = jax.jit(functools.partial(decode, net)), net.init_cache(1, 6, jnp.float32), []
    for at in range(6):
        one = Batch(tokens=batch.tokens[:, at : at + 1], source=None if at else batch.source)
        hidden, cache = step(params, one, cache)
        states.append(hidden)
    logits = net.unembed(params, jnp.concatenate(states, 1))[0, :, : net.config.vocab]
    np.testing.assert_allclose(logits, expected, atol=3e-6 * np.abs(expected).max(), rtol=0)
    if net.config.positions == "learned":
        # With the tables of the two sides exchanged.
        params |= {name: params[name] | {"positions": params[of]["positions"]} for name, of in (SIDES, SIDES[::-1])}
    other = small("transformer", **{**FORMS[form], "sinusoids": "halves" if form == "paper" else "interleaved"})
    assert np.abs(reference(other, params, source, target, 7) - expected).max() > 0.1


def test_rows_longer_than_learned_positions_are_refused() -> None:
    net = small("transformer", positions="learned", max_positions=8)
    for target, source in ((9, 8), (8, 9)):
        batch = Batch(tokens=jnp.ones((1, target), jnp.int32), source=Batch(tokens=jnp.ones((1, source), jnp.int32)))
        with pytest.raises(ValueError, match="rows of 9 tokens in a model of 8 positions"):
            jax.eval_shape(net.apply, random_params(net), batch)
    for sizes in ({"length": 9}, {"length": 8, "target_length": 9}):
        with pytest.raises(BadInput, match=r"length 9: the model has 8 positions; .* or a larger --model\.max-positions"):
            tiny.run("text_to_text", model=net.config, data=PairData(batch=8, **sizes))


@pytest.mark.full
def test_what_fresh_parameters_are_like() -> None:
    """Kernels uniform up to Glorot's bound, each by the product that it is a part of; embeddings of deviation 1 once scaled."""
    net = small("transformer", width=64, heads=4, ffn=160)
    params = jax.jit(net.init)(jax.random.key(0))
    kernels = params["decoder"]["layers"]
    square, wide = np.sqrt(6 / 128), np.sqrt(6 / 224)
    drawn = {
        "qkv": (kernels["attention"]["qkv"]["kernel"], square),
        "out": (kernels["attention"]["out"]["kernel"], square),
        "cross q": (kernels["cross"]["q"]["kernel"], square),
        "cross kv": (kernels["cross"]["kv"]["kernel"], square),
        "up": (kernels["mlp"]["up"]["kernel"], wide),
        "down": (kernels["mlp"]["down"]["kernel"], wide),
    }
    for name, (leaf, most) in drawn.items():
        assert 0.99 * most < np.abs(leaf).max() <= most, name
        assert np.std(leaf) == pytest.approx(most / np.sqrt(3), rel=0.03), name
    table = params["embed"]["tokens"]["embedding"][:300]
    assert np.std(table) * 8 == pytest.approx(1, rel=4 / np.sqrt(2 * table.size))
    assert not kernels["mlp"]["up"]["bias"].any() and not params["unembed"]["bias"].any()
