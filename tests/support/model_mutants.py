"""Random models of every published type, and mutants of their config.json and tensors, to compare with `transformers`."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.support import published
from zoo import configs
from zoo.configs.t5 import uncertain_distance

BASES = {kind: family for family in configs.families() for kind in configs.model_classes(configs.family(family))}
"""Maps each published type to its family."""
ACTIVATIONS = {
    "gpt": "activation_function",
    "bert": "hidden_act",
    "roberta": "hidden_act",
    "distilbert": "activation",
    "transformer": "activation_function",
    "xlnet": "ff_activation",
    "t5": "feed_forward_proj",
    "modernbert": "hidden_activation",
    "ettin_decoder": "hidden_activation",
    "llama": "hidden_act",
    "gpt_oss": "hidden_act",
    "nanochat": "hidden_act",
}
PLAIN = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "silu", "swish")
GATED = ("gated-gelu", "gated-relu", "gated-gelu_new")
NAMES = (*PLAIN, "gelu_fast", *GATED)
"""Activations; some families have not all of them."""
PAIRED = ("xlnet", "transformer", "modernbert", "ettin_decoder", "llama", "gpt_oss", "nanochat")
"""Families with sines and cosines, which come in pairs."""
APART = ("model_type", "architectures", "problem_type", "transformers_version", "chunk_size_feed_forward", "return_dict")
"""Keys that are not mutated: they choose the class, belong to multi-label classification, or say how the model is called."""
LONGEST = 26
"""Tokens that are compared: with fewer positions than that, `transformers` reads Marian's file and fails when it is called."""
UNKNOWN: dict[str, tuple[Any, ...]] = {
    **{"n_head": (3,), "embedding_size": (8,), "per_layer_config": ({"0": {}},), "layer_count": (1,), "ffn_dim": (9,)},
    **{"is_causal": (False, None, True, 0, "x"), "sliding_window": (0, -1, 5, None), "attention_chunk_size": (4,)},
    **{"text_config": ({}, None, 3), "text_encoder": ({}, None), "decoder": ({}, None), "generator": ({},), "encoder": ({},)},
    **{"fusion_config": ({"x": True}, {}, None), "kv_sharing_modes": (["reuse"], None), "layer_types": (["full_attention"],)},
    **{"attn_implementation": ("sdpa",), "experts_implementation": ("eager",), "tie_last_hidden_states": (True,)},
    **{"use_bidirectional_attention": (True,), "token_classification_bias": (False,), "use_swiglu_ffn": (True,)},
    **{"extra_files": (["x.safetensors"],), "vision_config": ({},), "unpadded_vocab_size": (9,), "rope_theta": (7.0,)},
    **{"partial_rotary_factor": (0.5,), "rope_scaling": ({"rope_type": "linear", "factor": 2.0},)},
    **{"hidden_dropout": (0.9,), "tie_encoder_decoder": (True,), "is_decoder": (True,), "is_encoder_decoder": (True, False)},
}
"""Keys that not all types have, and values of them."""


def drawn(rng: np.random.Generator, base: str) -> dict[str, Any]:
    """Return a config.json of odd sizes, with all keys that the family's class in `transformers` declares or with few."""
    import transformers

    family = BASES[base]
    heads = int(rng.choice([1, 2, 3, 5]))
    width = heads * int(rng.integers(1, 4) * 2 if family in PAIRED else rng.integers(2, 8))
    layers, inner, vocab = int(rng.integers(1, 4)), int(rng.integers(3, 40)), int(rng.integers(41, 90))
    common = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, "intermediate_size": inner}
    buckets = int(rng.integers(4, 19))
    # Others are refused.
    certain = [most for most in range(10, 40) if uncertain_distance(buckets, most) is None]
    encoder = common | {"max_position_embeddings": int(rng.integers(26, 40)), "type_vocab_size": 2}
    numbers: dict[str, dict[str, Any]] = {
        "gpt": {"n_layer": layers, "n_embd": width, "n_head": heads, "n_inner": inner, "n_positions": int(rng.integers(24, 40))},
        "bert": encoder,
        "roberta": encoder | {"pad_token_id": int(rng.integers(0, 2)), "layer_norm_eps": 1e-5},
        "distilbert": {"n_layers": layers, "dim": width, "n_heads": heads, "hidden_dim": inner, "max_position_embeddings": 31},
        "t5": {
            **{"num_layers": layers, "num_decoder_layers": int(rng.integers(1, 4)), "d_model": width, "num_heads": heads},
            **{"d_kv": int(rng.integers(2, 8)), "d_ff": inner, "tie_word_embeddings": bool(rng.integers(2))},
            **{"relative_attention_num_buckets": buckets, "decoder_start_token_id": 0},
            "relative_attention_max_distance": int(rng.choice(certain)),
        },
        "transformer": {
            **{"encoder_layers": layers, "decoder_layers": layers, "d_model": width, "encoder_ffn_dim": inner},
            **{"decoder_ffn_dim": inner, "encoder_attention_heads": heads, "decoder_attention_heads": heads},
            **{"scale_embedding": True, "max_position_embeddings": 64, "pad_token_id": 0, "decoder_start_token_id": 0},
        },
        "xlnet": {"n_layer": layers, "d_model": width, "n_head": heads, "d_inner": inner},
        "modernbert": {
            **common,
            **{"num_hidden_layers": layers + 1, "global_attn_every_n_layers": int(rng.integers(1, 4))},
            **{"local_attention": int(rng.integers(2, 20)), "max_position_embeddings": int(rng.integers(26, 40))},
            **{
                "global_rope_theta": 500.0,
                "local_rope_theta": float(rng.integers(5, 50)),
                "pad_token_id": int(rng.integers(0, 2)),
            },
            "classifier_pooling": str(rng.choice(["cls", "mean"])),
        },
    }
    if family == "ettin_decoder":
        body = {key: value for key, value in numbers["modernbert"].items() if key != "classifier_pooling"}
        numbers[family] = body | {"local_attention": int(rng.integers(2, 40))}
    if family == "llama":
        numbers["llama"] = llama_numbers(rng, base, common)
    if family == "gpt_oss":
        numbers["gpt_oss"] = gpt_oss_numbers(rng, common)
    if family == "nanochat":
        numbers["nanochat"] = nanochat_numbers(rng, common)
    content = {"vocab_size": vocab, **numbers[family], "model_type": base}
    known = (*PLAIN[:4], *GATED) if family == "t5" else PLAIN
    content[ACTIVATIONS[family]] = "silu" if family == "gpt_oss" else str(rng.choice(known))
    if family == "t5" and content["feed_forward_proj"] == "gelu_pytorch_tanh":
        content["feed_forward_proj"] = "gelu_new"
    if rng.integers(2):
        # A file that `transformers` wrote has them all.
        kind = transformers.CONFIG_MAPPING[content["model_type"]]
        written = kind(**{key: value for key, value in content.items() if key != "model_type"}).to_dict()
        # It writes rotations under a key of its own.
        content = written | {key: value for key, value in content.items() if key not in ("rope_scaling", "rope_theta")}
    return {key: value for key, value in content.items() if key not in APART[1:]}


def gpt_oss_numbers(rng: np.random.Generator, common: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a gpt-oss, with scaled rotations, plain ones or the default."""
    experts = int(rng.integers(1, 5))
    scaling = {
        **{"rope_type": "yarn", "factor": 4.0, "beta_fast": 4.0, "beta_slow": 0.5, "truncate": False},
        "original_max_position_embeddings": 8,
    }
    return {
        **common,
        **{"num_key_value_heads": int(rng.choice([1, common["num_attention_heads"]])), "head_dim": int(rng.integers(1, 4) * 2)},
        **{"max_position_embeddings": int(rng.integers(26, 40)), "sliding_window": int(rng.integers(1, 30))},
        **{"num_local_experts": experts, "num_experts_per_tok": int(rng.integers(1, experts + 1))},
        **{"swiglu_limit": float(rng.integers(1, 8)), "pad_token_id": int(rng.integers(2))},
        **{"rope_theta": float(rng.integers(5, 50)), "rope_scaling": [{"rope_type": "default"}, scaling][rng.integers(2)]},
    }


def nanochat_numbers(rng: np.random.Generator, common: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a nanochat model."""
    return {
        **common,
        "num_key_value_heads": int(rng.choice([1, common["num_attention_heads"]])),
        **{"max_position_embeddings": int(rng.integers(26, 40)), "final_logit_softcapping": float(rng.integers(1, 20))},
        **{"rope_theta": float(rng.integers(5, 50)), "pad_token_id": int(rng.integers(2))},
    }


def llama_numbers(rng: np.random.Generator, kind: str, common: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a Llama, a Qwen2, a Qwen3 or a SmolLM3, with rotations of any kind."""
    heads = common["num_attention_heads"]
    scalings = [
        None,
        {"rope_type": "linear", "factor": 3.0},
        {
            **{"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0},
            "original_max_position_embeddings": 8,
        },
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 1.5, "beta_slow": 0.2, "original_max_position_embeddings": 20},
        {"rope_type": "dynamic", "factor": 3.0},
    ]
    return {
        **common,
        **{
            "num_key_value_heads": int(rng.choice([1, heads])),
            "max_position_embeddings": int(rng.integers(26, 40)),
        },
        **({"head_dim": int(rng.integers(1, 4) * 2)} if kind == "qwen3" or (kind == "llama" and rng.integers(2)) else {}),
        **({"no_rope_layer_interval": int(rng.integers(1, 4))} if kind == "smollm3" else {}),
        **{"tie_word_embeddings": bool(rng.integers(2)), "rms_norm_eps": 1e-5},
        **({} if kind == "qwen2" else {"attention_bias": bool(rng.integers(2))}),
        **{
            "rope_theta": float(rng.integers(5, 50)),
            "rope_scaling": scalings[rng.integers(len(scalings))],
            "pad_token_id": int(rng.integers(2)),
        },
    }


def mutants(content: dict[str, Any], family: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (kind, what was changed, the config.json) of every mutant of a config.json."""
    import transformers

    kind = transformers.CONFIG_MAPPING[content["model_type"]]
    defaults = kind().to_dict()
    # In `transformers` these also choose the token at which a decoder's score is read; here a batch says it.
    scored = "id2label" in content and family in ("ettin_decoder", "gpt", "gpt_oss", "llama", "t5")
    reading = ("pad_token_id", "eos_token_id") if scored else ()
    for key in sorted((content.keys() | defaults.keys()) - {*APART, *reading}):
        value = content.get(key, defaults.get(key))
        if key in content:
            yield "missing", key, {name: each for name, each in content.items() if name != key}
        yield "null", key, content | {key: None}
        for other in mistyped(value):
            yield "mistyped", f"{key} {other!r}", content | {key: other}
        for other in others(key, value, family):
            yield "another value", f"{key} {other!r}", content | {key: other}
    for alias, key in kind.attribute_map.items():
        value = content.get(key, defaults[key])
        without = {name: each for name, each in content.items() if name != key}
        for other in (value, value + 1, 2 * value, max(value // 2, 1), 1, 0, None, "x", True):
            yield "aliased", f"{alias} {other!r}", content | {alias: other}
            yield "aliased", f"{alias} {other!r} without {key}", without | {alias: other}
    for key, values in UNKNOWN.items():
        if key not in kind.attribute_map and key not in content:
            yield from (("unknown key", f"{key} {value!r}", content | {key: value}) for value in values)


def mistyped(value: Any) -> Iterator[Any]:
    """Yield values of other types than a value's."""
    if isinstance(value, bool):
        yield from (int(value), "true", [value])
    elif isinstance(value, int):
        yield from (float(value), str(value), bool(value), [value], "x")
    elif isinstance(value, float):
        yield from (str(value), True, [value], int(value), "x")
    else:
        yield from (7, 0.5, True, "x", {"x": 1})


def others(key: str, value: Any, family: str) -> Iterator[Any]:
    """Yield other values of the same type."""
    if key == ACTIVATIONS[family]:
        yield from NAMES
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        numbers = (value + 1, 2 * value + 1, max(value // 2, 1), 1, 0, -1, 4)
        yield from (number for number in numbers if key != "max_position_embeddings" or number >= LONGEST)
    elif isinstance(value, float):
        yield from (value / 2 + 0.01, 2.0 * value, 0.3, 0.0, -1.0, 1.5)
    elif isinstance(value, str):
        yield from ("other", "first", "mean", "cls")
    elif key == "layer_types":
        yield from (value[::-1], value[1:], ["full_attention"] * len(value), ["other", *value[1:]])
    elif key == "no_rope_layers":
        yield from (value[::-1], value[1:], [1] * len(value), [0] * len(value), [7, *value[1:]])
    elif key in ("rope_parameters", "rope_scaling") and value:
        if all(isinstance(section, dict) for section in value.values()):
            yield from ({name: section} for name, section in value.items())
            yield from ({**value, name: section | change} for name, section in value.items() for change in ROTATIONS)
        else:
            yield from (value | change for change in ROTATIONS)


ROTATIONS: tuple[dict[str, Any], ...] = (
    *({"rope_theta": 77.0}, {"rope_theta": 9}, {"rope_theta": "9"}, {"rope_type": "linear"}, {"factor": 2.0}),
    *({"rope_type": "llama3"}, {"rope_type": "yarn"}, {"factor": 0.5}, {"low_freq_factor": 2.0}, {"high_freq_factor": 0.5}),
    *({"original_max_position_embeddings": 16}, {"partial_rotary_factor": 0.5}, {"type": "yarn"}, {"beta_fast": 2.0}),
    *(
        {"rope_type": "dynamic"},
        {"truncate": False},
        {"attention_factor": 1.5},
        {"attention_factor": None},
        {"mscale": 0.7, "mscale_all_dim": 1.3},
    ),
)
"""Changes of an object that describes rotations."""


def tensor_mutants(stored: dict[str, np.ndarray], rng: np.random.Generator) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
    """Yield (kind, name, tensors): a few of a model's tensors damaged in each way, and all of them in another type."""
    for name in rng.permutation(sorted(stored))[:4]:
        tensor = stored[name]
        rest = {other: each for other, each in stored.items() if other != name}
        yield "missing", name, rest
        yield "extra", name, stored | {f"{name}.extra": tensor}
        yield "wrong shape", name, rest | {name: np.concatenate([tensor, tensor[:1]])}
        yield "reshaped", name, rest | {name: tensor[None].copy()}
        if tensor.ndim == 2:
            yield "transposed", name, rest | {name: np.ascontiguousarray(tensor.T)}
        for kind in ("float16", "float64", "int32"):
            yield "another dtype", f"{name} {kind}", rest | {name: tensor.astype(kind)}
    for kind in ("float16", "float64"):
        yield "all of another dtype", kind, {name: tensor.astype(kind) for name, tensor in stored.items()}


def saturated(stored: dict[str, np.ndarray], factor: float) -> dict[str, np.ndarray]:
    """Return weights so large that attention and activations saturate; scales of norms stay."""
    return {name: each if published.is_scale(name) else np.float32(factor) * each for name, each in stored.items()}
