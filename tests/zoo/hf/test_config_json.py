"""The contents of a config.json: its defaults, what is refused because it is not computed, and what an export can express."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import published
from tests.support.small import ENCODERS, HEADS, with_head
from train.recipes import finetune
from zoo import configs, models, published_weights
from zoo.errors import BadInput
from zoo.hf.config_json import MOST_LABELS, PublishedConfig


def read(family: str, task: str = "", **keys: Any) -> Any:
    """Return the configuration that these keys alone describe."""
    content = PublishedConfig(Path("config.json"), keys)
    content.task = task
    content.architecture()
    return configs.family(family).from_published(content)


def test_absent_keys_of_encoders_have_the_defaults_of_transformers() -> None:
    """For RoBERTa they are those of no released model, and for DistilBERT one depends on the head."""
    bert, roberta = read("bert", "masked"), read("roberta", "masked")
    assert configs.published_name(bert) == "bert-base-uncased"
    assert (roberta.context, roberta.types, roberta.eps) == (510, 2, 1e-12)
    base = read("roberta", "masked", max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
    assert configs.published_name(base) == "roberta-base"
    distil = {task: read("distilbert", task) for task in models.family("distilbert").names}
    assert {configs.published_name(cfg) for cfg in distil.values()} == {"distilbert-base-uncased"}
    rates = {task: cfg.head_dropout for task, cfg in distil.items()}
    assert (rates["sequence"], rates["choice"], rates["tokens"], rates["span"]) == (0.2, 0.2, 0.1, 0.1)
    assert read("bert", "sequence", hidden_dropout_prob=0.3).head_dropout == 0.3
    assert read("bert", "sequence", hidden_dropout_prob=0.3, classifier_dropout=0.0).head_dropout == 0.0


def test_absent_keys_of_xlnet_have_the_defaults_of_transformers() -> None:
    """They are the large size's; a memory is used only where the file gives its length."""
    assert configs.published_name(read("xlnet", "permutation")) == "xlnet-large-cased"
    lengths = [read("xlnet", "permutation", **keys).memory for keys in ({}, {"mem_len": None}, {"mem_len": 0}, {"mem_len": 7})]
    assert lengths == [0, 0, 0, 7]
    other = read("xlnet", "permutation", reuse_len=5, dropout=0.3)
    assert (other.reuse, other.attention_dropout) == (5, 0.3)


def test_fine_tuning_has_its_own_length_and_no_memory(tmp_path: Path) -> None:
    published.write(tmp_path / "model", published.config("xlnet", "permutation", {**published.XLNET, "mem_len": 7}))
    run = finetune.finetune_span(init=str(tmp_path / "model"))
    assert (run.data.length, run.model.task, run.model.memory) == (384, "span", 7)
    assert models.model(run.model).init_carry(2) == {}


def test_labels_are_named_or_counted() -> None:
    assert read("bert", "tokens").labels == ("LABEL_0", "LABEL_1")
    assert read("bert", "tokens", num_labels=3).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert read("bert", "tokens", id2label={"1": "B-PER", "0": "O"}).labels == ("O", "B-PER")
    # A head that is no classifier of labels has none.
    assert read("bert", "span", id2label={"0": "LABEL_0", "1": "LABEL_1"}).labels == ()


def test_several_labels_of_a_sequence_are_exported_as_they_are_imported() -> None:
    """The number of labels does not matter; a head of tokens has one label for each, whatever `problem_type` is."""
    for names in ({"0": "a"}, {"0": "b", "1": "a"}):
        keys = {"problem_type": "multi_label_classification", "id2label": names}
        for family in ENCODERS:
            cfg = read(family, "sequence", **keys)
            assert cfg.multi_label and keys.items() <= configs.family(family).to_published(cfg).items()
            assert not read(family, "tokens", **keys).multi_label and not read(family, "sequence").multi_label


def test_tied_tables_of_t5_have_two_names() -> None:
    assert read("t5", decoder_start_token_id=0).tied
    scaled = {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    for keys in (scaled, {"dense_act_fn": "gelu_new"}, {"is_gated_act": True}):
        gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, **keys}
        assert not read("t5", decoder_start_token_id=0, **gated).tied


ALIASED: list[tuple[str, dict[str, int], dict[str, int]]] = [
    ("gpt", {"hidden_size": 24, "num_attention_heads": 2}, {"width": 24, "heads": 2, "ffn": 96, "layers": 12}),
    ("gpt", {"n_layer": 5, "num_hidden_layers": 2, "max_position_embeddings": 7}, {"layers": 2, "context": 7}),
    ("distilbert", {"hidden_size": 6, "num_attention_heads": 2, "n_heads": 3, "num_hidden_layers": 4}, {"heads": 2, "layers": 4}),
    ("t5", {"num_hidden_layers": 2, "num_layers": 3, "head_dim": 5}, {"layers": 2, "decoder_layers": 3, "head": 5}),
    ("t5", {"num_hidden_layers": 2, "hidden_size": 24}, {"layers": 2, "decoder_layers": 6, "width": 24}),
    ("transformer", {"num_hidden_layers": 12, "encoder_layers": 3, "num_attention_heads": 16}, {"layers": 12, "heads": 16}),
    ("xlnet", {"n_token": 99, "num_hidden_layers": 2, "num_attention_heads": 8, "hidden_size": 512}, {"vocab": 99, "heads": 8}),
]
"""A family, keys of its config.json, and the numbers that `transformers` makes of them."""


@pytest.mark.parametrize(("family", "keys", "numbers"), ALIASED)
def test_other_names_of_keys_win(family: str, keys: dict[str, int], numbers: dict[str, int]) -> None:
    """Compare defaults, too, that `transformers` works out before it reads the other names: T5's decoder, XLNet's heads."""
    cfg = read(family, **COMMON.get(family, {}), **keys)
    assert {name: getattr(cfg, name) for name in numbers} == numbers


def test_absent_keys_of_marian_have_the_defaults_of_transformers() -> None:
    """The decoder's do not depend on the encoder's."""
    cfg = read("transformer", scale_embedding=True)
    assert (cfg.vocab, cfg.layers, cfg.width, cfg.heads, cfg.ffn, cfg.activation) == (58_101, 12, 1024, 16, 4096, "gelu")
    for key, ours in {"attention_heads": 8, "layers": 3, "ffn_dim": 100}.items():
        with pytest.raises(BadInput, match=f"decoder_{key} is absent; this family computes {ours}, as in the encoder"):
            read("transformer", scale_embedding=True, **{f"encoder_{key}": ours})


def test_an_unknown_key_is_reported(tmp_path: Path) -> None:
    content = published.GPT2 | {"attn_logit_cap": 30.0, "summary_type": "first"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert published_weights.read_config(tmp_path)[1] == ["attn_logit_cap"]


NOT_COMPUTED: dict[str, dict[str, Any]] = {
    "gpt": {
        **{"tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True, "add_cross_attention": True},
        **{"scale_attn_weights": 1, "activation_function": "swiglu", "is_causal": False},
    },
    "bert": {
        **{"position_embedding_type": "relative_key", "is_decoder": True, "add_cross_attention": True},
        **{"tie_word_embeddings": False, "hidden_act": "mish"},
    },
    "roberta": {"add_cross_attention": True},
    "distilbert": {"tie_word_embeddings": False, "sinusoidal_pos_embds": True},
    "t5": {
        **{"feed_forward_proj": "gated-tanh", "is_gated_act": True, "decoder_start_token_id": 2, "is_encoder_decoder": False},
        "is_causal": None,
    },
    "transformer": {
        **{"scale_embedding": False, "decoder_layers": 3, "activation_function": "mish", "normalize_before": True},
        **{"share_encoder_decoder_embeddings": False, "is_causal": False},
    },
    "xlnet": {
        **{"untie_r": False, "attn_type": "uni", "same_length": True, "bi_data": True, "clamp_len": 10, "summary_type": "first"},
        **{"summary_use_proj": False, "summary_activation": "relu", "summary_first_dropout": 0.1, "tie_word_embeddings": False},
        **{"d_head": 32, "ff_activation": "mish"},
    },
    "modernbert": {
        **{"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True, "decoder_bias": False},
        **{"hidden_activation": "mish", "classifier_activation": "relu", "tie_word_embeddings": False},
        **{"classifier_pooling": "last", "layer_types": ["full_attention"]},
    },
    "ettin_decoder": {
        **{"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True, "decoder_bias": False},
        **{"hidden_activation": "mish", "classifier_activation": "relu", "tie_word_embeddings": False},
        **{"layer_types": ["full_attention"], "is_causal": None},
    },
    "gpt_oss": {
        **{"attention_bias": False, "hidden_act": "gelu", "swiglu_alpha": 1.0, "tie_word_embeddings": True},
        **{"layer_types": ["full_attention"], "is_causal": "x"},
    },
    "nanochat": {
        **{"attention_bias": True, "hidden_act": "mish", "tie_word_embeddings": True, "is_causal": False, "head_dim": 8},
        **{"partial_rotary_factor": 0.5},
    },
    "llama": {
        **{"mlp_bias": True, "use_sliding_window": True, "hidden_act": "mish", "rope_interleaved": True},
        **{"partial_rotary_factor": 0.5, "layer_types": ["full_attention"], "is_causal": False, "sliding_window": 0},
    },
}
"""Keys of each family with a value that changes the arithmetic and is not computed here."""
MISTYPED: dict[str, dict[str, Any]] = {
    "gpt": {"n_layer": None, "layer_norm_epsilon": 1, "attn_pdrop": True, "scale_attn_weights": None, "summary_type": None},
    "bert": {"use_cache": "x", "initializer_range": 1, "pad_token_id": "x", "eos_token_id": [1.5], "id2label": {"0": 1}},
    "roberta": {"pad_token_id": None, "hidden_act": None, "architectures": "x", "dtype": "x", "num_labels": None},
    "distilbert": {"pad_token_id": 30_522, "dropout": None, "bos_token_id": True, "return_dict": 1},
    "t5": {"scale_decoder_outputs": None, "is_gated_act": None, "initializer_factor": "x", "classifier_dropout": None},
    "transformer": {"decoder_ffn_dim": 4096.0, "init_std": True, "forced_eos_token_id": "x", "pad_token_id": None},
    "modernbert": {"norm_eps": 1, "local_attention": 0, "layer_types": "x", "rope_parameters": [], "sparse_prediction": None},
    "ettin_decoder": {
        **{"norm_eps": 1, "local_attention": None, "layer_types": "x", "rope_parameters": [], "sliding_window": -1},
        **{"pad_token_id": None, "bos_token_id": None, "cls_token_id": None},
    },
    "gpt_oss": {"rms_norm_eps": 1, "attention_bias": 1, "rope_scaling": "x", "swiglu_limit": 7, "output_router_logits": 0},
    "nanochat": {"rms_norm_eps": 1, "rope_parameters": "x", "rope_theta": None, "final_logit_softcapping": None},
    "llama": {"rms_norm_eps": 1, "attention_bias": 1, "rope_scaling": "x", "rope_theta": None, "pretraining_tp": 0.5},
    "xlnet": {"clamp_len": None, "start_n_top": 2.0, "use_mems_eval": None, "mem_len": False, "layer_norm_eps": None},
}
"""Values that `transformers` refuses because of their type."""
COMMON: dict[str, dict[str, Any]] = {"transformer": {"scale_embedding": True}, "t5": {"decoder_start_token_id": 0}}
"""What must be there, because its default is not computed here."""


@pytest.mark.parametrize("family", configs.families())
def test_what_a_family_does_not_compute_and_a_mistyped_value_are_refused(family: str) -> None:
    common, task = COMMON.get(family, {}), "masked" if "bert" in family else ""
    for values, head, rest in (NOT_COMPUTED, task, "; this family computes "), (MISTYPED, "", ""):
        for key, value in values[family].items():
            with pytest.raises(BadInput) as refusal:
                read(family, head, **{**common, key: value})
            message = str(refusal.value)
            assert message.startswith(f"config.json: {key} is {json.dumps(value) + rest if rest else ''}"), message
            assert "\n" not in message
    # gpt-oss reads one format.
    refusal_of_others = (
        r"quant_method is absent; .*mxfp4" if family == "gpt_oss" else "quantization_config is .*use the original weights"
    )
    with pytest.raises(BadInput, match=refusal_of_others):
        read(family, **common, quantization_config={"bits": 4})


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("gpt", "", {"n_head": 5}, "n_head is 5; it must divide n_embd"),
    ("gpt", "", {"n_layer": True}, "n_layer is true; it must be a whole number"),
    ("gpt", "", {"n_positions": -1}, "n_positions is -1; it must be a whole number of at least 1"),
    ("gpt", "", {"attn_pdrop": 10**400}, "attn_pdrop is .*finite number"),
    ("gpt", "", {"hidden_size": None}, "hidden_size is null; .* reads it as n_embd"),
    ("gpt", "", {"n_embd": "x", "hidden_size": 24}, 'n_embd is "x"; it must be a whole number'),
    ("xlnet", "", {"hidden_size": 256}, "d_head is absent; this family computes 16"),
    ("xlnet", "", {"mem_len": -1}, "mem_len is -1; it must be a whole number of at least 0"),
    ("t5", "", {"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be true or false"),
    ("t5", "", {"model_type": "mt5", "tie_word_embeddings": None}, "tie_word_embeddings is null; it must be true or false"),
    ("t5", "", {"dense_act_fn": "gelu_new"}, 'dense_act_fn is "gelu_new"; feed_forward_proj says'),
    ("transformer", "", {"pad_token_id": 0}, "decoder_start_token_id is absent; this family computes 0, the padding.* 58100"),
    ("transformer", "", {"decoder_start_token_id": 7}, "decoder_start_token_id is 7; this family computes 58100"),
    ("transformer", "", {"vocab_size": 99}, "pad_token_id is absent; choose an id below the vocabulary size 99"),
    ("t5", "", {"relative_attention_num_buckets": 92, "relative_attention_max_distance": 164}, "max_distance is 164.* 107 "),
    ("transformer", "", {"init_std": -1.0}, "init_std is -1.0; it must be at least 0.0"),
    ("t5", "sequence", {"classifier_dropout": -1.0}, "classifier_dropout is -1.0; it must be 0 to 1"),
    ("llama", "", {"initializer_range": 1.5}, "initializer_range is 1.5; it must be at most 1.0"),
    ("llama", "", {"sliding_window": -1}, "sliding_window is -1; this family computes null"),
    *(
        ("llama", "", {"model_type": name, "is_causal": None}, "is_causal is null; .* true")
        for name in ("qwen2", "qwen3", "smollm3")
    ),
    ("modernbert", "", {"num_hidden_layers": 1}, "--model.layers 1: choose 2 or more"),
    ("modernbert", "", {"num_attention_heads": 256}, "--model.heads 256: heads rotate in pairs of dimensions, and have 3"),
    ("modernbert", "", {"vocab_size": 99}, "pad_token_id is absent; choose an id below the vocabulary size 99"),
    ("modernbert", "", {"rope_parameters": {"other": {}}}, "rope_parameters is .* an object of the objects full_attention, slid"),
    (
        "modernbert",
        "",
        {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
        'rope_type is "yarn"; .* computes "default"',
    ),
    (
        "modernbert",
        "",
        {"rope_parameters": {"full_attention": {"factor": 2.0}}},
        "factor is 2.0; this family does not compute it",
    ),
    ("modernbert", "", {"layer_types": ["sliding_attention"] * 22}, "layer_types is .*the first of each n full_attention"),
    ("modernbert", "", {"rope_scaling": {}}, "rope_scaling is .*; such weights are not supported"),
    ("ettin_decoder", "", {"sliding_window": 63}, "sliding_window is 63; half of local_attention is 64; remove sliding_window"),
    ("ettin_decoder", "", {"vocab_size": 99}, "pad_token_id is absent; choose an id below the vocabulary size 99"),
    ("ettin_decoder", "", {"layer_types": ["sliding_attention"] * 22}, "layer_types is .*the first of each n full_attention"),
    ("ettin_decoder", "", {"rope_scaling": {}}, "rope_scaling is .*; such weights are not supported"),
    ("ettin_decoder", "sequence", {"num_labels": 2}, "id2label is .*; this family reads reward heads with one label"),
    ("gpt_oss", "", {"num_key_value_heads": 3}, "--model.kv-heads 3: choose a divisor of --model.heads 64"),
    ("gpt_oss", "", {"num_key_value_heads": None}, "num_key_value_heads is null; it must be a whole number"),
    ("gpt_oss", "", {"num_experts_per_tok": 200}, "--model.active-experts 200: choose 1 to --model.experts 128"),
    ("gpt_oss", "", {"experts_per_token": 2}, "experts_per_token is 2; num_experts_per_tok is 4; remove one of the two keys"),
    ("gpt_oss", "", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, 'quant_method is "gptq"; .* format mxfp4'),
    ("gpt_oss", "", {"quantization_config": {"bits": 4}}, "quant_method is absent; quantized weights .* format mxfp4"),
    ("gpt_oss", "", {"quantization_config": {"quant_method": "mxfp4", "bits": 3}}, "bits is 3; this family does not compute it"),
    ("gpt_oss", "", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 'rope_type is "linear"; .* yarn, default'),
    ("gpt_oss", "", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "truncate is .*; this family computes false"),
    ("gpt_oss", "", {"rope_scaling": {"rope_type": "yarn", "truncate": False}}, "rope_scaling.factor is absent; it must be"),
    ("gpt_oss", "sequence", {"num_labels": 2}, "id2label is .*; this family reads reward heads with one label"),
    ("llama", "", {"num_attention_heads": 5}, "num_attention_heads is 5; it must divide hidden_size, 4096"),
    ("llama", "", {"num_key_value_heads": 3}, "--model.kv-heads 3: choose a divisor of --model.heads 32"),
    ("llama", "", {"head_dim": 7}, "--model.head 7: heads rotate in pairs of dimensions"),
    (
        "llama",
        "",
        {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
        'rope_type is "longrope"; .* default, linear, dynamic, yarn, llama3',
    ),
    ("llama", "", {"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor is absent; it must be a finite number"),
    (
        "llama",
        "",
        {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4096}},
        "--model.original-context 4096: .* longer rows than it had; choose at most --model.context 2048",
    ),
    (
        "llama",
        "",
        {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 1}},
        "--model.beta-fast 1.0: choose more than --model.beta-slow 1.0",
    ),
    ("llama", "", {"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": 0.0}}, "factor is 0.0; .* more than 0"),
    ("llama", "", {"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": None}}, "truncate is null; it must be true or"),
    ("llama", "", {"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_theta": 1}, "--model.base 1.0: YaRN divides by its"),
    ("llama", "", {"rope_scaling": {"type": "dynamic", "factor": 1e308}}, "--model.context [0-9]+: choose 1 to 1,048,576"),
    ("llama", "", {"rope_scaling": {"type": "dynamic", "factor": 2.0, "beta_fast": 3}}, "beta_fast is 3; .* does not compute it"),
    ("llama", "", {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "head_dim": 2}, "--model.head 2: dynamic .* two pairs"),
    ("llama", "", {"rope_scaling": {"type": "linear", "factor": 0.5}}, "--model.scaling-factor 0.5: choose 1 to 1e6"),
    ("llama", "", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is absent; it must be a finite number"),
    ("llama", "", {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}}, "beta_fast is 3; .* does not compute it"),
    ("llama", "", {"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 5.0}}, "remove one of them"),
    (
        "llama",
        "",
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
        "--model.high-freq-factor 1.0: choose more than --model.low-freq-factor 4.0",
    ),
    ("llama", "", {"model_type": "smollm3", "vocab_size": 99}, "pad_token_id is absent; choose an id below the vocabulary size"),
    (
        "llama",
        "",
        {"model_type": "smollm3", "no_rope_layers": [0, 1] * 18},
        "no_rope_layers is .*this family computes 36, 0 for the last one of each n, else 1",
    ),
    ("llama", "sequence", {"num_labels": 2}, "id2label is .*; this family reads reward heads with one label"),
    ("roberta", "body", {"pad_token_id": 50_265}, "pad_token_id is 50265; choose an id below the vocabulary size 50265"),
    ("roberta", "body", {"max_position_embeddings": 2}, "the first token takes row 2"),
    ("roberta", "body", {"pad_token_id": 0, "max_position_embeddings": 1}, "the first token takes row 1"),
    ("bert", "sequence", {"id2label": {"0": "a", "2": "b"}}, "id2label is .*each label of the classifier"),
    ("bert", "sequence", {"id2label": {"0": "a", "1": "a"}}, "id2label is .*a different name"),
    ("bert", "tokens", {"id2label": {"0": 3}}, "id2label is .*values are each a string"),
    ("bert", "tokens", {"id2label": ["a"]}, "id2label is .*an object"),
    ("bert", "tokens", {"id2label": {"0": "a"}, "num_labels": 2}, "num_labels is 2; id2label names 1"),
    ("bert", "sequence", {"problem_type": "several"}, "problem_type .*; of 2 labels .* computes single.*, multi_label_class"),
    ("xlnet", "sequence", {"problem_type": "regression"}, "problem_type .*; of 2 labels this family computes single"),
    ("bert", "sequence", {"problem_type": "single_label_classification", "num_labels": 1}, "problem_type .* computes regression"),
    ("bert", "tokens", {"num_labels": 10**9}, f"num_labels is .*at most {MOST_LABELS:,}"),
]


@pytest.mark.parametrize(("family", "task", "keys", "message"), REFUSED)
def test_a_value_that_makes_no_model_is_refused(family: str, task: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as refusal:
        read(family, task, **COMMON.get(family, {}), **keys)
    assert "\n" not in str(refusal.value)


def test_a_score_head_of_t5_needs_the_first_token_of_its_decoder() -> None:
    """`transformers` makes the decoder's input with it, and has a default for mT5 and umT5 only."""
    with pytest.raises(BadInput, match=r"decoder_start_token_id is absent; .* set it to 0"):
        read("t5", "sequence", num_labels=1)
    for keys in ({"decoder_start_token_id": 0}, {"model_type": "mt5"}, {"model_type": "umt5"}):
        assert read("t5", "sequence", num_labels=1, **keys).labels
    assert not read("t5", "text_to_text").labels


SIZES = ("n_head", "embedding_size", "per_layer_config", "ffn_dim", "rel_positions", "attribute_map")
OF_FILES: list[tuple[dict[str, Any], str]] = [
    *((published.BERT | {key: 3}, f"config.json: {key} is 3; this key is unknown and names a size") for key in SIZES),
    *(
        (content | {key: {}}, f"config.json: {key} is {{}}; this family does not compute it")
        for content in (published.BERT, published.LLAMA, published.T5)
        for key in ("text_config", "text_encoder", "decoder", "generator", "fusion_config")
    ),
    (published.LLAMA | {"kv_sharing_modes": ["reuse"]}, "kv_sharing_modes is .*; this family does not compute it"),
    (published.GPT_OSS | {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; this family does not compute it"),
    (published.T5 | {"rope_scaling": {"factor": 2.0}}, "rope_scaling is .*; this family does not compute it"),
    (published.QWEN3 | {"num_experts": 8}, "num_experts is 8; this key is unknown and names a size"),
    (published.LLAMA | {"original_max_position_embeddings": 5}, "original_max_position_embeddings is 5; this key is unknown"),
    (published.QWEN3 | {"model_type": "qwen3_moe"}, "model_type.*qwen3_moe.*the families here are"),
    (published.GPT2 | {"model_type": "mamba"}, "model_type.*mamba.*gpt2"),
    (published.GPT2 | {"n_layer": 10**9}, "config.json.*layers"),
]


@pytest.mark.parametrize(("content", "message"), OF_FILES)
def test_a_file_is_refused_with_its_name(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=message):
        published_weights.read_config(tmp_path)


def test_keys_without_effect_in_a_family_are_read_there(tmp_path: Path) -> None:
    """Encoders see both sides whatever they say; Qwen and SmolLM3 have no windows; other initializers are not limited."""
    for content, keys in (
        *((published.TINY[family], {"is_causal": value}) for family in ENCODERS for value in (False, True, None)),
        *((numbers, {"sliding_window": -1, "initializer_range": 1.5}) for numbers in published.TYPES_OF_LLAMA.values()),
        (published.LLAMA, {"sliding_window": None, "is_causal": True, "initializer_range": 1.0}),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content | keys))
        assert published_weights.read_config(tmp_path)[1] == []
    (tmp_path / "config.json").write_text(json.dumps(published.LLAMA | {"text_config": None}))
    assert published_weights.read_config(tmp_path)[1] == ["text_config"]


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}
IN_KEYS: list[tuple[dict[str, Any], str]] = [
    (published.LLAMA | {"num_key_value_heads": 4}, "num_key_value_heads 4: choose a divisor of num_attention_heads 6"),
    (published.LLAMA | {"rope_scaling": None, "rope_theta": 0.5}, "rope_theta 0.5: choose 1 to 1e12"),
    (published.LLAMA | {"rope_scaling": None, "rope_parameters": {"rope_theta": 0.5}}, "rope_parameters.rope_theta 0.5: choose"),
    (
        published.LLAMA | {"rope_scaling": LLAMA3},
        "rope_scaling.high_freq_factor 1.0: choose more than rope_scaling.low_freq_factor 4.0, to 1e6",
    ),
    (
        published.LLAMA | {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 17}},
        "rope_scaling.original_max_position_embeddings 17: a model is scaled to longer rows than it had; choose at most "
        "max_position_embeddings 16",
    ),
    (published.GPT_OSS | {"num_experts_per_tok": 4}, "num_experts_per_tok 4: choose 1 to num_local_experts 3"),
    (published.GPT_OSS | {"num_experts": 1}, "num_experts_per_tok 2: choose 1 to num_experts 1"),
    (published.MODERNBERT | {"num_attention_heads": 5}, "num_attention_heads 5: it must divide hidden_size 12"),
    # Families with other keys keep the names of the options.
    (published.GPT2 | {"n_layer": 10**9}, f"--model.layers {10**9}: choose 1 to 512"),
]


@pytest.mark.parametrize(("content", "message"), IN_KEYS)
def test_a_number_out_of_range_is_refused_by_its_key(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(BadInput) as refusal:
        published_weights.read_config(tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path / 'config.json'}: {message}")


FORMATS = ("gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors")


@pytest.mark.planted(len(FORMATS))
@pytest.mark.parametrize("family", [family for family in configs.families() if family != "gpt_oss"])
def test_quantized_weights_are_refused_by_the_name_of_their_format(family: str) -> None:
    """The name may be far behind other settings."""
    settings = {f"llm_int8_setting_{number}": None for number in range(9)}
    for name in FORMATS:
        with pytest.raises(BadInput, match=f'quantization_config.quant_method is "{name}"; .*use the original weights'):
            read(family, **COMMON.get(family, {}), quantization_config={**settings, "quant_method": name})


def test_an_ettin_decoder_may_have_the_idle_keys_of_an_encoder() -> None:
    """The released files of encoders have them, and one program wrote both."""
    keys = {"layer_norm_eps": 1e-5, "position_embedding_type": "absolute", "classifier_pooling": "mean"}
    keys |= {"deterministic_flash_attn": False, "sparse_prediction": False, "sparse_pred_ignore_index": -100}
    assert read("ettin_decoder", **keys) == read("ettin_decoder")


@pytest.mark.planted
@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"model_type": "gpt2", "model_type": "gpt2"}', "comes twice"),
        ('{"model_type": "gpt2", "layer_norm_epsilon": NaN}', "NaN"),
        ("[" * 100_000, "JSON"),
        ("[]", "not a JSON object"),
        ("", "JSON"),
        ('{"x": "\udc80"}', "JSON"),
        (" " * (1 << 21), "larger than 1 MiB"),
    ],
)
def test_a_damaged_config_is_refused(text: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    published.assert_refused(tmp_path, "config.json", part)


HALVES = {"sinusoids": "halves"}
NO_EXPORT: list[tuple[str, dict[str, Any], str]] = [
    ("gpt-nano", {"pattern": ("window",), "window": 4}, "model.pattern window: .* no window layers"),
    ("gpt-nano", {"heads": 2, "head": 4}, "model.head 4: .* heads x head"),
    ("bert-nano", {"types": 0}, "model.types 0: a config.json of this type has 1 or more"),
    ("roberta-nano", {"position_offset": 0}, "--model.position-offset 0: a roberta config.json has padding"),
    ("distilbert-nano", {"eps": 1e-5}, "model.eps 1e-05: a distilbert config.json can only express 1e-12"),
    ("distilbert-nano", {"types": 2}, "model.types 2: a distilbert config.json can only express 0"),
    (
        "llama-nano",
        {"query_key_norm": True, "unrotated_every": 4},
        "model.unrotated_every 4: no published type has it with model.query_key_norm True; ",
    ),
    (
        "llama-nano",
        {"qkv_bias": True, "query_key_norm": True},
        "model.query_key_norm True: no published type has it with model.qkv_bias True; ",
    ),
    (
        "llama-nano",
        {"heads": 5, "kv_heads": 5},
        "model.heads 5: a llama config.json can only express numbers that divide the wid",
    ),
    ("xlnet-nano", {"attention_dropout": 0.1}, "model.attention_dropout 0.1: an xlnet config.json has one rate for all"),
    ("t5-nano", {"buckets": 92, "max_distance": 164}, "model.max_distance 164: .* put distance 107 into another bucket"),
    ("t5-nano", {"architecture": "shared"}, "model.architecture shared: no such T5 was published"),
    ("t5-nano", {"activation": "gelu", "gated": True}, "model.activation gelu: a t5 config.json cannot express it with a gate"),
    ("transformer-nano", {"sinusoids": "interleaved"}, "model.sinusoids interleaved: a marian config.json can only .* halves"),
    ("transformer-nano", HALVES | {"attention_bias": False}, "model.attention_bias False: .* can only express True"),
    ("transformer-nano", HALVES | {"attention_bias": True, "output_bias": False}, "model.output_bias False: "),
    ("transformer-nano", {"positions": "learned"}, "model.positions learned: a marian config.json can only express sinusoid"),
    ("transformer-nano", {"head_dim": 32}, "model.head_dim 32: a marian config.json can only express width / heads, 64"),
]


@pytest.mark.parametrize(("size", "change", "message"), NO_EXPORT)
def test_what_the_format_cannot_express_is_not_exported(size: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    cfg = dataclasses.replace(configs.find_size(size)[1].config, **change)
    with pytest.raises(BadInput, match=message):
        published_weights.save_published(tmp_path, cfg, {})


def test_heads_that_were_not_published_are_not_exported(tmp_path: Path) -> None:
    unpublished = [(family, task) for family, task in HEADS if not models.family(family).names[task].architecture]
    assert ("roberta", "pretraining") in unpublished
    for family, task in unpublished:
        with pytest.raises(BadInput, match=f"model.task {task}: no {family} with this head was published"):
            published_weights.save_published(tmp_path, with_head(family, task).config, {})
