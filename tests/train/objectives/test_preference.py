"""Reward models: the loss is its definition, whatever the padding, the neighbours, the mesh and the number of micro-batches."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from tests.golden import make
from tests.support import published, trl_rewards
from tests.support.gradients import assert_equal_gradients
from tests.support.preferences import batch, examples, net, run, tokenizer
from tests.support.small import random_params, seeds
from train.config import run_config
from train.engine import device_mesh, optim, reward_scores, state_init
from train.objectives.feedback import preference
from train.objectives.feedback.preference import RewardModel, pair_losses
from train.step.assembly import ENGINES
from train.step.training_step import make_step
from zoo import models, published_weights
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.hf import safetensors_dir
from zoo.models import Model

OTHERS = ("bert", "ettin_decoder", "llama", "t5", "transformer", "xlnet")
every_body = pytest.mark.parametrize("family", ["gpt", *(pytest.param(name, marks=pytest.mark.full) for name in OTHERS)])
"""One family of each body; RoBERTa's and DistilBERT's is BERT's."""
CENTERING = 0.3


@functools.cache
def scored(model: Model) -> Callable[..., Any]:
    return jax.jit(functools.partial(reward_scores.reward_scores, model))


def scores(family: str, which: Batch, params: Any = None) -> np.ndarray:
    return np.asarray(scored(net(family))(params or random_params(net(family)), which), np.float64)


def loss(family: str, which: Batch, centering: float = CENTERING) -> float:
    model = net(family)
    terms, carry = jax.jit(lambda params, which: RewardModel(centering).loss(model, params, which, {}, **QUIET))(
        random_params(model), jax.tree.map(jnp.asarray, which)
    )
    assert carry == {}
    return float(terms["preference"])


QUIET: dict[str, Any] = dict(seeds=None, carry={}, smoothing=0.0, chunk=0)


def alone(family: str, which: Batch) -> np.ndarray:
    """float64 [B, 2]: the scores, each completion alone and without padding, its state read at the last token or at CLS."""
    model, params, found = net(family), random_params(net(family)), np.zeros(which.tokens.shape[:2])
    for pair, side in np.ndindex(found.shape):
        size = int((which.segments[pair, side] > 0).sum())
        fields = {name: getattr(which, name) for name in ("tokens", "positions", "types") if getattr(which, name) is not None}
        one = Batch(**{name: jnp.asarray(array[pair, side, :size][None]) for name, array in fields.items()})
        if which.source is not None:
            length = int((which.source.segments[pair, side] > 0).sum())
            one = dataclasses.replace(one, source=Batch(tokens=jnp.asarray(which.source.tokens[pair, side, :length][None])))
        at = 0 if family in ("bert", "roberta", "distilbert") else size - 1
        found[pair, side] = _one_score(model, at)(params, one)
    return found


@functools.cache
def _one_score(model: Model, at: int) -> Callable[..., Any]:
    return jax.jit(lambda params, one: model.sequence_logits(params, model.apply(params, one).hidden[:, at : at + 1])[0, 0, 0])


def defined(values: np.ndarray, margins: np.ndarray, centering: float = CENTERING) -> float:
    losses = [
        -np.log(1 / (1 + np.exp(-(chosen - rejected - margin)))) + centering * (chosen + rejected) ** 2
        for (chosen, rejected), margin in zip(values, margins, strict=True)
    ]
    return float(np.sum(losses))


@every_body
def test_the_loss_is_its_definition(family: str) -> None:
    which = batch(family)
    expected = alone(family, which)
    # float32 rounding of scores of order 1.
    np.testing.assert_allclose(scores(family, which), expected, atol=2e-5)
    assert which.extra is not None
    margins = which.extra["margin"]
    assert set(margins.tolist()) == {0.0, 0.5, 1.0}
    assert loss(family, which) == pytest.approx(defined(expected, margins), rel=1e-5)
    assert float(RewardModel(0.0).weights(jax.tree.map(jnp.asarray, which))["preference"]) == len(examples())


@pytest.mark.planted(4)
def test_a_wrong_loss_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The margin's sign, centering on the difference, a score read one token early, and one found by the id of the end."""
    which = batch("gpt")
    assert which.extra is not None
    expected = defined(alone("gpt", which), which.extra["margin"])

    def differ() -> bool:
        return loss("gpt", which) != pytest.approx(expected, rel=1e-3)

    def wrong(values: Any, margin: Any, centering: float) -> Any:
        return pair_losses(values, -margin, centering)

    def of_difference(values: Any, margin: Any, centering: float) -> Any:
        return pair_losses(values, margin, 0.0) + centering * jnp.square(values[:, 0] - values[:, 1])

    assert not differ()
    for mistake in (wrong, of_difference):
        monkeypatch.setattr(preference, "pair_losses", mistake)
        assert differ()
    monkeypatch.undo()
    which = dataclasses.replace(which, summary_at=which.summary_at - 1)
    assert differ()
    # An empty prompt becomes end-of-text, so that the first end mark of a row is not the one that ends it.
    which = batch("gpt", pairs=(dataclasses.replace(examples()[0], prompt=""),))
    assert which.extra is not None
    expected = defined(alone("gpt", which), which.extra["margin"])
    assert not differ()
    first = (which.tokens == tokenizer("gpt").end_of_text).argmax(-1)[..., None]
    which = dataclasses.replace(which, summary_at=first.astype(np.int32))
    assert differ()


@pytest.mark.parametrize("family", ["gpt", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_scores_depend_on_neither_padding_nor_neighbours(family: str) -> None:
    # As a model begins: the scores are of order 1, and so are their roundings of 1e-7.
    short, params = batch(family, 40), jax.jit(net(family).init)(jax.random.key(0))
    expected = scores(family, short, params)
    for pads in (5, 50):
        np.testing.assert_allclose(scores(family, batch(family, 40 + pads), params), expected, atol=1e-6)
    swapped = jax.tree.map(lambda array: array[::-1], short)
    np.testing.assert_allclose(scores(family, swapped, params)[::-1], expected, atol=1e-6)


def test_dropout_differs_between_the_sides() -> None:
    same = batch("gpt", pairs=(dataclasses.replace(examples()[0], rejected=examples()[0].chosen),))
    model = net("gpt", dropout=0.5)
    values = scored(model)(random_params(model), same, seeds(1))
    assert abs(float(values[0, 0] - values[0, 1])) > 1e-3
    assert len(set(scores("gpt", same)[0].tolist())) == 1


def gradient(mesh: run_config.Mesh, accumulate: int = 1) -> tuple[list[float], Any]:
    """The losses of three steps of SGD over four pairs, and the first gradient."""
    cfg = run("gpt", mesh=mesh, accumulate=accumulate)
    devices = device_mesh.make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor])
    model, tx = models.model(cfg.model), optax.chain(optax.trace(0.0), optim.make_optimizer(cfg.optim))
    places = jax.tree.map(lambda leaf: leaf.sharding, state_init.abstract_state(cfg, model, tx, devices))
    engine = ENGINES["jit"](make_step(cfg, model, RewardModel(0.01), tx, jnp.float32), devices, places, cfg.data.batch)
    state, losses, slope = engine.shard(state_init.init_state(cfg, model, tx, devices)), [], None
    host = batch("gpt", pairs=examples(4))
    for step in range(3):
        mine = jax.tree.map(lambda leaf: leaf[device_mesh.local_rows(devices, 4)], host)
        state, metrics = engine.step(state, engine.shard_batch(mine))
        losses.append(float(jax.device_get(metrics["loss"])))
        slope = jax.device_get(engine.get(state).opt_state[0].trace) if step == 0 else slope
    return losses, slope


@pytest.mark.full
def test_losses_agree_on_a_mesh_and_with_micro_batches() -> None:
    expected, slope = gradient(run_config.Mesh(data=1))
    losses, other = gradient(run_config.Mesh(data=1, fsdp=2), accumulate=2)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_equal_gradients(other, slope)


def test_flops_count_both_completions() -> None:
    which, model = batch("gpt"), net("gpt")
    rows = Batch(tokens=np.zeros((6, 40), np.int32))
    assert RewardModel(0.0).flops(model, which) == 3 * model.flops(rows)
    words = dataclasses.replace(model.config, labels=())
    assert model.flops(rows) < models.model(words).flops(rows)


def test_a_model_without_a_score_is_refused() -> None:
    cfg = run("gpt", model=dataclasses.replace(net("gpt").config, labels=()))
    with pytest.raises(BadInput, match=r"model\.labels : a reward model has a reward head"):
        cfg.options.check_run(cfg)


@pytest.mark.parametrize("family", ["gpt", *(pytest.param(name, marks=pytest.mark.full) for name in ("bert", "t5"))])
def test_losses_and_gradients_are_those_of_trl(family: str, tmp_path: Path) -> None:
    """Frozen vectors of TRL, with margins and centering: the loss within 1e-5; of each gradient, the norm and a projection."""
    frozen = json.loads(trl_rewards.FILE.read_text())[family]
    published.write(tmp_path / "model", trl_rewards.config(family))
    cfg, params = published_weights.load_published(
        tmp_path / "model", device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
    )
    model, which = models.model(cfg), dataclasses.replace(trl_rewards.batch(family), weights=jnp.ones((3, 1)) / 3)

    def mean(params: Any) -> jax.Array:
        return RewardModel(trl_rewards.CENTERING).loss(model, params, which, {}, **QUIET)[0]["preference"]

    value, slopes = jax.jit(jax.value_and_grad(mean))(params)
    assert float(value) == pytest.approx(frozen["loss"], abs=1e-5)
    (tmp_path / "slopes").mkdir()
    published_weights.save_published(tmp_path / "slopes", cfg, slopes)
    stored = load_file(tmp_path / "slopes" / safetensors_dir.SINGLE)
    norm = np.sqrt(sum(size**2 for size, _ in frozen["gradients"].values()))
    for name, probe in frozen["gradients"].items():
        bound = np.sqrt(stored[name].size) * (1e-3 * probe[0] + 1e-5 * norm)
        assert make.probe(name, stored[name]) == pytest.approx(probe, abs=bound), name


# The libraries' own deprecations.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parity
def test_the_frozen_losses_are_those_of_the_installed_trl() -> None:
    pytest.importorskip("trl")
    frozen = json.loads(trl_rewards.FILE.read_text())
    for family in trl_rewards.MODELS:
        assert trl_rewards.loss(family)["loss"] == pytest.approx(frozen[family]["loss"], abs=1e-5)
