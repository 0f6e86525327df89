"""Published weights come out of the models as they went in: every tensor, every number and every label."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support import published
from train.config import run_config
from train.engine import device_mesh
from zoo import configs, models, published_weights
from zoo.configs._encoder import LABELLED
from zoo.hf import safetensors_dir
from zoo.hf.config_json import PublishedConfig

ONE = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
FOUR = device_mesh.make_mesh(run_config.Mesh(fsdp=4), jax.devices()[:4])


@published.every_model
def test_a_folder_that_is_imported_and_exported_has_the_same_bits(model: str, tmp_path: Path) -> None:
    """Read a folder onto four devices and write it again."""
    family, task, _ = published.MODELS[model]
    stored = published.write_model(tmp_path / "model", model)
    cfg, params = published_weights.load_published(tmp_path / "model", FOUR)
    published_weights.save_published(tmp_path, cfg, params)
    written = load_file(tmp_path / safetensors_dir.SINGLE)
    assert written.keys() == stored.keys()
    assert all(np.array_equal(written[name], stored[name]) for name in stored)
    again = published_weights.open_folder(tmp_path)
    assert (again.config, again.notes) == (cfg, ()), "an export has keys that the import does not know"
    content = json.loads((tmp_path / "config.json").read_text())
    architecture = models.family(family).names[task].architecture
    # A family with several types has a class for each.
    classes = getattr(configs.family(family), "CLASSES", {})
    expected = (
        architecture.replace(classes[configs.family(family).MODEL_TYPE], classes[content["model_type"]])
        if classes
        else architecture
    )
    assert content["architectures"] == [expected]
    assert models.model(cfg).task == task
    if task in LABELLED:
        assert cfg.labels == tuple(content["id2label"].values()) == tuple(content["label2id"]) == published.labels(family)


YARN = {
    **{"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "beta_slow": 0.5, "truncate": False, "attention_factor": 1.25},
    "original_max_position_embeddings": 8,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
EXPORTED: list[tuple[str, dict[str, Any]]] = [
    ("gpt", {"activation_function": "gelu_pytorch_tanh", "initializer_range": 0.5}),
    ("bert", {"hidden_act": "gelu_pytorch_tanh", "initializer_range": 0.5}),
    ("distilbert", {"activation": "gelu_pytorch_tanh", "initializer_range": 0.5}),
    ("roberta", {"hidden_act": "gelu_new", "pad_token_id": 0, "max_position_embeddings": 17}),
    ("t5", {"feed_forward_proj": "gated-gelu_new", "initializer_factor": 0.5, "relative_attention_num_buckets": 7}),
    ("transformer", {"activation_function": "gelu_pytorch_tanh", "init_std": 0.5, "max_position_embeddings": 64}),
    ("transformer", {"activation_function": "swish"}),
    ("llama", {"hidden_act": "gelu_pytorch_tanh", "initializer_range": 0.5, "rope_scaling": published.LLAMA["rope_scaling"]}),
    *(("llama", {"hidden_act": "gelu_pytorch_tanh", "rope_scaling": scaling}) for scaling in (YARN, DYNAMIC)),
    ("modernbert", {"hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.5, "classifier_pooling": "mean"}),
    ("ettin_decoder", {"hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.5, "local_attention": 10}),
    ("xlnet", {"ff_activation": "gelu_pytorch_tanh", "initializer_range": 0.5, "mem_len": 3}),
]
"""A family, and keys of its config.json that come out as they went in."""


@pytest.mark.parametrize(("family", "keys"), EXPORTED)
def test_values_without_effect_are_exported_as_they_were_read(family: str, keys: dict[str, Any]) -> None:
    content = PublishedConfig(Path("config.json"), published.TINY[family] | keys)
    cfg = configs.family(family).from_published(content)
    written = configs.family(family).to_published(cfg)
    assert {key: written[key] for key in keys} == keys
    # The name of another activation than the model now has would be wrong.
    plain = {"gated": False} if family == "t5" else {}
    changed = configs.family(family).to_published(dataclasses.replace(cfg, activation="relu", **plain))
    assert "relu" in changed.values() and "gelu_pytorch_tanh" not in changed.values()


@pytest.mark.planted(4)
def test_stored_sinusoids_must_be_the_computed_ones(tmp_path: Path) -> None:
    """`transformers` computes with what Marian's file has. An export has as many rows as were read."""
    content = published.MARIAN | {"max_position_embeddings": 64}
    stored = published.write(tmp_path / "model", content)
    angles = np.array([[row / 10_000 ** (2 * pair / 12) for pair in range(6)] for row in range(64)])
    table = np.float32(np.hstack([np.sin(angles), np.cos(angles)]))
    name = "model.decoder.embed_positions.weight"
    folder = published.write_files(tmp_path / "whole", content, stored | {name: table})
    cfg, params = published_weights.load_published(folder, ONE)
    published_weights.save_published(tmp_path, cfg, params)
    assert json.loads((tmp_path / "config.json").read_text())["max_position_embeddings"] == 64
    broken = np.where(np.arange(64)[:, None] == 63, np.nan, table)
    for wrong, part in (
        (np.roll(table, 1, 0), "differs by"),
        (broken.astype(np.float32), "differs by nan"),
        (table.astype(np.float16), "differs by 0.000"),
        (table[1:], "has shape [63, 12], not [64, 12]"),
    ):
        published.assert_refused(published.write_files(folder, content, stored | {name: wrong}), f"{name} {part}")


def test_a_large_export_is_split_into_files(tmp_path: Path) -> None:
    stored = published.write_model(tmp_path / "model", "gpt-causal")
    cfg, params = published_weights.load_published(tmp_path / "model", ONE)
    for part in ("whole", "split"):
        (tmp_path / part).mkdir()
        published_weights.save_published(tmp_path / part, cfg, params, largest=5_000_000_000 if part == "whole" else 4_000)
        assert (tmp_path / part / safetensors_dir.INDEX).exists() == (part == "split")
    written = {name: tensor.view() for name, tensor in safetensors_dir.read_safetensors(tmp_path / "split").items()}
    assert written.keys() == stored.keys()
    assert all(np.array_equal(written[name], stored[name]) for name in stored)


def test_parameters_are_sharded_as_the_table_says(tmp_path: Path) -> None:
    published.write(
        tmp_path / "even", published.config("gpt", "causal", published.GPT2 | dict(vocab_size=130, n_embd=16, n_head=4))
    )
    _, params = published_weights.load_published(tmp_path / "even", device_mesh.make_mesh(run_config.Mesh(fsdp=2, tensor=4)))
    _, whole = published_weights.load_published(tmp_path / "even", ONE)
    assert params["layers"]["attention"]["qkv"]["kernel"].sharding.shard_shape((2, 16, 3, 4, 4)) == (2, 8, 3, 1, 4)
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    assert whole["embed"]["tokens"]["embedding"].shape == (256, 16)
    assert not np.asarray(params["embed"]["tokens"]["embedding"])[130:].any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32_exactly(dtype: str, tmp_path: Path) -> None:
    stored = published.write_model(tmp_path / "model", "gpt-causal")
    half = {name: tensor.astype(jnp.dtype(dtype)) for name, tensor in stored.items()}
    _, params = published_weights.load_published(published.write_files(tmp_path / "half", published.GPT2, half), ONE)
    scale = np.asarray(params["norm"]["scale"])
    assert scale.dtype == np.float32
    assert np.array_equal(scale, half["transformer.ln_f.weight"].astype(np.float32))
