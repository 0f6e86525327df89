"""The penalty on the log-normalizer: the gradient in float64, the value without it, and no further pass over the vocabulary."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from tests.support import tiny
from train import recipes
from train.config.run_config import Tokenizer
from train.engine import losses
from train.engine.losses import SoftLoss, target_and_distillation_losses, token_losses
from train.inputs import synthetic_batch
from train.objectives import check_run, objective
from zoo import configs
from zoo.errors import BadInput
from zoo.models import model
from zoo.nn.layers import tied_logits

VOCABULARY, ROWS, WIDTH, B, T = 300, 384, 16, 2, 24
WEIGHT = 0.03
BERT = configs.find_size("bert-nano")[1].config


def unembed(table: Any, hidden: Any) -> Any:
    return tied_logits(hidden, table, VOCABULARY)


def case() -> tuple[Any, Any, Any]:
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, table = jax.random.normal(keys[0], (B, T, WIDTH)), jax.random.normal(keys[1], (ROWS, WIDTH))
    return hidden, table, jax.random.randint(keys[2], (B, T), 0, VOCABULARY)


def reference(hidden: Any, table: Any, targets: Any, smoothing: float, weight: float) -> tuple[Any, Any, Any]:
    """Return the cross-entropies, and the gradients of their sum with the penalty by hidden states and table, in float64."""
    hidden, table = np.asarray(hidden, np.float64), np.asarray(table, np.float64)[:VOCABULARY]
    logits = hidden @ table.T
    log_z = np.log(np.exp(logits).sum(-1))
    wanted = (1 - smoothing) * np.eye(VOCABULARY)[targets] + smoothing / VOCABULARY
    by_logits = np.exp(logits - log_z[..., None]) * (1 + 2 * weight * log_z[..., None]) - wanted
    return log_z - (wanted * logits).sum(-1), by_logits @ table, np.einsum("btv,btd->vd", by_logits, hidden)


def check_gradients(chunk: int, smoothing: float) -> None:
    hidden, table, targets = case()

    def total(hidden: Any, table: Any, weight: float = WEIGHT) -> tuple[jax.Array, jax.Array]:
        options: dict[str, Any] = {"vocabulary": VOCABULARY, "smoothing": smoothing, "chunk": chunk}
        nats = token_losses(Partial(unembed, table), hidden, targets, z_loss=weight, **options)
        return nats.sum(), nats

    (_, nats), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, table)
    expected, *by_parts = reference(hidden, table, targets, smoothing, WEIGHT)
    np.testing.assert_allclose(nats, expected, rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(nats, total(hidden, table, 0.0)[1])
    for gradient, exact in zip((grads[0], grads[1][:VOCABULARY]), by_parts, strict=True):
        np.testing.assert_allclose(gradient, exact, atol=2e-6 * np.abs(exact).max())
    assert (grads[1][VOCABULARY:] == 0).all()


@pytest.mark.parametrize(("chunk", "smoothing"), [(0, 0.0), (8, 0.1)])
def test_the_gradient_has_the_penalty_and_the_value_has_not(chunk: int, smoothing: float) -> None:
    check_gradients(chunk, smoothing)


@pytest.mark.planted(2)
def test_another_penalty_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the normalizer without the square, or in the value too."""
    monkeypatch.setattr(losses.jnp, "square", lambda x: x)
    with pytest.raises(AssertionError):
        check_gradients(0, 0.0)
    monkeypatch.undo()
    monkeypatch.setattr(losses.jax.lax, "stop_gradient", lambda x: 0 * x)
    with pytest.raises(AssertionError):
        check_gradients(0, 0.0)


def arrays_over_the_vocabulary(weight: float) -> list[str]:
    """Return the operations of value and gradient that read or write an array with the rows of the table."""
    hidden, table, targets = case()

    def total(hidden: Any, table: Any) -> jax.Array:
        return token_losses(Partial(unembed, table), hidden, targets, vocabulary=VOCABULARY, z_loss=weight).sum()

    jaxpr = jax.make_jaxpr(jax.value_and_grad(total, (0, 1)))(hidden, table)
    variables = [(str(one.primitive), (*one.invars, *one.outvars)) for one in jaxpr.jaxpr.eqns]
    return [name for name, used in variables if any(ROWS in getattr(v.aval, "shape", ()) for v in used)]


def test_the_penalty_is_no_further_pass_over_the_vocabulary() -> None:
    assert arrays_over_the_vocabulary(WEIGHT) == arrays_over_the_vocabulary(0.0) != []


def test_with_a_teacher_it_is_that_of_the_student() -> None:
    hidden, table, targets = case()

    def both(table: Any, weight: float) -> tuple[jax.Array, jax.Array]:
        heads = Partial(unembed, table), Partial(unembed, jax.lax.stop_gradient(table[::-1]))
        soft, options = SoftLoss("forward_kl", 0.5, 2.0), {"vocabulary": VOCABULARY, "smoothing": 0.0, "z_loss": weight}
        return target_and_distillation_losses(*heads, hidden, hidden, targets, soft=soft, **options)

    with_it, without = (jax.grad(lambda table, weight=weight: both(table, weight)[0].sum())(table) for weight in (WEIGHT, 0.0))
    penalty = reference(hidden, table, targets, 0.0, WEIGHT)[2] - reference(hidden, table, targets, 0.0, 0.0)[2]
    np.testing.assert_allclose((with_it - without)[:VOCABULARY], penalty, atol=1e-5 * np.abs(penalty).max())
    for one, other in zip(both(table, WEIGHT), both(table, 0.0), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["causal", pytest.param("masked", marks=pytest.mark.slow)])
def test_objectives_of_tokens_have_it(name: str) -> None:
    changes = {"model": dataclasses.replace(BERT, task="masked"), "tokenizer": Tokenizer(kind="wordpiece", vocab=BERT.vocab)}
    run = tiny.run(name, **(changes if name == "masked" else {}))
    run = synthetic_batch.resolve_config(dataclasses.replace(run, precision="float32"))
    shapes, net, kind = synthetic_batch.batch(run), model(run.model), objective(run.objective)
    batch = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    params = net.init(jax.random.key(0))

    def total(params: Any, weight: float) -> jax.Array:
        options: dict[str, Any] = {"seeds": None, "carry": {}, "smoothing": 0.0, "chunk": 0}
        return sum(kind().with_z_loss(weight).loss(net, params, batch, {}, **options)[0].values())  # pyright: ignore[reportReturnType]

    values, grads = zip(*(jax.value_and_grad(total)(params, weight) for weight in (0.0, WEIGHT)), strict=True)
    assert values[0] == values[1]
    assert any((one != other).any() for one, other in zip(*map(jax.tree.leaves, grads), strict=True))


@pytest.mark.parametrize("recipe", ["finetune-classification", "finetune-span", "dpo", "kto", "grpo", "ppo", "reward-model"])
def test_objectives_without_it_refuse_it(recipe: str) -> None:
    run = dataclasses.replace(recipes.recipe_run(recipe, ""), z_loss=1e-4)
    with pytest.raises(BadInput, match=f"--z-loss 0.0001: the loss of {run.objective} has no log-normalizer over the vocabulary"):
        check_run(run)


def test_a_loss_of_tokens_without_weight_refuses_it() -> None:
    run = recipes.recipe_run("gpt-nano", "")
    teacher = dataclasses.replace(run.options.distillation, teacher="x", targets=0.0)
    options = dataclasses.replace(run.options, distillation=teacher)
    with pytest.raises(BadInput, match=r"--z-loss 0.0001: it is a part of the loss of the tokens, whose weight"):
        check_run(dataclasses.replace(run, options=options, z_loss=1e-4))
