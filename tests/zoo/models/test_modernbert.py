"""ModernBERT against a plain float64 reference that shares no code with it, and the mistakes that the comparison must notice."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.layer_stack import dot_flops
from tests.support.modernbert_reference import check_fresh_deviations, check_pattern, mistakes, reference
from tests.support.plain_reference import BATCH, BOUND, REAL, check_mistakes
from tests.support.small import random_params, row, shapes, small, with_head
from zoo import configs
from zoo.batch import Batch
from zoo.configs import Compute
from zoo.models import Model, modernbert
from zoo.nn import task_heads


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


MISTAKES = mistakes(modernbert)


@pytest.mark.planted(len(MISTAKES))
def test_mistakes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    net = example()[0]
    check_mistakes(monkeypatch, MISTAKES, lambda _: error(net))
    assert error(net) < BOUND


def test_the_pattern_of_the_layers() -> None:
    """Layer i is global where i is a multiple of the period; the first is held apart, and the others repeat what they can."""
    for name in ("modernbert-base", "modernbert-large", "ettin-encoder-17m", "ettin-encoder-32m", "ettin-encoder-68m"):
        assert configs.find_size(name)[1].config.pattern == ("local", "local", "global")
    check_pattern("modernbert")


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
    np.testing.assert_allclose(task_heads.sequence_summaries(out, packed)[0], expected, atol=1e-6)
    for wrong in (hidden.mean(0), hidden[:15].mean(0)):
        assert np.abs(expected - wrong).max() > 1e-2
    plain = net.apply(params, row(5))
    np.testing.assert_allclose(task_heads.sequence_summaries(plain, row(5))[0, 0], np.asarray(plain.hidden[0]).mean(0), atol=1e-6)
    cls = with_head("modernbert", task).apply(params, packed)
    np.testing.assert_array_equal(task_heads.sequence_summaries(cls, packed), cls.hidden[:, [0, 9]])
    tagger = with_head("modernbert", "tokens", pooling="mean")
    assert tagger.apply(random_params(tagger), row(5)).summaries is None


def test_fresh_parameters_have_the_published_deviations() -> None:
    """0.02, 0.02/sqrt(2 L) of outputs and heads, 1/sqrt(D) of a classifier, each truncated at two deviations; no biases but those
    of words and labels."""
    for task in ("masked", "sequence"):
        net = with_head("modernbert", task, width=256, ffn=256, vocab=1000)
        check_fresh_deviations(net, ("masked/bias", "classifier/bias"), classifier=1 / 16)


@pytest.mark.parametrize("task", ["body", "masked", "tokens", "sequence"])
def test_flops_are_those_of_the_products(task: str) -> None:
    net = with_head("modernbert", task, vocab=128, compute=Compute(attention="xla"))
    labels = {"tokens": jnp.zeros((2, 8), jnp.int32), "sequence": jnp.zeros((2, 1), jnp.int32)}.get(task)
    batch = row(8, 2, labels=labels)

    def outputs(params: Any, batch: Batch) -> Any:
        out = net.apply(params, batch)
        say = {"masked": net.unembed, "tokens": net.token_logits}.get(task)
        if task == "sequence":
            return net.sequence_logits(params, task_heads.sequence_summaries(out, batch))
        return out.hidden if say is None else say(params, out.hidden)

    assert net.flops(batch) == dot_flops(outputs, shapes(net), batch)
