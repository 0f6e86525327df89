"""XLNet's sizes, what its config.json may say, and what an export has."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from safetensors.numpy import load_file, save_file

from tests.support import published
from tests.support.small import random_params
from tests.zoo.models.test_xlnet import tiny
from train.recipes import finetune
from zoo import catalogue, configs, models, pretrained, tensors
from zoo.batch import Batch
from zoo.configs import xlnet as numbers
from zoo.errors import BadInput
from zoo.published import Published

COUNTS = {"xlnet-base-cased": (116_718_336, 116_750_336), "xlnet-large-cased": (360_268_800, 360_300_800)}
"""Counted tensor by tensor from the released shapes: the body, and with the bias of the words."""


@pytest.mark.parametrize("name", COUNTS)
def test_count_is_exact(name: str) -> None:
    cfg = numbers.SIZES[name].config
    found = [models.parameter_count(dataclasses.replace(cfg, task=task)) for task in ("body", "permutation")]
    assert tuple(found) == COUNTS[name]
    assert configs.named(dataclasses.replace(cfg, task="permutation", memory=0, reuse=0, dropout=0.3)) == name


def test_every_size_has_its_source_and_its_reasons() -> None:
    assert set(numbers.SIZES) == {*COUNTS, "xlnet-nano"}
    assert 2e6 < models.parameter_count(numbers.NANO.config) < 10e6
    fields = {field.name for field in dataclasses.fields(numbers.Config)} - {"compute"}
    unstated = {"xlnet-base-cased": {"memory", "reuse"}, "xlnet-large-cased": set(), "xlnet-nano": fields}
    for name, size in numbers.SIZES.items():
        assert size.source and all(size.assumed.values()) and set(size.assumed) == unstated[name]
        assert max(map(len, catalogue.render(name).splitlines())) <= 80


def test_a_row_has_no_limit() -> None:
    net = tiny()
    batch = Batch(tokens=jnp.ones((1, 3000), jnp.int32))
    assert jax.eval_shape(lambda: net.apply(random_params(net), batch).hidden).shape == (1, 3000, 16)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"width": 15, "heads": 3}, "--model.width 15: sines and cosines come in pairs; choose an even number"),
        ({"memory": -1}, "--model.memory -1: choose 0 (nothing is remembered) to 1,048,576 positions"),
        ({"reuse": -1}, "--model.reuse -1: choose 0 (whole rows) to 1,048,576 positions"),
        ({"heads": 3}, "--model.heads 3: it must divide --model.width 16"),
        (
            {"task": "masked"},
            "model.task masked: this family has no such head; choose one of body, permutation, pretraining, sequence,",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_numbers_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput) as refusal:
        tiny(**changes).init(jax.random.key(0))
    assert str(refusal.value).startswith(told) and "\n" not in str(refusal.value)


def read(**keys: Any) -> numbers.Config:
    said = Published(Path("config.json"), keys)
    said.task = "permutation"
    return numbers.from_published(said)


def test_what_a_config_leaves_out_is_the_default_of_transformers() -> None:
    """Which is the large size; a memory is kept only where the file says how long it is."""
    assert configs.named(read()) == "xlnet-large-cased"
    assert (read().memory, read(mem_len=None).memory, read(mem_len=0).memory, read(mem_len=7).memory) == (0, 0, 0, 7)
    assert (read(reuse_len=5).reuse, read(n_token=99).vocab, read(dropout=0.3).attention_dropout) == (5, 99, 0.3)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"untie_r": False}, "untie_r is false; this family computes true"),
        ({"attn_type": "uni"}, 'attn_type is "uni"; this family computes "bi"'),
        ({"same_length": True}, "same_length is true; this family computes false"),
        ({"bi_data": True}, "bi_data is true; this family computes false"),
        ({"clamp_len": 10}, "clamp_len is 10; this family computes -1"),
        ({"summary_type": "first"}, 'summary_type is "first"; this family computes "last"'),
        ({"summary_use_proj": False}, "summary_use_proj is false; this family computes true"),
        ({"summary_activation": "relu"}, 'summary_activation is "relu"; this family computes "tanh"'),
        ({"summary_first_dropout": 0.1}, "summary_first_dropout is 0.1; this family computes 0"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is false; this family computes true"),
        ({"d_head": 32}, "d_head is 32; this family computes 64"),
        ({"mem_len": -1}, "mem_len is -1; it must be a whole number of at least 0"),
        ({"ff_activation": "silu"}, 'ff_activation is "silu"; this family computes gelu, gelu_new'),
        ({"quantization_config": {"bits": 4}}, "take the original ones"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_computed_is_refused(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput) as refusal:
        read(**keys)
    assert told in str(refusal.value) and "\n" not in str(refusal.value)


def test_what_fine_tuning_begins_from(tmp_path: Path) -> None:
    """A published folder under another head: rows as long as the recipe's, and nothing remembered between them."""
    folder = tmp_path / "there"
    published.write(folder, published.config("xlnet", "permutation", {**published.XLNET, "mem_len": 7}))
    run = finetune.finetune_span(init=str(folder))
    assert (run.data.length, run.model.task, run.model.memory) == (384, "span", 7)
    assert models.model(run.model).init_carry(2) == {}


def test_two_rates_of_dropout_have_no_published_form(tmp_path: Path) -> None:
    cfg = dataclasses.replace(numbers.NANO.config, attention_dropout=0.1)
    with pytest.raises(BadInput, match=r"model.attention_dropout 0.1: an xlnet config.json has one rate for all"):
        pretrained.save(tmp_path, cfg, {})


@pytest.mark.planted(2)
def test_without_the_bias_of_its_words_a_file_is_a_bodys(tmp_path: Path) -> None:
    """It is the head's only tensor; that the file says otherwise is told. The tied table may lie beside it, if it is the same."""
    folder = tmp_path / "there"
    stored = published.write(folder, published.config("xlnet", "permutation"))
    assert pretrained.open_folder(folder).config.task == "permutation"
    save_file({**stored, "lm_loss.weight": stored["transformer.word_embedding.weight"]}, folder / tensors.SINGLE)
    assert pretrained.open_folder(folder).notes == ()
    save_file({**stored, "lm_loss.weight": stored["transformer.word_embedding.weight"] + 1}, folder / tensors.SINGLE)
    with pytest.raises(BadInput, match=r"lm_loss\.weight differs from transformer\.word_embedding\.weight"):
        pretrained.open_folder(folder)
    save_file({name: each for name, each in stored.items() if name != "lm_loss.bias"}, folder / tensors.SINGLE)
    opened = pretrained.open_folder(folder)
    assert opened.config.task == "body"
    assert [note.partition(": ")[2] for note in opened.notes] == ["says XLNetLMHeadModel, but the tensors are of XLNetModel"]


def test_an_export_has_the_published_names_and_shapes(tmp_path: Path) -> None:
    """Projections lie as [width, heads, size of a head], that of the output too; memory of no length is null."""
    net = tiny()
    pretrained.save(tmp_path, net.config, random_params(net))
    stored, said = load_file(tmp_path / tensors.SINGLE), json.loads((tmp_path / "config.json").read_text())
    layer = "transformer.layer.1"
    assert {stored[f"{layer}.rel_attn.{name}"].shape for name in "qkvor"} == {(16, 2, 8)}
    assert {stored[f"{layer}.rel_attn.r_{name}_bias"].shape for name in "wrs"} == {(2, 8)}
    assert stored[f"{layer}.rel_attn.seg_embed"].shape == (2, 2, 8) and stored["transformer.mask_emb"].shape == (1, 1, 16)
    assert (said["mem_len"], said["reuse_len"], said["model_type"]) == (None, None, "xlnet")
    assert "lm_loss.weight" not in stored and stored["lm_loss.bias"].shape == (90,)
