"""Families with several names in config.json: XLM-R is a RoBERTa, mT5 and umT5 are T5s. They come out as they went in."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support import published
from tests.support.published import MT5, QWEN2, QWEN3, SMOLLM3, T5, UL2, UMT5, XLM
from train.config import run_config
from train.engine import device_mesh
from zoo import configs, models, published_weights
from zoo.errors import BadInput
from zoo.hf import safetensors_dir
from zoo.hf.config_json import PublishedConfig

ONE = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(("roberta", f"XLMRoberta{head}", XLM) for head in ("Model", "ForMaskedLM", "ForTokenClassification")),
    ("t5", "MT5ForConditionalGeneration", MT5),
    ("t5", "UMT5ForConditionalGeneration", UMT5),
    ("t5", "T5ForConditionalGeneration", UL2),
    *(("llama", f"Qwen2{head}", QWEN2) for head in ("ForCausalLM", "ForSequenceClassification")),
    *(("llama", f"Qwen3{head}", QWEN3) for head in ("ForCausalLM", "ForSequenceClassification")),
    ("llama", "SmolLM3ForCausalLM", SMOLLM3),
    ("llama", "SmolLM3ForCausalLM", SMOLLM3 | {"no_rope_layer_interval": 4}),
    ("llama", "SmolLM3ForCausalLM", SMOLLM3 | {"no_rope_layers": [1, 1, 1]}),
]


def content_of(architecture: str, numbers: dict[str, Any]) -> dict[str, Any]:
    labels = {"0": "no", "1": "yes"} if "Token" in architecture else {"0": "reward"} if "Sequence" in architecture else {}
    return {**numbers, **({"id2label": labels} if labels else {}), "architectures": [architecture]}


@pytest.mark.parametrize(("family", "architecture", "numbers"), CASES)
def test_a_folder_is_exported_with_the_type_and_the_class_that_it_had(
    family: str, architecture: str, numbers: dict[str, Any], tmp_path: Path
) -> None:
    content = content_of(architecture, numbers)
    stored = published.write(tmp_path / "model", content)
    assert published_weights.open_folder(tmp_path / "model").notes == ()
    cfg, params = published_weights.load_published(tmp_path / "model", ONE)
    assert models.model(cfg).family == family
    published_weights.save_published(tmp_path, cfg, params)
    written = load_file(tmp_path / safetensors_dir.SINGLE)
    assert written.keys() == stored.keys()
    assert all(np.array_equal(written[name], stored[name]) for name in stored)
    exported = json.loads((tmp_path / "config.json").read_text())
    assert (exported["model_type"], exported["architectures"]) == (numbers["model_type"], [architecture])
    assert exported.get("feed_forward_proj") == numbers.get("feed_forward_proj")
    again = published_weights.open_folder(tmp_path)
    assert (again.config, again.notes) == (cfg, ())


@pytest.mark.parametrize("model_type", ["t5", "mt5", "umt5"])
@pytest.mark.parametrize("says", [{"tie_word_embeddings": False}, {"tie_word_embeddings": True, "scale_decoder_outputs": False}])
def test_a_t5_without_an_output_table_has_its_embeddings_unscaled(model_type: str, says: dict[str, Any], tmp_path: Path) -> None:
    """`transformers` 5 writes such files; the embeddings are read twice, and an export has both tables."""
    content = content_of(f"{configs.family('t5').CLASSES[model_type]}ForConditionalGeneration", T5 | says)
    content["model_type"] = model_type
    stored = published.write(tmp_path / "model", content)
    stored.pop("lm_head.weight")
    folder = published.write_files(tmp_path / "model", content, stored)
    note = f"{folder}: has no lm_head.weight; shared.weight is read in its place, as in `transformers`"
    assert published_weights.open_folder(folder).notes[0] == note
    cfg, params = published_weights.load_published(folder, ONE)
    assert not cfg.tied
    np.testing.assert_array_equal(params["unembed"]["embedding"], params["embed"]["tokens"]["embedding"])
    published_weights.save_published(tmp_path, cfg, params)
    assert load_file(tmp_path / safetensors_dir.SINGLE)["lm_head.weight"].tobytes() == stored["shared.weight"].tobytes()
    assert published_weights.open_folder(tmp_path).config == cfg
    # A tensor of any other name is missing, and so is the table that the embeddings are tied to.
    stored.pop("shared.weight")
    published.assert_refused(
        published.write_files(folder, content, stored), "shared.weight is missing", "lm_head.weight is missing"
    )


def test_a_llama_in_bfloat16_is_exported_in_bfloat16(tmp_path: Path) -> None:
    """All released ones are; an import would otherwise need twice their space. A number that bfloat16 lacks is not rounded."""
    content = published.config("llama", "causal")
    stored = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in published.write(tmp_path / "model", content).items()}
    cfg, params = published_weights.load_published(published.write_files(tmp_path / "model", content, stored), ONE)
    (tmp_path / "out").mkdir()
    assert published_weights.save_published(tmp_path / "out", cfg, params) == "bfloat16"
    written = load_file(tmp_path / "out" / safetensors_dir.SINGLE)
    assert written.keys() == stored.keys() and all(np.array_equal(written[name], tensor) for name, tensor in stored.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    params["norm"]["scale"] = params["norm"]["scale"] + 2.0**-20
    (tmp_path / "finer").mkdir()
    assert published_weights.save_published(tmp_path / "finer", cfg, params) == "float32"


def test_umt5_has_a_table_in_every_layer(tmp_path: Path) -> None:
    """The tables of other layers are unexpected in a T5, and missing from a umT5."""
    stored = published.write(tmp_path / "model", content_of("UMT5ForConditionalGeneration", UMT5))
    tables = [name for name in stored if "relative_attention_bias" in name]
    assert len(tables) == UMT5["num_layers"] + UMT5["num_decoder_layers"]
    one = content_of("T5ForConditionalGeneration", published.T5)
    published.assert_refused(published.write_files(tmp_path / "t5", one, stored), f"{tables[1]} is unexpected")
    few = {name: tensor for name, tensor in stored.items() if name != tables[-1]}
    folder = published.write_files(tmp_path / "few", content_of("UMT5ForConditionalGeneration", UMT5), few)
    published.assert_refused(folder, f"{tables[-1]} is missing")


def read(model_type: str, **keys: Any) -> Any:
    content = PublishedConfig(Path("config.json"), {"model_type": model_type, **keys})
    return configs.family(configs.published_types()[model_type]).from_published(content)


def test_absent_keys_have_the_defaults_of_transformers() -> None:
    assert configs.published_name(read("mt5", decoder_start_token_id=0)) == "mt5-small"
    assert configs.published_name(read("umt5", tie_word_embeddings=False, vocab_size=256_384)) == "umt5-small"
    smollm3, qwen3 = read("smollm3"), read("qwen3")
    assert (smollm3.unrotated_every, smollm3.base, smollm3.kv_heads, smollm3.tied) == (4, 2e6, 4, True)
    assert (qwen3.query_key_norm, qwen3.head, qwen3.kv_heads, qwen3.context) == (True, 128, 32, 32_768)
    # No released XLM-R has these.
    xlm = read("xlm-roberta")
    assert (xlm.vocab, xlm.context, xlm.types, xlm.eps, xlm.position_offset) == (30_522, 510, 2, 1e-12, 2)


@pytest.mark.parametrize("flag", [True, False])
def test_the_tables_of_mt5_are_apart_whatever_its_flag_says(flag: bool) -> None:
    """`transformers` 5 writes true into the files of models whose tables it keeps apart, and never scales their states."""
    assert not read("mt5", tie_word_embeddings=flag).tied
    assert read("umt5", tie_word_embeddings=flag).tied == flag


def test_the_type_of_an_export_fits_its_numbers() -> None:
    """Whatever the imported file said: position biases in every layer are a umT5's, and tied tables no mT5's."""
    mt5, umt5, t5 = (configs.find_size(name)[1].config for name in ("mt5-small", "umt5-small", "t5-nano"))
    for config, changes, model_type in (
        *((mt5, {}, "mt5"), (umt5, {}, "umt5"), (t5, {}, "t5")),
        *((umt5, {"bias_per_layer": False}, "t5"), (t5, {"bias_per_layer": True}, "umt5"), (mt5, {"tied": True}, "t5")),
    ):
        changed = dataclasses.replace(config, **changes)
        assert configs.exported_class(changed, "T5ForConditionalGeneration")[0] == model_type
        keys = configs.family("t5").to_published(changed)
        again = read(model_type, **keys)
        assert configs.body_fields(again) == configs.body_fields(changed)


@pytest.mark.planted(2)
def test_types_of_other_families_and_biases_of_one_stack_are_refused() -> None:
    roberta, t5 = (configs.find_size(name)[1].config for name in ("roberta-nano", "t5-nano"))
    other = dataclasses.replace(roberta, exported=configs.Exported(model_type="xlnet"))
    with pytest.raises(BadInput, match="model-type xlnet: choose one of roberta, xlm-roberta"):
        configs.exported_class(other, "RobertaModel")
    with pytest.raises(BadInput, match="bias-per-layer True: the two sides' buckets are different distances"):
        dataclasses.replace(t5, bias_per_layer=True, architecture="shared")


COMMON = {"attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02, "use_cache": True}
LLAMA3 = {
    **COMMON,
    **{"model_type": "llama", "vocab_size": 128_256, "max_position_embeddings": 131_072, "num_key_value_heads": 8},
    **{"rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "bos_token_id": 128_000, "eos_token_id": [128_001, 128_008, 128_009]},
    **{"mlp_bias": False, "pretraining_tp": 1, "torch_dtype": "bfloat16"},
}
SCALED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}
QWEN2_5 = {
    **{key: value for key, value in COMMON.items() if key != "attention_bias"},
    **{"model_type": "qwen2", "rope_theta": 1_000_000.0, "rope_scaling": None, "use_sliding_window": False, "use_mrope": False},
}
QWEN3_NUMBERS = {
    **COMMON,
    **{"model_type": "qwen3", "vocab_size": 151_936, "head_dim": 128, "num_key_value_heads": 8},
    **{"max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000, "rope_scaling": None},
    **{"use_sliding_window": False, "sliding_window": None},
}
RELEASED: dict[str, dict[str, Any]] = {
    "llama-3.2-3b": {
        **LLAMA3,
        **{"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "num_hidden_layers": 28, "head_dim": 128},
        **{"rope_scaling": {"factor": 32.0, **SCALED}, "tie_word_embeddings": True},
    },
    "llama-3.1-8b": {
        **LLAMA3,
        **{"hidden_size": 4096, "intermediate_size": 14_336, "num_attention_heads": 32, "num_hidden_layers": 32},
        **{"rope_scaling": {"factor": 8.0, **SCALED}, "tie_word_embeddings": False},
    },
    "qwen2.5-0.5b": {
        **QWEN2_5,
        **{"vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24},
        **{"num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6},
        **{"max_window_layers": 24, "sliding_window": 32_768, "tie_word_embeddings": True},
    },
    "qwen2.5-72b": {
        **QWEN2_5,
        **{"vocab_size": 152_064, "hidden_size": 8192, "intermediate_size": 29_568, "num_hidden_layers": 80},
        **{"num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5},
        **{"max_window_layers": 80, "sliding_window": 131_072, "tie_word_embeddings": False},
    },
    "qwen3-0.6b": {
        **QWEN3_NUMBERS,
        **{"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_hidden_layers": 28},
        **{"max_window_layers": 28, "tie_word_embeddings": True},
    },
    "qwen3-1.7b": {
        **QWEN3_NUMBERS,
        **{"hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16, "num_hidden_layers": 28},
        **{"max_window_layers": 28, "tie_word_embeddings": True},
    },
    "qwen3-8b": {
        **QWEN3_NUMBERS,
        **{"hidden_size": 4096, "intermediate_size": 12_288, "num_attention_heads": 32, "num_hidden_layers": 36},
        **{"max_window_layers": 36, "tie_word_embeddings": False},
    },
    "smollm2-1.7b": {
        **COMMON,
        **{"model_type": "llama", "vocab_size": 49_152, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24},
        **{"num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5},
        **{"rope_theta": 130_000, "rope_scaling": None, "mlp_bias": False, "pretraining_tp": 1, "tie_word_embeddings": True},
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    },
    "smollm2-135m": {
        **COMMON,
        **{"model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        **{"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5},
        **{"rope_theta": 100_000, "rope_scaling": None, "rope_interleaved": False, "is_llama_config": True, "mlp_bias": False},
        **{"tie_word_embeddings": True, "pretraining_tp": 1, "initializer_range": 0.041666666666666664},
    },
    "smollm3-3b": {
        **COMMON,
        **{"model_type": "smollm3", "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 11_008},
        **{"num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 65_536},
        **{"rms_norm_eps": 1e-6, "rope_theta": 5_000_000.0, "rope_scaling": None, "no_rope_layer_interval": 4},
        **{"no_rope_layers": [1, 1, 1, 0] * 9, "layer_types": ["full_attention"] * 36, "pretraining_tp": 2, "mlp_bias": False},
        **{"use_sliding_window": False, "sliding_window": None, "max_window_layers": 28, "pad_token_id": 128_004},
    },
}
"""The keys of released files, by the size that they describe."""


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_config_of_the_llama_family_is_that_of_its_size(name: str) -> None:
    """With rotations as `transformers` 5 writes them, too; an export describes the same size."""
    content = RELEASED[name]
    cfg = read(**content)
    assert configs.published_name(cfg) == name
    rotations = {"rope_type": "default", **(content["rope_scaling"] or {}), "rope_theta": content["rope_theta"]}
    newer = {key: value for key, value in content.items() if key not in ("rope_scaling", "rope_theta")}
    assert read(**newer, rope_parameters=rotations) == cfg
    model_type, _ = configs.exported_class(cfg, "LlamaForCausalLM")
    assert model_type == content["model_type"]
    assert configs.published_name(read(model_type, **configs.family("llama").to_published(cfg))) == name


def test_the_yarn_of_the_documentation_of_qwen_is_read() -> None:
    """Qwen2.5 says `type`, Qwen3 `rope_type`; the size, `max_position_embeddings`, stays as the file has it."""
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32_768}
    numbers = {"scaling": "yarn", "scaling_factor": 4.0, "original_context": 32_768, "truncate": True}
    for name, key in (("qwen2.5-0.5b", "type"), ("qwen3-8b", "rope_type")):
        content: dict[str, Any] = {**RELEASED[name], "rope_scaling": {**scaling, key: "yarn"}}
        assert read(**content) == dataclasses.replace(read(**RELEASED[name]), **numbers)
