"""The score of masked words and next sentences, at any batch size and mesh, equals a float64 loop over one sequence at a time."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.tasks.held_out.masked_lm_scores import SUMS, MaskedScore, prediction_scorer
from eval.tasks.held_out.scoring_inputs import RowsToScore
from tests.support import tiny
from tests.support.encoder_text import LETTERS, roberta, stream, uncased
from tests.support.small import random_params, small
from train.config import run_config
from train.config.data_options import EncoderData
from train.config.option_groups import Masking
from train.engine import device_mesh
from train.objectives.masked import Masked
from train.rows import batches
from train.rows.encoder_rows import EncoderRows, plan_rows
from train.tokenizers.tokenizer import Tokenizer

LENGTH = 24
KINDS = {
    "pairs": ("bert", "pretraining", EncoderData(rows="segment_pairs", length=LENGTH)),
    "packed pairs": ("bert", "pretraining", EncoderData(rows="sentence_pairs", length=LENGTH, pack=True)),
    "words alone": ("roberta", "masked", EncoderData(rows="full_sentences", length=LENGTH)),
}
COMMON = "a"
COUNTS = np.arange(300) * 7 % 40
"""How often each id occurs; some do not."""
SHARDED = {"batch": 1, "devices": 8, "fsdp": 4}
"""Eight rows at a time on eight devices."""


@functools.cache
def tokenizer(family: str) -> Tokenizer:
    return uncased() if family == "bert" else roberta()


@functools.cache
def model_of(kind: str) -> tuple[Any, Any]:
    """A model of random weights that are far from uniform predictions, and that is right for some tokens."""
    family, task, _ = KINDS[kind]
    net = small(family, task=task)
    params = jax.tree.map(np.array, random_params(net))
    params["masked"]["bias"][tokenizer(family).encode(COMMON)] += 8
    return net, params


@functools.cache
def rows_of(kind: str) -> tuple[EncoderRows, batches.Build]:
    family, _, data = KINDS[kind]
    run = tiny.run(model=model_of(kind)[0].config, objective="masked", data=data, masking=Masking(rate=0.3))
    sentence = " ".join(f"{COMMON} {letter}" for letter in LETTERS[1:5])
    words = [f"{sentence}. {COMMON} {letter}! {sentence}? {letter} {COMMON}." for letter in LETTERS[5:9]]
    text = stream(words, tokenizer(family))
    return plan_rows(text, data, tokenizer(family), 0, "held-out"), Masked.builder(run, tokenizer(family), lambda: COUNTS)


def scored(kind: str, rows: EncoderRows, build: batches.Build, *, batch: int, devices: int, **axes: int) -> dict[str, float]:
    net, params = model_of(kind)
    mesh = device_mesh.make_mesh(run_config.Mesh(**axes), jax.devices()[:devices])
    inputs = RowsToScore(model=net, mesh=mesh, rows=rows, build=build, batch=batch, dtype=jnp.float32)
    score = prediction_scorer(inputs, np.maximum(COUNTS, 1))(params)
    return {name: getattr(score, name) for name in SUMS}


def norm(x: np.ndarray, p: Any, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def dense(x: np.ndarray, p: Any) -> np.ndarray:
    return x @ p["kernel"] + p["bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def hidden(p: Any, cfg: Any, tokens: np.ndarray, types: np.ndarray) -> np.ndarray:
    """Hidden states of a sequence alone, in float64 throughout."""
    tables = {name: part["embedding"] for name, part in p["embed"].items() if name != "norm"}
    places = np.arange(len(tokens)) + cfg.position_offset
    x = norm(tables["tokens"][tokens] + tables["positions"][places] + tables["types"][types], p["embed"]["norm"], cfg.eps)
    for number in range(cfg.layers):
        layer = jax.tree.map(lambda leaf, number=number: leaf[number], p["layers"])
        attention = layer["attention"]
        q, k, v = np.einsum("td,dcnh->cnth", x, attention["qkv"]["kernel"]) + attention["qkv"]["bias"][:, :, None]
        weights = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1]))
        seen = weights / weights.sum(-1, keepdims=True) @ v
        y = np.einsum("nth,nhd->td", seen, attention["out"]["kernel"]) + attention["out"]["bias"]
        x = norm(x + y, layer["norm1"], cfg.eps)
        x = norm(x + dense(gelu(dense(x, layer["mlp"]["up"])), layer["mlp"]["down"]), layer["norm2"], cfg.eps)
    return x


def judged(logits: np.ndarray, truth: int) -> np.ndarray:
    """(surprise in nats, whether the likeliest is the true one)"""
    return np.array([np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[truth], logits.argmax() == truth])


def by_hand(kind: str) -> dict[str, float]:
    (net, params), (rows, build) = model_of(kind), rows_of(kind)
    p, cfg = jax.tree.map(np.float64, params), net.config
    assert cfg.activation == "gelu"
    # A batch of all rows has none that fill it up.
    batch = next(batches.in_order(rows, build, len(rows), np.arange(len(rows))))
    words, pairs, unigram, predictions, labels = np.zeros(2), np.zeros(2), 0.0, 0, 0
    seen = np.maximum(COUNTS, 1)
    for row in range(len(rows)):
        one = {name: value[row] for name, value in vars(batch).items() if value is not None}
        for number in range(1, one["segments"].max() + 1):
            inside = one["segments"] == number
            states = hidden(p, cfg, one["tokens"][inside], one["types"][inside])
            first = int(inside.argmax())
            for at, target in zip(one["predict_at"][one["weights"] > 0], one["targets"][one["weights"] > 0], strict=True):
                if inside[at]:
                    x = norm(gelu(dense(states[at - first], p["masked"]["dense"])), p["masked"]["norm"], cfg.eps)
                    words += judged((p["embed"]["tokens"]["embedding"] @ x + p["masked"]["bias"])[: cfg.vocab], target)
                    unigram -= math.log(seen[target] / seen.sum())
                    predictions += 1
            if "labels" in one:
                assert one["summary_at"][number - 1] == first
                pairs += judged(dense(np.tanh(dense(states[0], p["pooler"])), p["next"]), one["labels"][number - 1])
                labels += 1
    found = {"masked_nats": words[0], "hits": words[1], "unigram_nats": unigram, "predictions": predictions}
    return found | {"next_nats": pairs[0], "next_hits": pairs[1], "pairs": labels}


@pytest.mark.parametrize(
    ("kind", "machine"),
    [
        ("packed pairs", SHARDED),
        pytest.param("pairs", {"batch": 3, "devices": 1}, marks=pytest.mark.full),
        pytest.param("words alone", {"batch": 16, "devices": 8, "tensor": 4}, marks=pytest.mark.full),
    ],
)
def test_score_equals_a_float64_loop_over_the_sequences(kind: str, machine: dict[str, int]) -> None:
    result = scored(kind, *rows_of(kind), **machine)
    assert result == pytest.approx(by_hand(kind), rel=1e-5)
    assert 0 < result["hits"] < result["predictions"]
    assert result["pairs"] == 0 if kind == "words alone" else 0 < result["next_hits"] < result["pairs"]


@pytest.mark.planted(2)
def test_counting_padding_rows_or_joining_sequences_changes_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, (rows, build) = by_hand("packed pairs"), rows_of("packed pairs")
    assert len(rows) % 8
    with monkeypatch.context() as patch:
        patch.setattr(batches, "_uncounted", lambda arrays: arrays)
        result = scored("packed pairs", rows, build, **SHARDED)
    assert result["predictions"] > expected["predictions"]
    assert result["pairs"] > expected["pairs"]

    def joined(*given: Any) -> dict[str, np.ndarray]:
        arrays = build(*given)
        return arrays | {"segments": np.minimum(arrays["segments"], 1)}

    result = scored("packed pairs", rows, joined, **SHARDED)
    assert result["predictions"] == expected["predictions"]
    assert abs(result["masked_nats"] / expected["masked_nats"] - 1) > 1e-3
    assert abs(result["next_nats"] / expected["next_nats"] - 1) > 1e-3


def test_record_derives_means_from_the_sums() -> None:
    sums = {"masked_nats": 20.0, "hits": 3.0, "unigram_nats": 50.0, "predictions": 10.0}
    words = {"accuracy": 0.3, "masked_loss": 2.0, "perplexity": pytest.approx(math.exp(2)), "unigram_loss": 5.0}
    pairs = {"next_loss": 0.25, "next_accuracy": 0.75, "pairs": 4}
    record = MaskedScore(**sums, next_nats=1.0, next_hits=3.0, pairs=4.0).record()
    assert record == {"loss": 2.25, **words, "predictions": 10, **pairs}
    alone = MaskedScore(**sums, next_nats=0.0, next_hits=0.0, pairs=0.0).record()
    assert alone == {"loss": 2.0, **words, "predictions": 10}
