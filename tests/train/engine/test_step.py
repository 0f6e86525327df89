"""The step's parts: losses, schedules, optimizer, skipped steps, micro-batches, precision, donation."""

import dataclasses
import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial

from benchmarks.hlo import hlo_parser
from benchmarks.plan import collectives
from tests.support import tiny
from tests.support.gradients import assert_equal_gradients
from train import recipes
from train.config import run_config
from train.config.from_json import from_json
from train.engine import device_mesh, loss_chunks, optim, optimizers, schedules, state_init
from train.engine.losses import token_losses
from train.engine.state import State
from train.objectives.causal import Causal
from train.step.assembly import ENGINES
from train.step.jit_engine import Engine
from train.step.training_step import make_step
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.models import model
from zoo.nn.layers import tied_logits
from zoo.sharding import BATCH

VOCABULARY, ROWS, WIDTH = 300, 384, 16


def case(rows: int = 2, length: int = 12) -> tuple[jax.Array, jax.Array, jax.Array]:
    """hidden [B, P, D], table [rows, D] with padding rows that are not 0, targets [B, P]."""
    rng = np.random.default_rng(0)
    hidden = jnp.float32(rng.standard_normal((rows, length, WIDTH)))
    table = jnp.float32(rng.standard_normal((ROWS, WIDTH)))
    return hidden, table, jnp.int32(rng.integers(0, VOCABULARY, (rows, length)))


def losses(hidden: Any, table: Any, targets: Any, *, vocabulary: int = VOCABULARY, **options: Any) -> jax.Array:
    return token_losses(lambda h: tied_logits(h, table, vocabulary), hidden, targets, vocabulary=vocabulary, **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_chunked_loss_is_the_same_with_its_gradients(smoothing: float) -> None:
    hidden, table, targets = case()
    weights = np.random.default_rng(1).random(targets.shape).astype(np.float32)

    def value(hidden: Any, table: Any, chunk: int) -> jax.Array:
        return (losses(hidden, table, targets, smoothing=smoothing, chunk=chunk) * weights).sum()

    whole, *chunked = (jax.jit(jax.value_and_grad(value, (0, 1)), static_argnums=2)(hidden, table, n) for n in (0, 3, 12))
    for other in chunked:
        assert float(other[0]) == pytest.approx(float(whole[0]), rel=1e-6)
        assert_equal_gradients(other[1], whole[1])


def sums_of_the_table() -> float:
    """Return how often a program with a chunked loss sums a gradient of the table's size over devices.

    The value and the gradients on four by two devices must equal those on one.
    """
    hidden, table, targets = case(rows=8)

    def value(hidden: Any, params: Any) -> jax.Array:
        unembed = Partial(lambda params, h: tied_logits(h, params["table"], VOCABULARY), params)
        return token_losses(unembed, hidden, targets, vocabulary=VOCABULARY, chunk=3).sum()

    gradient = jax.value_and_grad(value, (0, 1))
    # A parameter that the loss does not use is not sent.
    params = {"table": table, "unused": jnp.ones((10 * ROWS, WIDTH))}
    mesh = device_mesh.make_mesh(run_config.Mesh(data=2, fsdp=2, tensor=2), jax.devices())
    sharded = NamedSharding(mesh, PartitionSpec("tensor", "fsdp"))
    shardings = NamedSharding(mesh, PartitionSpec(BATCH)), {"table": sharded, "unused": sharded}
    with jax.set_mesh(mesh):
        lowered = jax.jit(gradient, out_shardings=(None, shardings)).lower(*jax.device_put((hidden, params), shardings))
        program = lowered.compile()
        results = program(*jax.device_put((hidden, params), shardings))
    expected = jax.jit(gradient)(hidden, params)
    assert float(results[0]) == pytest.approx(float(expected[0]), rel=1e-6)
    assert_equal_gradients(results[1], expected[1])
    sent = collectives.find_collectives(hlo_parser.parse_program(program.as_text() or ""), dict(mesh.shape))
    # A device has half of the rows of the table, and sums them alone or with a part of the columns.
    large = [one for one in sent if one.kind != "all-gather" and one.bytes >= table.nbytes / 4]
    assert all(one.bytes <= table.nbytes for one in sent)
    return sum(one.run.times for one in large)


@pytest.mark.planted
def test_the_gradient_of_a_chunked_loss_is_summed_over_devices_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not after each chunk, as XLA does on its own."""
    assert sums_of_the_table() <= 2  # over one axis after the other
    monkeypatch.setattr("train.engine.losses.on_local_positions", lambda function, params, *arrays: function(params, *arrays))
    assert sums_of_the_table() >= 4


@pytest.mark.full
def test_a_chunked_loss_needs_less_than_half_of_the_logits() -> None:
    """Temporaries of value and gradient for GPT-2's vocabulary; compiled, not run. At once they are the logits and more."""
    hidden = jax.ShapeDtypeStruct((8, 1024, 64), jnp.float32)
    table = jax.ShapeDtypeStruct((50_304, 64), jnp.float32)
    targets = jax.ShapeDtypeStruct((8, 1024), jnp.int32)

    def temporaries(chunk: int) -> int:
        def value(hidden: Any, table: Any, targets: Any) -> jax.Array:
            return losses(hidden, table, targets, vocabulary=50_257, chunk=chunk).sum()

        memory = jax.jit(jax.value_and_grad(value, (0, 1))).lower(hidden, table, targets).compile().memory_analysis()
        return memory.temp_size_in_bytes

    logits = 8 * 1024 * 50_304 * 4
    # What `--loss-chunk auto` counts.
    assert temporaries(0) == pytest.approx(logits / 4 * loss_chunks.BYTES["cpu"], rel=0.02)
    assert temporaries(128) <= logits / 2


@pytest.mark.full
def test_label_smoothing_is_over_the_real_vocabulary() -> None:
    """As optax has it, which knows of no padding rows: those get no share and no gradient."""
    hidden, table, targets = case()

    def theirs(table: Any) -> jax.Array:
        logits = hidden @ table[:VOCABULARY].T
        return optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(targets, VOCABULARY), 0.1))

    np.testing.assert_allclose(losses(hidden, table, targets, smoothing=0.1), theirs(table), rtol=1e-5)
    ours = jax.grad(lambda t: losses(hidden, t, targets, smoothing=0.1).sum())(table)
    assert (ours[VOCABULARY:] == 0).all()
    assert_equal_gradients(ours, jax.grad(lambda t: theirs(t).sum())(table))


PEAK, WARMUP, STEPS, FINAL = 2e-3, 50, 450, 0.1
CLOSED = {
    "cosine": lambda t: PEAK * (FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * (t - WARMUP) / (STEPS - WARMUP)))),
    "linear": lambda t: PEAK * (1 - (1 - FINAL) * (t - WARMUP) / (STEPS - WARMUP)),
    "inverse_sqrt": lambda t: PEAK * math.sqrt(WARMUP / (t + 1)),
    "constant": lambda t: PEAK,
}


def rates(name: Any, warmup: float = WARMUP, steps: int = STEPS) -> Callable[[int], float]:
    schedule = schedules.make_schedule(run_config.Optim(lr=PEAK, schedule=name, warmup=warmup, final=FINAL), steps)
    return lambda step: float(schedule(jnp.int32(step)))


@pytest.mark.parametrize("name", CLOSED)
def test_schedules_are_their_closed_forms(name: str) -> None:
    """Warm-up to the peak in `warmup` steps, the first of which moves; then the decay, without a jump, to its end."""
    rate = rates(name)
    for step in (0, 1, 24, 49):
        assert rate(step) == pytest.approx(PEAK * (step + 1) / WARMUP, rel=1e-5)
    for step in (50, 51, 137, 250, 449, 450):
        assert rate(step) == pytest.approx(CLOSED[name](step), rel=1e-5)


def test_the_inverse_square_roots_are_those_of_the_papers() -> None:
    base = recipes.find_recipe("transformer-base")()
    noam = schedules.make_schedule(base.optim, base.steps)
    t5 = schedules.make_schedule(recipes.find_recipe("t5")().optim, 1 << 19)
    for step in (1, 2, 100, 3999, 4000, 4001, 9_999, 10_000, 10_001, 50_000, 99_999):
        expected = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        # A rise is computed as the peak less a part of it, in float32.
        assert float(noam(jnp.int32(step - 1))) == pytest.approx(expected, rel=1e-5, abs=base.optim.lr * 2**-23)
        assert float(t5(jnp.int32(step - 1))) == pytest.approx(1 / math.sqrt(max(step, 10_000)), rel=1e-5)


@pytest.mark.parametrize("name", [*CLOSED, "inverse_sqrt_flat"])
def test_short_schedules_neither_stand_still_nor_overshoot(name: str) -> None:
    for warmup, steps in ((0, 1), (0, 4), (1, 4), (4, 4), (9, 4)):
        rate = rates(name, warmup, steps)
        assert all(0 < rate(step) <= PEAK * (1 + 1e-6) for step in range(steps)), (warmup, steps)


@pytest.mark.parametrize("name", [*CLOSED, "inverse_sqrt_flat"])
def test_a_warm_up_below_one_is_a_share_of_the_steps(name: str) -> None:
    for share, warmup, steps in ((0.1, 40, 400), (0.24, 1, 4), (0.9, 4, 4), (0.1, 0, 4), (0.0, 0, 4)):
        shared, counted = rates(name, share, steps), rates(name, warmup, steps)
        assert [shared(step) for step in (0, 1, 3, steps - 1)] == [counted(step) for step in (0, 1, 3, steps - 1)]
    # 1 is one step, not all of them, and a number of steps stays an integer, which checkpoints store.
    assert repr(run_config.Optim(warmup=1.0).warmup) == "1" and run_config.Optim(warmup=1).warmup_steps(9) == 1
    assert [repr(from_json(run_config.Optim, {"warmup": value}, "optim").warmup) for value in (7, 0.1)] == ["7", "0.1"]
    for wrong in (1.5, -0.1, math.inf, math.nan):
        with pytest.raises(BadInput, match=r"--optim\.warmup .*: choose 0 or more steps, or a share of --steps below 1"):
            run_config.Optim(warmup=wrong)


def test_decay_is_for_matrices_and_embeddings() -> None:
    shapes = jax.eval_shape(lambda: model(tiny.run().model).init(jax.random.key(0)))
    mask = jax.tree_util.tree_leaves_with_path(optimizers.decay_mask(run_config.Optim(), shapes))
    decayed = {jax.tree_util.keystr(keys, simple=True, separator="/") for keys, yes in mask if yes}
    linear = ("attention/qkv", "attention/out", "mlp/up", "mlp/down")
    embeddings = {"embed/tokens/embedding", "embed/positions/embedding"}
    assert decayed == embeddings | {f"layers/{name}/kernel" for name in linear}


@functools.cache
def gradients() -> tuple[Any, list[Any]]:
    """Parameters and eight gradients, some above the clipping norm and some below."""
    rng = np.random.default_rng(0)
    params = {"a": {"kernel": jnp.float32(rng.standard_normal((5, 3))), "bias": jnp.float32(rng.standard_normal(3))}}
    scale = [0.01, 1, 10, 0.1, 0.001, 3, 0.5, 2]
    return params, [jax.tree.map(lambda p, s=s: jnp.float32(s * rng.standard_normal(p.shape)), params) for s in scale]


def follow(tx: optax.GradientTransformationExtraArgs, rate: Callable[[int], Any]) -> list[Any]:
    """Parameters after each gradient, moved as the step moves them."""
    params, grads = gradients()
    state, path = tx.init(params), []

    @jax.jit
    def move(params: Any, state: Any, grad: Any, lr: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grad, state, params, lr=lr)
        return optax.apply_updates(params, updates), state

    for step, grad in enumerate(grads):
        params, state = move(params, state, grad, rate(step))
        path.append(params)
    return path


@pytest.mark.parametrize(("clip", "decay"), [(1.0, 0.1), (0.0, 0.0)])
def test_adamw_is_optax_s_own_step_for_step(clip: float, decay: float) -> None:
    cfg = run_config.Optim(lr=0.1, warmup=3, clip=clip, weight_decay=decay)
    schedule = schedules.make_schedule(cfg, 8)
    mask = {"a": {"kernel": True, "bias": False}}
    theirs = optax.adamw(schedule, cfg.b1, cfg.b2, cfg.eps, weight_decay=decay, mask=mask)
    theirs = optax.chain(optax.clip_by_global_norm(clip), theirs) if clip else optax.with_extra_args_support(theirs)
    for ours, expected in zip(follow(optim.make_optimizer(cfg), schedule), follow(theirs, lambda _: 1), strict=True):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), ours, expected)


QUIET = dataclasses.replace(tiny.run().model, dropout=0.0, attention_dropout=0.0, embedding_dropout=0.0)


def made(tx: optax.GradientTransformation | None = None, dtype: Any = jnp.float32, **changes: Any) -> SimpleNamespace:
    """A step and the state it begins with, on the first device."""
    run = tiny.run(steps=60, **changes)
    net, tx = model(run.model), tx or optim.make_optimizer(run.optim)
    params = initial()
    key = jnp.array([0, 1], jnp.uint32)
    # Programs that run a few times: the processor's code need not be good. What they compute is as without this.
    step = jax.jit(make_step(run, net, Causal(), tx, dtype))
    return SimpleNamespace(step=step, state=State(step=jnp.int32(0), params=params, opt_state=tx.init(params), carry={}, key=key))


@functools.cache
def initial() -> Any:
    return jax.jit(model(tiny.run().model).init)(jax.random.key(0))


plain = functools.cache(made)


def changed(before: State, after: State) -> set[str]:
    """Fields of the state that differ."""

    def differs(old: Any, new: Any) -> bool:
        return any((np.asarray(a) != b).any() for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True))

    return {name for name, old in vars(before).items() if differs(old, getattr(after, name))}


def infinite_weight(state: State, batch: Batch) -> tuple[State, Batch]:
    weights = batch.weights.copy()
    weights[3, 5] = np.inf
    return state, dataclasses.replace(batch, weights=weights)


def overflowing_parameter(state: State, batch: Batch) -> tuple[State, Batch]:
    """A finite one, whose square is not: the forward pass overflows."""
    params = jax.tree.map(lambda leaf: leaf, state.params)
    params["norm"]["bias"] = params["norm"]["bias"] + 3e38
    return dataclasses.replace(state, params=params), batch


@pytest.mark.parametrize("spoil", [infinite_weight, overflowing_parameter])
def test_a_step_that_is_not_finite_is_skipped(spoil: Callable[..., Any]) -> None:
    """Everything but the step count stays to the bit, and it is reported; the step after it goes on."""
    ready = plain()
    state, batch = spoil(ready.state, tiny.batch(0))
    after, metrics = ready.step(state, batch)
    assert changed(state, after) == {"step"}
    assert (int(after.step), float(metrics["finite"])) == (1, 0.0)
    after, metrics = ready.step(dataclasses.replace(after, params=ready.state.params), tiny.batch(1))
    assert changed(ready.state, after) == {"step", "params", "opt_state"}
    assert float(metrics["finite"]) == 1.0


@pytest.mark.full
@pytest.mark.planted
def test_without_the_check_one_such_step_would_lose_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jnp, "isfinite", lambda x: jnp.ones_like(x, bool))
    ready = made()
    lost, _ = ready.step(*infinite_weight(ready.state, tiny.batch(0)))
    assert not all(np.isfinite(leaf).any() for leaf in jax.tree.leaves(lost.params))


def uneven(batch: Batch) -> Batch:
    """Weights that differ greatly from one micro-batch of four (rows i, i + 4, ...) to the next."""
    share = np.array([0.0, 0.02, 0.3, 1.0])[np.arange(16) % 4, None]
    weights = (np.random.default_rng(5).random(batch.weights.shape) < share).astype(np.float32)
    weights[1, 0] = 1
    return dataclasses.replace(batch, weights=weights)


@pytest.mark.planted
def test_micro_batches_give_the_gradient_of_the_whole() -> None:
    """With counts of predictions that differ between them, one without any; the mean of their means is another gradient."""
    gradient, batch = optax.trace(0.0), uneven(tiny.batch(0))
    one, four = made(gradient, model=QUIET), made(gradient, model=QUIET, accumulate=4)
    (whole, metrics), (summed, others) = one.step(one.state, batch), four.step(four.state, batch)
    assert_equal_gradients(summed.opt_state.trace, whole.opt_state.trace)
    for name, value in metrics.items():
        assert float(others[name]) == pytest.approx(float(value), rel=1e-5), name
    counted = [np.where(np.arange(16)[:, None] % 4 == i, batch.weights, 0) for i in range(1, 4)]
    means = [one.step(one.state, dataclasses.replace(batch, weights=w))[0].opt_state.trace for w in counted]
    with pytest.raises(AssertionError):
        assert_equal_gradients(jax.tree.map(lambda *each: sum(each) / 3, *means), whole.opt_state.trace)


@pytest.mark.full
def test_bfloat16_follows_the_curve_of_float32() -> None:
    """60 steps of AdamW with dropout: every loss within 0.05 nats, while it falls by more than 1. State stays float32."""

    def followed(ready: SimpleNamespace) -> tuple[State, np.ndarray]:
        state, curve = ready.state, []
        for step in range(60):
            state, metrics = ready.step(state, tiny.batch(step))
            curve.append(metrics["loss"])
        return state, np.array(jax.device_get(curve))

    (_, whole), (state, half) = followed(plain()), followed(made(dtype=jnp.bfloat16))
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert whole[-1] < whole[0] - 1
    assert 1e-5 < np.abs(whole - half).max() < 0.05


class Scaled(Causal):
    """Causal loss, times a number that nothing trains."""

    def loss(self, model: Any, params: Any, batch: Batch, frozen: Any, **options: Any) -> Any:
        terms, carry = super().loss(model, params, batch, {}, **options)
        return {term: value * frozen["scale"] for term, value in terms.items()}, carry


@functools.cache
def launched(name: str) -> tuple[Engine, Callable[[], State], Callable[[float], Any]]:
    """An engine over two devices, and what makes a state and something frozen for it."""
    mesh = run_config.Mesh(data=1, fsdp=2) if name == "jit" else run_config.Mesh(data=2)
    run = tiny.run(mesh=mesh, engine=name, model=QUIET)
    net, tx, mesh = model(run.model), optim.make_optimizer(run.optim), device_mesh.make_mesh(run.mesh, jax.devices()[:2])
    places = jax.tree.map(lambda leaf: leaf.sharding, state_init.abstract_state(run, net, tx, mesh))
    engine = ENGINES[name](make_step(run, net, Scaled(), tx, jnp.float32), mesh, places, run.data.batch)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def frozen(scale: float) -> Any:
        return engine.replicate(jax.device_put({"scale": np.float32(scale)}, everywhere))

    return engine, lambda: engine.shard(state_init.init_state(run, net, tx, mesh)), frozen


@pytest.mark.full
@pytest.mark.parametrize("name", ["jit", pytest.param("pmap", marks=pytest.mark.slow)])
def test_the_state_is_donated(name: str) -> None:
    """The next state lies where this one lay, leaf for leaf: nothing is held twice."""
    engine, begin, frozen = launched(name)
    state, held = begin(), frozen(1.0)

    def pointers(state: State) -> list[int]:
        shards = (shard.data for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards)
        return sorted(shard.unsafe_buffer_pointer() for shard in shards)

    # The first step may find buffers that numpy made and still owns.
    state, _ = engine.step(state, engine.shard_batch(tiny.batch(0)), held)
    before = pointers(jax.block_until_ready(state))
    after, _ = engine.step(state, engine.shard_batch(tiny.batch(1)), held)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert pointers(jax.block_until_ready(after)) == before


@pytest.mark.parametrize("name", ["jit", pytest.param("pmap", marks=pytest.mark.full)])
def test_what_is_frozen_is_read_at_every_step_and_neither_donated_nor_built_in(name: str) -> None:
    engine, begin, frozen = launched(name)
    state, held, losses = begin(), frozen(1.0), []
    for what in (held, held, frozen(3.0)):
        state, metrics = engine.step(state, engine.shard_batch(tiny.batch(0)), what)
        losses.append(float(jax.device_get(metrics["loss"].addressable_data(0)).reshape(-1)[0]))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(held))
    # A step on the same batch makes its loss smaller, by far less than the scale changes it.
    assert 0.8 < losses[1] / losses[0] < 1
    assert 2.4 < losses[2] / losses[1] < 3
