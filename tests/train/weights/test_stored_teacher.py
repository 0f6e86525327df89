"""The stored probabilities of a teacher: the loss over them, their file, steps on several devices, and runs that continue."""

import dataclasses
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.tasks.held_out import scorers
from tests.support import published, tiny
from tests.support.gradients import assert_equal_gradients
from tests.support.preference_steps import MESH_CASES, MESHES, first_steps
from tests.support.small import small
from train import objectives, trainer
from train.config import run_config
from train.config.data_options import CausalData, DialogueData
from train.config.distillation_options import ResponseDistillation, StoredDistillation
from train.data.example_types import Pair
from train.data.text_files import Document
from train.engine import device_mesh
from train.engine.losses import SoftLoss, most_probable
from train.inputs.example_inputs import ExampleInputs
from train.inputs.instruction_inputs import rows_of_instructions
from train.objectives.instruction import Instruction
from train.rows.batch_feed import FeedSource
from train.rows.batches import Batches, in_order
from train.rows.mixture import Component, Mixture
from train.run import metrics_file
from train.run.run_dir import RunDir
from train.tokenizers.tokenizer import Tokenizer
from train.weights import stored_teacher
from train.weights.load import load_model
from train.weights.reference_cache import HEADER
from train.weights.stored_teacher import IDS, LOG_PROBS, row_type
from zoo.batch import Batch
from zoo.errors import BadInput

BYTES = Tokenizer.train([], 257)
MESH = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
DIVERGENCES = [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.3)]
VOCABULARY, TOP = 11, 4


# --- The loss -------------------------------------------------------------------------------------------------------------------


def coarse(logits: np.ndarray, ids: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities of the tokens `ids` and of all others, in float64."""
    scaled = np.float64(logits) / temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    return np.append(p[ids], np.delete(p, ids).sum())


def divergence(p: np.ndarray, q: np.ndarray, kind: str, beta: float) -> float:
    def kl(a: np.ndarray, b: np.ndarray) -> float:
        return float(sum(x * np.log(x / y) for x, y in zip(a, b, strict=True) if x > 0))

    mixture = beta * p + (1 - beta) * q
    return {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)}[kind]


@pytest.mark.planted(2)
@pytest.mark.parametrize(("kind", "beta"), DIVERGENCES)
def test_the_loss_is_the_divergence_over_the_tokens_and_all_others_as_one(kind: Any, beta: float) -> None:
    """Padding rows of the table, of a logit of -1e30, have no probability; with all tokens it is the divergence itself."""
    rng, temperature = np.random.default_rng(0), 1.5
    student, teacher = (3 * rng.standard_normal((2, 5, VOCABULARY)).astype(np.float32) for _ in range(2))
    padded = [np.pad(logits, [(0, 0), (0, 0), (0, 3)], constant_values=-1e30) for logits in (student, teacher)]
    soft = SoftLoss(kind, beta, temperature)
    for top in (TOP, VOCABULARY):
        numbers = most_probable(lambda x: x, jnp.asarray(padded[1]), top, temperature=temperature)
        ids, log_probs = numbers[..., :top].astype(jnp.int32), numbers[..., top:]
        value, slope = jax.value_and_grad(
            lambda x, ids=ids, log_probs=log_probs: soft.from_most_probable(x, ids, log_probs).sum()
        )(jnp.asarray(padded[0]))
        pairs = [[coarse(side[at], np.asarray(ids[at]), temperature) for side in (teacher, student)] for at in np.ndindex(2, 5)]
        assert float(value) == pytest.approx(sum(divergence(p, q, kind, beta) for p, q in pairs), rel=2e-6)
        assert np.isfinite(slope).all() and not np.asarray(slope[..., VOCABULARY:]).any()
        everything, exact = jax.value_and_grad(lambda x: soft(x, jnp.asarray(padded[1])).sum())(jnp.asarray(padded[0]))
        if top == VOCABULARY:
            assert float(value) == pytest.approx(float(everything), rel=1e-6)
            np.testing.assert_allclose(slope, exact, atol=1e-6)
        else:
            # Data processing: it is less than over all tokens. Probabilities of the K alone, and another temperature, differ.
            assert float(value) < float(everything)
            alone = sum(divergence(p[:-1] / p[:-1].sum(), q[:-1] / q[:-1].sum(), kind, beta) for p, q in pairs)
            assert alone != pytest.approx(float(value), rel=1e-2)
            other = dataclasses.replace(soft, temperature=1.0).from_most_probable(jnp.asarray(padded[0]), ids, log_probs)
            assert float(other.sum()) != pytest.approx(float(value), rel=1e-2)


# --- The file -------------------------------------------------------------------------------------------------------------------


def write_gpt(folder: Path, layers: int = 1, factor: float = 1.0) -> None:
    config = published.config("gpt", "causal", published.GPT2 | {"vocab_size": 257, "n_positions": 32, "n_layer": layers})
    published.write(folder, config, factors={"ln_f.bias": factor})
    BYTES.save(folder)


def student(folder: Path, top_k: int = TOP, **changes: Any) -> tuple[run_config.Run, ExampleInputs]:
    """Return a run of instructions with the teacher `folder`, and its rows."""
    options = ResponseDistillation(teacher=str(folder), top_k=top_k, temperature=1.5)
    net = small("gpt", layers=1, vocab=257)
    fields: dict[str, Any] = {"data": DialogueData(length=16, batch=4), "precision": "float32"} | changes
    run = tiny.run("instruction", model=net.config, distillation=options, **fields)
    pairs = [Pair(origin=f"p:{n}", source="a" * (n % 3 + 1), target=f" {n}") for n in range(11)]
    rows = rows_of_instructions(pairs, run, BYTES)
    return run, ExampleInputs(BYTES, Mixture((Component("p", 1.0, [Document("p", "")], rows),)), rows)


def extended(run: run_config.Run, inputs: ExampleInputs, cache: Path) -> Any:
    return Instruction.extend_inputs(run, MESH, inputs, cache, progress=lambda done, total: None)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each load of a teacher is added."""
    names, load = [], stored_teacher.load_teacher

    def counted(run: Any, mesh: Any) -> Any:
        names.append(run.teacher)
        return load(run, mesh)

    monkeypatch.setattr(stored_teacher, "load_teacher", counted)
    return names


def test_every_row_has_the_numbers_of_its_teacher_whatever_the_batches(tmp_path: Path, loads: list[str]) -> None:
    """The file has exactly the bytes that are planned, and is read without the teacher."""
    write_gpt(tmp_path / "teacher", layers=2)
    run, inputs = student(tmp_path / "teacher")
    data = extended(run, inputs, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    assert file.stat().st_size == HEADER + 11 * row_type(run, 16).itemsize == HEADER + 11 * 16 * (TOP * 2 + (TOP + 1) * 4)
    assert isinstance(extended(run, inputs, tmp_path / "cache").teacher.rows, np.memmap) and len(loads) == 1
    # The file is of the teacher, and what the student must share with it is checked again.
    other = dataclasses.replace(run, model=dataclasses.replace(run.model, vocab=300))
    with pytest.raises(BadInput, match=r"--model.vocab 300: its teacher has 257; choose the same"):
        extended(other, inputs, tmp_path / "cache")
    assert data.fingerprints()["teacher"] == data.teacher.digest
    teacher = load_model(tmp_path / "teacher", MESH)
    build = Instruction.builder(run, BYTES, data.counts)
    (host,) = in_order(data.training, build, 11, np.arange(11))
    rows = jax.tree.map(jnp.asarray, host)
    logits = np.asarray(teacher.model.unembed(teacher.params, teacher.model.apply(teacher.params, rows).hidden))[..., :257]
    numbers = data.teacher.numbers(np.arange(11))
    for row, at in np.ndindex(11, 16):
        if rows.segments[row, at] == 0:
            continue
        ids = numbers[IDS][row, at]
        assert set(ids) == set(np.argsort(-logits[row, at])[:TOP])
        expected = np.log(coarse(logits[row, at], ids, 1.5))
        np.testing.assert_allclose(numbers[LOG_PROBS][row, at], expected, atol=2e-5)
    shuffled = data.teacher.numbers(np.array([7, 2]))
    np.testing.assert_array_equal(shuffled[IDS], numbers[IDS][[7, 2]])
    # The shapes that a plan and the first compilation see.
    shapes = Instruction.abstract_batch(run, BYTES, data.training).extra
    assert shapes is not None
    assert {name: (leaf.shape[1:], leaf.dtype) for name, leaf in shapes.items()} == {
        name: (leaf.shape[1:], leaf.dtype) for name, leaf in numbers.items()
    }


@pytest.mark.planted(4)
def test_a_damaged_or_foreign_file_is_computed_again_and_half_a_file_is_never_used(
    tmp_path: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    write_gpt(tmp_path / "teacher")
    (run, inputs), cache = student(tmp_path / "teacher"), tmp_path / "cache"
    first = np.array(extended(run, inputs, cache).teacher.rows)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    for calls, damaged in enumerate((content[:-1] + bytes([content[-1] ^ 1]), content[:-8], b"", content + b"0"), 2):
        file.write_bytes(damaged)
        np.testing.assert_array_equal(extended(run, inputs, cache).teacher.rows, first)
        assert len(loads) == calls and file.read_bytes() == content
    assert len(caplog.messages) == 4
    # Stopped after the first batch: there is no file, and the next call begins again.
    file.unlink()
    records = stored_teacher._records

    def stopped(*arguments: Any) -> Any:
        yield next(records(*arguments))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stored_teacher, "_records", stopped)
        with pytest.raises(KeyboardInterrupt):
            extended(run, inputs, cache)
    assert list(cache.iterdir()) == []
    np.testing.assert_array_equal(extended(run, inputs, cache).teacher.rows, first)
    # What a killed process left is removed when nobody has written to it for an hour.
    for name, age in (("new", 60.0), ("old", 4000.0)):
        (cache / f".writing-{name}").touch()
        os.utime(cache / f".writing-{name}", (time.time() - age,) * 2)
    # Another temperature or teacher is another file.
    changed = tiny.with_options(run, distillation=dataclasses.replace(run.options.distillation, temperature=1.0))
    extended(changed, inputs, cache)
    write_gpt(tmp_path / "other", factor=1.5)
    extended(student(tmp_path / "other")[0], inputs, cache)
    names = [left.name for left in cache.iterdir()]
    assert len(names) == 4 and ".writing-new" in names


def test_a_disk_without_room_is_refused_before_the_teacher_is_loaded(
    tmp_path: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gpt(tmp_path / "teacher")
    run, inputs = student(tmp_path / "teacher")
    monkeypatch.setattr(stored_teacher.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 5439))
    message = (
        r"--distillation\.top-k 4: the teacher's probabilities of 11 rows need 5,440 bytes, and .* has 5,439 free; make room"
    )
    with pytest.raises(BadInput, match=message):
        extended(run, inputs, tmp_path / "cache")
    assert not loads


# --- Steps and runs -------------------------------------------------------------------------------------------------------------


def steps(**changes: Any) -> tuple[list[float], Any]:
    """Return the losses of three steps and the first gradient."""
    rng, net = np.random.default_rng(0), small("gpt", layers=1, vocab=VOCABULARY)
    options = StoredDistillation(teacher="x", top_k=TOP, divergence="jsd", beta=0.3)
    run = tiny.run(model=net.config, data=CausalData(length=8, batch=8), loss_chunk=4, distillation=options, **changes)
    log_p = jax.nn.log_softmax(jnp.asarray(rng.standard_normal((8, 8, VOCABULARY)), jnp.float32))
    numbers = most_probable(lambda x: x, log_p, TOP, temperature=1.0)
    extra = {IDS: numbers[..., :TOP].astype(jnp.int32), LOG_PROBS: numbers[..., TOP:]}
    tokens, targets = jnp.asarray(rng.integers(1, VOCABULARY, (2, 8, 8)), jnp.int32)
    weights = jnp.asarray(rng.random((8, 8)) < 0.7, jnp.float32)
    batch = Batch(tokens=tokens, targets=targets, weights=weights, index=jnp.arange(8, dtype=jnp.uint32), extra=extra)
    kind: Any = objectives.objective("causal")
    bound = kind.bind(run, MESH)
    assert bound.teacher is None and bound.frozen_inputs() == {}
    return first_steps(run, bound, batch)


@pytest.mark.parametrize("division", MESH_CASES)
def test_a_step_does_not_depend_on_micro_batches_and_devices(division: str) -> None:
    losses, gradient = steps(**MESHES[division])
    alone = steps(mesh=run_config.Mesh(data=1))
    assert losses == pytest.approx(alone[0], rel=1e-5)
    assert_equal_gradients(gradient, alone[1])


@pytest.mark.slow
def test_runs_continue_with_the_same_bits_and_with_all_tokens_are_those_with_the_teacher(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    write_gpt(tmp_path / "teacher", layers=2)
    write_gpt(tmp_path / "other", layers=2, factor=1.5)
    lines = [{"prompt": f"{n}=", "completion": f" {n % 7}"} for n in range(40)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = tiny.run(
        "instruction",
        model=dataclasses.replace(small("gpt", layers=1, vocab=257).config),
        distillation=ResponseDistillation(teacher=str(tmp_path / "teacher"), top_k=TOP),
        data=DialogueData(paths=(str(tmp_path / "sums.jsonl"),), length=16, batch=16),
        out=str(tmp_path),
        steps=4,
        precision="float32",
        checkpoint=run_config.Checkpoint(every=2),
        log=run_config.Log(every=1, validate_every=2, validate_rows=8, samples=0),
    )

    def train(name: str, stop_at: int = 0, **chosen: Any) -> list[float]:
        monkeypatch.setattr(trainer.StopSignals, "agreed", lambda self, step: step == stop_at)
        changed = tiny.with_options(run, distillation=dataclasses.replace(run.options.distillation, **chosen))
        trainer.run(dataclasses.replace(changed, name=name), evaluate=scorers.scorer, on_end=lambda folder: None)
        return [row["loss"] for row in metrics_file.read_rows(tmp_path / name / "metrics.jsonl") if row["kind"] == "train"]

    steady = train("steady")
    train("stopped", stop_at=2)
    shutil.rmtree(tmp_path / "cache" / "reference")
    for first, second in (("teacher", "away"), ("other", "teacher")):
        (tmp_path / first).rename(tmp_path / second)
    with pytest.raises(BadInput, match="trained on other data: teacher: "):
        train("stopped")
    (tmp_path / "teacher").rename(tmp_path / "other")
    (tmp_path / "away").rename(tmp_path / "teacher")
    assert train("stopped") == steady
    scores = [(tmp_path / name / "scores.json").read_bytes() for name in ("steady", "stopped")]
    assert scores[0] == scores[1]
    assert train("every", top_k=257) == pytest.approx(train("loaded", top_k=0), rel=1e-6)


# --- Refusals -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": -1}, r"--distillation\.top-k -1: choose 0 \(none are stored\) or a number of tokens"),
        (
            {"top_k": 4, "cosine": 1.0},
            r"--distillation\.cosine 1\.0: no hidden states are stored; choose --distillation\.cosine 0",
        ),
        ({"top_k": 4, "on_policy": 0.5, "targets": 0.0}, r"--distillation\.top-k 4: .* sampled responses cannot be stored"),
        ({"top_k": 301}, r"--distillation\.top-k 301: the vocabulary has 300; choose at most as many"),
        ({"top_k": 4, "teacher": ""}, r"--distillation\.top-k 4: there is no teacher; name one by --distillation\.teacher"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        objectives.check_run(tiny.run("instruction", distillation=ResponseDistillation(**{"teacher": "x", **options})))


def test_a_batch_of_the_data_has_the_numbers_of_its_rows(tmp_path: Path) -> None:
    write_gpt(tmp_path / "teacher")
    run, inputs = student(tmp_path / "teacher")
    data = extended(run, inputs, tmp_path / "cache")
    build, local = Instruction.builder(run, BYTES, data.counts), np.array([2, 3])
    source = FeedSource(
        run=run,
        model=small("gpt", layers=1, vocab=257),
        mesh=MESH,
        dtype=np.float32,
        data=data,
        batches=Batches(data.rows, build, 0, 4, local),
        local=local,
        params=lambda state: state,
        saved={},
        folder=RunDir("absent"),
        process=0,
        notify=str,
        progress=str,
    )
    with Instruction.bind(run, MESH).feed(source, 1) as feed:
        for step in (1, 2):
            batch, numbers = feed.batch(step, None), feed.rows_of(step)
            assert batch.extra is not None
            np.testing.assert_array_equal(batch.extra[IDS], data.teacher.rows["ids"][numbers[local]])
            np.testing.assert_array_equal(batch.tokens, source.batches.batch(step).tokens)
