"""The head that the tensors of a folder are for, and what released files contain besides: old names and unused tensors."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.support import published
from train.config import run_config
from train.engine import device_mesh
from zoo import configs, models, published_weights
from zoo.hf.config_json import PublishedConfig

ALIKE = {
    ("bert", "sequence", "choice", "tokens"),
    ("roberta", "choice", "tokens"),
    ("distilbert", "sequence", "choice"),
    ("xlnet", "sequence", "choice"),
    ("modernbert", "sequence", "choice", "tokens", "span"),
}
"""Heads with tensors of the same names, with the unused pooler of a classifier of tokens; without an architecture, the first."""


def expected_task(family: str, task: str, idle: bool, declared: str) -> str:
    """Return the task of a file of `task`'s tensors whose architecture is that of `declared`."""
    alike = next((tasks for other, *tasks in ALIKE if other == family and task in tasks), [task])
    without_pooler = task == "tokens" and not idle and bool(models.family(family).names[task].idle)
    return task if without_pooler else declared if declared in alike else alike[0]


@functools.cache
def tiny(family: str, task: str) -> tuple[Any, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return (configuration, published tensors, leaves) of the tiny model."""
    content = PublishedConfig(Path(), published.config(family, task))
    content.task = task
    cfg = configs.family(family).from_published(content)
    stored = published.weights({name: shape for name, shape, *_ in published_weights.explain_import(cfg)})
    held = {name: published.held(each) for name, each in stored.items()}
    leaves, _ = published_weights.plan_import(cfg, held, Path())
    return cfg, stored, {leaf.path: whole(leaf, held) for leaf in leaves}


def whole(leaf: published_weights.Leaf, held: dict[str, Any]) -> np.ndarray:
    return leaf.read(held, (slice(None),) * (leaf.stacked + len(leaf.shape)))


def old_name(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def test_the_head_is_recognized_by_its_tensors() -> None:
    """With the family's prefix or without, with what old files have besides, under any architecture or none."""
    from hypothesis import given, settings
    from hypothesis import strategies as st

    heads = st.sampled_from(published.ENCODERS)
    declarations = st.sampled_from(["", *models.family("bert").names])

    @settings(deadline=None)
    @given(heads, declarations, st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
    def check(head: tuple[str, str], declared: str, other_prefix: bool, idle: bool, old: bool, tied: bool, buffers: bool) -> None:
        family, task = head
        heads = models.family(family).names
        names = heads[task]
        cfg, stored, leaves = tiny(family, task)
        first, prefix = names.prefixes[0], names.prefixes[other_prefix]
        file = {prefix + name.removeprefix(first) if name.startswith(first) else name: each for name, each in stored.items()}
        if tied:
            file |= {name: leaves[path][: cfg.vocab] for name, path in names.tied.items()}
        if idle := idle and bool(names.idle):
            file |= {prefix + name: np.zeros(12, np.float32) for name in names.idle}
        if old:
            file = {old_name(name): each for name, each in file.items()}
        if buffers and names.constants:
            file[f"{prefix}embeddings.position_ids"] = np.arange(16)[None]
        architecture = heads[declared].architecture if declared in heads else ""
        assert published_weights.resolve_task(heads, file, architecture) == expected_task(family, task, idle, declared)
        held = {names.today(name): published.held(each) for name, each in file.items()}
        planned, unused = published_weights.plan_import(cfg, held, Path())
        assert unused == [prefix + name for name in names.idle if idle]
        assert all(np.array_equal(whole(leaf, held), leaves[leaf.path]) for leaf in planned)

    check()


@pytest.mark.planted(2)
def test_released_files_of_gpt2_are_read(tmp_path: Path) -> None:
    """Names without a prefix, buffers of masks, and perhaps the table once more as the output's."""
    stored = published.write(tmp_path / "today", published.GPT2)
    old = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    for layer in range(2):
        old[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), np.float32))
        old[f"h.{layer}.attn.masked_bias"] = np.full((), -1e4, np.float32)
    tied = old | {"lm_head.weight": old["wte.weight"]}
    one = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
    _, params = published_weights.load_published(published.write_files(tmp_path / "old", published.GPT2, tied), one)
    _, same = published_weights.load_published(tmp_path / "today", one)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    untied = old | {"lm_head.weight": old["wte.weight"] + np.float32(1e-3)}
    for changed, message in (
        (untied, "lm_head.weight differs from wte.weight"),
        (old | {"h.2.attn.bias": old["h.0.attn.bias"]}, "h.2.attn.bias is unexpected"),
    ):
        published.assert_refused(published.write_files(tmp_path / "old", published.GPT2, changed), message)


@pytest.mark.planted(3)
def test_released_files_of_bert_are_read(tmp_path: Path) -> None:
    """Both pretraining heads with old names, the table once more as the decoder, and an architecture of only one head."""
    stored = {old_name(name): each for name, each in tiny("bert", "pretraining")[1].items()}
    decoder = "cls.predictions.decoder.weight"
    stored[decoder] = stored["bert.embeddings.word_embeddings.weight"]
    content = published.config("bert", "masked") | {"gradient_checkpointing": False, "position_embedding_type": "absolute"}
    opened = published_weights.open_folder(published.write_files(tmp_path / "model", content, stored))
    assert opened.config.task == "pretraining"
    (note,) = opened.notes
    assert "says BertForMaskedLM, but the tensors are of BertForPreTraining" in note
    norm = "bert.embeddings.LayerNorm"
    for changed, message in (
        (stored | {decoder: stored[decoder] * np.float32(1.001)}, f"{decoder} differs from bert.embeddings"),
        (stored | {f"{norm}.weight": stored[f"{norm}.gamma"]}, f"both {norm}.gamma and {norm}.weight"),
        (without(stored, "cls.predictions.transform.LayerNorm.beta"), "cls.predictions.transform.LayerNorm.bias is missing"),
    ):
        published.assert_refused(published.write_files(tmp_path / "model", content, changed), message)


@pytest.mark.planted(3)
def test_released_files_of_roberta_are_read(tmp_path: Path) -> None:
    """With a pooler that nothing uses, all of it or none, whole numbers of positions, and the decoder's bias once more."""
    stored = dict(tiny("roberta", "masked")[1])
    pooler = {"weight": np.ones((12, 12), np.float32), "bias": np.ones(12, np.float32)}
    stored |= {f"roberta.pooler.dense.{name}": each for name, each in pooler.items()}
    stored |= {"lm_head.decoder.weight": stored["roberta.embeddings.word_embeddings.weight"]}
    stored |= {"lm_head.decoder.bias": stored["lm_head.bias"], "roberta.embeddings.position_ids": np.arange(18)[None]}
    content = published.config("roberta", "masked")
    opened = published_weights.open_folder(published.write_files(tmp_path / "model", content, stored))
    cfg = opened.config
    assert (cfg.task, cfg.context, cfg.position_offset, cfg.types, cfg.eps) == ("masked", 16, 2, 1, 1e-5)
    (note,) = opened.notes
    assert "not used by RobertaForMaskedLM, its head: roberta.pooler.dense.weight, roberta.pooler.dense.bias" in note
    bias = "roberta.pooler.dense.bias"
    for changed, message in (
        (without(stored, bias), f"{bias} is missing"),
        (stored | {bias: np.full(12, np.nan, np.float32)}, f"{bias} holds NaN"),
        (stored | {"lm_head.decoder.bias": stored["lm_head.bias"] + 1}, "lm_head.decoder.bias differs from lm_head.bias"),
    ):
        published.assert_refused(published.write_files(tmp_path / "model", content, changed), message)


@pytest.mark.planted(5)
def test_every_copy_of_the_table_of_t5_must_be_equal(tmp_path: Path) -> None:
    """If it is tied, the output's too; position biases of cross-attention, which nothing reads, are reported."""
    tables = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    for form, copies in (("t5-1.0", tables), ("t5-1.1", tables[:2])):
        stored = published.write_model(tmp_path / form, form)
        _, _, numbers = published.MODELS[form]
        content, shared = published.config("t5", "text_to_text", numbers), stored["shared.weight"]
        with_copies = {**stored, **dict.fromkeys(copies, shared)}
        assert published_weights.open_folder(published.write_files(tmp_path / form, content, with_copies)).notes == ()
        old = published.write_files(tmp_path / form, content, {**stored, unused: np.ones((8, 3), np.float32)})
        (note,) = published_weights.open_folder(old).notes
        assert f"not used by T5ForConditionalGeneration, its head: {unused}" in note
        for name in copies:
            changed = published.write_files(tmp_path / form, content, {**stored, name: shared + 1})
            published.assert_refused(changed, f"{name} differs from shared.weight, which this family ties it to")


@pytest.mark.planted(4)
def test_tensors_of_another_form_are_refused(tmp_path: Path) -> None:
    """A T5 1.1 that config.json calls tied or not gated, or without its second table; a classifier with one label too few."""
    stored = published.write_model(tmp_path / "t5", "t5-1.1")
    content = published.config("t5", "text_to_text")
    three_labels = tiny("bert", "tokens")[1]
    two_labels = published.config("bert", "tokens") | {"id2label": None, "num_labels": 2}
    for said, changed, message in (
        (content | {"tie_word_embeddings": True}, stored, "lm_head.weight differs from shared.weight"),
        (content | {"feed_forward_proj": "relu"}, stored, "encoder.block.0.layer.1.DenseReluDense.wi.weight is missing"),
        (content, without(without(stored, "lm_head.weight"), "shared.weight"), "lm_head.weight is missing"),
        (two_labels, three_labels, "classifier.weight has shape [3, 12], not [2, 12]"),
    ):
        published.assert_refused(published.write_files(tmp_path / "model", said, changed), message)


@pytest.mark.planted(2)
def test_a_file_of_xlnet_without_the_bias_of_its_words_is_a_body(tmp_path: Path) -> None:
    """The bias is the head's only tensor; a difference from the architecture in config.json is reported."""
    content = published.config("xlnet", "permutation")
    stored = published.write(tmp_path / "model", content)
    assert published_weights.open_folder(tmp_path / "model").config.task == "permutation"
    table = stored["transformer.word_embedding.weight"]
    copied = published.write_files(tmp_path / "model", content, {**stored, "lm_loss.weight": table})
    assert published_weights.open_folder(copied).notes == ()
    other = published.write_files(tmp_path / "model", content, {**stored, "lm_loss.weight": table + 1})
    published.assert_refused(other, "lm_loss.weight differs from transformer.word_embedding.weight")
    opened = published_weights.open_folder(published.write_files(tmp_path / "model", content, without(stored, "lm_loss.bias")))
    (note,) = opened.notes
    assert opened.config.task == "body" and "says XLNetLMHeadModel, but the tensors are of XLNetModel" in note


def without(stored: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    assert name in stored
    return {other: each for other, each in stored.items() if other != name}
