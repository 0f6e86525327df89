"""Distillation: the triple loss against its definition, what a student begins with, and what cannot teach whom."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import tiny
from tests.support.small import random_params, small
from train.config import run_config
from train.config.data_options import EncoderData
from train.config.distillation_options import TripleLoss
from train.engine import device_mesh, optim, state_init
from train.objectives.distilled import Distilled, student_layers
from train.weights.teacher import Teacher, check_teacher
from zoo.batch import Batch
from zoo.errors import BadInput

MESH = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
LENGTHS = np.array([7, 4])
SEGMENTS = (np.arange(8) < LENGTHS[:, None]).astype(np.int32)


def batch() -> Batch:
    rng = np.random.default_rng(0)
    return Batch(
        tokens=jnp.asarray(np.where(SEGMENTS, rng.integers(5, 300, SEGMENTS.shape), 0), jnp.int32),
        segments=jnp.asarray(SEGMENTS),
        predict_at=jnp.array([[2, 5, 0], [1, 0, 0]], jnp.int32),
        targets=jnp.array([[17, 40, 0], [9, 0, 0]], jnp.int32),
        weights=jnp.array([[1, 1, 0], [1, 0, 0]], jnp.float32),
    )


@functools.cache
def pair(**chosen: Any) -> tuple[Any, Any, Distilled]:
    """(student, its parameters, the objective with a teacher)."""
    teacher, student = small("bert", layers=4), small("distilbert")
    given = random_params(teacher)
    options = TripleLoss(teacher="x", **chosen)
    return student, random_params(student), Distilled(Teacher(teacher, given, options, None if options.fresh else given, MESH))


def teacher_of(goal: Distilled) -> Teacher:
    assert goal.teacher is not None
    return goal.teacher


def options_of(goal: Distilled) -> TripleLoss:
    options = teacher_of(goal).options
    assert isinstance(options, TripleLoss)
    return options


def losses(student: Any, params: Any, goal: Distilled, chunk: int) -> dict[str, float]:
    options = dict(seeds=None, carry={}, smoothing=0.0, chunk=chunk)
    terms, _ = jax.jit(lambda p, f: goal.loss(student, p, batch(), f, **options))(params, goal.frozen_inputs())
    weights = goal.weights(batch())
    return {name: float(terms[name] / weights[name]) for name in terms}


@functools.cache
def outputs() -> list[tuple[np.ndarray, np.ndarray]]:
    """(logits, hidden states) of student and teacher."""
    student, params, goal = pair()

    def output(net: Any, params: Any) -> Any:
        hidden = net.apply(params, batch()).hidden
        return net.unembed(params, hidden)[..., :300], hidden

    both = ((student, params), (teacher_of(goal).model, goal.frozen_inputs()))
    return [jax.tree.map(np.float64, jax.jit(output, static_argnums=0)(*of)) for of in both]


def by_hand(chosen: TripleLoss, at: np.ndarray) -> dict[str, float]:
    """The three losses in float64 from both models' logits and hidden states; `at` says where the teacher is followed."""

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    logits, (a, b) = zip(*outputs(), strict=True)
    q, p = (log_softmax(each / chosen.temperature) for each in logits)
    divergence = (np.exp(p) * (p - q)).sum(-1)
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    one = batch()
    nats = [-log_softmax(logits[0])[r, one.predict_at[r, i], one.targets[r, i]] for r, i in ((0, 0), (0, 1), (1, 0))]
    return {
        "masked": chosen.masked * np.mean(nats),
        "soft": chosen.soft * chosen.temperature**2 * divergence[at].mean(),
        "cosine": chosen.cosine * (1 - cosine)[at].mean(),
    }


@pytest.mark.planted(2)
@pytest.mark.parametrize(("masked_only", "chunk"), [(False, 2), pytest.param(True, 0, marks=pytest.mark.full)])
def test_the_triple_loss_is_its_definition(masked_only: bool, chunk: int) -> None:
    student, params, goal = pair(masked_only=masked_only, temperature=1.5, soft=3.0, masked=2.0, cosine=0.5)
    at = SEGMENTS > 0
    if masked_only:
        at = np.zeros_like(at)
        at[0, [2, 5]] = at[1, 1] = True
    computed = losses(student, params, goal, chunk)
    assert computed == pytest.approx(by_hand(options_of(goal), at), rel=2e-5)
    # Padding that counted, or another temperature, would be seen.
    assert computed["soft"] != pytest.approx(by_hand(options_of(goal), np.ones_like(at))["soft"], rel=1e-3)
    assert computed["soft"] != pytest.approx(
        by_hand(dataclasses.replace(options_of(goal), temperature=2.0), at)["soft"], rel=1e-3
    )


@pytest.mark.full
def test_the_teacher_gets_no_gradient_and_the_student_the_true_one() -> None:
    student, params, goal = pair()

    def total(p: Any, f: Any) -> jax.Array:
        terms, _ = goal.loss(student, p, batch(), f, seeds=None, carry={}, smoothing=0.0, chunk=0)
        weights = goal.weights(batch())
        return sum(terms[name] / weights[name] for name in terms)

    ours, theirs = jax.jit(jax.grad(total, argnums=(0, 1)))(params, goal.frozen_inputs())
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(theirs))
    # Along a direction, against a difference quotient.
    rng = np.random.default_rng(1)
    step = jax.tree.map(lambda leaf: jnp.float32(rng.standard_normal(leaf.shape)), params)
    h = 1e-3
    there, back = (jax.jit(total)(jax.tree.map(lambda p, s, k=k: p + k * s, params, step), goal.frozen_inputs()) for k in (h, -h))
    slope = sum(float((g * s).sum()) for g, s in zip(jax.tree.leaves(ours), jax.tree.leaves(step), strict=True))
    assert float(there - back) / (2 * h) == pytest.approx(slope, rel=2e-2)


def test_a_student_begins_as_its_teacher() -> None:
    assert student_layers(12, 6) == [0, 2, 4, 7, 9, 11]  # as the released one took them
    student, params, goal = pair()
    begun = goal.initial_params(student, None)
    assert jax.tree.structure(begun) == jax.tree.structure(params)
    for path in (("embed", "tokens", "embedding"), ("embed", "norm", "scale"), ("masked", "dense", "kernel")):
        ours, theirs = begun, teacher_of(goal).params
        for name in path:
            ours, theirs = ours[name], theirs[name]
        np.testing.assert_array_equal(ours, theirs)
    kernel = teacher_of(goal).params["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(begun["layers"]["mlp"]["up"]["kernel"], kernel[np.array([0, 3])])
    assert goal.initial_params(student, params) is params


@pytest.mark.planted
def test_a_student_takes_no_layers_from_a_part_of_its_teachers() -> None:
    """ModernBERT's stack lacks the first layer, so that numbers of layers would name others, and the last be clamped."""
    teacher, student = small("modernbert", layers=4), small("distilbert")
    given = random_params(teacher)
    goal = Distilled(Teacher(teacher, given, TripleLoss(teacher="x"), given, MESH))
    begun, kernel = goal.initial_params(student, None), given["layers"]["attention"]["qkv"]["kernel"]
    assert begun["layers"]["attention"]["qkv"]["kernel"].shape == kernel[jnp.array([0, 3])].shape
    # Fresh kernels are cut off at 0.04.
    assert np.abs(begun["layers"]["attention"]["qkv"]["kernel"]).max() <= 0.04 < np.abs(kernel).max()
    np.testing.assert_array_equal(begun["embed"]["tokens"]["embedding"], given["embed"]["tokens"]["embedding"])


def test_a_student_of_modernbert_takes_layers_of_both_stacks() -> None:
    teacher, student = small("modernbert", layers=4), small("modernbert", layers=2)
    given = random_params(teacher)
    begun = Distilled(Teacher(teacher, given, TripleLoss(teacher="x"), given, MESH)).initial_params(student, None)
    last = given | {"layers": jax.tree.map(lambda leaf: leaf[-1:], given["layers"])}
    chex.assert_trees_all_equal(begun, last)


def test_a_fresh_student_begins_with_the_random_parameters_of_its_seed() -> None:
    student, params, goal = pair(fresh=True)
    assert goal.initial_params(student, None) is None
    assert goal.initial_params(student, params) is params
    run = tiny.run("distilled", model=student.config, distillation=options_of(goal), data=EncoderData(length=8, batch=8))
    tx = optim.make_optimizer(run.optim)
    begun = state_init.init_state(run, student, tx, MESH, goal.initial_params(student, None)).params
    # Two programs may round the last bits of a random number differently.
    chex.assert_trees_all_close(begun, jax.jit(student.init)(jax.random.key(run.seed)), rtol=1e-6)
    # It may be deeper than its teacher, but cannot also start from other weights.
    deeper = dataclasses.replace(run, model=dataclasses.replace(run.model, layers=5))
    check_teacher(deeper, teacher_of(goal).model.config, has_head=True)
    copying = tiny.with_options(deeper, distillation=TripleLoss(teacher="x"))
    with pytest.raises(BadInput, match=r"--model\.layers 5: it starts from the layers of its teacher, which has 4"):
        check_teacher(copying, teacher_of(goal).model.config, has_head=True)
    with pytest.raises(BadInput, match=r"--distillation\.fresh True: the student starts from --init x"):
        run.options.check_run(dataclasses.replace(run, init="x"))


def test_flops_are_those_of_both_models() -> None:
    student, _, goal = pair()
    everywhere = dataclasses.replace(batch(), predict_at=None)
    assert goal.flops(student, batch()) == 3 * student.flops(everywhere) + teacher_of(goal).model.flops(everywhere)
