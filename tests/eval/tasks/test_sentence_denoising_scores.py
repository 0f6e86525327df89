"""The score of reconstructed sentences, against the losses of single rows; and a run of commands from texts to vectors."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from eval.inference.encoder_runner import Encoder
from eval.inference.text_vectors import embed_texts, modules_of
from eval.inference.vector_index import digest_of_model
from eval.tasks.held_out import sentence_denoising_scores
from eval.tasks.held_out.scoring_inputs import ScoringInputs
from tests.support import encoders, tiny
from tests.support.commands import assert_evaluates_alike, assert_refused, call, losses
from tests.train.objectives.test_sentence_denoising import NET, OPTIONS, params_of
from train.config import run_config
from train.config.data_options import LabelledData
from train.data.example_types import Ranked
from train.engine import device_mesh
from train.engine.sentence_decoder import DECODER
from train.inputs.labelled_inputs import rows_of_labels
from train.objectives.sentence_denoising import DenoisedSentences
from train.rows.batches import in_order
from train.weights.load import load_model
from zoo.embedding_modules import read_modules

WORDS = encoders.TEXT.replace(",", "").replace(".", "").replace(";", "").split()


def sentences(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 1 + number % 7)) for number in range(count)]


def test_the_score_is_the_mean_loss_of_the_tokens_of_all_rows() -> None:
    """Six rows in batches of four, of which the last is filled up."""
    words = encoders.tokenizer("wordpiece")
    run = tiny.run("sentence_denoising", model=NET.config, data=LabelledData(length=12, batch=4), sentence_denoising=OPTIONS)
    examples = [Ranked(origin=f"f:{n}", query=f"{text} {n}") for n, text in enumerate(["the whale", "a", "ship of men"] * 2)]
    rows = rows_of_labels(examples, run, words)
    build, objective = DenoisedSentences.builder(run, words, lambda: np.zeros(0, np.int64)), DenoisedSentences(OPTIONS)
    mesh = device_mesh.make_mesh(run_config.Mesh(data=1), jax.devices()[:1])
    inputs = ScoringInputs(
        run=run,
        model=NET,
        mesh=mesh,
        data=None,
        rows=rows,
        build=build,
        batch=4,
        dtype=jnp.float32,
        origins=lambda: list("abcdef"),
    )
    params = jax.device_put(params_of(), NamedSharding(mesh, PartitionSpec()))
    # A run scores under this guard.
    with jax.transfer_guard("disallow"):
        score = sentence_denoising_scores.score_sentences(inputs)(params)
    nats, tokens = 0.0, 0
    for batch in in_order(rows, build, 1, np.arange(1)):
        assert batch.weights is not None
        losses = objective.token_nats(NET, params, jax.tree.map(jnp.asarray, batch))
        size = int(batch.weights.sum())
        nats, tokens = nats + float(np.float64(losses[0, :size]).sum()), tokens + size
    expected = {"loss": nats / tokens, "perplexity": math.exp(nats / tokens), "tokens": tokens}
    assert score.record() == pytest.approx(expected, rel=1e-5)
    assert score.outcomes is not None and list(score.outcomes.id) == [f"f:{n}" for n in range(6)]


def test_a_run_exports_its_encoder_without_the_decoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = encoders.folder(tmp_path / "model", "bert", "body")
    Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(40)))
    command = ["train", "embed-denoising", "--init", str(model), "--data.paths", "texts.jsonl", "--data.batch", "8"]
    command += ["--data.length", "24", "--sentence-denoising.pool", "cls", "--log.validate-every", "2"]
    command += ["--log.every", "1", "--optim.schedule", "constant", "--optim.warmup", "1"]
    for name, steps, more in (("a", "2", ()), ("a", "4", ("--extend",)), ("b", "4", ())):
        assert (done := call(capsys, *command, "--steps", steps, "--name", name, *more)).code == 0, done
    # A continued run deletes the words of one that was never interrupted.
    assert losses(Path("runs/a")) == losses(Path("runs/b"))
    assert call(capsys, "export", "runs/b", "published").code == 0
    modules = read_modules(Path("published"))
    assert modules is not None and (modules.pool, modules.normalize, modules.longest) == ("cls", True, 24)
    assert not [name for name in load_file("published/model.safetensors") if "decoder" in name]
    run, published = load_model("runs/b"), load_model("published")
    assert DECODER not in run.params and digest_of_model(run, modules) == digest_of_model(published, modules)
    vectors = [
        embed_texts(Encoder.of(each, batch=4, dtype=jnp.float32), encoders.texts("the ship"), modules_of(each))
        for each in (run, published)
    ]
    np.testing.assert_array_equal(*vectors)
    assert np.linalg.norm(vectors[0]) == pytest.approx(1, rel=1e-5)
    # The scores of a run need the decoder.
    assert_evaluates_alike(capsys, Path("runs/b"), 1e-5)
    Path("empty.tsv").write_text("text\nthe whale\n \n")
    assert_refused(
        capsys,
        tmp_path,
        {
            "share": (
                (*command, "--sentence-denoising.deletion", "1"),
                "--sentence-denoising.deletion 1.0: choose a share of at",
            ),
            "empty": ((*command, "--data.paths", "empty.tsv"), "empty.tsv:3: the text is empty; write some text"),
            "column": ((*command, "--labelled.text", "query"), 'texts.jsonl:1: no column "query"; it has "text"'),
        },
    )
