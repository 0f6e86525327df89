"""The reference of preferences: its log-probabilities, their cache, and a resumed run that must have the same ones."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.report import samples
from eval.tasks.held_out import scorers
from eval.tasks.held_out.scoring_inputs import ScoringInputs
from tests.support import published, tiny
from tests.support.small import random_params, small
from train import trainer
from train.config import run_config
from train.config.data_options import PreferenceData
from train.config.dpo_options import Dpo
from train.config.objectives import OPTIONS
from train.data.example_types import Preference
from train.data.text_files import Document
from train.engine import device_mesh
from train.engine.log_probs import sequence_log_probs
from train.inputs import preference_inputs, synthetic_batch
from train.inputs.example_inputs import ExampleInputs
from train.objectives.feedback.dpo import DirectPreferences
from train.rows.batches import Batches, in_order
from train.rows.mixture import Component, Mixture
from train.tokenizers.tokenizer import Tokenizer
from train.weights import reference_log_probs
from train.weights.load import load_model
from zoo.batch import Batch
from zoo.errors import BadInput

BYTES = Tokenizer.train([], 257)
MESH = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
NET = small("gpt", layers=1)
RUN = tiny.run("dpo", model=NET.config, init="base", precision="float32", data=PreferenceData(length=32, batch=8))
PARAMS = random_params(NET)


def inputs(run: run_config.Run = RUN, count: int = 11) -> ExampleInputs:
    """Return pairs whose completions have different lengths."""
    pairs = [Preference(origin=f"p:{n}", prompt="a b", chosen=f" {'c' * (n + 1)}", rejected=" d") for n in range(count)]
    training, held_out = (preference_inputs.rows_of_preferences(half, run, BYTES) for half in (pairs[:-2], pairs[-2:]))
    component = Component("p", 1.0, [Document("p", "")], training)
    return ExampleInputs(BYTES, Mixture((component,)), held_out)


class Loader:
    """Stands for `train.weights.load.load_model`, and counts its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, digest: str = "first") -> None:
        self.calls, self.digest = 0, digest
        monkeypatch.setattr(reference_log_probs, "load_model", self)
        monkeypatch.setattr(reference_log_probs.warm_start, "check_init", lambda run: None)
        monkeypatch.setattr(reference_log_probs, "digest_of_parameters", lambda init: self.digest)

    def __call__(self, init: str, mesh: Any) -> Any:
        self.calls += 1
        return SimpleNamespace(model=NET, params=PARAMS)


def extended(cache: Path) -> ExampleInputs:
    return DirectPreferences.extend_inputs(RUN, MESH, inputs(), cache, progress=lambda done, total: None)


def values(data: ExampleInputs) -> list[np.ndarray]:
    return [row.reference for rows in (data.training, data.held_out) for row in rows.rows]


def test_every_row_has_its_log_probabilities_whatever_the_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rows are compared with each one alone; a shuffled batch and the rows for scoring have those of their own examples."""
    Loader(monkeypatch)
    data = extended(tmp_path)
    assert data.fingerprints()["reference"] == "first"
    build = DirectPreferences.builder(RUN, BYTES, data.counts)
    alone = jax.jit(lambda batch: sequence_log_probs(NET, PARAMS, batch)[0])

    def check(batch: Batch) -> None:
        assert batch.extra is not None and batch.weights is not None
        assert batch.extra["reference"].dtype == np.float32 and len(np.unique(batch.extra["reference"])) > 2
        for at in np.flatnonzero(batch.weights.any((1, 2))):
            one = jax.tree.map(lambda leaf, at=at: jnp.asarray(leaf[at : at + 1]), batch)
            np.testing.assert_allclose(batch.extra["reference"][at], alone(one)[0], rtol=2e-6)

    with Batches(data.rows, build, 3, 8, np.arange(8)).read(0) as stream:
        batch = next(stream)
    check(batch)
    (held_out,) = in_order(data.held_out.subsample(2), build, 8, np.arange(8))
    check(held_out)
    assert BYTES.decode(batch.targets[0, 0][batch.weights[0, 0] > 0]).endswith("c<|endoftext|>")
    shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), synthetic_batch.batch(RUN).extra)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), batch.extra)


def test_the_cache_is_read_and_what_is_damaged_or_foreign_is_computed_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    loader = Loader(monkeypatch)
    first = values(extended(tmp_path))
    assert loader.calls == 1 and len(list(tmp_path.iterdir())) == 2
    np.testing.assert_array_equal(values(extended(tmp_path)), first)
    assert loader.calls == 1
    big, little = sorted(tmp_path.iterdir(), key=lambda file: -file.stat().st_size)
    content = big.read_bytes()
    header, _, numbers = content.partition(b"\n")
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    for calls, damaged in enumerate((flipped, content[:-8], b"", header, little.read_bytes(), b"{}\n" + numbers), 2):
        big.write_bytes(damaged)
        np.testing.assert_array_equal(values(extended(tmp_path)), first)
        assert loader.calls == calls and big.read_bytes() == content
    assert len(caplog.messages) == 6 and all("computed again" in message for message in caplog.messages)
    loader.digest = "second"
    extended(tmp_path)
    assert loader.calls == 8 and len(list(tmp_path.iterdir())) == 4


def test_the_digest_of_published_weights_changes_with_any_of_them(tmp_path: Path) -> None:
    published.write_model(tmp_path / "a", "gpt-causal")
    first = reference_log_probs.digest_of_parameters(str(tmp_path / "a"))
    published.write(tmp_path / "b", published.config("gpt", "causal"), factors={"ln_f.bias": 1.5})
    assert reference_log_probs.digest_of_parameters(str(tmp_path / "b")) != first
    (tmp_path / "a").rename(tmp_path / "c")
    assert reference_log_probs.digest_of_parameters(str(tmp_path / "c")) == first


def test_a_reference_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Loader(monkeypatch)
    monkeypatch.setattr(f"{__name__}.PARAMS", jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS))
    with pytest.raises(BadInput, match="--init base: the log-probability of a text at p:0 is not finite"):
        extended(tmp_path)


def test_scores_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At the reference: the loss is log 2, no pair is right, and lengths are those of the texts; else against the loss."""
    Loader(monkeypatch)
    data, records = extended(tmp_path), []
    objective, build = DirectPreferences(Dpo()), DirectPreferences.builder(RUN, BYTES, data.counts)
    other = jax.tree.map(lambda leaf: leaf * 1.1, PARAMS)
    for size in (3, 16):
        scored = ScoringInputs(
            run=RUN, model=NET, mesh=MESH, data=data, rows=data.training, build=build, batch=size, dtype=jnp.float32
        )
        measure = scorers.SCORERS["dpo"](scored)
        record = measure(PARAMS).record()
        assert record["loss"] == pytest.approx(np.log(2), abs=1e-6) and record["chosen_log_ratio"] == pytest.approx(0, abs=1e-4)
        assert (record["pairs"], record["chosen_length"], record["rejected_length"]) == (9, pytest.approx(7), 3)
        records.append(measure(other).record())
    assert records[0] == pytest.approx(records[1], rel=1e-5)
    (batch,) = in_order(data.training, build, 16, np.arange(16))
    batch = jax.tree.map(jnp.asarray, batch)
    options: dict[str, Any] = dict(seeds=None, carry={}, smoothing=0.0, chunk=0)
    terms, _ = jax.jit(lambda params: objective.loss(NET, params, batch, {}, **options))(other)
    assert records[0]["loss"] == pytest.approx(float(terms["dpo"] / objective.weights(batch)["dpo"]), rel=1e-5)


def test_a_reward_model_is_refused_and_preferences_have_no_samples(tmp_path: Path) -> None:
    scored = dataclasses.replace(RUN, model=dataclasses.replace(NET.config, labels=("reward",)))
    with pytest.raises(BadInput, match=r"model\.labels reward: dpo trains a model that predicts words"):
        scored.options.check_run(scored)
    options: dict[str, Any] = dict(length=32, dtype=jnp.float32)
    samples.write_run_samples(tmp_path / "samples.json", NET, PARAMS, MESH, inputs(), step=1, count=2, **options)
    assert samples.preview_continuation(NET, PARAMS, MESH, inputs(), **options) == "" and not (tmp_path / "samples.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_a_resumed_run_has_the_same_reference_and_refuses_another(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run that stops at step 4, and whose cache is lost, ends with the score of one that does not."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    both = [(f" {'c' * (n % 7 + 1)}", f" {n}") for n in range(40)]
    lines: list[Any] = [{"prompt": f"a {n}", "chosen": first, "rejected": second} for n, (first, second) in enumerate(both)]
    if name == "kto":
        lines = [{"prompt": f"a {n}", "completion": both[n][n % 2], "label": n % 2 == 0} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for folder, factor in (("base", 1.0), ("other", 1.5)):
        config = published.config("gpt", "causal", published.GPT2 | {"vocab_size": 257, "n_positions": 32})
        published.write(tmp_path / folder, config, factors={"ln_f.bias": factor})
        BYTES.save(tmp_path / folder)
    data = OPTIONS[name].data(paths=(str(tmp_path / "pairs.jsonl"),), length=32, batch=8)
    init = str(tmp_path / "base")
    model = load_model(init, MESH).model.config
    common: dict[str, Any] = dict(model=model, init=init, out=str(tmp_path), data=data, precision="float32")

    def train(folder: str, stop_at: int = 8) -> None:
        monkeypatch.setattr(trainer.StopSignals, "agreed", lambda self, step: step == stop_at)
        run = tiny.run(name, name=folder, steps=8, checkpoint=run_config.Checkpoint(every=4), **common)
        trainer.run(run, evaluate=scorers.scorer, on_end=lambda folder: None)

    train("steady")
    train("stopped", stop_at=4)
    for file in (tmp_path / "cache" / "reference").iterdir():
        file.unlink()
    shutil.move(tmp_path / "base", tmp_path / "away")
    shutil.copytree(tmp_path / "other", tmp_path / "base")
    with pytest.raises(BadInput, match="trained on other data: reference: "):
        train("stopped")
    shutil.rmtree(tmp_path / "base")
    shutil.move(tmp_path / "away", tmp_path / "base")
    train("stopped")
    assert (tmp_path / "stopped" / "scores.json").read_bytes() == (tmp_path / "steady" / "scores.json").read_bytes()
