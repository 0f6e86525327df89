"""Ettin's decoders against a plain float64 reference that shares no code with them, and the mistakes that it must notice."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from tests.support.layer_stack import dot_flops
from tests.support.modernbert_reference import check_fresh_deviations, check_pattern, gelu, mistakes, norm, reference
from tests.support.plain_reference import BATCH, BOUND, REAL, Plant, as_float64, check_mistakes, masks, relative_error
from tests.support.small import patch_family, random_params, row, shapes, small, with_head
from zoo import configs
from zoo.configs import Compute
from zoo.models import Model, ettin_decoder, model
from zoo.nn import score_head
from zoo.nn.layers import layer_norm

BODY = {"layers": 5, "global_base": 50.0, "local_base": 3.0}
"""Five layers, whose last period is incomplete, with bases that show in 16 tokens."""


@functools.cache
def example(task: str) -> tuple[Model, Any, np.ndarray]:
    """Return (model, parameters, float64 logits of words, or the score at each token, [T, V or 1])."""
    net = with_head("ettin_decoder", task, **BODY)
    params = random_params(net)
    stored = as_float64(params)
    dense = stored["unembed"]["dense"] if task == "causal" else stored["dense"]
    x = norm(gelu(reference(net, params, BATCH) @ dense["kernel"]), dense["norm"]["scale"], net.config.eps)
    if task == "sequence":
        return net, params, x @ stored["score"]["kernel"]
    logits = x @ stored["embed"]["tokens"]["embedding"].T + stored["unembed"]["bias"]
    return net, params, logits[:, : net.config.vocab]


def error(task: str) -> float:
    own, params, expected = example(task)
    # A new model, because a mistake may be in another `FAMILY`.
    net = model(own.config)
    say = net.unembed if task == "causal" else net.sequence_logits
    return relative_error(lambda params: say(params, net.apply(params, BATCH).hidden), params, expected)


@pytest.mark.parametrize("task", ["causal", "sequence"])
def test_outputs_are_those_of_a_plain_reference(task: str) -> None:
    assert error(task) < BOUND and np.abs(example(task)[2][REAL]).max() > 1


def head(change: Callable[[Any, Any, Any], Any]) -> Plant:
    return lambda patch: patch.setattr(ettin_decoder, "_normed_dense", change)


def no_bias(patch: pytest.MonkeyPatch) -> None:
    original = ettin_decoder.unembed

    def unembed(cfg: Any, params: Any, hidden: Any) -> Any:
        part = params["unembed"]
        return original(cfg, {**params, "unembed": {**part, "bias": 0 * part["bias"]}}, hidden)

    patch_family(patch, ettin_decoder, unembed=unembed)


MISTAKES = mistakes(ettin_decoder) | {
    "later tokens are seen": masks(lambda fields: {"causal": False}),
    "no window": masks(lambda fields: {"window": None}),
    "no dense layer in the head": head(lambda cfg, part, x: layer_norm(x, part["norm"]["scale"], None, cfg.eps)),
    "no activation in the head": head(lambda cfg, part, x: layer_norm(x @ part["kernel"], part["norm"]["scale"], None, cfg.eps)),
    "no norm in the head": head(lambda cfg, part, x: jax.nn.gelu(x @ part["kernel"], approximate=False)),
    "the bias of words left out": no_bias,
}


@pytest.mark.planted(len(MISTAKES))
def test_mistakes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    check_mistakes(monkeypatch, MISTAKES, lambda _: error("causal"))
    assert error("causal") < BOUND


@pytest.mark.planted
def test_a_score_has_the_dense_layer_of_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_family(monkeypatch, ettin_decoder, sequence_logits=score_head.sequence_logits)
    assert error("sequence") > 100 * BOUND


def test_the_pattern_of_the_layers() -> None:
    """Layer i is global where i is a multiple of the period; the first is separate, and the others repeat what they can."""
    for size in configs.family("ettin_decoder").SIZES.values():
        assert size.config.pattern == ("local", "local", "global")
    check_pattern("ettin_decoder")


def test_fresh_parameters_have_the_published_deviations() -> None:
    """0.02, 0.02/sqrt(2 L) of outputs and of the head, each truncated at two deviations; the only bias is that of words."""
    check_fresh_deviations(small("ettin_decoder", width=256, ffn=256, vocab=1000), ("unembed/bias",))


@pytest.mark.parametrize("task", ["causal", "sequence"])
def test_flops_are_those_of_the_products(task: str) -> None:
    net = with_head("ettin_decoder", task, vocab=128, compute=Compute(attention="xla"))

    def outputs(params: Any, batch: Any) -> Any:
        hidden = net.apply(params, batch).hidden
        return net.unembed(params, hidden) if task == "causal" else net.sequence_logits(params, hidden[:, -1:])

    assert net.flops(row(8, 2)) == dot_flops(outputs, shapes(net), row(8, 2))
