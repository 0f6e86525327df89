"""Students of a teacher, of the same family or of another one: losses by their definition, gradients, meshes, and refusals."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import tiny
from tests.support.enumeration import float64
from tests.support.gradients import assert_equal_gradients
from tests.support.preference_steps import MESH_CASES, MESHES, first_steps
from tests.support.small import random_params, small
from tests.support.toy_policy import wide
from train import objectives
from train.config import run_config
from train.config.data_options import CausalData
from train.config.distillation_options import Distillation, StoredDistillation, TripleLoss
from train.config.find_objective import find_options
from train.engine import device_mesh
from train.objectives.causal import Causal
from train.objectives.student import PROJECTION, StudentObjective
from train.parametrization import parametrization_of
from train.weights.teacher import Teacher, check_teacher
from zoo import sharding
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.models import Model
from zoo.nn.task_heads import predicting_states

MESH = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
VOCABULARY, ROWS, LENGTH = 11, 8, 8
LENGTHS = np.array([8, 5, 6, 7, 3, 8, 4, 6])
SEGMENTS = (np.arange(LENGTH) < LENGTHS[:, None]).astype(np.int32)
OPTIONS: dict[str, Any] = dict(seeds=None, carry={}, smoothing=0.0)
CASES = [
    pytest.param("causal", "gpt", "llama"),
    pytest.param("text_to_text", "transformer", "t5"),
    pytest.param("distilled", "distilbert", "bert"),
    pytest.param("permutation", "xlnet", "xlnet"),
    pytest.param("distilled", "modernbert", "modernbert", marks=pytest.mark.slow),
    pytest.param("instruction", "llama", "gpt_oss", marks=pytest.mark.full),
    pytest.param("denoising", "t5", "t5", marks=pytest.mark.slow),
]
"""An objective, the family of the student, and that of the teacher."""
GRADIENTS = [CASES[0], *(pytest.param(*case.values, marks=pytest.mark.slow) for case in CASES[1:3])]


def batch(net: Model) -> Batch:
    """Return rows of different lengths, of which the first token is not predicted; of an encoder, two tokens of each are."""
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(1, VOCABULARY, (2, ROWS, LENGTH))
    weights = SEGMENTS * (np.arange(LENGTH) > 0)
    fields = dict(tokens=tokens * SEGMENTS, segments=SEGMENTS, positions=SEGMENTS * np.arange(LENGTH), targets=targets)
    if net.task == "masked":
        fields |= {"predict_at": np.tile([1, 2], (ROWS, 1)), "targets": targets[:, :2]}
        weights = weights[:, 1:3] * np.array([1, 0] * (ROWS // 2))[:, None]
    if net.task == "permutation":
        order = np.argsort(rng.random((ROWS, LENGTH)), axis=1)
        fields |= {"order": order, "query_at": np.tile([3, 5, 1], (ROWS, 1)), "targets": targets[:, :3]}
        weights = SEGMENTS[:, [3, 5, 1]]
    arrays = {name: jnp.asarray(array, jnp.int32) for name, array in fields.items()}
    of_encoder = {name: arrays[name] for name in ("tokens", "segments", "positions")}
    source = Batch(**of_encoder | {"tokens": VOCABULARY - 1 - arrays["tokens"]}) if net.is_encoder_decoder else None
    index = jnp.arange(ROWS, dtype=jnp.uint32)
    return Batch(**arrays, weights=jnp.asarray(weights, jnp.float32), index=index, source=source)


def tiny_model(family: str, **changes: Any) -> Model:
    """Return a model of 11 tokens with at least the given number of layers, and without a memory."""
    own = {"xlnet": {"memory": 0, "reuse": 0}, "modernbert": {"layers": max(2, changes.get("layers", 4))}}.get(family, {})
    return small(family, **{"vocab": VOCABULARY, **changes, **own})


@functools.cache
def taught(objective: str, student: str, teacher: str, **chosen: Any) -> tuple[Model, Any, StudentObjective]:
    """Return (a student, its parameters, the objective with a teacher of more layers, and of another width unless it is 32)."""
    width = chosen.pop("teacher_width", 16)
    net, of_teacher = tiny_model(student, layers=1), tiny_model(teacher, width=width)
    kind = TripleLoss if objective == "distilled" else Distillation
    options = kind(teacher="x", **({"fresh": True} if objective == "distilled" else {}), **chosen)
    kind_of_objective: Any = objectives.objective(objective)
    goal = kind_of_objective(Teacher(of_teacher, random_params(of_teacher), options, None, MESH))
    params = random_params(net)
    added = goal.added_params(net).init(jax.random.key(1))
    return net, params | added, goal


def loss(net: Model, goal: StudentObjective, params: Any, frozen: Any, rows: Batch, chunk: int = 0) -> Any:
    """Return (the loss, its terms), divided by their weights."""
    terms, _ = goal.loss(net, params, rows, frozen, chunk=chunk, **OPTIONS)
    weights = goal.weights(rows)
    assert terms.keys() == weights.keys()
    means = {name: term / weights[name] for name, term in terms.items()}
    return sum(means.values()), means


def by_hand(net: Model, goal: StudentObjective, params: Any, rows: Batch) -> dict[str, float]:
    """Return the terms from the logits of all tokens and the hidden states of both models, in float64 and by loops."""
    teacher = goal.teacher
    assert teacher is not None and rows.targets is not None and rows.weights is not None
    options: Any = teacher.options
    out = net.apply(params, rows), teacher.model.apply(teacher.frozen, rows)
    states = [np.float64(o.hidden if goal.follows_all_tokens else predicting_states(o, rows)) for o in out]
    logits = [
        np.float64(of.unembed(parts, jnp.asarray(hidden, jnp.float32)))[..., :VOCABULARY]
        for of, parts, hidden in zip((net, teacher.model), (params, teacher.frozen), states, strict=True)
    ]
    own = np.float64(net.unembed(params, predicting_states(out[0], rows)))[..., :VOCABULARY]
    followed = np.float64(SEGMENTS if goal.follows_all_tokens else rows.weights)

    def log_softmax(x: np.ndarray) -> np.ndarray:
        return x - np.log(np.exp(x - x.max()).sum()) - x.max()

    def kl(a: np.ndarray, b: np.ndarray) -> float:
        return float((np.exp(a) * (a - b)).sum())

    sums = dict.fromkeys(("targets", "soft", "cosine"), 0.0)
    for at in np.ndindex(rows.targets.shape):
        sums["targets"] -= float(rows.weights[at]) * log_softmax(own[at])[int(rows.targets[at])]
    for at in np.ndindex(followed.shape):
        q, p = (log_softmax(side[at] / options.temperature) for side in logits)
        mixture = np.log(options.beta * np.exp(p) + (1 - options.beta) * np.exp(q))
        both = options.beta * kl(p, mixture) + (1 - options.beta) * kl(q, mixture)
        sums["soft"] += followed[at] * {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": both}[options.divergence]
        a, b = states[0][at], states[1][at]
        a = a @ np.float64(params[PROJECTION]["kernel"]) if PROJECTION in params else a
        sums["cosine"] += followed[at] * (1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)) if len(a) == len(b) else 0.0
    terms = {
        goal.target_term: options.targets * sums["targets"] / np.float64(rows.weights).sum(),
        "soft": options.soft * options.temperature**2 * sums["soft"] / followed.sum(),
        "cosine": options.cosine * sums["cosine"] / followed.sum(),
    }
    return {name: float(term) for name, term in terms.items() if name == goal.target_term or getattr(options, name)}


@pytest.mark.planted(3)
@pytest.mark.parametrize("divergence", ["jsd", pytest.param("reverse_kl", marks=pytest.mark.full)])
@pytest.mark.parametrize(("objective", "student", "teacher"), CASES)
def test_the_terms_are_their_definition(objective: str, student: str, teacher: str, divergence: str) -> None:
    beta = {"beta": 0.3} if divergence == "jsd" else {}
    weight = "masked" if objective == "distilled" else "targets"
    chosen: dict[str, Any] = dict(divergence=divergence, temperature=1.5, soft=3.0, cosine=0.5, **beta) | {weight: 0.25}
    net, params, goal = taught(objective, student, teacher, **chosen)
    rows, of_teacher = batch(net), goal.teacher
    assert of_teacher is not None and params[PROJECTION]["kernel"].shape == (32, 16)
    terms = jax.jit(lambda p, f: loss(net, goal, p, f, rows, 3)[1])(params, of_teacher.frozen)
    exact = by_hand(net, goal, params, rows)
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(exact, rel=2e-5)
    # Another divergence, temperature or weight of padding would be seen.
    for change in ({"divergence": "forward_kl", "beta": 0.5}, {"temperature": 1.0}):
        other = dataclasses.replace(of_teacher, options=dataclasses.replace(of_teacher.options, **change))
        assert by_hand(net, dataclasses.replace(goal, teacher=other), params, rows)["soft"] != pytest.approx(exact["soft"], 1e-3)
    padded = dataclasses.replace(rows, weights=jnp.ones_like(rows.weights))
    assert by_hand(net, goal, params, padded)[goal.target_term] != pytest.approx(exact[goal.target_term], rel=1e-3)


@pytest.mark.parametrize(("objective", "student", "teacher"), GRADIENTS)
def test_the_gradient_is_a_difference_quotient_and_the_teacher_has_none(objective: str, student: str, teacher: str) -> None:
    """In float64, along a random direction, by parts and all at once."""
    net, params, goal = taught(objective, student, teacher, divergence="jsd", beta=0.3, temperature=1.5, cosine=1.0)
    with float64():
        params, frozen, rows = wide(params), wide(goal.frozen_inputs()), wide(batch(net))
        rng = np.random.default_rng(1)
        direction = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)), params)

        def along(step: float, frozen: Any, chunk: int) -> jax.Array:
            moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
            return loss(net, goal, moved, frozen, rows, chunk)[0]

        for chunk in (0, 3):
            value = jax.jit(functools.partial(along, chunk=chunk))
            slope, of_teacher = jax.jit(jax.grad(functools.partial(along, chunk=chunk), argnums=(0, 1)))(0.0, frozen)
            # Small enough that no unit of a ReLU changes its sign.
            h = 1e-7
            quotient = (value(h, frozen) - value(-h, frozen)) / (2 * h)
            assert float(quotient) == pytest.approx(float(slope), rel=2e-6)
            assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(of_teacher))


# --- the step -------------------------------------------------------------------------------------------------------------------


def steps(objective: str, student: str, teacher: str, **changes: Any) -> tuple[list[float], Any]:
    """Return the losses of three steps and the first gradient, with a projection, by parts of 4 positions."""
    net, _, goal = taught(objective, student, teacher, divergence="jsd", beta=0.3, temperature=1.5, cosine=1.0)
    assert goal.teacher is not None
    kind: Any = find_options(objective)
    data = kind.data(length=LENGTH, batch=ROWS)
    run = tiny.run(objective, model=net.config, data=data, loss_chunk=4, **changes)
    mesh = device_mesh.make_mesh(run.mesh, jax.devices()[: run.mesh.data * run.mesh.fsdp * run.mesh.tensor])
    places = sharding.shardings(mesh, goal.teacher.frozen, goal.teacher.model.definition.sharding)
    sharded = dataclasses.replace(goal.teacher, frozen=jax.device_put(goal.teacher.frozen, places))
    return first_steps(run, dataclasses.replace(goal, teacher=sharded), batch(net))


@functools.cache
def on_one_device(objective: str, student: str, teacher: str) -> tuple[list[float], Any]:
    return steps(objective, student, teacher, mesh=run_config.Mesh(data=1))


@pytest.mark.parametrize("division", MESH_CASES)
@pytest.mark.parametrize(("objective", "student", "teacher"), GRADIENTS)
def test_a_step_does_not_depend_on_micro_batches_and_devices(objective: str, student: str, teacher: str, division: str) -> None:
    """The teacher is sharded as the student is."""
    losses, gradient = steps(objective, student, teacher, **MESHES[division])
    expected = on_one_device(objective, student, teacher)
    assert losses == pytest.approx(expected[0], rel=1e-5)
    assert_equal_gradients(gradient, expected[1])
    assert np.asarray(gradient[PROJECTION]["kernel"]).any()


def test_the_projection_is_trained_beside_the_model_and_not_part_of_it() -> None:
    net, _, goal = taught("causal", "gpt", "llama", cosine=1.0)
    run = tiny.run(model=net.config, data=CausalData(length=LENGTH, batch=ROWS), mesh=run_config.Mesh(fsdp=2, data=1))
    mesh = device_mesh.make_mesh(run.mesh, jax.devices()[:2])
    parameters = parametrization_of(run, goal, mesh)
    params = jax.eval_shape(lambda: parameters.trained.init(jax.random.key(0)))
    assert params.pop(PROJECTION)["kernel"].shape == (32, 16)
    assert parameters.without_added({**params, PROJECTION: None}).keys() == params.keys()
    # None without a loss of hidden states, or between equal widths.
    for chosen in ({"cosine": 0.0}, {"cosine": 1.0, "teacher_width": 32}):
        _, params, other = taught("causal", "gpt", "llama", **chosen)
        assert PROJECTION not in params
        terms = loss(net, other, params, other.frozen_inputs(), batch(net))[1]
        assert ("cosine" in terms) == (chosen["cosine"] > 0)


def test_without_a_teacher_the_loss_is_that_of_the_objective_alone() -> None:
    net, params, goal = taught("causal", "gpt", "llama")
    alone, rows = Causal(), batch(net)
    assert alone.frozen_inputs() == {} and alone.added_params(net).init(jax.random.key(0)) == {}
    (value, terms), of_pair = loss(net, alone, params, {}, rows), loss(net, goal, params, goal.frozen_inputs(), rows)[1]
    assert terms.keys() == {"causal"} and of_pair.keys() == {"causal", "soft"}
    assert float(value) == pytest.approx(float(of_pair["causal"]), rel=1e-6)
    assert goal.teacher is not None
    assert goal.flops(net, rows) == alone.flops(net, rows) + goal.teacher.model.flops(rows)


# --- refusals -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "student", "teacher", "changes", "message"),
    [
        ("causal", "gpt", "llama", {"vocab": 12}, r"--model\.vocab 11: its teacher has 12; choose the same"),
        ("causal", "gpt", "bert", {}, r"--distillation\.teacher x: it has no head for the tokens of causal"),
        ("text_to_text", "transformer", "gpt", {}, r"--distillation\.teacher x: it has no head for the tokens of text_to_text"),
        (
            "causal",
            "gpt",
            "llama",
            {"labels": ("reward",)},
            r"--distillation\.teacher x: it has no head for the tokens of causal",
        ),
        (
            "denoising",
            "t5",
            "t5",
            {"architecture": "decoder"},
            r"--distillation\.teacher x: the student has an encoder and it has none",
        ),
        ("distilled", "distilbert", "bert", {"causal": True}, r"--distillation\.teacher x: its tokens see one side only"),
        (
            "permutation",
            "xlnet",
            "xlnet",
            {"memory": 4},
            r"--distillation\.teacher x: it remembers 4 positions of the rows",
        ),
        ("causal", "llama", "gpt", {"context": 6}, r"--data\.length 8: its teacher has 6 positions; choose at most as many"),
    ],
)
def test_a_teacher_that_cannot_teach_the_student_is_refused(
    objective: str, student: str, teacher: str, changes: Any, message: str
) -> None:
    kind: Any = find_options(objective)
    own = {"fresh": True} if objective == "distilled" else {}
    options = type(kind().distillation)(teacher="x", **own)
    model = tiny_model(student).config
    run = tiny.run(objective, model=model, data=kind.data(length=LENGTH, batch=ROWS), distillation=options)
    with pytest.raises(BadInput, match=message):
        check_teacher(run, dataclasses.replace(tiny_model(teacher).config, **changes), has_head=True)
    check_teacher(run, tiny_model(student, layers=1).config, has_head=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"soft": 2.0},
            r"--distillation\.soft 2\.0: there is no teacher; name one by --distillation\.teacher, or leave this out",
        ),
        ({"divergence": "jsd"}, r"--distillation\.divergence jsd: there is no teacher"),
        (
            {"teacher": "x", "soft": 0.0},
            r"--distillation\.soft 0\.0: nothing is learned from the teacher; choose a weight above 0",
        ),
    ],
)
def test_options_without_a_teacher_and_a_teacher_without_use_are_refused(options: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        objectives.check_run(tiny.run(distillation=StoredDistillation(**options)))


def test_an_objective_with_another_loss_takes_no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in's class may compute its loss without the teacher, which would then be ignored."""
    run = tiny.run(distillation=StoredDistillation(teacher="x"))
    objectives.check_run(run)
    monkeypatch.setattr(Causal, "loss", lambda self, *arguments, **options: ({}, {}))
    with pytest.raises(BadInput, match=r"--distillation\.teacher x: causal computes its loss without one; leave it out"):
        objectives.check_run(run)
    objectives.check_run(tiny.run())
