"""ModernBERT against a plain float64 reference that shares no code with it, and the mistakes that the comparison must notice."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.layer_stack import dot_flops
from tests.support.small import random_params, row, shapes, small, with_head
from zoo import configs, sharding
from zoo.attention.masks import Mask
from zoo.batch import Batch
from zoo.configs import Compute
from zoo.models import Model, modernbert
from zoo.nn import layers, task_heads
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
    """Return the hidden states of a row, float64 [T, D], layer by layer."""
    cfg = net.config
    stored = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    at, segments = np.asarray(batch.positions)[0], np.asarray(batch.segments)[0]
    place = np.arange(len(at))
    same = (segments[:, None] == segments) & (segments > 0)
    x = norm(stored["embed"]["tokens"]["embedding"][np.asarray(batch.tokens)[0]], stored["embed"]["norm"]["scale"], cfg.eps)
    for number in range(cfg.layers):
        stack, index = (stored["first"]["layers"], 0) if number == 0 else (stored["layers"], number - 1)
        layer = jax.tree.map(lambda leaf, index=index: leaf[index], stack)
        is_global = number % cfg.global_every == 0
        seen = same if is_global else same & (np.abs(place[:, None] - place) <= cfg.local_window // 2)
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


@functools.cache
def example() -> tuple[Model, Any, np.ndarray]:
    """Return (model, parameters, reference): five layers, whose last period is incomplete, with bases that show in 16 tokens."""
    net = small("modernbert", layers=5, global_base=50.0, local_base=3.0)
    return net, random_params(net), reference(net, random_params(net), BATCH)


def error(net: Model) -> float:
    """Return the largest difference of the real tokens' hidden states from the reference."""
    _, params, expected = example()
    # A new function, because JAX would not trace the same one again.
    hidden = jax.jit(lambda params: net.apply(params, BATCH).hidden)(params)
    return float(np.abs(np.asarray(hidden)[0] - expected)[REAL].max())


def test_hidden_states_are_those_of_a_plain_reference() -> None:
    net, _, expected = example()
    assert error(net) < BOUND and np.abs(expected[REAL]).max() > 1


def swapped_gate(patch: pytest.MonkeyPatch) -> None:
    def unstacked(x: Any, axis: int) -> Any:
        parts = original(x, axis)
        return parts[::-1] if len(parts) == 2 else parts

    original = layers.unstacked
    patch.setattr(layers, "unstacked", unstacked)


def masks(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(modernbert, "Mask", lambda **fields: Mask(**{**fields, **change(fields)}))


def wider(by: int) -> Callable[[pytest.MonkeyPatch], None]:
    return masks(lambda fields: {"window": fields["window"] + by} if "window" in fields else {})


def rotations(change: Callable[[Any, float], tuple[Any, float]]) -> Callable[[pytest.MonkeyPatch], None]:
    original = positions.rotation

    def rotation(at: Any, width: int, *, base: float) -> Any:
        at, base = change(at, base)
        return original(at, width, base=base)

    return lambda patch: patch.setattr(positions, "rotation", rotation)


def norm_in_the_first_layer(patch: pytest.MonkeyPatch) -> None:
    class Normed(modernbert.Block):
        def __call__(self, x: Any, mask: Any, rotate: Any, seeds: Any) -> Any:
            if self.norm1 is None:
                self.norm1 = lambda x: layers.layer_norm(x, jnp.ones(32), None, self.cfg.eps)
            return super().__call__(x, mask, rotate, seeds)

    patch.setattr(modernbert, "Block", Normed)


def first_layer_local(patch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any, pattern: Any, **options: Any) -> Any:
        return run_stack(*arguments, pattern=("local",) if pattern == ("global",) else pattern, **options)

    patch.setattr(modernbert, "run_stack", run)


MISTAKES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "gate and input swapped": swapped_gate,
    "window one token wider": wider(1),
    "window one token narrower": wider(-1),
    "documents see each other": masks(lambda fields: {"query_segments": None, "key_segments": None}),
    "local base used globally": rotations(lambda at, base: (at, 3.0)),
    "global base used locally": rotations(lambda at, base: (at, 50.0)),
    "positions ignored": rotations(lambda at, base: (jnp.arange(16)[None], base)),
    "a norm in the first layer": norm_in_the_first_layer,
    "the first layer local": first_layer_local,
    "no rotation": lambda patch: patch.setattr(positions, "rotate", lambda x, rotation: x),
}


@pytest.mark.planted(len(MISTAKES))
def test_mistakes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    net = example()[0]
    for name, plant in MISTAKES.items():
        with monkeypatch.context() as patch:
            plant(patch)
            assert error(net) > 100 * BOUND, name
    assert error(net) < BOUND


def test_the_pattern_of_the_layers() -> None:
    """Layer i is global where i is a multiple of the period; the first is held apart, and the others repeat what they can."""
    for name in ("modernbert-base", "modernbert-large", "ettin-encoder-17m", "ettin-encoder-32m", "ettin-encoder-68m"):
        assert configs.find_size(name)[1].config.pattern == ("local", "local", "global")
    for depth in range(2, 9):
        for every in (1, 2, 3, 5):
            cfg = small("modernbert", layers=depth, global_every=every).config
            kinds = [cfg.pattern[index % len(cfg.pattern)] for index in range(depth - 1)]
            assert ["global", *kinds] == ["local" if layer % every else "global" for layer in range(depth)]


SUMMARY_AT = jnp.array([[0, 9]], jnp.int32)


@pytest.mark.planted(2)
@pytest.mark.parametrize("task", ["sequence", "choice"])
def test_a_mean_is_that_of_the_tokens_of_its_sequence(task: str) -> None:
    """Of several in a row, without padding; a classifier of the other kind, and one of tokens, has none."""
    net = with_head("modernbert", task, pooling="mean")
    params, packed = random_params(net), dataclasses.replace(BATCH, summary_at=SUMMARY_AT)
    out = net.apply(params, packed)
    hidden = np.asarray(out.hidden, np.float64)[0]
    expected = np.stack([hidden[:9].mean(0), hidden[9:15].mean(0)])
    np.testing.assert_allclose(task_heads.summaries(out, packed)[0], expected, atol=1e-6)
    for wrong in (hidden.mean(0), hidden[:15].mean(0)):
        assert np.abs(expected - wrong).max() > 1e-2
    plain = net.apply(params, row(5))
    np.testing.assert_allclose(task_heads.summaries(plain, row(5))[0, 0], np.asarray(plain.hidden[0]).mean(0), atol=1e-6)
    cls = with_head("modernbert", task).apply(params, packed)
    np.testing.assert_array_equal(task_heads.summaries(cls, packed), cls.hidden[:, [0, 9]])
    tagger = with_head("modernbert", "tokens", pooling="mean")
    assert tagger.apply(random_params(tagger), row(5)).summaries is None


def test_fresh_parameters_have_the_published_deviations() -> None:
    """0.02, 0.02/sqrt(2 L) of outputs and heads, 1/sqrt(D) of a classifier, each truncated at two deviations; no biases but those
    of words and labels."""
    for task in ("masked", "sequence"):
        net = with_head("modernbert", task, width=256, ffn=256, vocab=1000)
        deviations = {"out": 0.02 / math.sqrt(8), "down": 0.02 / math.sqrt(8), "dense": 0.02 / math.sqrt(8), "classifier": 1 / 16}
        for keys, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(net.init)(jax.random.key(0))):
            *_, part, kind = (path := sharding.path_of(keys)).split("/")
            values = np.asarray(leaf)[:1000] if kind == "embedding" else np.asarray(leaf)
            if kind in ("kernel", "embedding"):
                deviation = deviations.get(part, 0.02)
                assert np.abs(values).max() <= 2 * deviation, path
                # The cut leaves 0.88 of it; a classifier has 768 numbers, and the estimate a deviation of 2.6 %.
                assert values.std() == pytest.approx(0.8796 * deviation, rel=0.1 if part == "classifier" else 0.02), path
            else:
                assert (values == (kind == "scale")).all(), path
                assert kind == "scale" or path in ("masked/bias", "classifier/bias")


@pytest.mark.parametrize("task", ["body", "masked", "tokens", "sequence"])
def test_flops_are_those_of_the_products(task: str) -> None:
    net = with_head("modernbert", task, vocab=128, compute=Compute(attention="xla"))
    labels = {"tokens": jnp.zeros((2, 8), jnp.int32), "sequence": jnp.zeros((2, 1), jnp.int32)}.get(task)
    batch = row(8, 2, labels=labels)

    def outputs(params: Any, batch: Batch) -> Any:
        out = net.apply(params, batch)
        say = {"masked": net.unembed, "tokens": net.token_logits}.get(task)
        if task == "sequence":
            return net.sequence_logits(params, task_heads.summaries(out, batch))
        return out.hidden if say is None else say(params, out.hidden)

    assert net.flops(batch) == dot_flops(outputs, shapes(net), batch)


def test_a_row_longer_than_the_context_is_refused() -> None:
    net = small("modernbert")
    with pytest.raises(ValueError, match="rows of 33 tokens in a model of 32 positions"):
        net.apply(random_params(net), row(33))
