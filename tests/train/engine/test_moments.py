"""Moments in bfloat16 are rounded without bias, alike on every mesh; moments on the host leave each number as it is."""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support import tiny
from tests.support.states import Log
from train import objectives
from train.checkpoints.checkpoints import Checkpoints
from train.config.run_config import Mesh, Optim, Run
from train.engine import device_mesh, moments, optimizers, state_init
from train.engine.state import State
from train.run.run_identity import identity_differences
from train.step.assembly import Assembly, assemble
from zoo import models
from zoo.errors import BadInput
from zoo.ops import counter_rng
from zoo.sharding import path_of

LARGEST = np.float32(jnp.finfo(jnp.bfloat16).max)
WORDS = np.arange(1 << 16, dtype=np.uint32)
"""All random bits that there are."""


def values(*words: int) -> jax.Array:
    """Return the float32 values of these bits."""
    return jnp.asarray(np.array(words, np.uint32).view(np.float32))


def float64(x: Any) -> np.ndarray:
    return np.asarray(x, np.float32).astype(np.float64)


# Numbers of all kinds: just above 1, negative, the least half of a unit, subnormal ones, zeros.
FINITE = (0x3F800001, 0xBF801234, 0x3F808000, 0x3FFFFFFF, 0xC2F7FFFF, 0x00000001, 0x80007FFF, 0x007FFFFF, 0x80000000, 0x00000000)


def test_the_mean_over_all_random_bits_is_the_value() -> None:
    """It is equal, and not only close: of 65,536 roundings as many go up as the lower half of the value counts."""
    x = values(*FINITE)
    # Conversions of subnormal numbers flush them, on some processors, so the bits are compared.
    rounded = np.asarray(jax.vmap(lambda bits: moments.round_stochastically(x, jnp.full(x.shape, bits)))(WORDS))
    words = rounded.view(np.uint16).astype(np.uint32) << 16
    exact = np.array(FINITE, np.uint32).view(np.float32).astype(np.float64)
    assert (words.view(np.float32).astype(np.float64).mean(0) == exact).all()
    # Only the two neighbours occur.
    lower = np.array(FINITE, np.uint32) & 0xFFFF0000
    assert ((words == lower) | (words == lower + 0x10000)).all()


def test_what_is_not_finite_and_what_has_no_upper_neighbour() -> None:
    x = values(0x7F800000, 0xFF800000, 0x7F7FFFFF, 0xFF7F8000, 0x7F7F0000)
    for bits in (0, 1, 0x8000, 0xFFFF):
        rounded = np.asarray(moments.round_stochastically(x, jnp.full(x.shape, bits, jnp.uint32)), np.float32)
        np.testing.assert_array_equal(rounded, [np.inf, -np.inf, LARGEST, -LARGEST, LARGEST])
        # Their other bits are in the lower half, or carry out of it.
        invalid = values(0x7F800001, 0xFF80FFFF, 0x7FFFFFFF, 0xFFFFFFFF)
        assert np.isnan(np.asarray(moments.round_stochastically(invalid, jnp.full(4, bits, jnp.uint32)), np.float32)).all()


def nearest(x: jax.Array, bits: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16)


def steps_of_a_moment(steps: int, value: float) -> tuple[np.ndarray, float]:
    """Return 4,096 second moments with b2 = 0.999 that begin at 1, after `steps` squares of `value`, and the exact one."""

    def step(moment: jax.Array, count: jax.Array) -> tuple[jax.Array, None]:
        seeds = counter_rng.fold(jnp.array(moments.SEEDS, jnp.uint32), count)
        bits = counter_rng.half_words(seeds, jnp.arange(4096, dtype=jnp.uint32))
        return moments.round_stochastically(0.999 * moment.astype(jnp.float32) + 0.001 * value, bits), None

    moment, _ = jax.jit(lambda: jax.lax.scan(step, jnp.ones(4096, jnp.bfloat16), jnp.arange(steps)))()
    return float64(moment), 0.999**steps + (1 - 0.999**steps) * value


def check_unbiased() -> None:
    """Check that the mean of many moments is within four standard errors of the exact one, and that all have moved."""
    for value in (1.5, 0.5, 1.001):
        moment, exact = steps_of_a_moment(1000, value)
        error = moment.std(ddof=1) / np.sqrt(moment.size)
        assert error > 0 and abs(moment.mean() - exact) <= 4 * error, (value, moment.mean(), exact, error)


def test_a_moment_follows_its_mean() -> None:
    check_unbiased()


@pytest.mark.planted(2)
@pytest.mark.parametrize("wrong", [nearest, lambda x, bits: moments_round(x, bits >> 1)], ids=["nearest", "half of the bits"])
def test_a_biased_rounding_is_noticed(wrong: Callable[..., jax.Array], monkeypatch: pytest.MonkeyPatch) -> None:
    """To the nearest, an update of a thousandth is lost: it is less than half a unit in the last place."""
    monkeypatch.setattr(moments, "round_stochastically", wrong)
    if wrong is nearest:
        assert (steps_of_a_moment(1000, 1.5)[0] == 1).all()
    with pytest.raises(AssertionError):
        check_unbiased()


moments_round = moments.round_stochastically


def test_half_words_are_uniform_and_depend_on_coordinates_alone() -> None:
    """A chi-squared statistic of 255 degrees of freedom is within five standard deviations; parts of an array have its words."""
    seeds, rows, columns = jnp.array([3, 4], jnp.uint32), jnp.arange(64, dtype=jnp.uint32), jnp.arange(512, dtype=jnp.uint32)
    words = np.asarray(counter_rng.half_words(seeds, rows, columns))
    assert words.shape == (64, 512) and words.max() < 1 << 16
    counts = np.bincount(words.reshape(-1) >> 8, minlength=256)
    expected = words.size / 256
    assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 5 * np.sqrt(2 * 255)
    np.testing.assert_array_equal(words[5:7, 100:], counter_rng.half_words(seeds, rows[5:7], columns[100:]))
    assert counter_rng.half_words(seeds).shape == () and counter_rng.half_words(seeds, columns[:1]).shape == (1,)


def run_of(mesh: Mesh = Mesh(data=1), **options: Any) -> Run:  # noqa: B008
    return tiny.run(optim=Optim(**{"lr": 1e-2, "warmup": 5, **options}), mesh=mesh, precision="float32")


ON_DEVICE = ("adafactor", "soap", "schedule_free_adamw")
"""Optimizers whose state cannot be on the host."""


@functools.cache
def assembled(run: Run, devices: int) -> tuple[Assembly, Any]:
    mesh = device_mesh.make_mesh(run.mesh, jax.devices()[:devices])
    device_mesh.check_mesh(run, mesh)
    return assemble(run, objectives.objective(run.objective)(), mesh), mesh


def trained(run: Run, devices: int, steps: int = 3) -> State:
    parts, mesh = assembled(run, devices)
    state = state_init.init_state(run, models.model(run.model), parts.tx, mesh)
    for step in range(steps):
        state, _ = parts.engine.step(state, parts.engine.shard_batch(tiny.batch(step)))
    return state


def leaf_bytes(state: State) -> dict[str, bytes]:
    return {path_of(keys): np.asarray(leaf).tobytes() for keys, leaf in jax.tree_util.tree_leaves_with_path(state)}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.full if name == "adamw" else pytest.mark.slow)
        for name in optimizers.DIRECTIONS
        if name != "soap"
    ],
)
def test_all_moments_of_every_optimizer_are_bfloat16(name: Any) -> None:
    run = run_of(name=name, moments="bfloat16", schedule="constant")
    state = trained(run, 1)
    floats = {path_of(keys): leaf.dtype for keys, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)}
    others = {path for path, dtype in floats.items() if dtype != jnp.bfloat16}
    # The sequences of schedule-free AdamW are parameters, and not moments.
    assert all(path.endswith(("count", "total")) or "/base/" in path or "/average/" in path for path in others), others
    assert sum(dtype == jnp.bfloat16 for dtype in floats.values()) >= len(jax.tree.leaves(state.params))
    # They were updated, and no parameter is in bfloat16.
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("first", [0, 3])
def test_roundings_of_a_layer_are_those_of_the_stack(first: int) -> None:
    """An update of one layer of four alone has the moments of an update of all: the loop of `stream_moments` relies on it."""
    params = {"layers": {"kernel": jnp.zeros((4, 8, 16))}, "embed": {"embedding": jnp.zeros((8, 16))}}
    grads = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(1), leaf.shape), params)
    tx: Any = moments.round_moments(optax.scale_by_adam())
    _, after = tx.update(grads, tx.init(params), params)

    def part(tree: Any) -> Any:
        return {"layers": {"kernel": tree["layers"]["kernel"][first : first + 1]}}

    _, layer = tx.update(part(grads), tx.init(part(params)), part(params), first=jnp.int32(first))
    for name in ("mu", "nu"):
        own, stack = (getattr(state.inner, name)["layers"]["kernel"] for state in (layer, after))
        np.testing.assert_array_equal(own, stack[first : first + 1])
    # Moments of one value have other bits each.
    assert (after.inner.mu["layers"]["kernel"][0] != after.inner.mu["embed"]["embedding"]).any()


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in optimizers.DIRECTIONS if name not in ON_DEVICE])
def test_a_loop_over_layers_updates_as_all_at_once(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To rounding errors, with two stacks and leaves of none; without `accepted` every moment remains."""
    monkeypatch.setattr(moments, "updates_by_layer", lambda: True)
    rng = np.random.default_rng(0)
    shapes = {"encoder": {"layers": {"mlp": {"up": {"kernel": (3, 8, 16)}}, "norm": {"scale": (3, 8)}}}}
    shapes |= {"decoder": {"layers": {"mlp": {"down": {"kernel": (2, 16, 8)}}}}, "embed": {"tokens": {"embedding": (32, 8)}}}

    def random(tree: Any) -> Any:
        return {
            key: random(value) if isinstance(value, dict) else jnp.asarray(rng.standard_normal(value, np.float32))
            for key, value in tree.items()
        }

    params = random(shapes)
    plain: Any = optimizers.DIRECTIONS[name](Optim(name=name))
    streamed: Any = moments.stream_moments(plain)
    states = [plain.init(params), streamed.init(params)]
    for _ in range(3):
        grads = random(shapes)
        expected, states[0] = plain.update(grads, states[0], params)
        before = states[1]
        updates, states[1] = jax.jit(streamed.update)(grads, before, params)
        assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
        for own, other in zip(jax.tree.leaves((updates, states[1])), jax.tree.leaves((expected, states[0])), strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-6)
        _, refused = jax.jit(streamed.update)(grads, before, params, accepted=False)
        same = [
            (np.asarray(own) == np.asarray(old)).all()
            for own, old in zip(jax.tree.leaves(refused), jax.tree.leaves(before), strict=True)
            if np.ndim(old) > 1
        ]
        assert all(same)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_moments_on_the_host_leave_each_number_as_it_is(kind: Any) -> None:
    """A CPU has such memory, and a step with it has the bits of one without; a mesh changes rounding errors only."""
    mesh = Mesh(data=2, fsdp=2, tensor=2)
    here, on_host = (trained(run_of(mesh, moments=kind, offload=offload), 8) for offload in (False, True))
    assert leaf_bytes(here) == leaf_bytes(on_host)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(on_host.opt_state):
        parts = path_of(keys).split("/")
        on_host = "layers" in parts and leaf.ndim > 2
        assert leaf.sharding.memory_kind == ("pinned_host" if on_host else "device"), parts
    one = trained(run_of(moments=kind), 1)
    for other, own in zip(jax.tree.leaves(one.params), jax.tree.leaves(here.params), strict=True):
        np.testing.assert_allclose(np.asarray(own), np.asarray(other), rtol=1e-3, atol=1e-3)


@pytest.mark.full
def test_a_step_that_is_not_accepted_keeps_moments_on_the_host() -> None:
    run = run_of(offload=True, moments="bfloat16")
    parts, _ = assembled(run, 1)
    before = trained(run, 1, steps=1)
    kept = leaf_bytes(before)
    batch = tiny.batch(1)
    weights = np.asarray(batch.weights).copy()
    weights[0, 0] = np.inf
    after, metrics = parts.engine.step(before, parts.engine.shard_batch(dataclasses.replace(batch, weights=weights)))
    assert float(metrics["finite"]) == 0
    now = leaf_bytes(after)
    assert {name for name in kept if kept[name] != now[name]} == {"step"}


@pytest.mark.full
def test_a_run_continues_bit_for_bit_with_moments_on_either_memory(tmp_path: Path) -> None:
    """A checkpoint of moments on the host continues there and on the device, with the bits of a run that was not stopped."""
    run = run_of(Mesh(data=2, fsdp=2), offload=True, moments="bfloat16")
    with Checkpoints(tmp_path, 2, notify=Log()) as checkpoints:
        checkpoints.save(trained(run, 4, steps=2), {})
        assert checkpoints.wait()
    expected = leaf_bytes(trained(run, 4, steps=4))
    for offload in (True, False):
        other = dataclasses.replace(run, optim=dataclasses.replace(run.optim, offload=offload))
        assert not identity_differences(run, other)
        parts, _ = assembled(other, 4)
        with Checkpoints(tmp_path, 2, notify=Log()) as checkpoints:
            restored = checkpoints.restore(parts.state)
        assert restored is not None
        state = restored[0]
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state)}
        assert kinds == ({"device", "pinned_host"} if offload else {"device"})
        for step in (2, 3):
            state, _ = parts.engine.step(state, parts.engine.shard_batch(tiny.batch(step)))
        assert leaf_bytes(state) == expected


def test_bad_options_are_one_line() -> None:
    differences = identity_differences(run_of(), run_of(moments="bfloat16"))
    assert differences == ["optim.moments: float32 before, bfloat16 now"]
    with pytest.raises(BadInput, match=re.escape("--optim.offload: the moments of adafactor are sums over rows and")):
        Optim(name="adafactor", offload=True)
    run = dataclasses.replace(run_of(Mesh(), offload=True), engine="pmap")
    with pytest.raises(BadInput, match=r"--optim\.offload: pmap keeps all arrays on its devices; leave it out"):
        device_mesh.check_mesh(run, device_mesh.make_mesh(run.mesh))
