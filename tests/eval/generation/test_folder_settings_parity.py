"""Texts and probabilities by random settings of a folder, as `transformers` computes them. Needs the group `parity`, --parity."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from eval.generation.folder_settings import make_generator, resolve_settings
from eval.generation.generation_options import Decoding
from tests.support import generation_settings as settings_of
from tests.support import published
from tests.support import transformers_outputs as theirs
from train.config import run_config
from train.engine import device_mesh
from train.weights.generation_settings import read_generation
from train.weights.load import Loaded
from zoo import models, published_weights
from zoo.hf.config_keys import SUPPORTED_GENERATION_KEYS

pytestmark = pytest.mark.parity

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt", published.GPT2),
    "llama": ("llama", published.LLAMA),
    "qwen2": ("llama", published.QWEN2),
    "qwen3": ("llama", published.QWEN3),
    "smollm3": ("llama", published.SMOLLM3),
    "gpt_oss": ("gpt_oss", published.GPT_OSS),
    "ettin_decoder": ("ettin_decoder", published.ETTIN_DECODER),
    "xlnet": ("xlnet", published.XLNET),
    # The cache of `transformers` has as many layers as the encoder.
    "t5": ("t5", published.T5 | published.FORMS["t5-1.0"][1] | {"num_decoder_layers": 2}),
    "t5-1.1": ("t5", published.T5 | {"num_decoder_layers": 2}),
    "umt5": ("t5", published.UMT5 | {"num_decoder_layers": 2}),
    "marian": ("transformer", published.MARIAN),
}
PROMPTS, SETTINGS = 20, 30
SIZES = (1, 2, 4, 6)
"""Lengths of prompts; with the longest continuation they fill the positions of the smallest model."""


def loaded(kind: str, folder: Path) -> tuple[Loaded, Any]:
    """The same model here and in `transformers`."""
    family, numbers = KINDS[kind]
    task = "text_to_text" if family in ("t5", "transformer") else "permutation" if family == "xlnet" else "causal"
    content = published.config(family, task, numbers)
    published.write(folder, content, spread=0.5)
    mesh = device_mesh.make_mesh(run_config.Mesh())
    cfg, params = published_weights.load_published(folder, mesh)
    net = models.model(cfg)
    return Loaded(kind, net, params, settings_of.Numbers(cfg.vocab), mesh), theirs.load(folder, content["architectures"][0])


def compare_texts(kind: str, folder: Path, prompts: int, settings: int) -> dict[str, int]:
    """Return how many texts were compared, greedy and searched, all of them equal, and how many different texts there are."""
    import transformers

    subject, net = loaded(kind, folder)
    rng, counts, texts = np.random.default_rng(1), {"greedy": 0, "searched": 0}, set()
    unequal: list[Any] = []
    rows = [rng.integers(3, subject.tokenizer.vocab_size - 1, SIZES[n % len(SIZES)]).tolist() for n in range(prompts)]
    for number in range(settings):
        values = settings_of.random_settings(rng, subject.tokenizer.vocab_size)
        if kind == "xlnet":
            # `transformers` reads XLNet both ways, and beam search here reads one way.
            values.pop("num_beams", None)
        (folder / "generation_config.json").write_text(json.dumps(values))
        net.generation_config = transformers.GenerationConfig.from_pretrained(folder)
        generation = read_generation(folder)
        options = Decoding(read="both-ways" if kind == "xlnet" else "left-to-right")
        decoding = resolve_settings(options, (), generation).decoding
        subject_with = Loaded(subject.name, subject.model, subject.params, subject.tokenizer, subject.mesh, generation=generation)
        generator = make_generator(subject_with, dtype=jnp.float32, batch=prompts)
        ends = np.ravel(values["eos_token_id"]).tolist()
        for row, text in zip(rows, generator.generate(rows, decoding), strict=True):
            expected = settings_of.expected_text(net, row, ends)
            unequal += [] if text.ids == expected else [(number, values, row, text.ids, expected)]
            texts.add(text.ids)
        counts["searched" if decoding.search.beams > 1 else "greedy"] += prompts
    print(kind, counts, len(texts), "different;", len(unequal), "not equal", *unequal[:3], sep="\n")
    assert not unequal
    return counts | {"different": len(texts)}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    counts = compare_texts(kind, tmp_path / "model", 4, 3)
    assert counts["greedy"] + counts["searched"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_texts_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """20 prompts, 30 settings each."""
    counts = compare_texts(kind, tmp_path / "model", PROMPTS, SETTINGS)
    assert counts["greedy"] + counts["searched"] == PROMPTS * SETTINGS and counts["different"] > PROMPTS


SETTINGS_OF: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "no file": ({}, None),
    "an old folder": ({"eos_token_id": [5, 6], "num_beams": 3, "top_k": None, "bad_words_ids": [[7]], "max_length": 9}, None),
    "both": ({"eos_token_id": 5, "num_beams": 3}, {"max_length": 9, "temperature": None}),
    "an empty file": ({"eos_token_id": 5, "do_sample": True}, {}),
    "the first token of BART": ({"force_bos_token_to_be_generated": True, "bos_token_id": 4}, None),
    "for a task": ({"task_specific_params": {"text-generation": {"do_sample": True}}}, None),
}


@pytest.mark.parametrize("case", SETTINGS_OF)
def test_settings_are_read_where_transformers_reads_them(case: str, tmp_path: Path) -> None:
    """The files of a folder decide, and null is absent."""
    import transformers

    old, new = SETTINGS_OF[case]
    published.write(tmp_path / "model", published.config("gpt", "causal", published.GPT2))
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | old))
    if new is not None:
        (tmp_path / "model" / "generation_config.json").write_text(json.dumps(new))
    published_weights.read_config(tmp_path / "model")
    expected = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "model").generation_config.to_dict()
    settings = read_generation(tmp_path / "model")
    assert settings is not None
    for key in SUPPORTED_GENERATION_KEYS:
        assert settings.values.get(key) == expected.get(key), key


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """30 settings, sampling and not, of 20 rows each after 0 to 7 new tokens, to 1e-6."""
    subject, net = loaded(kind, tmp_path / "model")
    rng, vocabulary, worst = np.random.default_rng(2), 24, 0.0
    pairs = subject.model.is_encoder_decoder
    for number in range(SETTINGS):
        values = settings_of.random_settings(rng, vocabulary, samples=number % 3 > 0)
        values.pop("num_beams", None)
        rows = [rng.integers(3, vocabulary, SIZES[n % len(SIZES)]).tolist() for n in range(PROMPTS)]
        outputs = rng.integers(3, vocabulary, (PROMPTS, number % 8)).tolist()
        logits = np.float32(3 * rng.standard_normal((PROMPTS, vocabulary)))
        arguments = (logits, [[settings_of.FIRST]] * PROMPTS if pairs else rows, outputs, rows if pairs else [])
        expected = settings_of.expected_probabilities(net, values, *arguments)
        actual = settings_of.probabilities(values, *arguments)
        np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
        np.testing.assert_allclose(actual, expected, atol=1e-6, err_msg=str(values))
        worst = max(worst, float(np.nanmax(np.abs(actual - expected))))
    print(kind, "largest difference", worst)
