"""The exact score of a language model: each token counts once, at any batch size, stride and mesh, as in a plain float64 loop."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.tasks.held_out.language_model_scores import TextScore, text_scorer
from eval.tasks.held_out.scoring_inputs import RowsToScore
from tests.support import tiny
from train.config import run_config
from train.data.corpus import Document
from train.engine import device_mesh
from train.objectives import causal
from train.rows import lm_rows
from train.rows.lm_rows import LmRows, Tokens
from train.rows.token_cache import tokenize_documents
from train.tokenizers.tokenizer import Tokenizer
from zoo.models import model

LENGTH = 16
TEXTS = [
    "Some years ago, never mind how long precisely, having little or no money in my purse. ",
    "Naïve whales: ≈ 3 µm of 鯨 fat, und größer als das Schiff. ",
    "Queequeg.",
]
STRIDES = {"half a row": LENGTH // 2, "whole rows": LENGTH, "odd": 5}
"""Name -> new tokens in each window; the other rows are packed documents."""


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 4, 300)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return tokenize_documents([Document("a", text) for text in TEXTS], tokenizer(), tmp_path_factory.mktemp("text"))


@functools.cache
def net_and_params() -> tuple[Any, Any]:
    """A model whose random weights are far from their small initial values, so that its predictions differ."""
    net = model(dataclasses.replace(tiny.run().model, context=LENGTH))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    params = jax.tree.map(lambda leaf: np.float32(0.3 * rng.standard_normal(leaf.shape)), shapes)
    return net, params


def score(chosen: LmRows, *, batch: int, devices: int, tensor: int = 1) -> TextScore:
    net, params = net_and_params()
    mesh = device_mesh.make_mesh(run_config.Mesh(tensor=tensor), jax.devices()[:devices])
    token_bytes = np.zeros(net.config.vocab, np.int64)
    token_bytes[: tokenizer().vocab_size] = tokenizer().token_bytes()
    shown: list[tuple[int, int]] = []
    options: dict[str, Any] = dict(batch=batch, dtype=jnp.float32, progress=lambda *counts: shown.append(counts))
    names = {"origins": lambda: [f"file{number}" for number in chosen.first_documents]}
    inputs = RowsToScore(model=net, mesh=mesh, rows=chosen, build=causal.build, **names, **options)
    result = text_scorer(inputs, token_bytes)(params)
    assert shown == [(done, len(shown) - 1) for done in range(len(shown))] and len(shown) > 1
    return result


def norm(x: np.ndarray, p: Any) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def token_nll(p: Any, inputs: np.ndarray, target: int) -> float:
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


def predictions(tokens: Tokens, kind: str) -> Iterator[tuple[np.ndarray, int]]:
    """Yield each token after what its row shows before it: the first window that reaches it, or its part of its document."""
    ids = np.asarray(tokens.ids, np.int64)
    texts = [ids] if kind in STRIDES else [ids[first:end] for first, end in zip(tokens.offsets, tokens.offsets[1:], strict=False)]
    for text in texts:
        stream = np.concatenate([[tokens.end_of_text], text])
        for n, target in enumerate(text):
            stride = STRIDES.get(kind, LENGTH)
            begin = stride * max(0, math.ceil((n + 1 - LENGTH) / stride))
            yield stream[begin : n + 1], int(target)


def nats(tokens: Tokens, kind: str) -> float:
    net, params = net_and_params()
    assert net.config.activation == "gelu_tanh" and net.config.eps == 1e-5
    params = jax.tree.map(np.float64, params)
    return sum(token_nll(params, *prediction) for prediction in predictions(tokens, kind))


@pytest.mark.parametrize(
    ("kind", "machine"),
    [
        ("half a row", {"batch": 3, "devices": 1}),
        ("packed", {"batch": 3, "devices": 8, "tensor": 4}),
        pytest.param("whole rows", {"batch": 1, "devices": 8}, marks=pytest.mark.full),
        pytest.param("odd", {"batch": 16, "devices": 1}, marks=pytest.mark.full),
    ],
)
def test_score_equals_a_float64_loop_over_the_tokens(kind: str, machine: dict[str, int], tokens: Tokens) -> None:
    expected, other = nats(tokens, kind), nats(tokens, "packed" if kind in STRIDES else "odd")
    chosen = (
        lm_rows.stream_windows(tokens, LENGTH, STRIDES[kind]) if kind in STRIDES else lm_rows.packed_documents(tokens, LENGTH)
    )
    result = score(chosen, **machine)
    assert (result.tokens, result.bytes) == (len(tokens.ids), sum(len(text.encode()) for text in TEXTS))
    assert result.nats == pytest.approx(expected, rel=1e-6)
    rows = result.outcomes
    assert rows is not None and len(rows.id) == len(chosen)
    assert [name.split()[0] for name in rows.id] == [f"file{number}" for number in chosen.first_documents]
    assert (rows.count.sum(), rows.nats.sum()) == (result.tokens, pytest.approx(result.nats)) and np.isnan(rows.right).all()
    counted = [sum(len(piece.ids) for piece in chosen.row(n).pieces) - chosen.row(n).context for n in range(len(chosen))]
    assert rows.count.tolist() == counted
    assert other != pytest.approx(expected, rel=1e-3)


def test_record_derives_loss_perplexity_and_bits_per_byte_from_the_sums() -> None:
    record = TextScore(nats=200 * math.log(2), tokens=100, bytes=400).record()
    derived = {"loss": 2 * math.log(2), "perplexity": 4, "bits_per_byte": 0.5}
    assert record == {**{name: pytest.approx(value) for name, value in derived.items()}, "tokens": 100, "bytes": 400}
    assert math.isfinite(TextScore(nats=1e9, tokens=1, bytes=1).perplexity)


def test_a_text_without_a_known_byte_has_no_bits_per_byte() -> None:
    """A tokenizer of others may know none of its words."""
    assert TextScore(nats=6.0, tokens=3, bytes=0).record().keys() == {"loss", "perplexity", "tokens", "bytes"}
