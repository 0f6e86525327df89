"""Encoders, encoder-decoders and XLNet from the command line: trained, scored, exported, on meshes, and what is refused."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.support.commands import assert_evaluates_alike, assert_refused, assert_same_losses, call, in_folder, trained, words
from tests.support.encoders import tokenizer
from tests.support.small import random_params, small
from train.checkpoints.manifest import by_path
from train.config import run_config
from train.engine import device_mesh
from train.objectives.distilled import Distilled
from train.run import metrics_file
from train.run.run_dir import read_config
from train.tokenizers import hf_files
from train.weights.load import load_model
from zoo import published_weights

RUN = "--data.length 32 --data.batch 8 --data.valid-fraction 0.3 --steps 4 --optim.warmup 1 --log.every 1 --log.validate-every 0"
SIZE = "--model.vocab 384 --model.layers 2 --model.width 32 --model.heads 4 --model.ffn 64 --tokenizer.vocab 300"
ENCODER = f"{SIZE} --model.context 32 --data.paths text.jsonl"
T5 = f"t5-nano {SIZE} --model.decoder-layers 2 --model.head 8 --data.paths text.jsonl"
PAIRS = "--pairs.source train.en --pairs.target train.de"
VALIDATED = "--log.validate-every 2 --log.validate-rows 16"
STUDENT = "--distillation.cosine 1 --distillation.teacher"
XLNET = f"xlnet-nano {SIZE} {VALIDATED} --data.paths one.txt --model.memory 16 --model.reuse 12"
MODELS = {
    "bert": f"bert-nano {ENCODER}",
    "roberta": f"roberta-nano {ENCODER}",
    "modernbert": f"modernbert-nano {ENCODER}",
    "llama": f"llama-nano {ENCODER}",
    "ettin-decoder": f"ettin-decoder-nano {ENCODER}",
    "left-to-right": f"bert-nano {ENCODER} --objective left_to_right --model.causal --model.task masked",
    "distilbert": f"distilbert-nano {ENCODER} --distillation.teacher runs/bert --model.layers 1",
    "gpt-student": f"gpt-nano {ENCODER} --model.width 16 --model.head 4 {STUDENT} runs/llama",
    "t5": T5,
    "t5-student": f"{T5} --model.layers 1 --distillation.teacher runs/t5 --distillation.divergence reverse_kl",
    "decoder": f"{T5} --model.architecture decoder",
    "pairs": f"finetune-text-to-text --init runs/t5 {PAIRS}",
    "transformer": f"transformer-nano {SIZE} --data.target-length 40 {PAIRS} --checkpoint.every 1",
    "xlnet": XLNET,
    "both-ways": f"{XLNET} --permutation.bidirectional --permutation.window 4 --model.reuse 16",
    "denoising": f"{XLNET} --permutation.kind denoising --model.task pretraining",
    "labels": f"finetune-classification --init runs/xlnet {VALIDATED} --data.paths labels.tsv",
}
BEGINNINGS = {"distilbert": "bert", "gpt-student": "llama", "t5-student": "t5", "pairs": "t5", "labels": "xlnet"}
FAST, FULL = ("bert",), ("distilbert", "llama", "t5", "xlnet")
TERMS = {
    "bert": {"masked", "next"},
    "distilbert": {"masked", "soft", "cosine"},
    "gpt-student": {"causal", "soft", "cosine"},
    "t5-student": {"denoising", "soft"},
}
"""Terms of the losses that have several."""
MESHES = {"gpt-student": pytest.mark.full} | dict.fromkeys(("distilbert", "modernbert", "llama", "t5"), pytest.mark.slow)
"""Runs that are repeated on a mesh: two with a teacher; one with two stacks of layers; one with grouped heads; and T5, whose
gradients test_encoder_decoders.py compares."""


def arguments(name: str, flags: str = "") -> tuple[str, ...]:
    recipe, _, own = MODELS[name].partition(" ")
    return words(f"{recipe} {RUN} {own} {flags}")


def run(name: str) -> Path:
    if name in BEGINNINGS:
        run(BEGINNINGS[name])
    return trained(name, arguments(name))


def some(*names: str) -> list[Any]:
    tiers = {name: pytest.mark.full if name in FULL else pytest.mark.slow for name in names if name not in FAST}
    return [pytest.param(name, marks=tiers.get(name, ())) for name in names]


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with a text of many documents, the same as one, parallel files and labelled sentences."""
    folder = tmp_path_factory.mktemp("place")
    sentences = [f"The {n}th whale of {n % 7} is seen{'!' if n % 2 else '.'} {n * n} more swim." for n in range(200)]
    text = [" ".join(five) for five in zip(*[iter(sentences)] * 5, strict=True)]
    labels = (f"{sentence}\t{label}\n" for sentence, label in zip(sentences, itertools.cycle(("bad", "good")), strict=False))
    files = {
        "text.jsonl": "".join(json.dumps({"text": document}) + "\n" for document in text),
        "one.txt": " ".join(text),
        "short.txt": "the whale is seen.",
        "train.en": "".join(f"{sentence}\n" for sentence in sentences),
        "train.de": "".join(f"der wal {n} von {n % 7}\n" for n in range(200)),
        "labels.tsv": "text\tlabel\n" + "".join(labels),
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    with in_folder(folder):
        yield folder


@pytest.mark.parametrize("name", some(*MODELS))
def test_a_run_is_scored_and_evaluated_alike(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """At any batch size: rows that continue each other are scored as many at once as they were planned for."""
    scores = assert_evaluates_alike(capsys, run(name))
    assert ("pairs" in scores) == (name == "bert")
    if name in ("t5", "decoder", "pairs", "transformer"):
        # Four steps learn next to nothing: the perplexity is about that of a guess among the 384 rows of the table.
        assert scores["tokens"] > 100 and 1 < scores["perplexity"] < 2 * 384 and "bits_per_byte" not in scores
    for row in metrics_file.read_rows(run(name) / "metrics.jsonl"):
        if row["kind"] == "train" and name in (*TERMS, "roberta"):
            assert row.get("terms", {}).keys() == TERMS.get(name, set())
            assert sum(row.get("terms", {"all": row["loss"]}).values()) == pytest.approx(row["loss"], rel=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("name", some("bert", "roberta", "modernbert", "ettin-decoder", "distilbert", "gpt-student"))
def test_weights_are_unchanged_by_export_and_import(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(name)
    for line in (f"export runs/{name} out/{name}", f"import out/{name}"):
        ended = call(capsys, *words(line))
        assert ended.code == 0, ended.stderr
    before, after = load_model(f"runs/{name}"), load_model(f"models/{name}")
    assert (after.model.family, after.model.task) == (before.model.family, before.model.task)
    assert after.tokenizer.encode("the 7th whale").tolist() == before.tokenizer.encode("the 7th whale").tolist()
    weights, imported = (by_path(jax.device_get(loaded.params)) for loaded in (before, after))
    assert weights.keys() == imported.keys()
    assert not [path for path in weights if weights[path].tobytes() != imported[path].tobytes()]


@pytest.mark.parametrize("name", some("pairs", "labels"))
def test_finetuning_begins_with_the_pretrained_body_and_tokenizer(name: str) -> None:
    after, before = load_model(run(name)), load_model(run(BEGINNINGS[name]))
    assert after.tokenizer.fingerprint == before.tokenizer.fingerprint
    # Four steps have changed little: fresh parameters would be far away.
    new, old = (np.asarray(loaded.params["embed"]["tokens"]["embedding"]) for loaded in (after, before))
    assert np.abs(new - old).mean() < 0.05 * np.abs(old).mean()
    if name == "labels":
        assert after.model.init_carry(8) == {}
        assert "unembed" not in after.params and "classifier" in after.params


@pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in MESHES.items()])
def test_losses_are_the_same_on_another_mesh(name: str) -> None:
    plain = run(name)
    assert_same_losses(trained(f"{name}-mesh", arguments(name, "--mesh.tensor 2")), plain)


@pytest.mark.full
def test_a_teacher_is_sharded_for_training_and_not_needed_for_scoring(capsys: pytest.CaptureFixture[str]) -> None:
    student = run("distilbert")
    frozen = Distilled.bind(read_config(student), device_mesh.make_mesh(run_config.Mesh(fsdp=4))).frozen_inputs()
    kernel = frozen["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size
    teacher, elsewhere = run("bert"), Path("elsewhere")
    teacher.rename(elsewhere)
    try:
        assert call(capsys, "eval", "runs/distilbert").code == 0
    finally:
        elsewhere.rename(teacher)


@pytest.mark.full
def test_xlnet_generates_and_is_scored(capsys: pytest.CaptureFixture[str]) -> None:
    run("xlnet")
    for line, output in (
        ("generate runs/xlnet --prompt the --limit 4", "the"),
        ("eval runs/xlnet --task permutation_likelihood --files short.txt --orders 2", "loss_stderr"),
        ("eval runs/xlnet --task pseudo_perplexity --files short.txt", "pseudo_perplexity"),
        ("embed runs/xlnet --text whale --out vectors.npy", ""),
        ("fill-mask runs/xlnet --text <mask>whale", "whale"),
    ):
        ended = call(capsys, *words(line))
        assert ended.code == 0 and output in ended.stdout, ended


@pytest.mark.full
def test_the_last_checkpoints_are_averaged(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("transformer")
    ended = call(capsys, *words("export runs/transformer out/mean --last 3"))
    assert ended.code == 0, ended.stderr
    assert ended.stdout.rstrip().endswith("step 4 and 2 before it, averaged")
    steps = [by_path(jax.device_get(load_model("runs/transformer", step=step).params)) for step in (2, 3, 4)]
    averaged = by_path(jax.device_get(load_model("out/mean").params))
    assert averaged.keys() == steps[0].keys()
    for path, leaf in averaged.items():
        mean = np.mean([params[path].astype(np.float64) for params in steps], axis=0)
        # Two additions and a division in float32.
        np.testing.assert_allclose(leaf, mean, rtol=4 * 2**-24, atol=4 * 2**-24 * np.abs(mean).max())
    assert max(float(np.abs(averaged[path] - steps[2][path]).max()) for path in averaged) > 1e-4
    refused = {
        "runs/transformer out/other --last 9": "--last 9: runs/transformer has 4 intact checkpoints; choose 1 to that, or",
        "out/mean out/other --last 2": "--last 2: out/mean is not a run",
    }
    assert_refused(capsys, place, {line: (("export", *words(line)), message) for line, message in refused.items()})


REFUSED = {
    "bert --data.paths one.txt": r"--data\.rows segment_pairs: the training text is one document, and random pairs take .*jsonl",
    "bert --tokenizer.path gpt --model.vocab 400": r"--data\.rows segment_pairs: rows of an encoder need a tokenizer with",
    "distilbert --distillation.teacher=": r"--distillation\.teacher : name the run or the weights to learn from$",
    "distilbert --distillation.teacher gpt": r"--distillation\.teacher gpt: it has no head for masked tokens",
    "distilbert --model.width 64": r"--model\.width 64: it starts .*, which has 32; choose the same, or --distillation\.fresh$",
    "distilbert --tokenizer.path runs/roberta/tokenizer": r"--distillation\.teacher runs/bert: it has another tokenizer \(300 "
    r"entries, and the student's 300; token 0 is '\[PAD\]' there and '<s>' in the student's\); remove --tokenizer\.path",
    "gpt-student --distillation.soft 0 --distillation.cosine 0": r"--distillation\.soft 0\.0: nothing is learned",
    "gpt-student --distillation.teacher runs/bert": r"--distillation\.teacher runs/bert: it has no head for the tokens of causal",
    "xlnet --model.task sequence": "--model.task sequence: the text of permutation has no labels; choose a recipe of finetune",
    "xlnet --model.task body": "--model.task body: it predicts no tokens; choose permutation, or pretraining to add next",
}


@pytest.mark.full
def test_what_cannot_be_trained_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpt = small("gpt", vocab=tokenizer("gpt").vocab_size)
    Path("gpt").mkdir()
    published_weights.save_published(Path("gpt"), gpt.config, random_params(gpt))
    hf_files.write_tokenizer(Path("gpt"), tokenizer("gpt"), longest=32)
    for name in ("bert", "roberta", "llama"):
        run(name)
    lines = {line: line.partition(" ") for line in REFUSED}
    cases = {line: (("train", *arguments(name, f"{own} --name no")), REFUSED[line]) for line, (name, _, own) in lines.items()}
    assert_refused(capsys, place, cases)
