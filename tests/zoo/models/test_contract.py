"""The contract of every family, checked for each one that is found in the folder of the models."""

import dataclasses
import functools
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small import (
    ENCODERS,
    HEADS,
    ONE_WAY,
    SAYS,
    random_params,
    reached_rows,
    row,
    said,
    seeds,
    sees,
    shapes,
    small,
    with_dropout,
    with_head,
    with_source,
)
from train.config import optim_options, run_config
from train.config.objectives import OPTIONS
from train.engine import optimizers, schedules
from train.objectives import objectives
from train.step.assembly import ENGINES
from zoo import configs, models, sharding
from zoo.attention import attention
from zoo.attention.masks import Mask
from zoo.batch import Batch, Output
from zoo.errors import BadInput
from zoo.models import Model
from zoo.nn import kv_cache, layer_stack, layers
from zoo.nn.family import Family
from zoo.precision import DTYPES

FAMILIES = configs.families()
FIRST = {family: task for family, task in reversed(HEADS)}
"""The first head of each family."""


def families(*fast: str, among: list[str] = FAMILIES) -> Any:
    """Run a test for every family: in the fast tier for some of them, and in the full tier for the others."""
    marks = {name: [] if name in fast else [pytest.mark.full] for name in among}
    return pytest.mark.parametrize("family", [pytest.param(name, marks=marks[name]) for name in among])


@families(*FAMILIES)
def test_the_interface_of_a_family(family: str) -> None:
    assert models.families() == FAMILIES
    own, numbers = models.family(family), configs.family(family)
    assert isinstance(own, Family) and set() < set(own.objectives) <= set(objectives())
    assert all(type(size.config) is numbers.Config and size.objective in own.objectives for size in numbers.SIZES.values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        next(iter(numbers.SIZES.values())).config.layers = 1


@pytest.mark.planted
def test_a_cache_is_refused_by_a_family_that_has_none() -> None:
    cache = small("gpt").init_cache(1, 8, jnp.float32)
    with pytest.raises(BadInput, match=r"^bert does not generate text; these do: ettin_decoder, gpt, "):
        small("bert").apply({}, row(4), cache=cache)


LITERALS = {
    "Activation": (configs.Activation, layers.ACTIVATIONS),
    "Implementation": (configs.Implementation, ["auto", *attention.IMPLEMENTATIONS]),
    "Remat": (configs.Remat, layer_stack.POLICIES),
    "Objective": (configs.Objective, objectives()),
    "Objective, options": (configs.Objective, OPTIONS),
    "Precision": (run_config.Precision, ["auto", *DTYPES]),
    "Optimizer": (optim_options.Optimizer, optimizers.DIRECTIONS),
    "Engine": (run_config.Engine, ENGINES),
}


def test_choices_are_what_their_tables_have() -> None:
    for name, (literal, table) in LITERALS.items():
        assert sorted(get_args(literal)) == sorted(table), name
    # Schedules have no table: each name must be built, and differ from the others somewhere.
    built = [schedules.make_schedule(optim_options.Optim(schedule=name), 1000) for name in get_args(optim_options.Schedule)]
    rates = {tuple(float(schedule(step)) for step in (3, 900)) for schedule in built}
    assert len(rates) == len(built)


def stack_size(net: Model, path: str) -> int:
    """Return the number of layers in the stack of a leaf: all, but of ModernBERT and Ettin the first or the others."""
    if "first" not in shapes(net):
        return net.config.layers
    return 1 if path.startswith("first/") else net.config.layers - 1


STRUCTURES = [
    *((family, task, {}) for family, task in HEADS),
    *(
        ("t5", "text_to_text", {"architecture": architecture, "gated": gated, "tied": tied})
        for architecture in ("encoder_decoder", "shared", "decoder")
        for gated, tied in ((True, True), (False, False))
    ),
    ("transformer", "text_to_text", {"attention_bias": False, "output_bias": False}),
    ("transformer", "text_to_text", {"head_dim": 5, "positions": "learned"}),
]
"""Every set of leaves that a model can have."""


@families("gpt", "transformer")
def test_every_leaf_has_its_row_in_the_sharding_table(family: str) -> None:
    """Exactly one row (`spec` raises otherwise) of as many axes as the leaf has dimensions; the layer axis is not sharded."""
    for other, task, changes in STRUCTURES:
        if other != family:
            continue
        net = with_head(family, task, **changes)
        stored = {sharding.path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes(net))}
        for path, leaf in stored.items():
            axes = sharding.leaf_spec(path, (*sharding.RULES, *net.definition.sharding))
            assert len(axes) == leaf.ndim, (path, changes)
            assert set(axes) <= {None, *sharding.AXES}
            if "layers" in path.split("/"):
                assert axes[0] is None and leaf.shape[0] == stack_size(net, path)
        # A body alone has no bias of masked words.
        padded = net.definition.padded.keys() & stored.keys()
        assert "embed/tokens/embedding" in padded
        for path in padded:
            assert stored[path].shape[0] == -(-getattr(net.config, net.definition.padded[path]) // 128) * 128


@pytest.mark.planted
@pytest.mark.parametrize(
    ("path", "rules", "count"),
    [
        ("layers/attention/rotary/kernel", sharding.RULES, 0),
        ("mlp/up/kernel", (*sharding.RULES, (r"up/kernel", (None, None))), 2),
    ],
)
def test_no_row_and_two_rows_are_refused(path: str, rules: Any, count: int) -> None:
    with pytest.raises(ValueError, match=f"{path} matches {count} rows"):
        sharding.leaf_spec(path, rules)


@families("gpt")
def test_initial_parameters(family: str) -> None:
    """Plain dicts of float32 arrays; a function of the key; the layers are sampled independently and are on axis 0."""
    net = small(family)
    init = jax.jit(net.init)
    params, same, other = (init(jax.random.key(seed)) for seed in (0, 0, 1))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert all(type(node) is jax.tree_util.DictKey for keys, _ in leaves for node in keys)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    for (keys, leaf), changed in zip(leaves, jax.tree.leaves(other), strict=True):
        path = sharding.path_of(keys)
        assert isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32
        if family == "nanochat" and path.endswith(("out/kernel", "down/kernel", "unembed/embedding")):
            # Zeros by design; `test_nanochat.py` compares the initial values with the source.
            continue
        sampled, values = path.endswith(("kernel", "embedding", "sinks")), np.asarray(leaf)
        assert bool((values != np.asarray(changed)).any()) == sampled
        if "layers" in path.split("/"):
            assert leaf.shape[0] == stack_size(net, path)
            assert leaf.shape[0] == 1 or bool((values[0] != values[1]).any()) == sampled


LIMITED = [family for family in FAMILIES if hasattr(small(family).config, "context")]


@families("ettin_decoder", "llama", "modernbert", among=LIMITED)
def test_rows_longer_than_the_context_are_refused(family: str) -> None:
    net = small(family)
    with pytest.raises(ValueError, match="rows of 33 tokens in a model of 32 positions"):
        jax.eval_shape(net.apply, shapes(net), row(33))


WIDTHS = {"pretraining": 2, "next": 2, "sequence": 3, "choice": 1, "tokens": 3, "span": 2}
"""Outputs of a classifier by task."""


@pytest.mark.parametrize(
    ("family", "task"), [pytest.param(*head, marks=[] if head in FIRST.items() else [pytest.mark.full]) for head in HEADS]
)
def test_the_arithmetic_follows_the_dtype_of_the_parameters(family: str, task: str) -> None:
    """Hidden states have it, and logits are float32; dropout makes them no wider."""
    net = with_head(family, task, **with_dropout(small(family)))
    batch = with_source(net, row(8, 2))
    width = WIDTHS.get(task) if family in ENCODERS else 1
    expected = {"words": (2, 8, 384), "sequences": (2, 1, width), "tokens": (2, 8, WIDTHS.get(task))}
    for dtype, given in ((jnp.float32, None), (jnp.bfloat16, seeds(2))):
        params = jax.tree.map(lambda leaf, dtype=dtype: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes(net))
        hidden = jax.eval_shape(lambda p, given=given: net.apply(p, batch, seeds=given).hidden, params)
        assert (hidden.shape, hidden.dtype) == ((2, 8, 32), dtype)
        logits = jax.eval_shape(lambda p, h, given=given: said(net, p, Output(hidden=h), batch, given), params, hidden)
        logits.pop("hidden", None)
        assert {name: (each.shape, each.dtype) for name, each in logits.items()} == {
            name: (expected[name], jnp.float32) for name in SAYS[task] if name != "hidden"
        }


@families("gpt")
def test_padding_rows_get_no_probability_and_no_gradient(family: str) -> None:
    net = small(family)
    params, batch = random_params(net), with_source(net, row(8, 2))

    def score(params: Any) -> tuple[jax.Array, jax.Array]:
        logs = jax.nn.log_softmax(net.unembed(params, net.apply(params, batch).hidden))
        return logs[..., 7].mean(), jnp.exp(logs)

    gradient, probabilities = jax.device_get(jax.jit(jax.grad(score, has_aux=True))(params))
    assert (probabilities[..., 300:] == 0).all() and (probabilities[..., :300] > 0).all()
    stored = {sharding.path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(gradient)}
    for path in net.definition.padded.keys() & stored.keys():
        assert (stored[path][300:] == 0).all()
        # Of an input table that is not the output table too, the rows of other tokens have none.
        if path != "embed/tokens/embedding" or "unembed/embedding" not in stored:
            assert (stored[path][:300] != 0).any(-1).all()


# Three documents of five tokens, and one of padding.
SEGMENTS = np.array([[1] * 5 + [2] * 5 + [3] * 5 + [0]], np.int32)
POSITIONS = np.array([[*range(5), *range(5), *range(5), 0]], np.int32)
SAME = (SEGMENTS[0][:, None] == SEGMENTS[0]) & (SEGMENTS[0] != 0)
PAST = np.tri(16, dtype=bool)


@functools.cache
def packed(family: str) -> tuple[Model, Any, Batch, np.ndarray]:
    """Return (model, parameters, row of documents, the rows of the table that each output depends on)."""
    net = small(family)
    params = random_params(net)
    batch = with_source(net, row(16, segments=jnp.asarray(SEGMENTS), positions=jnp.asarray(POSITIONS)))
    return net, params, batch, reached_rows(net, params, batch)


@pytest.mark.planted
@families("gpt", among=ONE_WAY)
def test_no_position_sees_the_future(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The derivative by every later token is exactly 0, by every other one it is not. A leaky mask is noticed."""
    net, params, batch, reached = packed(family)
    assert not reached[:, np.asarray(batch.tokens[0])][~PAST].any()
    monkeypatch.setattr(kv_cache, "Mask", lambda **given: Mask(**{**given, "causal": False}))
    assert sees(net, params, batch)[~PAST & SAME].all()


@pytest.mark.planted
@families("gpt", "t5")
def test_a_packed_row_is_its_documents_each_alone(family: str) -> None:
    net, params, batch, reached = packed(family)
    apply = jax.jit(net.apply)
    hidden = np.asarray(apply(params, batch).hidden)
    apart = Batch(tokens=batch.tokens[0, :15].reshape(3, 5))
    if batch.source is not None:
        apart = dataclasses.replace(apart, source=Batch(tokens=batch.source.tokens[0, :15].reshape(3, 5)))
    alone = apply(params, apart).hidden
    np.testing.assert_allclose(hidden[0, :15].reshape(3, 5, -1), alone, atol=1e-5, rtol=0)
    ahead = PAST if family in ONE_WAY else True
    # A padding token sees itself through the residual stream alone.
    np.testing.assert_array_equal(reached[:, np.asarray(batch.tokens[0])], (SAME & ahead) | np.eye(16, dtype=bool))
    if batch.source is not None:
        np.testing.assert_array_equal(reached[:, np.asarray(batch.source.tokens[0])], SAME)
    # In one segment the documents do run into each other: reset positions isolate nothing.
    leaky = dataclasses.replace(batch, segments=jnp.minimum(batch.segments, 1))
    assert np.abs(np.asarray(apply(params, leaky).hidden) - hidden)[:, 5:].max() > 1e-2
