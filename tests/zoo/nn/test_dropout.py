"""Dropout of every family: which entries, how many, at which places, and whose seeds they depend on."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.rounding import assert_rounded_alike
from tests.support.small import (
    BODIES,
    HEADS,
    random_params,
    row,
    seeds,
    shapes,
    small,
    with_dropout,
    with_head,
    with_source,
)
from zoo import configs, models, sharding
from zoo.batch import Batch, Output
from zoo.models import Model

every_body = pytest.mark.parametrize(
    "family", [family if family == "gpt" else pytest.param(family, marks=pytest.mark.full) for family in BODIES]
)


@every_body
def test_dropout_of_an_example_depends_on_its_own_seeds(family: str) -> None:
    """A micro-batch of two of eight examples gives what the whole batch gives there; another step gives something else."""
    net = small(family, **with_dropout(small(family)))
    params, apply, batch = random_params(net), compiled(net), with_source(net, row(8, 8))
    everything = apply(params, batch, seeds=seeds(8)).hidden
    part = jax.tree.map(lambda leaf: leaf[2:4], batch)
    alone, others = (apply(params, part, seeds=given).hidden for given in (seeds(8)[2:4], seeds(2)))
    assert_rounded_alike(alone, everything[2:4], net.apply, params, part)
    assert np.abs(others - everything[2:4]).max() > 0.1
    assert np.abs(apply(params, batch, seeds=seeds(8, step=1)).hidden - everything).max() > 0.1
    off = small(family)
    without, at_rate_zero = (compiled(off)(params, part, seeds=given).hidden for given in (None, seeds(2)))
    np.testing.assert_array_equal(without, at_rate_zero)


def dropped(family: str, field: str, leaf: str, *, layer: int = 0, rate: float = 0.25, rows: int = 128) -> np.ndarray:
    """Which entries of [B, T, D] a dropout drops, seen from outside.

    All parameters are 0 but the scales of the norms, 1, and one leaf, which hence is the whole residual stream. Of a position,
    all dropped entries leave a norm with one and the same value, and the others differ.
    """
    net = small(family, **{field: rate})
    params = jax.tree_util.tree_map_with_path(
        lambda keys, each: jnp.full(each.shape, float(sharding.path_of(keys).endswith("scale"))), shapes(net)
    )
    *above, last = leaf.split("/")
    inner = functools.reduce(lambda tree, name: tree[name], above, params)
    values = np.random.default_rng(0).standard_normal(inner[last].shape)
    inner[last] = jnp.float32(values if above[0] != "layers" else values * (np.arange(len(values)) == layer)[:, None])
    hidden = np.asarray(compiled(net)(params, Batch(tokens=np.zeros((rows, 8), np.int32)), seeds=seeds(rows)).hidden)
    lows = np.sort(hidden, -1)
    common = lows[..., 1:][np.arange(rows)[:, None], np.arange(8), (np.diff(lows) == 0).argmax(-1)]
    return hidden == common[..., None]


@functools.cache
def compiled(net: Model) -> Callable[..., Output]:
    return jax.jit(net.apply)


@pytest.mark.full
@pytest.mark.parametrize(("family", "embedding"), [("gpt", "embedding_dropout"), ("bert", "dropout")])
def test_dropout_has_its_rate_and_differs_between_places(family: str, embedding: str) -> None:
    """Within 4 standard deviations; no two places of the model, and no two rows, drop the same."""
    of_layers = [("layers/attention/out/bias", 0), ("layers/mlp/down/bias", 0), ("layers/mlp/down/bias", 1)]
    masks = [dropped(family, "dropout", leaf, layer=layer) for leaf, layer in of_layers]
    masks.append(dropped(family, embedding, "embed/positions/embedding"))
    size = masks[0].size
    for mask in masks:
        assert abs(mask.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / size)
        assert abs(np.corrcoef(mask[0].ravel(), mask[1].ravel())[0, 1]) < 4 / np.sqrt(size / len(mask))
    between = np.corrcoef([mask.ravel() for mask in masks])
    assert np.abs(between - np.eye(len(masks))).max() < 4 / np.sqrt(size)


TIMES = {
    "bert": {"pretraining": 0, "next": 0, "sequence": 1, "choice": 1, "tokens": 1, "span": 0},
    "distilbert": {"sequence": 1, "choice": 1, "tokens": 1, "span": 1},
    "roberta": {"pretraining": 0, "sequence": 2, "choice": 1, "tokens": 1, "span": 0},
    "modernbert": {"sequence": 1, "choice": 1, "tokens": 1, "span": 1},
    "ettin_decoder": {"sequence": 1},
    "xlnet": {"pretraining": 0, "sequence": 1, "choice": 1, "tokens": 0, "span": 0},
}
"""Dropouts of a head before its outputs, as `transformers` has them."""
BEFORE = {(family, task): times for family, tasks in TIMES.items() for task, times in tasks.items()}


@pytest.mark.parametrize(
    ("family", "task"), [pytest.param(*head, marks=[] if head[0] == "roberta" else pytest.mark.full) for head in BEFORE]
)
def test_a_head_drops_where_the_published_one_does(family: str, task: str) -> None:
    """The outputs are sums of the D entries of hidden states that are all alike, so that their mean and variance tell what was
    dropped: k times at rate r, an entry has the mean 1 and the variance (1 - r) ** -k - 1. 4 standard deviations of each."""
    rate, size, rows = 0.25, 1e-3, 512
    net = with_head(family, task, head_dropout=rate)
    params = jax.tree.map(lambda each: jnp.zeros(each.shape), shapes(net))
    normed = "norm" in params.get("dense", {})
    # A norm makes 1 and -1 of entries that alternate, whose gelu is 9 and 0.
    signs = np.resize([1.0, -1.0], 32) if normed else np.ones(32)
    for part, inner in params.items():
        if part in ("classifier", "next", "score"):
            inner["kernel"] += signs[:, None]
        elif part in ("pooler", "dense"):
            inner["kernel"] += jnp.eye(32)
    if normed:
        params["dense"]["norm"]["scale"] += 1
    # Of so small a number tanh is the number itself.
    hidden, size = jnp.broadcast_to(jnp.float32((9 if normed else size) * signs), (rows, 8, 32)), 1.0 if normed else size
    say = net.token_logits if task in ("tokens", "span") else net.sequence_logits
    entries = np.asarray(say(params, hidden, seeds(rows))[..., 0], np.float64) / size / 32
    variance = ((1 - rate) ** -BEFORE[family, task] - 1) / 32
    assert abs(entries.mean() - 1) <= 4 * np.sqrt(variance / entries.size) + 1e-5
    assert abs(entries.var() - variance) <= 4 * variance * np.sqrt(3 / entries.size) + 1e-9
    np.testing.assert_allclose(say(params, hidden) / size / 32, 1, rtol=1e-5)


def test_the_tested_heads_include_every_classifier() -> None:
    """All heads but those of words and the scores of most decoders, which have no dropout of their own."""
    without = ("body", "causal", "masked", "permutation", "text_to_text")
    dropping = [family for family in models.families() if "head_dropout" in configs.family(family).Config.__dataclass_fields__]
    assert set(BEFORE) == {(family, task) for family, task in HEADS if task not in without and family in dropping}
