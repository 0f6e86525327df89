"""The exact score: every token counted once, whatever the batch, stride and devices, and equal to a plain float64 loop."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.score import Score, scorer
from tests.support import tiny
from train import config, rows
from train import mesh as meshes
from train.corpus import Document
from train.objectives import causal
from train.prepare import prepare
from train.rows import Rows, Tokens
from train.tokenizer import Tokenizer
from zoo.models import model

LENGTH = 16
TEXTS = [
    "Some years ago, never mind how long precisely, having little or no money in my purse. ",
    "Naïve whales: ≈ 3 µm of 鯨 fat, und größer als das Schiff. ",
    "Queequeg.",
]
BYTES = sum(len(text.encode()) for text in TEXTS)


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 4, 300)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return prepare([Document("a", text) for text in TEXTS], tokenizer(), tmp_path_factory.mktemp("text"))


@functools.cache
def net_and_params() -> tuple[Any, Any]:
    """A model with opinions: random weights far from their small initial values."""
    net = model(dataclasses.replace(tiny.run().model, context=LENGTH))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    params = jax.tree.map(lambda leaf: np.float32(0.3 * rng.standard_normal(leaf.shape)), shapes)
    return net, params


def plan(tokens: Tokens, kind: str) -> Rows:
    strides = {"half a row": LENGTH // 2, "whole rows": LENGTH, "odd": 5}
    return rows.packed(tokens, LENGTH) if kind == "packed" else rows.windows(tokens, LENGTH, strides[kind])


def score(chosen: Rows, *, batch: int, devices: int, tensor: int = 1) -> Score:
    net, params = net_and_params()
    mesh = meshes.make(config.Mesh(tensor=tensor), jax.devices()[:devices])
    token_bytes = np.zeros(net.config.vocab, np.int64)
    token_bytes[: tokenizer().vocab_size] = tokenizer().token_bytes()
    return scorer(net, mesh, chosen, causal.build, token_bytes, batch=batch, dtype=jnp.float32)(params)


# --- the definition, token by token ---------------------------------------------------------------------------------------------


def norm(x: np.ndarray, p: Any) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def surprise(p: Any, inputs: np.ndarray, target: int) -> float:
    """-log p(target | inputs) of a GPT, one position at a time and in float64 throughout."""
    table = p["embed"]["tokens"]["embedding"]
    x = table[inputs] + p["embed"]["positions"]["embedding"][: len(inputs)]
    for i in range(len(p["layers"]["mlp"]["up"]["bias"])):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], p["layers"])
        qkv, out, up, down = (
            layer[a][b] for a, b in [("attention", "qkv"), ("attention", "out"), ("mlp", "up"), ("mlp", "down")]
        )
        q, k, v = np.einsum("td,dcnh->ctnh", norm(x, layer["norm1"]), qkv["kernel"]) + qkv["bias"][:, None]
        seen = np.zeros_like(q)
        for t in range(len(x)):
            scores = np.einsum("nh,snh->ns", q[t], k[: t + 1]) / math.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            seen[t] = np.einsum("ns,snh->nh", weights / weights.sum(-1, keepdims=True), v[: t + 1])
        x = x + np.einsum("tnh,nhd->td", seen, out["kernel"]) + out["bias"]
        y = norm(x, layer["norm2"]) @ up["kernel"] + up["bias"]
        gelu = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + gelu @ down["kernel"] + down["bias"]
    logits = table[:300] @ norm(x[-1], p["norm"])
    return float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[target])


def nats_token_by_token(tokens: Tokens, stride: int) -> float:
    """Each token after everything its row shows before it: the first row that reaches the token."""
    net, params = net_and_params()
    params = jax.tree.map(np.float64, params)
    assert net.config.activation == "gelu_tanh" and net.config.eps == 1e-5
    ids = np.asarray(tokens.ids, np.int64)
    stream = np.concatenate([[tokens.end_of_text], ids])
    total = 0.0
    for n, target in enumerate(ids):
        begin = stride * max(0, math.ceil((n + 1 - LENGTH) / stride))
        total += surprise(params, stream[begin : n + 1], target)
    return total


@pytest.mark.parametrize(("kind", "stride"), [("half a row", 8), ("whole rows", 16), ("odd", 5)])
def test_a_score_is_that_of_a_loop_over_the_tokens(kind: str, stride: int, tokens: Tokens) -> None:
    found = score(plan(tokens, kind), batch=3, devices=1)
    assert found.tokens == len(tokens.ids)
    assert found.bytes == BYTES
    assert found.nats == pytest.approx(nats_token_by_token(tokens, stride), rel=1e-6)


@pytest.mark.parametrize("kind", ["half a row", "whole rows", "packed"])
def test_neither_batch_nor_devices_enter_a_score(kind: str, tokens: Tokens) -> None:
    chosen = plan(tokens, kind)
    expected = score(chosen, batch=1, devices=1)
    assert (expected.tokens, expected.bytes) == (len(tokens.ids), BYTES)
    for batch, devices, tensor in [(3, 1, 1), (16, 1, 1), (1, 8, 1), (3, 8, 1), (16, 8, 1), (3, 8, 4)]:
        other = score(chosen, batch=batch, devices=devices, tensor=tensor)
        assert (other.tokens, other.bytes) == (expected.tokens, expected.bytes)
        assert other.nats == pytest.approx(expected.nats, rel=1e-6)


def test_more_context_and_other_parameters_change_it(tokens: Tokens) -> None:
    """The agreement above is no coincidence: what should matter does."""
    scores = {kind: score(plan(tokens, kind), batch=16, devices=1).nats for kind in ("half a row", "whole rows", "packed")}
    assert len({round(nats, 1) for nats in scores.values()}) == 3


def test_what_a_score_says() -> None:
    found = Score(nats=200 * math.log(2), tokens=100, bytes=400)
    assert found.loss == pytest.approx(2 * math.log(2))
    assert found.perplexity == pytest.approx(4)
    assert found.bits_per_byte == pytest.approx(0.5)
    assert math.isfinite(Score(nats=1e9, tokens=1, bytes=1).perplexity)
    assert found.record() == {
        "loss": found.loss,
        "perplexity": found.perplexity,
        "bits_per_byte": 0.5,
        "tokens": 100,
        "bytes": 400,
    }


def test_a_text_of_one_token_is_scored(tmp_path: Path) -> None:
    """Fewer rows than devices: the row is filled up with others that are not counted."""
    alone = prepare([Document("a", "")], tokenizer(), tmp_path)
    found = score(rows.windows(alone, LENGTH), batch=16, devices=8)
    assert (found.tokens, found.bytes) == (1, 0)
    assert found.nats > 0
