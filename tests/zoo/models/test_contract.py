"""What every family must keep, checked for each one that is found."""

import dataclasses
import functools
import inspect
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small import (
    HEADS,
    ONE_WAY,
    SAYS,
    home,
    jit,
    random_params,
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
from train import config, optim
from train import mesh as meshes
from train.objectives import objectives
from train.step import DTYPES, ENGINES
from zoo import attention, configs, layers, models, pretrained, sharding, stack
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.masks import Mask
from zoo.models import model

FAMILIES = models.families()
SIZES = [(family, name) for family in FAMILIES for name in configs.family(family).SIZES]
every_family = pytest.mark.parametrize("family", FAMILIES)
every_head = pytest.mark.parametrize(("family", "task"), HEADS)


# --- the interface --------------------------------------------------------------------------------------------------------------

SIGNATURES = {
    "init": "(cfg, key)",
    "apply": "(cfg, params, batch, *, seeds=None, carry=None)",
    "unembed": "(cfg, params, hidden)",
    "flops": "(cfg, batch)",
}


def test_numbers_and_arithmetic_have_the_same_names() -> None:
    assert FAMILIES == configs.families() != []


@every_family
def test_the_interface_of_a_family(family: str) -> None:
    module, numbers = models.family(family), configs.family(family)
    for name, expected in SIGNATURES.items():
        parameters = inspect.signature(getattr(module, name)).parameters.values()
        bare = inspect.Signature([each.replace(annotation=inspect.Parameter.empty) for each in parameters])
        assert str(bare) == expected
        assert inspect.getdoc(getattr(module, name))
    assert module.OBJECTIVES
    assert set(module.OBJECTIVES) <= set(objectives())
    assert module.Config is numbers.Config
    assert all(type(size.config) is numbers.Config and size.objective in module.OBJECTIVES for size in numbers.SIZES.values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        next(iter(numbers.SIZES.values())).config.layers = 1


LITERALS = {
    "Activation": (configs.Activation, layers.ACTIVATIONS),
    "Implementation": (configs.Implementation, ["auto", *attention.IMPLEMENTATIONS]),
    "Remat": (configs.Remat, stack.POLICIES),
    "Objective": (configs.Objective, objectives()),
    "Run.objective": (get_type_hints(config.Run)["objective"], objectives()),
    "Precision": (config.Precision, ["auto", *DTYPES]),
    "Optimizer": (config.Optimizer, optim.PRECONDITIONERS),
    "Engine": (config.Engine, ENGINES),
}


@every_head
def test_published_weights_of_a_model(family: str, task: str, tmp_path: Path) -> None:
    """Every leaf has its published name, and parameters and numbers come back the same. What nobody published has no export."""
    net = with_head(family, task, vocab=131)
    params = random_params(net)
    if not net.names.architecture:
        with pytest.raises(BadInput, match=f"model.task {task}: no {family} with this head was published"):
            pretrained.save(tmp_path, net.config, params)
        return
    pretrained.save(tmp_path, net.config, params)
    cfg, same = pretrained.load(tmp_path, meshes.make(config.Mesh(), jax.devices()[:1]))
    assert configs.shape(cfg) == configs.shape(net.config)
    assert models.model(cfg).task == task
    assert not pretrained.read_config(tmp_path)[1], "an export writes keys that the import does not know"
    # Padding rows are not published; they come back as the zeros that they are.
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), params, same))
    types = [configs.family(other).MODEL_TYPE for other in FAMILIES]
    assert len(set(types)) == len(types)


@pytest.mark.parametrize(("literal", "table"), LITERALS.values(), ids=LITERALS.keys())
def test_a_choice_is_what_its_table_has(literal: Any, table: Any) -> None:
    assert sorted(get_args(literal)) == sorted(table)


def test_every_schedule_is_one_of_its_own() -> None:
    """Schedules have no table to compare with: each name must be built, and differ from the others somewhere."""
    built = [optim.schedule(config.Optim(schedule=name), 1000) for name in get_args(config.Schedule)]
    rates = {tuple(float(schedule(step)) for step in (3, 700)) for schedule in built}
    assert len(rates) == len(built)


def test_auto_chooses_what_exists_and_runs_there() -> None:
    for platform, lines in attention.AUTO.items():
        assert all(platform in attention.IMPLEMENTATIONS[line.name].platforms for line in lines)
        # The last line takes everything.
        assert lines[-1].queries == 1 and attention.IMPLEMENTATIONS[lines[-1].name].features == attention.ALL_FEATURES


# --- parameters -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "name"), SIZES)
def test_every_leaf_of_every_size_has_its_row_in_the_sharding_table(family: str, name: str) -> None:
    """Exactly one row (`spec` raises otherwise) of as many axes as the leaf has dimensions; the layer axis is not sharded."""
    net = model(configs.family(family).SIZES[name].config)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes(net)):
        path = sharding.path_of(keys)
        axes = sharding.spec(path, (*sharding.RULES, *net.module.SHARDING))
        assert len(axes) == leaf.ndim
        assert set(axes) <= {None, *sharding.AXES}
        if "layers" in path.split("/"):
            assert (axes[0], leaf.shape[0]) == (None, net.config.layers)


@every_head
def test_every_leaf_of_every_head_has_its_row(family: str, task: str) -> None:
    net = with_head(family, task)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes(net)):
        assert len(sharding.spec(sharding.path_of(keys), (*sharding.RULES, *net.module.SHARDING))) == leaf.ndim


@pytest.mark.parametrize(
    ("path", "rules", "count"),
    [
        ("layers/attention/rotary/kernel", sharding.RULES, 0),
        ("mlp/up/kernel", (*sharding.RULES, (r"up/kernel", (None, None))), 2),
    ],
)
@pytest.mark.planted
def test_no_row_and_two_rows_are_refused(path: str, rules: Any, count: int) -> None:
    with pytest.raises(ValueError, match=f"{path} matches {count} rows"):
        sharding.spec(path, rules)


@every_family
def test_initial_parameters(family: str) -> None:
    """Plain dicts of float32 arrays; a function of the key; the layers are drawn independently and lie on axis 0."""
    net = small(family)
    init = jit(net.init)
    params, same, other = (init(jax.random.key(seed)) for seed in (0, 0, 1))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert all(type(node) is jax.tree_util.DictKey for keys, _ in leaves for node in keys)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    for (keys, leaf), changed in zip(leaves, jax.tree.leaves(other), strict=True):
        path = sharding.path_of(keys)
        assert isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32
        drawn = path.endswith(("kernel", "embedding"))
        assert bool((leaf != changed).any()) == drawn
        if "layers" in path.split("/"):
            assert leaf.shape[0] == net.config.layers
            assert bool((leaf[0] != leaf[1]).any()) == drawn


# --- the forward pass -----------------------------------------------------------------------------------------------------------


WIDTHS = {"pretraining": 2, "next": 2, "sequence": 3, "choice": 1, "tokens": 3, "span": 2}
"""Outputs of a classifier by task."""


@every_head
def test_the_arithmetic_follows_the_parameters_dtype(family: str, task: str) -> None:
    """Hidden states of it, and float32 logits; dropout makes them no wider."""
    net = with_head(family, task, **with_dropout(small(family)))
    batch = with_source(net, row(8, 2))
    expected = {"words": (2, 8, 384), "sequences": (2, 1, WIDTHS.get(task)), "tokens": (2, 8, WIDTHS.get(task))}
    for dtype, given in ((jnp.float32, None), (jnp.bfloat16, seeds(2))):
        params = jax.tree.map(lambda leaf, dtype=dtype: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes(net))
        hidden = jax.eval_shape(lambda p, given=given: net.apply(p, batch, seeds=given).hidden, params)
        assert (hidden.shape, hidden.dtype) == ((2, 8, 32), dtype)
        logits = jax.eval_shape(lambda p, h, given=given: said(net, p, h, batch, given), params, hidden)
        logits.pop("hidden", None)
        assert {name: (each.shape, each.dtype) for name, each in logits.items()} == {
            name: (expected[name], jnp.float32) for name in SAYS[task] if name != "hidden"
        }


@every_family
def test_padding_rows_get_no_probability_and_no_gradient(family: str) -> None:
    net = small(family)
    params, batch = random_params(net), with_source(net, row(8, 2))

    def score(params: Any) -> tuple[jax.Array, jax.Array]:
        logs = jax.nn.log_softmax(net.unembed(params, net.apply(params, batch).hidden))
        return logs[..., 7].mean(), jnp.exp(logs)

    gradient, probabilities = jit(jax.grad(score, has_aux=True))(params)
    assert (probabilities[..., 300:] == 0).all() and (probabilities[..., :300] > 0).all()
    stored = {sharding.path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(gradient)}
    for path in net.module.PADDED.keys() & stored:
        leaf = functools.reduce(lambda tree, name: tree[name], path.split("/"), gradient)
        assert (leaf[300:] == 0).all()
        assert (leaf[:300] != 0).any(-1).all()


@pytest.mark.parametrize("family", ONE_WAY)
@pytest.mark.planted
def test_no_position_sees_the_future(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly: the derivative by every later token is 0, by every other one it is not. A leaky mask is caught."""
    net = small(family)
    params, past, batch = random_params(net), np.tri(8, dtype=bool), with_source(net, row(8))
    np.testing.assert_array_equal(sees(net, params, batch), past)
    monkeypatch.setattr(home(net, "Mask"), "Mask", lambda **given: Mask(**{**given, "causal": False}))
    assert sees(net, params, batch)[~past].all()


# Three documents of five tokens, and one of padding.
SEGMENTS = jnp.array([[1] * 5 + [2] * 5 + [3] * 5 + [0]], jnp.int32)
POSITIONS = jnp.array([[*range(5), *range(5), *range(5), 0]], jnp.int32)


@every_family
@pytest.mark.planted
def test_a_packed_row_is_its_documents_each_alone(family: str) -> None:
    net = small(family)
    packed = with_source(net, row(16, segments=SEGMENTS, positions=POSITIONS))
    params, apply = random_params(net), jit(net.apply)
    hidden = apply(params, packed).hidden
    apart = Batch(tokens=packed.tokens[0, :15].reshape(3, 5))
    if packed.source is not None:
        apart = dataclasses.replace(apart, source=Batch(tokens=packed.source.tokens[0, :15].reshape(3, 5)))
    alone = apply(params, apart).hidden
    np.testing.assert_allclose(hidden[0, :15].reshape(3, 5, -1), alone, atol=1e-5, rtol=0)
    same = (SEGMENTS[0][:, None] == SEGMENTS[0]) & (SEGMENTS[0] != 0)
    ahead = np.tri(16, dtype=bool) if family in ONE_WAY else True
    # A padding token sees itself through the residual stream alone.
    np.testing.assert_array_equal(sees(net, params, packed), (same & ahead) | np.eye(16, dtype=bool))
    if packed.source is not None:
        np.testing.assert_array_equal(sees(net, params, packed, packed.source.tokens[0]), same)
    # In one segment the documents do run into each other: reset positions isolate nothing.
    leaky = dataclasses.replace(packed, segments=jnp.minimum(SEGMENTS, 1))
    assert np.abs(apply(params, leaky).hidden - hidden)[:, 5:].max() > 1e-2
