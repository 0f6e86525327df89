"""Denoising of sentences: the decoder against float64 numpy, what it sees, deleted words, and gradients of divided batches."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import encoders, preference_steps, tiny
from tests.support.small import random_params, small
from train.config import run_config
from train.config.data_options import LabelledData
from train.config.sentence_denoising_options import PlainTexts, SentenceDenoising
from train.data.example_types import Ranked
from train.engine import sentence_decoder
from train.engine.sentence_decoder import DECODER
from train.inputs.labelled_inputs import rows_of_labels
from train.objectives.sentence_denoising import DenoisedSentences, left_tokens
from train.rows.batches import in_order
from train.rows.embedding_rows import plain_rows
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.models import Model
from zoo.nn.kv_cache import self_mask
from zoo.ops import positions

NET = small("bert", task="body", layers=1, dropout=0.1, attention_dropout=0.1)
OPTIONS = SentenceDenoising(decoder_layers=2)
LENGTH = 8


def batch_of(rows: int) -> Batch:
    """Texts of 3 to 8 tokens, and 1 to 3 of them as what is left."""
    rng = np.random.default_rng(1)

    def side(sizes: np.ndarray) -> dict[str, Any]:
        segments = (np.arange(LENGTH) < sizes).astype(np.int32)
        tokens = rng.integers(2, 300, segments.shape).astype(np.int32) * segments
        return {"tokens": tokens, "segments": segments, "positions": np.arange(LENGTH, dtype=np.int32) * segments}

    decoder = side(rng.integers(3, 9, (rows, 1)))
    return Batch(
        **decoder,
        targets=rng.integers(2, 300, (rows, LENGTH)).astype(np.int32),
        weights=decoder["segments"].astype(np.float32),
        source=Batch(**side(rng.integers(3, 6, (rows, 1)))),
        index=np.arange(rows, dtype=np.uint32),
    )


@functools.cache
def params_of(net: Model = NET) -> Any:
    """Random parameters of the model and of the decoder, whose biases and scales are not those of new ones."""
    shapes = jax.eval_shape(DenoisedSentences(OPTIONS).added_params(net).init, jax.random.key(0))
    rng = np.random.default_rng(3)
    return random_params(net) | jax.tree.map(lambda leaf: jnp.float32(rng.normal(0, 0.3, leaf.shape)), shapes)


# --- The definition in float64 ---


def norm(x: np.ndarray, part: Any, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * part["scale"] + part["bias"]


def attended(x: np.ndarray, part: Any, heads: int) -> np.ndarray:
    """Each token sees itself and those before it."""
    q, k, v = np.moveaxis(np.einsum("td,dcnh->tcnh", x, part["qkv"]["kernel"]) + part["qkv"]["bias"], 1, 0)
    out = np.zeros_like(q)
    for head in range(heads):
        for at in range(len(x)):
            scores = np.exp(k[: at + 1, head] @ q[at, head] / math.sqrt(q.shape[-1]))
            out[at, head] = scores @ v[: at + 1, head] / scores.sum()
    return np.einsum("tnh,nhd->td", out, part["out"]["kernel"]) + part["out"]["bias"]


def defined(vectors: np.ndarray, batch: Batch) -> float:
    """The sum of the cross-entropies of the targets, of a decoder that sees a vector and the tokens before."""
    cfg, total = NET.config, 0.0
    params = jax.tree.map(np.float64, params_of())
    table = params["embed"]["tokens"]["embedding"][: cfg.vocab]
    rates = 10_000.0 ** (-np.arange(0, cfg.width, 2) / cfg.width)
    for row, vector in enumerate(vectors):
        size = int(batch.segments[row].sum())  # pyright: ignore[reportOptionalSubscript]
        angles = np.arange(size)[:, None] * rates
        x = table[batch.tokens[row, :size]] * math.sqrt(cfg.width)
        x[:, ::2] += np.sin(angles)
        x[:, 1::2] += np.cos(angles)
        for number in range(OPTIONS.decoder_layers):
            layer = jax.tree.map(lambda leaf, number=number: leaf[number], params[DECODER]["layers"])
            x = norm(x + attended(x, layer["attention"], cfg.heads), layer["norm1"], cfg.eps)
            x = norm(x + vector @ layer["vector"]["kernel"] + layer["vector"]["bias"], layer["norm2"], cfg.eps)
            inner = x @ layer["mlp"]["up"]["kernel"] + layer["mlp"]["up"]["bias"]
            inner = inner * np.vectorize(lambda each: 0.5 * (1 + math.erf(each / math.sqrt(2))))(inner)
            x = norm(x + inner @ layer["mlp"]["down"]["kernel"] + layer["mlp"]["down"]["bias"], layer["norm3"], cfg.eps)
        logits = x @ table.T
        own = logits[np.arange(size), batch.targets[row, :size]]  # pyright: ignore[reportOptionalSubscript]
        total += float((np.log(np.exp(logits).sum(-1)) - own).sum())
    return total


class GivenVectors(DenoisedSentences):
    """The vectors are those of `extra`."""

    def vectors(self, model: Any, params: Any, batch: Batch, seeds: Any = None) -> Any:
        assert batch.extra is not None
        return batch.extra["given"]


def check_against_definition(chunk: int = 0) -> None:
    batch, given = batch_of(3), np.random.default_rng(0).normal(size=(3, 32))
    arrays = jax.tree.map(jnp.asarray, batch)

    def loss(vectors: Any) -> Any:
        rows = Batch(**{**vars(arrays), "extra": {"given": vectors}})
        options: dict[str, Any] = {"seeds": None, "carry": {}, "smoothing": 0.0, "chunk": chunk}
        return GivenVectors(OPTIONS).loss(NET, params_of(), rows, {}, **options)[0]["sentence_denoising"]

    value, gradient = jax.value_and_grad(loss)(jnp.float32(given))
    assert float(value) == pytest.approx(defined(given, batch), rel=1e-5)
    for seed in range(4):
        change = np.random.default_rng(seed).normal(size=given.shape)
        slope = (defined(given + 1e-6 * change, batch) - defined(given - 1e-6 * change, batch)) / 2e-6
        assert float((np.float64(gradient) * change).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("chunk", [0, 4])
def test_losses_and_gradients_are_those_of_the_definition(chunk: int) -> None:
    check_against_definition(chunk)


@pytest.mark.planted
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        # The decoder sees what it predicts; positions of the other order.
        ("self_mask", lambda batch: self_mask(batch, causal=False)),
        ("positions.sinusoids_at", lambda at, width: SINUSOIDS(at, width, halves=True)),
        ("tied_logits", lambda hidden, table, vocabulary: hidden @ table.T),
    ],
)
def test_wrong_decoders_differ_from_the_definition(name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{sentence_decoder.__name__}.{name}", wrong)
    with pytest.raises(AssertionError):
        check_against_definition()


SINUSOIDS = positions.sinusoids_at


# --- The vector is all that the decoder sees of the encoder ---


class SeesTokens(DenoisedSentences):
    """The decoder also has the hidden states of the encoder."""

    def decoder(self, model: Model) -> Any:
        plain = super().decoder(model)

        class Wrong(type(plain)):
            def states(self, params: Any, vectors: Any, batch: Batch, seeds: Any = None) -> Any:
                assert batch.source is not None
                return super().states(params, vectors, batch, seeds) + model.apply(params, batch.source).hidden

        return Wrong(plain.config, plain.layers)


def gradients(kind: type[DenoisedSentences], *, through_vector: bool, net: Model = NET, **fields: Any) -> Any:
    """Return the gradients of the loss, without those through the vectors if they are not to count."""

    class Cut(kind):
        def vectors(self, model: Any, params: Any, batch: Batch, seeds: Any = None) -> Any:
            vectors = super().vectors(model, params, batch, seeds)
            return vectors if through_vector else jax.lax.stop_gradient(vectors)

    batch = jax.tree.map(jnp.asarray, fields.get("batch") or batch_of(2))
    return jax.grad(lambda params: Cut(OPTIONS).token_nats(net, params, batch).sum())(params_of(net))


def largest(tree: Any) -> float:
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def check_only_the_vector(kind: type[DenoisedSentences]) -> None:
    through, cut = gradients(kind, through_vector=True), gradients(kind, through_vector=False)
    assert largest(through["layers"]) > 1e-3 and largest(through["embed"]["positions"]) > 1e-3
    assert largest(cut["layers"]) == 0 and largest(cut["embed"]["positions"]) == 0
    # The decoder shares the word embeddings.
    assert largest(cut[DECODER]) > 1e-3 and largest(cut["embed"]["tokens"]) > 1e-3


def test_gradients_reach_the_encoder_through_the_vector_alone() -> None:
    check_only_the_vector(DenoisedSentences)


@pytest.mark.planted
def test_a_decoder_that_sees_tokens_is_noticed() -> None:
    with pytest.raises(AssertionError):
        check_only_the_vector(SeesTokens)


# --- Deleted words ---

STARTS = np.ones(50, bool)
STARTS[40:] = False


def check_deletion(left: Any) -> None:
    rng, ids = np.random.default_rng(0), np.arange(20, dtype=np.int32)
    shares = [left(rng, ids, STARTS, 0.6).mean() for _ in range(2000)]
    # The standard error is 0.0025.
    assert np.mean(shares) == pytest.approx(0.4, abs=0.01)
    assert left(rng, ids, STARTS, 0.0).all()
    counts = {int(left(rng, ids, STARTS, 0.999).sum()) for _ in range(50)}
    assert min(counts) == 1 and left(rng, ids[:1], STARTS, 0.999).tolist() == [True]
    # The parts of a word have one fate, and a first token begins a word.
    parts = np.array([41, 42, 1, 43, 44, 2, 45], np.int32)
    for _ in range(50):
        mask = left(rng, parts, STARTS, 0.5).tolist()
        assert mask[0] == mask[1] and mask[2] == mask[3] == mask[4] and mask[5] == mask[6] and any(mask)


def test_each_word_is_deleted_by_chance_and_one_is_left() -> None:
    check_deletion(left_tokens)
    assert not left_tokens(np.random.default_rng(0), np.zeros(0, np.int32), STARTS, 0.5).size


@pytest.mark.planted
@pytest.mark.parametrize(
    "wrong",
    [
        lambda rng, ids, starts, share: left_tokens(rng, ids, np.ones_like(starts), share),
        lambda rng, ids, starts, share: left_tokens(rng, ids, starts, 1 - share),
        lambda rng, ids, starts, share: rng.random(len(ids)) >= share,
    ],
)
def test_wrong_deletion_is_noticed(wrong: Any) -> None:
    with pytest.raises(AssertionError):
        check_deletion(wrong)


@pytest.mark.parametrize("family", encoders.ANY)
def test_rows_have_the_text_and_what_is_left_of_it(family: str) -> None:
    """And every family has word embeddings that the decoder can share."""
    made = encoders.loaded(family, "body")
    net, words = made.model, made.tokenizer
    special = words.special_tokens
    assert special is not None
    run = tiny.run("sentence_denoising", model=net.config, data=LabelledData(length=24, batch=2))
    texts = ["The whale sleeps.", "whale"]
    rows = rows_of_labels([Ranked(origin=f"f:{n}", query=text) for n, text in enumerate(texts)], run, words)
    build = DenoisedSentences.builder(run, words, lambda: np.zeros(0, np.int64))
    (batch,) = in_order(rows, build, 2, np.arange(2))
    source, targets = batch.source, batch.targets
    assert source is not None and targets is not None and batch.weights is not None
    for row, text in enumerate(texts):
        ids = words.encode(text).tolist()
        size = len(ids) + 1
        assert targets[row, :size].tolist() == [*ids, special.sep]
        assert batch.tokens[row, :size].tolist() == [special.cls, *ids]
        assert batch.weights[row].tolist() == [1.0] * size + [0.0] * (24 - size)
        noisy = source.tokens[row][source.segments[row] > 0].tolist()  # pyright: ignore[reportOptionalSubscript]
        left = noisy[special.before : special.before + len(noisy) - 2]
        assert noisy == special.single(np.array(left))[0].tolist() and left
        rest = iter(ids)
        assert all(token in rest for token in left), "the order is that of the text"
    # The same row has other words in another epoch, and the same ones where a run is continued.
    drawn = [build(np.random.default_rng(seed), rows.row(0), 24)["source"].tokens.tobytes() for seed in (*range(9), 0)]
    assert drawn[0] == drawn[-1] and len(set(drawn)) > 1
    gradient = gradients(DenoisedSentences, through_vector=True, net=net, batch=batch)
    assert all(math.isfinite(size) and size > 0 for size in (largest(gradient["layers"]), largest(gradient[DECODER])))


# --- Steps ---

DIVISIONS: dict[str, dict[str, Any]] = {
    "4 micro-batches": {"mesh": run_config.Mesh(data=1), "accumulate": 4},
    "data=2, fsdp=2": {"mesh": run_config.Mesh(data=2, fsdp=2)},
    "data=2, fsdp=2, tensor=2, 2 micro-batches": {"mesh": run_config.Mesh(data=2, fsdp=2, tensor=2), "accumulate": 2},
    "pmap": {"mesh": run_config.Mesh(data=8), "engine": "pmap"},
}
FAST = ("4 micro-batches", "data=2, fsdp=2")
STEP_CASES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in DIVISIONS]


def first_steps(kind: type[DenoisedSentences] = DenoisedSentences, **changes: Any) -> Any:
    run = tiny.run("sentence_denoising", model=NET.config, data=LabelledData(length=LENGTH, batch=16), **changes)
    return preference_steps.first_steps(run, kind(OPTIONS), batch_of(16))


@functools.cache
def alone() -> Any:
    return first_steps(mesh=run_config.Mesh(data=1))


def check_division(case: str, kind: type[DenoisedSentences] = DenoisedSentences) -> None:
    values, gradient = first_steps(kind, **DIVISIONS[case])
    np.testing.assert_allclose(values, alone()[0], rtol=1e-5)
    differences = jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), gradient, alone()[1])
    lengths = [
        math.sqrt(sum(float(np.square(leaf).sum()) for leaf in jax.tree.leaves(tree))) for tree in (differences, alone()[1])
    ]
    assert lengths[0] <= 1e-6 * lengths[1]
    assert values[-1] < values[0]


@pytest.mark.parametrize("case", STEP_CASES)
def test_losses_and_gradients_do_not_depend_on_the_division(case: str) -> None:
    check_division(case)


class MeanOfRows(DenoisedSentences):
    """Each micro-batch is divided by its own number of tokens."""

    def loss(self, model: Any, params: Any, batch: Batch, frozen: Any, **options: Any) -> Any:
        terms, carry = super().loss(model, params, batch, frozen, **options)
        return {name: term / batch.weights.sum() for name, term in terms.items()}, carry  # pyright: ignore


@pytest.mark.planted
def test_a_wrong_division_is_noticed() -> None:
    with pytest.raises(AssertionError):
        check_division("4 micro-batches", MeanOfRows)


# --- Bad input ---


@pytest.mark.planted
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deletion": 1.0}, "--sentence-denoising.deletion 1.0: choose a share of at least 0 and less than 1"),
        ({"deletion": -0.1}, "--sentence-denoising.deletion -0.1: choose a share"),
        ({"deletion": math.nan}, "--sentence-denoising.deletion nan: choose a share"),
        ({"decoder_layers": 0}, "--sentence-denoising.decoder-layers 0: choose 1 to 64"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        SentenceDenoising(**options)


@pytest.mark.planted
def test_long_texts_are_refused() -> None:
    words, example = encoders.tokenizer("wordpiece"), Ranked(origin="f:7", query="the old whale of the ship")
    with pytest.raises(BadInput, match="f:7: 8 tokens, and a row has 6; "):
        list(plain_rows([example], words, PlainTexts(), 6, group=OPTIONS))
    (row,) = plain_rows([example], words, PlainTexts(truncate=True), 6, group=OPTIONS)
    assert len(row.inputs[0].ids) == 6
