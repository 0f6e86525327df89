"""What every family must keep, checked for each one that is found."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend import core

from tests.gradients import assert_equal_gradients
from tests.small import jit, loss, random_params, row, seeds, sees, shapes, small
from train import config, optim
from train import mesh as meshes
from train.objectives import objectives
from train.step import DTYPES, ENGINES
from zoo import attention, configs, layers, models, pretrained, sharding, stack
from zoo.batch import Batch
from zoo.configs import Compute
from zoo.masks import Mask
from zoo.models import Model, model

FAMILIES = models.families()
SIZES = [(family, name) for family in FAMILIES for name in configs.family(family).SIZES]
every_family = pytest.mark.parametrize("family", FAMILIES)


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


@every_family
def test_published_weights_of_a_family(family: str, tmp_path: Path) -> None:
    """Every leaf has its published name, and parameters and numbers come back the same."""
    net = small(family, vocab=131)
    params = random_params(net)
    pretrained.save(tmp_path, net.config, params)
    cfg, same = pretrained.load(tmp_path, meshes.make(config.Mesh(), jax.devices()[:1]))
    assert configs.shape(cfg) == configs.shape(net.config)
    assert not pretrained.read_config(tmp_path)[1], "an export writes keys that the import does not know"
    # Padding rows are not published; they come back as the zeros that they are.
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), params, same))
    types = [configs.family(other).MODEL_TYPE for other in FAMILIES]
    assert len(set(types)) == len(types)


@pytest.mark.parametrize(("literal", "table"), LITERALS.values(), ids=LITERALS.keys())
def test_a_choice_is_what_its_table_has(literal: Any, table: Any) -> None:
    assert sorted(get_args(literal)) == sorted(table)


def test_every_schedule_is_one_of_its_own() -> None:
    """Schedules have no table to compare with: each name must be built, and differ from the others."""
    rates = {float(optim.schedule(config.Optim(schedule=name), 1000)(700)) for name in get_args(config.Schedule)}
    assert len(rates) == len(get_args(config.Schedule))


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
        if path.startswith("layers/"):
            assert (axes[0], leaf.shape[0]) == (None, net.config.layers)


@pytest.mark.parametrize(
    ("path", "rules", "count"),
    [
        ("layers/attention/rotary/kernel", sharding.RULES, 0),
        ("mlp/up/kernel", (*sharding.RULES, (r"up/kernel", (None, None))), 2),
    ],
)
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
        if path.startswith("layers/"):
            assert leaf.shape[0] == net.config.layers
            assert bool((leaf[0] != leaf[1]).any()) == drawn


# --- the forward pass -----------------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_arithmetic_follows_the_parameters_dtype(family: str, dtype: Any) -> None:
    net = small(family)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes(net))
    hidden = jax.eval_shape(lambda p: net.apply(p, row(8, 2)).hidden, params)
    logits = jax.eval_shape(net.unembed, params, hidden)
    assert (hidden.shape, hidden.dtype) == ((2, 8, 32), dtype)
    assert (logits.shape, logits.dtype) == ((2, 8, 384), jnp.float32)


@every_family
def test_padding_rows_get_no_probability_and_no_gradient(family: str) -> None:
    net, batch = small(family), row(8, 2)
    params = random_params(net)
    probabilities = jit(lambda p: jax.nn.softmax(net.unembed(p, net.apply(p, batch).hidden)))(params)
    assert (probabilities[..., 300:] == 0).all() and (probabilities[..., :300] > 0).all()
    gradient = jit(jax.grad(lambda p: loss(net, p, batch)))(params)
    for path in net.module.PADDED:
        leaf = functools.reduce(lambda tree, name: tree[name], path.split("/"), gradient)
        assert (leaf[300:] == 0).all()
        assert (leaf[:300] != 0).any(-1).all()


causal_families = pytest.mark.parametrize("family", [f for f in FAMILIES if models.family(f).OBJECTIVES == ("causal",)])


@causal_families
def test_no_position_sees_the_future(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly: the derivative by every later token is 0, by every other one it is not. A leaky mask is caught."""
    net = small(family)
    params, past = random_params(net), np.tri(8, dtype=bool)
    np.testing.assert_array_equal(sees(net, params, row(8)), past)
    monkeypatch.setattr(net.module, "Mask", lambda **given: Mask(**{**given, "causal": False}))
    assert sees(net, params, row(8))[~past].all()


DOCUMENTS = (5, 7, 3)
SEGMENTS = jnp.array([[1] * 5 + [2] * 7 + [3] * 3 + [0]], jnp.int32)
POSITIONS = jnp.array([[*range(5), *range(7), *range(3), 0]], jnp.int32)


@causal_families
def test_a_packed_row_is_its_documents_each_alone(family: str) -> None:
    net, packed = small(family), row(16, segments=SEGMENTS, positions=POSITIONS)
    params = random_params(net)
    hidden, start = jit(net.apply)(params, packed).hidden, 0
    for size in DOCUMENTS:
        alone = jit(net.apply)(params, Batch(tokens=packed.tokens[:, start : start + size])).hidden
        np.testing.assert_allclose(hidden[:, start : start + size], alone, atol=1e-5, rtol=0)
        start += size
    same = (SEGMENTS[0][:, None] == SEGMENTS[0]) & (SEGMENTS[0] != 0) & np.tri(16, dtype=bool)
    # A padding token sees itself through the residual stream alone.
    np.testing.assert_array_equal(sees(net, params, packed), same | np.eye(16, dtype=bool))
    # Without segments the documents do run into each other: reset positions isolate nothing.
    leaky = dataclasses.replace(packed, segments=None)
    assert np.abs(jit(net.apply)(params, leaky).hidden - hidden)[:, 5:].max() > 1e-2


# --- the stack ------------------------------------------------------------------------------------------------------------------


def loop(layer: Callable, params: Any, body: Callable, carry: Any, per_layer: Any = None, **options: Any) -> tuple[Any, Any]:
    """`run_stack` as a Python loop."""
    graph, ys = nnx.graphdef(nnx.eval_shape(lambda: layer(nnx.Rngs(0)))), []
    for index in range(jax.tree.leaves(params)[0].shape[0]):
        mine, x = (jax.tree.map(lambda leaf, index=index: leaf[index], tree) for tree in (params, per_layer))
        kind = options["pattern"][index % len(options["pattern"])]
        carry, y = body(nnx.merge(graph, mine), carry, x, jnp.int32(index), kind)
        ys.append(y)
    return carry, jax.tree.map(lambda *each: jnp.stack(each), *ys)


def with_dropout(net: Model) -> dict[str, float]:
    return {field.name: 0.1 for field in dataclasses.fields(net.config) if field.name.endswith("dropout")}


@every_family
def test_however_the_stack_is_computed_it_computes_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unrolled, with every remat policy, and as a loop over the layers; dropout on, since a layer's draws go by its number."""
    dropout, batch = with_dropout(small(family)), row(8, 2)
    net = small(family, **dropout)
    params = random_params(net)

    def compute(**how: Any) -> tuple[jax.Array, Any]:
        variant = small(family, **dropout, compute=Compute(**how))
        return jit(jax.value_and_grad(lambda p: loss(variant, p, batch, seeds(2))))(params)

    value, gradient = compute()
    found = [compute(unroll=2), *(compute(remat=name) for name in stack.POLICIES if name != "none")]
    upside_down = {**params, "layers": jax.tree.map(lambda leaf: leaf[::-1], params["layers"])}
    assert abs(float(jit(lambda p: loss(net, p, batch, seeds(2)))(upside_down) - value)) > 1e-3
    monkeypatch.setattr(net.module, "run_stack", loop)
    for other, theirs in [*found, compute()]:
        assert float(other) == pytest.approx(float(value), rel=1e-6)
        assert_equal_gradients(theirs, gradient)


@every_family
def test_remat_recomputes(family: str) -> None:
    """Matrix products of value and gradient: 3 times the forward's, and with remat up to once more."""
    products = {}
    for name in stack.POLICIES:
        net = small(family, compute=Compute(remat=name))
        products[name] = dot_flops(jax.grad(lambda p, net=net: loss(net, p, row(16))), shapes(net))
    net = small(family)
    forward = dot_flops(lambda p: loss(net, p, row(16)), shapes(net))
    assert products["none"] == pytest.approx(3 * forward)
    assert 3 * forward < products["attention"] < products["full"] <= 4 * forward


@causal_families
def test_alternating_windows_are_the_masks_written_out(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop over the layers, each with its own explicit bool[T, T], sees and gives what the pattern does."""
    net, batch = small(family, layers=4, pattern=("full", "window"), window=3), row(12)
    params = random_params(net)
    expected = jit(lambda p: net.apply(p, batch).hidden)(params)
    distance = np.arange(12)[:, None] - np.arange(12)
    allowed = [(distance >= 0), (distance >= 0) & (distance < 3)] * 2
    layer = iter(allowed)
    monkeypatch.setattr(net.module, "run_stack", loop)
    monkeypatch.setattr(net.module, "Mask", lambda **_: Mask(allowed=jnp.asarray(next(layer))[None, None]))
    np.testing.assert_allclose(jit(lambda p: net.apply(p, batch).hidden)(params), expected, atol=1e-5, rtol=0)
    assert next(layer, None) is None
    layer = iter(allowed[::-1])
    assert np.abs(jit(lambda p: net.apply(p, batch).hidden)(params) - expected).max() > 1e-2


@causal_families
def test_window_layers_see_no_further(family: str) -> None:
    """Two layers of window 3 reach 4 tokens back."""
    net = small(family, pattern=("window",), window=3)
    distance = np.arange(12)[:, None] - np.arange(12)
    np.testing.assert_array_equal(sees(net, random_params(net), row(12)), (distance >= 0) & (distance <= 4))


# --- floating-point operations --------------------------------------------------------------------------------------------------


def dot_flops(function: Callable, *arguments: Any) -> int:
    """FLOPs of the matrix products a function does, counted in its jaxpr: 2 for each multiply-add, loops times their length."""

    def count(jaxpr: Any) -> int:
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                left = equation.invars[0].aval.shape
                total += 2 * equation.outvars[0].aval.size * int(np.prod([left[axis] for axis in contracted]))
            times = equation.params["length"] if equation.primitive.name == "scan" else 1
            total += times * sum(map(count, core.jaxprs_in_params(equation.params)))
        return total

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


@every_family
@pytest.mark.parametrize("changes", [{}, {"head": 16, "layers": 3}, {"ffn": 100, "width": 48}])
def test_flops_are_those_of_the_matrix_products(family: str, changes: dict[str, int]) -> None:
    """With `xla`, which does the whole T x T; a vocabulary that needs no padding rows, since those are not counted."""
    net, batch = small(family, vocab=384, compute=Compute(attention="xla"), **changes), row(20, 3)
    counted = dot_flops(lambda p: net.unembed(p, net.apply(p, batch).hidden), shapes(net))
    assert net.flops(batch) == pytest.approx(counted, rel=0.01)


# --- dropout --------------------------------------------------------------------------------------------------------------------


@every_family
def test_rate_zero_is_no_dropout(family: str) -> None:
    net, batch = small(family), row(8, 2)
    params = random_params(net)
    off, zero = (jit(net.apply)(params, batch, seeds=given).hidden for given in (None, seeds(2)))
    np.testing.assert_array_equal(off, zero)


@every_family
def test_dropout_of_an_example_depends_on_its_own_seeds(family: str) -> None:
    """A micro-batch of two of eight examples gives what the whole batch gives there; another step gives something else."""
    net, batch = small(family, **with_dropout(small(family))), row(8, 8)
    params, apply = random_params(net), jit(net.apply)
    whole = apply(params, batch, seeds=seeds(8)).hidden
    part = jax.tree.map(lambda leaf: leaf[2:4], batch)
    np.testing.assert_allclose(apply(params, part, seeds=seeds(8)[2:4]).hidden, whole[2:4], atol=1e-5, rtol=0)
    assert np.abs(apply(params, part, seeds=seeds(2)).hidden - whole[2:4]).max() > 0.1
    assert np.abs(apply(params, batch, seeds=seeds(8, step=1)).hidden - whole).max() > 0.1


def dropped(field: str, leaf: str, *, layer: int = 0, rate: float = 0.25, rows: int = 128) -> np.ndarray:
    """Which entries of [B, T, D] a dropout of GPT drops, seen from outside.

    All parameters are 0 but one leaf, which hence is the whole residual stream, and the final norm. Of a position, all dropped
    entries leave the norm with one and the same value, and the others differ.
    """
    net = small("gpt", **{field: rate})
    params = jax.tree.map(lambda each: jnp.zeros(each.shape), shapes(net))
    params["norm"]["scale"] += 1
    *above, last = leaf.split("/")
    inner = functools.reduce(lambda tree, name: tree[name], above, params)
    values = np.random.default_rng(0).standard_normal(inner[last].shape)
    inner[last] = jnp.float32(values if above[0] != "layers" else values * (np.arange(len(values)) == layer)[:, None])
    hidden = np.asarray(jit(net.apply)(params, Batch(tokens=np.zeros((rows, 8), np.int32)), seeds=seeds(rows)).hidden)
    lows = np.sort(hidden, -1)
    common = lows[..., 1:][np.arange(rows)[:, None], np.arange(8), (np.diff(lows) == 0).argmax(-1)]
    return hidden == common[..., None]


SITES = {
    "embedding": ("embedding_dropout", "embed/positions/embedding", 0),
    "attention's output": ("dropout", "layers/attention/out/bias", 0),
    "the mlp's output": ("dropout", "layers/mlp/down/bias", 0),
    "the next layer's": ("dropout", "layers/mlp/down/bias", 1),
}


def test_dropout_drops_at_its_rate_and_nowhere_alike() -> None:
    """Within 4 standard deviations; no two places of the model, and no two rows, drop the same."""
    masks = [dropped(field, leaf, layer=layer) for field, leaf, layer in SITES.values()]
    size = masks[0].size
    for mask in masks:
        assert abs(mask.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / size)
        assert abs(np.corrcoef(mask[0].ravel(), mask[1].ravel())[0, 1]) < 4 / np.sqrt(size / len(mask))
    between = np.corrcoef([mask.ravel() for mask in masks])
    assert np.abs(between - np.eye(len(masks))).max() < 4 / np.sqrt(size)
