"""On-policy distillation: exact expected gradients over all responses, batches of sampled responses, and runs that continue."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.tasks.held_out import scorers
from tests.support import preferences, published, tiny
from tests.support.enumeration import PREFIXES, TEXTS, float64
from tests.support.small import random_params, small
from tests.support.toy_policy import OPTIONS, error, toy
from train import objectives, trainer
from train.config import run_config
from train.config.data_options import DialogueData, PairData
from train.config.distillation_options import ResponseDistillation
from train.data.example_types import Dialogue, Message, Pair
from train.data.text_files import Document
from train.engine import device_mesh
from train.inputs.example_inputs import ExampleInputs
from train.inputs.instruction_inputs import rows_of_instructions
from train.inputs.seq2seq_inputs import rows_of_pairs
from train.objectives import objective
from train.objectives.instruction import Instruction
from train.objectives.response_student import ResponseStudent, check_one_kind
from train.rollouts.student_feed import StudentFeed, is_on_policy
from train.rows.batch_feed import FeedSource
from train.rows.batches import Batches
from train.rows.instruction_rows import PackedDialogue
from train.rows.mixture import Component, Mixture
from train.run import metrics_file
from train.run.run_dir import RunDir
from train.tokenizers.chat_token_ids import CountedIds
from train.tokenizers.tokenizer import Tokenizer
from train.weights.load import load_model
from train.weights.teacher import Teacher
from zoo.batch import Batch
from zoo.errors import BadInput

BYTES = Tokenizer.train([], 257)
TOKENS, ROWS = 6, 8
DIVERGENCES: list[dict[str, Any]] = [
    {"divergence": "forward_kl"},
    {"divergence": "reverse_kl"},
    *({"divergence": "jsd", "beta": beta} for beta in (0.1, 0.5, 0.9)),
]
ON_POLICY = ResponseDistillation(teacher="x", targets=0.0, on_policy=1.0, response_tokens=TOKENS)


# --- The expected gradient ------------------------------------------------------------------------------------------------------


def next_token_logits(net: Any, params: Any, texts: Batch) -> jax.Array:
    """Return the logits after each prefix [5, 3], each read from a text that begins with the prefix."""
    logits = net.unembed(params, net.apply(params, texts).hidden)[..., :3]
    rows = [next(n for n, text in enumerate(TEXTS) if len(text) > len(p) and text[: len(p)] == p) for p in PREFIXES]
    begins = [int(np.flatnonzero(np.asarray(texts.weights[row]))[0]) for row in rows]
    return logits[np.array(rows), np.array([begin + len(p) for begin, p in zip(begins, PREFIXES, strict=True)])]


def divergence(p: Any, q: Any, kind: str, beta: float = 0.5) -> Any:
    """Return Agarwal et al. 2024, section 2: the generalized divergence is equation 1, with the teacher's p and the student's q.

    TRL's `GKDTrainer.generalized_jsd_loss` computes the same.
    """

    def kl(a: Any, b: Any) -> Any:
        return (a * jnp.log(a / b)).sum(-1)

    mixture = beta * p + (1 - beta) * q
    return {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)}[kind]


def exact_loss(net: Any, params: Any, teacher: tuple[Any, Any], texts: Batch, options: Any, *, through: bool = False) -> Any:
    """Return the sum over prefixes of the probability that the student samples them times the divergence after them.

    Args:
        through: take the gradient through the sampling too.
    """
    probabilities = jax.nn.softmax(next_token_logits(net, params, texts))
    of_teacher = jax.nn.softmax(next_token_logits(*teacher, texts))
    sampled = probabilities if through else jax.lax.stop_gradient(probabilities)
    reached = jnp.stack(
        [
            math.prod((sampled[PREFIXES.index(prefix[:at]), prefix[at]] for at in range(len(prefix))), start=jnp.ones(()))
            for prefix in PREFIXES
        ]
    )
    return (reached * divergence(of_teacher, probabilities, options.divergence, options.beta)).sum()


def expected(net: Any, params: Any, teacher: tuple[Any, Any], texts: Batch, options: Any, sampling: Any) -> Any:
    """Return (loss, gradient) of the objective over all texts, each weighted by its probability under the `sampling` logits."""
    logs = jax.nn.log_softmax(sampling)
    probability = jnp.exp(
        jnp.stack([sum(logs[PREFIXES.index(text[:at]), token] for at, token in enumerate(text)) for text in TEXTS])
    )
    assert float(probability.sum()) == pytest.approx(1, abs=1e-12)
    weighted = dataclasses.replace(texts, weights=texts.weights * probability[:, None])
    mesh = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
    kind: Any = objective("text_to_text" if net.is_encoder_decoder else "instruction")
    student = kind(Teacher(teacher[0], teacher[1], options, None, mesh))

    def loss(params: Any) -> jax.Array:
        terms, _ = student.loss(net, params, weighted, teacher[1], **OPTIONS)
        assert terms.keys() == {student.target_term, "soft"}
        return sum(terms.values(), jnp.zeros(()))

    return jax.value_and_grad(loss)(params)


CASES = [("gpt", "llama"), pytest.param("t5", "t5", marks=pytest.mark.slow)]


@pytest.mark.planted(2)
@pytest.mark.parametrize(("student", "teacher"), CASES)
def test_the_expectation_over_all_responses_is_the_exact_gradient(student: str, teacher: str) -> None:
    """The divergences of the teacher, of another family, after each prefix that the student may sample."""
    with float64():
        net, params, other, texts = toy(student)
        of_teacher = (net, other) if teacher == student else toy(teacher)[:2]
        sampled = next_token_logits(net, params, texts)
        for chosen in DIVERGENCES:
            options = dataclasses.replace(ON_POLICY, **chosen)
            value, gradient = expected(net, params, of_teacher, texts, options, sampled)
            exact, true = jax.value_and_grad(exact_loss, 1)(net, params, of_teacher, texts, options)
            assert float(value) == pytest.approx(float(exact), rel=1e-10), chosen
            assert error(gradient, true, 1.0) <= 1e-10, chosen
        # Responses of the teacher, and a gradient through the sampling, are noticed.
        given = expected(net, params, of_teacher, texts, options, next_token_logits(*of_teacher, texts))[1]
        through = jax.grad(lambda p: exact_loss(net, p, of_teacher, texts, options, through=True))(params)
        assert error(given, true, 1.0) > 1e-2 and error(through, true, 1.0) > 1e-2


# --- The batches ----------------------------------------------------------------------------------------------------------------

EXAMPLES = [Pair(origin=f"p:{n}", source="ab" * (n + 1), target=f" c{n}") for n in range(5)]


def feed(family: str = "gpt", devices: int = 1, examples: Any = EXAMPLES, **changes: Any) -> tuple[StudentFeed, Any]:
    """Return the feed of batches of 8 examples, and its source."""
    encodes = family == "t5"
    tokenizer = preferences.tokenizer(family) if encodes else BYTES
    net = small(family, vocab=tokenizer.vocab_size, layers=1)
    options, data = dataclasses.replace(ON_POLICY, **changes), {"length": 20, "batch": ROWS}
    name = "text_to_text" if encodes else "instruction"
    run = tiny.run(
        name, model=net.config, distillation=options, data=(PairData if encodes else DialogueData)(**data), precision="float32"
    )
    rows = (rows_of_pairs if encodes else rows_of_instructions)(examples, run, tokenizer)
    inputs = ExampleInputs(tokenizer, Mixture((Component("p", 1.0, [Document("p", "")], rows),)), rows)
    mesh = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:devices])
    local, kind = device_mesh.local_rows(mesh, ROWS), objective(name)
    assert issubclass(kind, ResponseStudent)
    inputs = kind.extend_inputs(run, mesh, inputs, Path(), progress=lambda done, total: None)
    source = FeedSource(
        run=run,
        model=net,
        mesh=mesh,
        dtype=np.float32,
        data=inputs,
        batches=Batches(inputs.rows, kind.builder(run, tokenizer, inputs.counts), run.seed, ROWS, local),
        local=local,
        params=lambda state: state,
        saved={},
        folder=RunDir("absent"),
        process=1,
        notify=str,
        progress=str,
    )
    with kind().feed(source, 0) as opened:
        assert isinstance(opened, StudentFeed)
        return opened, source


def same(first: Batch, second: Batch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


@pytest.mark.parametrize("family", ["gpt", pytest.param("t5", marks=pytest.mark.full)])
def test_a_batch_has_sampled_responses_in_the_shapes_of_the_data(family: str) -> None:
    students, source = feed(family)
    params = random_params(source.model)
    batches = [students.batch(step, params) for step in range(2)]
    assert 1 <= students.metrics().values["response_length"] <= TOKENS
    for step, batch in enumerate(batches):
        given = source.batches.batch(step)
        shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(rows)] for rows in (batch, given)]
        assert shapes[0] == shapes[1] and jax.tree.structure(batch) == jax.tree.structure(given)
        np.testing.assert_array_equal(batch.index, given.index)
        assert batch.weights is not None and given.weights is not None
        for row in range(ROWS):
            counted, before = np.flatnonzero(batch.weights[row]), np.flatnonzero(given.weights[row])
            assert counted[0] == before[0] and np.ptp(counted) + 1 == len(counted) <= TOKENS
            np.testing.assert_array_equal(batch.tokens[row, : counted[0] + 1], given.tokens[row, : counted[0] + 1])
        assert not np.array_equal(batch.targets, given.targets)
    # They depend on the step, the seed and the parameters alone.
    again = feed(family)[0]
    assert same(again.batch(1, params), batches[1])
    changed = jax.tree.map(lambda leaf: 1.5 * leaf, params)
    assert not same(again.batch(1, changed), batches[1]) and not same(batches[0], batches[1])


@pytest.mark.full
def test_devices_change_no_response() -> None:
    params = random_params(small("gpt", vocab=257, layers=1))
    assert same(feed()[0].batch(3, params), feed(devices=4)[0].batch(3, params))


def test_the_share_of_sampled_batches_is_exact_in_the_mean_and_the_others_are_those_of_the_data() -> None:
    students, source = feed(on_policy=0.3)
    chosen = [is_on_policy(source.run.seed, step, 0.3) for step in range(10_000)]
    assert abs(np.mean(chosen) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 10_000)
    assert chosen[:50] != [is_on_policy(source.run.seed + 1, step, 0.3) for step in range(50)]
    assert all(is_on_policy(0, step, 1.0) for step in range(100))
    step = chosen.index(False)
    assert same(students.batch(step, None), source.batches.batch(step)) and not students.metrics().values


def test_the_last_response_of_a_conversation_is_sampled_and_what_is_before_it_stays() -> None:
    counted = np.isin(np.arange(10), [2, 3, 7, 8, 9])
    row = (PackedDialogue(4, CountedIds(np.arange(10, dtype=np.int32), counted)),)
    assert Instruction.prompt_of(row).prompt.tolist() == list(range(7)) and Instruction.prompt_of(row).example == 4
    (changed,) = Instruction.with_response(row, np.array([50, 51], np.int32))
    assert changed.text.ids.tolist() == [*range(7), 50, 51] and changed.text.counted.tolist() == [False] * 7 + [True] * 2
    chat = Dialogue(origin="chat:1", messages=(Message("user", "a"), Message("assistant", "b")))
    with pytest.raises(BadInput, match=r"chat:1: it is a conversation, and p:0 a prompt with a completion"):
        check_one_kind([EXAMPLES[0], chat], conversations=False)
    with pytest.raises(BadInput, match=r"p:0: it is a prompt with a completion, and chat:1 a conversation"):
        check_one_kind([chat, EXAMPLES[0]], conversations=True)


# --- Runs -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_ends_with_the_same_bits_when_it_is_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Half of the batches are sampled; the teacher has more layers, and pmap samples the same responses. Then batches grow."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    lines = [{"prompt": f"{n}=", "completion": f"{n % 7}"} for n in range(40)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, layers in (("base", 1), ("teacher", 2)):
        config = published.config("gpt", "causal", published.GPT2 | {"vocab_size": 257, "n_positions": 32, "n_layer": layers})
        published.write(tmp_path / name, config)
        BYTES.save(tmp_path / name)
    run = tiny.run(
        "instruction",
        model=load_model(tmp_path / "base").model.config,
        init=str(tmp_path / "base"),
        distillation=dataclasses.replace(ON_POLICY, teacher=str(tmp_path / "teacher"), on_policy=0.5, divergence="reverse_kl"),
        optim=run_config.Optim(lr=3e-3, warmup=0, schedule="constant"),
        data=DialogueData(paths=(str(tmp_path / "sums.jsonl"),), length=16, batch=16),
        out=str(tmp_path),
        steps=6,
        precision="float32",
        checkpoint=run_config.Checkpoint(every=3),
        log=run_config.Log(every=1, validate_every=3, validate_rows=8, samples=0),
    )

    def train(name: str, stop_at: int = 0, **changes: Any) -> list[dict[str, Any]]:
        monkeypatch.setattr(trainer.StopSignals, "agreed", lambda self, step: step == stop_at)
        trainer.run(dataclasses.replace(run, name=name, **changes), evaluate=scorers.scorer, on_end=lambda folder: None)
        rows = metrics_file.read_rows(tmp_path / name / "metrics.jsonl")
        return [{key: value for key, value in row.items() if key != "time"} for row in rows]

    steady = train("steady")
    train("stopped", stop_at=4)
    assert train("stopped") == steady
    scores = [(tmp_path / name / "scores.json").read_bytes() for name in ("steady", "stopped")]
    assert scores[0] == scores[1]
    trained = [row for row in steady if row["kind"] == "train"]
    sampled = [is_on_policy(run.seed, row["step"] - 1, 0.5) for row in trained]
    assert ["rollout" in row for row in trained] == sampled and 0 < sum(sampled) < 6
    parallel = [row["loss"] for row in train("pmap", engine="pmap") if row["kind"] == "train"]
    assert parallel == pytest.approx([row["loss"] for row in trained], rel=1e-4)
    growing = train("growing", data=dataclasses.replace(run.data, ramp=("8@400",)))
    assert [row["tokens"] for row in growing if row["kind"] == "train"] == [128, 256, 384, 512, 768, 1024]


# --- Refusals -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_policy": 1.5}, r"--distillation\.on-policy 1\.5: choose a share from 0 \(none\) to 1 \(all\)"),
        ({"on_policy": 0.5}, r"--distillation\.targets 1\.0: the tokens that the student sampled are no targets; choose"),
        ({"response_tokens": 8}, r"--distillation\.response-tokens 8: no responses are sampled; choose a share of them"),
        ({"sampling_temperature": 0.9}, r"--distillation\.sampling-temperature 0\.9: no responses are sampled"),
        ({"on_policy": 1.0, "targets": 0.0, "response_tokens": 0}, r"--distillation\.response-tokens 0: choose 1 to 65,536"),
        (
            {"on_policy": 1.0, "targets": 0.0, "sampling_temperature": 0.0},
            r"--distillation\.sampling-temperature 0\.0: responses are sampled; choose a number above 0",
        ),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ResponseDistillation(teacher="x", **options)


def test_rows_without_room_for_one_response_are_refused() -> None:
    data = DialogueData(length=20, batch=ROWS)
    run = tiny.run("instruction", distillation=ON_POLICY, data=data)
    objectives.check_run(run)
    assert run.sampled_tokens == TOKENS and tiny.run("instruction").sampled_tokens == 0
    with pytest.raises(BadInput, match=r"--data\.pack True: a response is sampled to the one prompt of each row; leave it out"):
        objectives.check_run(dataclasses.replace(run, data=dataclasses.replace(data, pack=True)))
    with pytest.raises(BadInput, match=r"--distillation\.response-tokens 6: a row has room for 5 tokens of a response"):
        objectives.check_run(dataclasses.replace(run, data=dataclasses.replace(data, length=6)))
    with pytest.raises(BadInput, match=r"--distillation\.response-tokens 11: the longest prompt has 10 tokens, and a row 20"):
        feed(response_tokens=11)
    t5 = small("t5", architecture="decoder").config
    decoder = tiny.run("text_to_text", model=t5, distillation=ON_POLICY, data=PairData(length=20, batch=ROWS))
    with pytest.raises(BadInput, match=r"--model\.architecture decoder: prompts need encoder_decoder"):
        objectives.check_run(decoder)
