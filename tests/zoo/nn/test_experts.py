"""The layer of experts against a dense loop in float64, its gradients, its FLOPs and its division over a mesh."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.gradients import assert_equal_gradients
from train.config import run_config
from train.engine import device_mesh
from zoo.nn import experts as module
from zoo.nn.experts import Experts, Slots, clamped_swiglu, load_balance
from zoo.nn.layers import params_of
from zoo.ops import ragged_product as products

ROWS, LENGTH, WIDTH, FFN, EXPERTS, CHOSEN = 8, 9, 12, 8, 4, 2
SEGMENTS = np.ones((ROWS, LENGTH), np.int32)
SEGMENTS[1, 5:] = 0


def layer(dtype: Any = jnp.float32) -> Experts:
    """A layer whose parameters are all random and so large that both clamps take effect."""
    init = jax.nn.initializers.normal(1.0)
    experts = Experts(WIDTH, FFN, EXPERTS, CHOSEN, init, init, nnx.Rngs(0))
    rng = np.random.default_rng(1)
    leaves = jax.tree.map(lambda leaf: jnp.asarray(2 * rng.standard_normal(leaf.shape), dtype), params_of(experts))
    return nnx.merge(nnx.graphdef(experts), leaves)


def tokens(dtype: Any = jnp.float32) -> Any:
    return jnp.asarray(np.random.default_rng(2).standard_normal((ROWS, LENGTH, WIDTH)), dtype)


def by_loop(leaves: Any, x: np.ndarray) -> np.ndarray:
    """Return the output in float64: every expert for every token, one after the other."""
    p: Any = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), leaves)
    y = np.zeros_like(x)
    for b, t in np.ndindex(*x.shape[:2]):
        logits = x[b, t] @ p["router"]["kernel"] + p["router"]["bias"]
        best = np.argsort(-logits)[:CHOSEN]
        weights = np.exp(logits[best]) / np.exp(logits[best]).sum()
        for weight, e in zip(weights, best, strict=True):
            interleaved = np.empty(2 * FFN)
            interleaved[::2], interleaved[1::2] = (
                x[b, t] @ p["experts"]["gated"]["kernel"][e, :, c] + p["experts"]["gated"]["bias"][e, c] for c in (0, 1)
            )
            glu, linear = np.minimum(interleaved[::2], 7), np.clip(interleaved[1::2], -7, 7)
            inner = glu / (1 + np.exp(-1.702 * glu)) * (linear + 1)
            y[b, t] += weight * (inner @ p["experts"]["down"]["kernel"][e] + p["experts"]["down"]["bias"][e])
    return y


def route(leaves: Any, x: Any) -> tuple[Any, Any]:
    """Return the experts of each token and their weights."""
    logits, chosen = jax.lax.top_k(x @ leaves["router"]["kernel"] + leaves["router"]["bias"], CHOSEN)
    return chosen, jax.nn.softmax(logits)


@pytest.mark.parametrize("tile", [1, 4])
def test_the_output_is_that_of_a_dense_loop(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dispatch in float64: sums of 24 products of numbers below 2^13 that have a few roundings each, 2^-53."""
    monkeypatch.setattr(module, "choose_tile_rows", lambda *_: tile)
    with jax.enable_x64(True):
        leaves, x = params_of(layer(jnp.float64)), tokens(jnp.float64)
        gated, down = leaves["experts"]["gated"], leaves["experts"]["down"]
        kernels = module.Kernels(gated["kernel"], gated["bias"], down["kernel"], down["bias"])
        activation = functools.partial(clamped_swiglu, limit=7.0, slope=1.702)
        y = np.asarray(module.apply_experts(x, *route(leaves, x), kernels, activation=activation))
        np.testing.assert_allclose(y, by_loop(leaves, np.asarray(x)), rtol=0, atol=24 * 2.0 ** (13 - 50))


def test_the_layer_is_the_dense_loop() -> None:
    """With the router, in float32."""
    experts, x = layer(), tokens()
    expected = by_loop(params_of(experts), np.asarray(x, np.float64))
    np.testing.assert_allclose(experts(x, None)[0], expected, rtol=0, atol=24 * 2.0 ** (13 - 22))


@pytest.mark.planted
@pytest.mark.parametrize(
    "mistake", ["softmax over all experts", "no clamp", "no 1", "a token dropped", "biases of the next expert"]
)
def test_a_planted_mistake_is_not_the_dense_loop(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    experts, x = layer(), tokens()
    expected = by_loop(params_of(experts), np.asarray(x, np.float64))
    match mistake:
        case "softmax over all experts":
            monkeypatch.setattr(jax.nn, "softmax", lambda logits, axis=-1: logits / logits.sum())
        case "no clamp":
            experts.limit = 1e9
        case "no 1":
            original = clamped_swiglu
            monkeypatch.setattr(module, "clamped_swiglu", lambda g, **o: original(g.at[:, 1].add(-1), **o))
        case "a token dropped":
            slots_of = Slots.of
            monkeypatch.setattr(
                Slots,
                "of",
                lambda *a: (s := slots_of(*a)) and dataclasses.replace(s, of_assignment=s.of_assignment.at[3, 0].set(10**6)),
            )
        case _:
            bias = experts.experts.down.bias
            experts.experts.down.bias = nnx.Param(jnp.roll(bias[...], 1, 0))
    y, _ = experts(x, None)
    assert np.abs(np.asarray(y) - expected).max() > 24 * 2.0 ** (13 - 22)


def test_no_token_is_dropped() -> None:
    """Every assignment has a slot of its own, in the group of its expert, whatever the experts' shares are."""
    rng = np.random.default_rng(0)
    for tile in (1, 4, 32):
        for chosen in (rng.integers(0, EXPERTS, (50, CHOSEN)), np.full((50, CHOSEN), 3), np.zeros((1, 1), int)):
            slots = Slots.of(jnp.asarray(chosen), 0, EXPERTS, tile)
            of_assignment, assignment = np.asarray(slots.of_assignment).ravel(), np.asarray(slots.assignment)
            assert len(set(of_assignment)) == chosen.size and of_assignment.max() < len(assignment)
            assert (assignment[of_assignment] == np.arange(chosen.size)).all()
            assert (np.asarray(slots.filled).sum() == chosen.size) and (np.asarray(slots.sizes) % tile == 0).all()
            ends = np.cumsum(slots.sizes)
            assert (np.searchsorted(ends, of_assignment, side="right") == chosen.ravel()).all()


def test_slots_of_one_device_have_its_own_experts() -> None:
    chosen = jnp.asarray([[0, 3], [2, 1], [3, 2]])
    slots = Slots.of(chosen, 2, 2, 1)
    assert np.asarray(slots.sizes).tolist() == [2, 2]
    assert np.asarray(slots.of_assignment).tolist() == [[6, 2], [0, 6], [3, 1]]
    assert np.asarray(slots.assignment).tolist()[:4] == [2, 5, 1, 4]


def test_gradients_are_those_of_a_dense_sum() -> None:
    """The gradient of every leaf and of the input, against JAX's of a dense sum over all experts."""
    experts, x = layer(), tokens()
    graph, probe = nnx.graphdef(experts), tokens()[::-1]

    def sparse(leaves: Any, x: Any) -> Any:
        return (nnx.merge(graph, leaves)(x, None)[0] * probe).sum()

    def dense(leaves: Any, x: Any) -> Any:
        logits = x @ leaves["router"]["kernel"] + leaves["router"]["bias"]
        _, chosen = jax.lax.top_k(logits, CHOSEN)
        is_chosen = jax.nn.one_hot(chosen, EXPERTS).sum(-2) > 0
        weights = jax.nn.softmax(jnp.where(is_chosen, logits, -jnp.inf))
        gated = jnp.einsum("btd,edcf->btecf", x, leaves["experts"]["gated"]["kernel"]) + leaves["experts"]["gated"]["bias"]
        gate, linear = jnp.minimum(gated[..., 0, :], 7), jnp.clip(gated[..., 1, :], -7, 7)
        inner = gate * jax.nn.sigmoid(1.702 * gate) * (linear + 1)
        out = jnp.einsum("btef,efd->bted", inner, leaves["experts"]["down"]["kernel"]) + leaves["experts"]["down"]["bias"]
        return (jnp.einsum("bte,bted->btd", weights, out) * probe).sum()

    with jax.default_matmul_precision("highest"):
        sparse_gradients, dense_gradients = (jax.jit(jax.grad(f, argnums=(0, 1)))(params_of(experts), x) for f in (sparse, dense))
    assert_equal_gradients(jax.device_get(sparse_gradients), jax.device_get(dense_gradients))


@pytest.mark.parametrize(
    ("mesh", "form"),
    [
        ("expert=2,data=2,tensor=2", "tiles"),
        ("expert=4,fsdp=2", "tiles"),
        ("data=2,fsdp=2,tensor=2", "grouped_tpu"),
        ("expert=2,data=2,tensor=2", "grouped_tpu"),
        ("expert=4,fsdp=2", "grouped_tpu"),
        ("data=2,fsdp=2,tensor=2", "grouped_gpu"),
        ("expert=2,data=2,tensor=2", "grouped_gpu"),
        ("expert=4,fsdp=2", "grouped_gpu"),
    ],
)
def test_the_layer_is_the_same_on_a_mesh(mesh: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output, balance and gradients, with experts on several devices; Pallas's kernels are interpreted."""
    experts, x = layer(), tokens()
    graph, probe = nnx.graphdef(experts), tokens()[::-1]

    def value(leaves: Any, x: Any) -> Any:
        y, even = nnx.merge(graph, leaves)(x, jnp.asarray(SEGMENTS))
        return (y * probe).sum() + even.loss.sum(), (y, even)

    run = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))
    expected = jax.device_get(run(params_of(experts), x))
    monkeypatch.setattr(products, "product_form", lambda: form)
    shape = run_config.Mesh(**{"data": 1, **{part.split("=")[0]: int(part[-1]) for part in mesh.split(",")}})
    with jax.set_mesh(device_mesh.make_mesh(shape)):
        on_mesh = jax.device_get(jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))(params_of(experts), x))
    (_, (y, even)), gradient = on_mesh
    np.testing.assert_allclose(y, expected[0][1][0], atol=1e-3, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), even, expected[0][1][1])
    assert_equal_gradients(gradient, expected[1])


def test_each_device_gets_its_part_of_the_gradients_of_kernels() -> None:
    """Over fsdp they are summed by a reduce-scatter; an all-reduce, which gives every device all of them, sends twice as much."""
    experts, x = layer(), tokens()
    graph = nnx.graphdef(experts)
    with jax.set_mesh(device_mesh.make_mesh(run_config.Mesh(data=1, fsdp=4, expert=2))):
        gradient = jax.jit(jax.grad(lambda leaves: nnx.merge(graph, leaves)(x, None)[0].sum()))
        text = gradient.lower(params_of(experts)).as_text()
    scattered = re.findall(r"reduce_scatter\".*?-> tensor<([0-9x]+)xf32>", text, re.DOTALL)
    assert {f"{EXPERTS // 2}x{WIDTH // 4}x2x{FFN}", f"{EXPERTS // 2}x{FFN}x{WIDTH // 4}"} <= {*scattered}


def test_balance() -> None:
    """1 if the assignments are even; E / X if all tokens prefer the same experts; padding does not count."""
    even = jnp.asarray([[[5.0, 5, -5, -5], [-5, -5, 5, 5]]])
    chosen = jnp.asarray([[[0, 1], [2, 3]]])
    np.testing.assert_allclose(load_balance(even, chosen, None).loss, 1, rtol=1e-5)
    np.testing.assert_allclose(load_balance(even, chosen, None).busiest, 1, rtol=1e-5)
    one_sided = load_balance(even, chosen, jnp.asarray([[1, 0]]))
    np.testing.assert_allclose(one_sided.loss, 2, rtol=1e-3)
    np.testing.assert_allclose(one_sided.busiest, 2, rtol=1e-5)
