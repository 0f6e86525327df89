"""Divergences of a student from its teacher: values and gradients against enumeration in float64, by parts and on a mesh."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from train.config import run_config
from train.config.distillation_options import Distillation
from train.engine import device_mesh
from train.engine.losses import SoftLoss, distillation_losses, target_and_distillation_losses, token_losses
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.nn.layers import tied_logits

KINDS = (("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.1), ("jsd", 0.5), ("jsd", 0.9))
VOCABULARY, ROWS, B, T, WIDTH, TEACHER_WIDTH = 7, 128, 8, 12, 6, 4
TEMPERATURE = 1.7


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def expectation(p: np.ndarray, q: np.ndarray, kind: str, beta: float) -> float:
    """Return the divergence of one distribution, token by token, from the definition."""
    mixture = beta * p + (1 - beta) * q
    total = 0.0
    for i in range(len(p)):
        if kind == "forward_kl":
            total += p[i] * np.log(p[i] / q[i])
        elif kind == "reverse_kl":
            total += q[i] * np.log(q[i] / p[i])
        else:
            total += beta * p[i] * np.log(p[i] / mixture[i]) + (1 - beta) * q[i] * np.log(q[i] / mixture[i])
    return float(total)


def slope(p: np.ndarray, q: np.ndarray, kind: str, beta: float) -> np.ndarray:
    """Return the gradient to the student's logits divided by the temperature: the sum over tokens i of dD/dq_i dq_i/ds_k."""
    mixture = beta * p + (1 - beta) * q
    of_q = {"forward_kl": -p / q, "reverse_kl": np.log(q / p) + 1, "jsd": (1 - beta) * np.log(q / mixture)}[kind]
    gradient = np.zeros_like(q)
    for i, k in itertools.product(range(len(q)), repeat=2):
        gradient[k] += of_q[i] * q[i] * ((i == k) - q[k])
    return gradient


def check_formulas(kind: str, beta: float, soft: SoftLoss) -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 3, (2, 5, VOCABULARY))
    with jax.enable_x64(True):
        loss = jax.jit(jax.vmap(jax.value_and_grad(soft)))
        values, gradients = map(np.asarray, loss(jnp.asarray(student), jnp.asarray(teacher)))
    assert values.dtype == gradients.dtype == np.float64
    q, p = softmax(student / TEMPERATURE), softmax(teacher / TEMPERATURE)
    exact = [expectation(*pair, kind, beta) for pair in zip(p, q, strict=True)]
    np.testing.assert_allclose(values, exact, rtol=1e-12, atol=1e-14)
    slopes = [slope(*pair, kind, beta) / TEMPERATURE for pair in zip(p, q, strict=True)]
    np.testing.assert_allclose(gradients, slopes, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_values_and_gradients_are_the_sums_over_the_vocabulary(kind: Any, beta: float) -> None:
    check_formulas(kind, beta, SoftLoss(kind, beta, TEMPERATURE))


@pytest.mark.planted(3)
@pytest.mark.parametrize("wrong", [SoftLoss("reverse_kl", 0.1, TEMPERATURE), SoftLoss("jsd", 0.9, TEMPERATURE)])
def test_exchanged_distributions_and_another_temperature_are_noticed(wrong: SoftLoss) -> None:
    with pytest.raises(AssertionError):
        check_formulas("forward_kl" if wrong.divergence == "reverse_kl" else "jsd", 0.1, wrong)
    with pytest.raises(AssertionError):
        check_formulas(wrong.divergence, wrong.beta, SoftLoss(wrong.divergence, wrong.beta, 1.0))


def test_equal_distributions_and_the_limits_of_jsd() -> None:
    """Agarwal et al. 2024, section 2: jsd / beta tends to the forward KL divergence; by symmetry its other end is the reverse."""
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        student, teacher = map(jnp.asarray, rng.normal(0, 2, (2, 3, VOCABULARY)))
        for kind, beta in KINDS:
            values, gradients = jax.vmap(jax.value_and_grad(SoftLoss(kind, beta, 1.0)))(student, student)
            assert np.abs(values).max() < 1e-14 and np.abs(gradients).max() < 1e-14
        small = 1e-6
        for end, kind in ((small, "forward_kl"), (1 - small, "reverse_kl")):
            np.testing.assert_allclose(
                SoftLoss("jsd", end, 1.0)(student, teacher) / small, SoftLoss(kind, 0.5, 1.0)(student, teacher), rtol=1e-3
            )


# --- through the vocabulary's projection ----------------------------------------------------------------------------------------


def arrays() -> tuple[Any, ...]:
    """Return hidden states and tables of both models, and targets; rows of a table beyond the vocabulary are padding."""
    rng = np.random.default_rng(2)
    states = [rng.normal(size=(B, T, width)).astype(np.float32) for width in (WIDTH, TEACHER_WIDTH)]
    tables = [rng.normal(size=(ROWS, width)).astype(np.float32) for width in (WIDTH, TEACHER_WIDTH)]
    return *states, *tables, rng.integers(0, VOCABULARY, (B, T)).astype(np.int32)


def summed(soft: SoftLoss, chunk: int) -> Any:
    """Return the function from `arrays` to the sum of both losses, weighted differently at each position."""
    weights = jnp.asarray(np.linspace(0.5, 2, B * T).reshape(B, T), jnp.float32)

    def loss(hidden: Any, teacher_hidden: Any, table: Any, teacher_table: Any, targets: Any) -> Any:
        heads = [Partial(lambda table, h: tied_logits(h, table, VOCABULARY), table) for table in (table, teacher_table)]
        nats, divergences = target_and_distillation_losses(
            *heads, hidden, teacher_hidden, targets, soft=soft, vocabulary=VOCABULARY, smoothing=0.1, chunk=chunk
        )
        return ((nats + 3 * divergences) * weights).sum()

    return loss


def by_enumeration(kind: str, beta: float) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the same in float64, and its gradients to the student's hidden states and table, position by position."""
    hidden, teacher_hidden, table, teacher_table, targets = (np.float64(x) if x.dtype != np.int32 else x for x in arrays())
    table, teacher_table = table[:VOCABULARY], teacher_table[:VOCABULARY]
    weights, smoothed = np.linspace(0.5, 2, B * T).reshape(B, T), np.full((B, T, VOCABULARY), 0.1 / VOCABULARY)
    total, of_hidden, of_table = 0.0, np.zeros_like(hidden), np.zeros_like(table)
    for at in itertools.product(range(B), range(T)):
        smoothed[at][targets[at]] += 0.9
        logits, teacher_logits = table @ hidden[at], teacher_table @ teacher_hidden[at]
        q, p = softmax(logits / TEMPERATURE), softmax(teacher_logits / TEMPERATURE)
        total += weights[at] * (-(smoothed[at] * np.log(softmax(logits))).sum() + 3 * expectation(p, q, kind, beta))
        of_logits = weights[at] * (softmax(logits) - smoothed[at] + 3 * slope(p, q, kind, beta) / TEMPERATURE)
        of_hidden[at] = of_logits @ table
        of_table += np.outer(of_logits, hidden[at])
    return total, of_hidden, of_table


def check_projected(kind: Any, beta: float, chunk: int, mesh: Any = None) -> None:
    inputs = arrays()
    loss = jax.jit(jax.value_and_grad(summed(SoftLoss(kind, beta, TEMPERATURE), chunk), argnums=(0, 1, 2, 3)))
    if mesh is None:
        value, gradients = loss(*inputs)
    else:
        rows = device_mesh.shard_batch(Batch(tokens=inputs[4], extra={"a": inputs[0], "b": inputs[1]}), mesh, B)
        assert rows.extra is not None
        with jax.set_mesh(mesh):
            value, gradients = loss(rows.extra["a"], rows.extra["b"], inputs[2], inputs[3], rows.tokens)
    exact = by_enumeration(kind, beta)
    assert float(value) == pytest.approx(exact[0], rel=1e-5)
    for computed, expected in zip((gradients[0], gradients[2][:VOCABULARY]), exact[1:], strict=True):
        np.testing.assert_allclose(computed, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    # Neither the teacher nor the padding of the table gets a gradient.
    assert not any(np.asarray(gradient).any() for gradient in (gradients[1], gradients[3], gradients[2][VOCABULARY:]))


@pytest.mark.parametrize("chunk", [0, 5])
@pytest.mark.parametrize(("kind", "beta"), [KINDS[1], pytest.param(*KINDS[0], marks=pytest.mark.full), KINDS[2]])
def test_losses_of_projected_states_are_the_sums_over_positions_and_tokens(kind: Any, beta: float, chunk: int) -> None:
    check_projected(kind, beta, chunk)


@pytest.mark.parametrize("chunk", [pytest.param(0, marks=pytest.mark.full), 3])
def test_they_are_the_same_on_a_mesh(chunk: int) -> None:
    axes = run_config.Mesh(data=2, fsdp=2, sequence=2)
    check_projected("jsd", 0.1, chunk, device_mesh.make_mesh(axes, jax.devices()[:8]))


@pytest.mark.planted
def test_a_target_of_another_token_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    *others, targets = arrays()
    targets[0, 0] = (targets[0, 0] + 1) % VOCABULARY
    exact = by_enumeration("jsd", 0.1)
    monkeypatch.setitem(globals(), "arrays", lambda: (*others, targets))
    monkeypatch.setitem(globals(), "by_enumeration", lambda kind, beta: exact)
    with pytest.raises(AssertionError):
        check_projected("jsd", 0.1, 0)


def test_both_losses_at_once_are_the_losses_alone() -> None:
    hidden, teacher_hidden, table, teacher_table, targets = map(jnp.asarray, arrays())
    heads = [Partial(lambda table, h: tied_logits(h, table, VOCABULARY), table) for table in (table, teacher_table)]
    soft = SoftLoss("forward_kl", 0.5, 2.0)
    options: dict[str, Any] = {"vocabulary": VOCABULARY, "smoothing": 0.0, "chunk": 4}
    both = target_and_distillation_losses(*heads, hidden, teacher_hidden, targets, soft=soft, **options)
    alone = (
        token_losses(heads[0], hidden, targets, **options),
        distillation_losses(*heads, hidden, teacher_hidden, soft=soft, chunk=4),
    )
    for computed, expected in zip(both, alone, strict=True):
        np.testing.assert_allclose(computed, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.planted
def test_by_parts_no_array_has_the_logits_of_all_positions() -> None:
    """Neither the student's nor the teacher's; all at once the check fails."""

    def sizes(chunk: int) -> set[int]:
        loss = jax.value_and_grad(summed(SoftLoss("jsd", 0.1, TEMPERATURE), chunk), argnums=(0, 2))
        jaxpr = jax.make_jaxpr(loss)(*arrays())
        return {size for size in _sizes(jaxpr.jaxpr)}

    assert max(sizes(0)) >= B * T * ROWS
    assert max(sizes(3)) < B * T * ROWS / 2


def _sizes(jaxpr: Any) -> Any:
    """Yield the number of elements of every array that is computed, also inside of loops."""
    for equation in jaxpr.eqns:
        yield from (int(np.prod(variable.aval.shape)) for variable in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _sizes(inner)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.3}, r"--distillation\.beta 0\.3: it has no effect on forward_kl; remove it, or choose .*divergence jsd"),
        ({"divergence": "reverse_kl", "beta": 0.3}, r"--distillation\.beta 0\.3: it has no effect on reverse_kl"),
        ({"divergence": "jsd", "beta": 1.0}, r"--distillation\.beta 1\.0: choose a number between 0 and 1"),
        ({"soft": 0.0, "temperature": 2.0, "cosine": 1.0}, r"--distillation\.temperature 2\.0: it has no effect with .*soft 0"),
        ({"soft": 0.0, "divergence": "jsd", "cosine": 1.0}, r"--distillation\.divergence jsd: it has no effect with .*soft 0"),
        ({"targets": float("nan")}, r"--distillation\.targets nan: choose 0 \(off\) or a weight"),
    ],
)
def test_options_without_effect_are_refused_by_name(options: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Distillation(teacher="x", **options)
