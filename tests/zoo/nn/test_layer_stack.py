"""The layer stack computes the same however it is computed, and what it costs is counted right."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.gradients import assert_equal_gradients
from tests.support.layer_stack import dot_flops, loop
from tests.support.rounding import assert_rounded_alike
from tests.support.small import (
    BODIES,
    ENCODERS,
    HEADS,
    PLACED,
    SAYS,
    home,
    loss,
    outputs,
    random_params,
    reversed_layers,
    row,
    seeds,
    shapes,
    small,
    with_dropout,
    with_head,
    with_source,
)
from zoo import models
from zoo.attention.masks import Mask
from zoo.configs import Compute
from zoo.nn import kv_cache, layer_stack

FAMILIES = models.families()
WINDOWED = [
    family for family in FAMILIES if {"window", "pattern"} <= {field.name for field in dataclasses.fields(small(family).config)}
]


@pytest.mark.planted
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.full if name == "gpt" else pytest.mark.slow) for name in BODIES]
)
def test_scan_unroll_and_remat_give_the_same_loss_and_gradients(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unrolled, with every remat policy, and as a loop over the layers; dropout on, since a layer's draws go by its number."""
    dropout = with_dropout(small(family))
    net = small(family, **dropout)
    batch = with_source(net, row(8, 2))
    params = random_params(net)

    def compute(**how: Any) -> Callable[[Any], tuple[jax.Array, Any]]:
        variant = small(family, **dropout, compute=Compute(**how))
        return jax.jit(jax.value_and_grad(lambda p: loss(variant, p, batch, seeds(2))))

    plain = compute()
    value, gradient = plain(params)
    found = [
        compute(**how)(params) for how in ({"unroll": 2}, *({"remat": name} for name in layer_stack.POLICIES if name != "none"))
    ]
    assert abs(float(plain(reversed_layers(params))[0] - value)) > 1e-3
    monkeypatch.setattr(home(net, "run_stack"), "run_stack", loop)
    for other, theirs in [*found, compute()(params)]:
        assert float(other) == pytest.approx(float(value), rel=1e-6)
        assert_equal_gradients(theirs, gradient)


@pytest.mark.parametrize("family", [name if name == "gpt" else pytest.param(name, marks=pytest.mark.full) for name in BODIES])
def test_remat_recomputes(family: str) -> None:
    """Matrix products of value and gradient: 3 times the forward's, and with remat up to once more."""
    products = {}
    for name in layer_stack.POLICIES:
        net = small(family, compute=Compute(remat=name))
        products[name] = dot_flops(jax.grad(lambda p, net=net: loss(net, p, with_source(net, row(16)))), shapes(net))
    net = small(family)
    forward = dot_flops(lambda p: loss(net, p, with_source(net, row(16))), shapes(net))
    # The gradient of T5's table is a product of distances and buckets in each of two stacks; forward it is indexing.
    table = 2 * 2 * (2 * 16) * net.config.buckets * net.config.heads if family == "t5" else 0
    assert products["none"] == pytest.approx(3 * forward + table)
    assert products["none"] < products["attention"] < products["full"] <= 4 * forward
    assert products["none"] <= products["save_dots"] == products["offload"] < min(products["save_qkv"], products["save_mlp"])
    assert max(products["save_qkv"], products["save_mlp"]) < products["save_out"] < products["attention"]


@pytest.mark.full
@pytest.mark.planted
@pytest.mark.parametrize("family", WINDOWED)
def test_alternating_windows_are_the_masks_written_out(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop over the layers, each with its own explicit bool[T, T], sees and gives what the pattern does."""
    net, batch = small(family, layers=4, pattern=("full", "window"), window=3), row(12)
    params = random_params(net)
    expected = jax.jit(lambda p: net.apply(p, batch).hidden)(params)
    distance = np.arange(12)[:, None] - np.arange(12)
    allowed = {None: (distance >= 0), 3: (distance >= 0) & (distance < 3)}
    monkeypatch.setattr(home(net, "run_stack"), "run_stack", loop)
    monkeypatch.setattr(kv_cache, "Mask", lambda *, window, **_: Mask(allowed=jnp.asarray(allowed[window])[None, None]))
    by_hand = jax.jit(lambda p: net.apply(p, batch).hidden)(params)
    allowed = {None: allowed[3], 3: allowed[None]}
    wrong = jax.jit(lambda p: net.apply(p, batch).hidden)(params)
    monkeypatch.undo()
    assert_rounded_alike(by_hand, expected, lambda p: net.apply(p, batch).hidden, params)
    with pytest.raises(AssertionError):
        assert_rounded_alike(wrong, expected, lambda p: net.apply(p, batch).hidden, params)


CHANGED = [(family, small(family).task, {"heads": 2, "layers": 3, "ffn": 100}) for family in FAMILIES]


@pytest.mark.parametrize(
    ("family", "task", "changes"),
    [*(pytest.param(*head, {}, marks=pytest.mark.full) for head in HEADS), *(pytest.param(*case) for case in CHANGED)],
)
def test_flops_are_those_of_the_matrix_products(family: str, task: str, changes: dict[str, int]) -> None:
    """With `xla`, which does the whole T x T; a vocabulary that needs no padding rows, since those are not counted.

    On CPU the rows of each expert are padded to tiles, which are not counted either.
    """
    net = with_head(family, task, vocab=384, compute=Compute(attention="xla"), **changes)
    few = {"predict_at": jnp.zeros((3, 4), jnp.int32), "summary_at": jnp.zeros((3, 2), jnp.int32)}
    for given in ({}, few) if family in ENCODERS else ({},):
        batch = with_source(net, row(20, 3, labels=jnp.zeros(3, jnp.int32), **given))
        compiled = dot_flops(lambda p, batch=batch: outputs(net, p, batch), shapes(net))
        assert net.flops(batch) == (pytest.approx(compiled, rel=0.1) if hasattr(net.config, "experts") else compiled)


def test_without_labels_no_classifier_is_counted() -> None:
    """The words of both, the score of a decoder, and of an encoder for labels the body alone."""
    batch = row(20, 3)
    for family, task in (head for head in HEADS if head[0] in (*WINDOWED, *PLACED)):
        net = with_head(family, task, vocab=384)
        words = 60 * 2 * 32 * (384 + 32 * (family not in WINDOWED)) if "words" in SAYS[task] else 0
        words += 3 * 2 * 32 if task == "sequence" and family in WINDOWED else 0
        assert net.flops(batch) - words == 60 * 2 * (8 * 32 * 32 + 4 * 32 * 64 + 4 * 20 * 32), (family, task)
