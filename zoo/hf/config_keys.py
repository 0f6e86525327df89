"""Keys of a config.json: those that set fields of configurations, those that may change any model, settings of generation."""

import re
from typing import Any

KEYS_OF_FIELDS: dict[str, tuple[str, ...]] = {
    **{"vocab": ("vocab_size",), "context": ("max_position_embeddings",), "layers": ("num_hidden_layers",)},
    **{"width": ("hidden_size",), "heads": ("num_attention_heads",), "kv_heads": ("num_key_value_heads",)},
    **{"head": ("head_dim",), "ffn": ("intermediate_size",), "eps": ("rms_norm_eps", "norm_eps", "layer_norm_eps")},
    **{"experts": ("num_experts", "num_local_experts"), "active_experts": ("num_experts_per_tok",)},
    **{"window": ("sliding_window",), "local_window": ("local_attention",), "limit": ("swiglu_limit",)},
    **{"global_every": ("global_attn_every_n_layers",), "global_base": ("global_rope_theta",)},
    **{"local_base": ("local_rope_theta",), "base": ("rope_parameters.rope_theta", "rope_scaling.rope_theta", "rope_theta")},
    **{
        field: (f"rope_scaling.{key}", f"rope_parameters.{key}")
        for field, key in {
            **{"scaling_factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"},
            **{"original_context": "original_max_position_embeddings", "beta_fast": "beta_fast", "beta_slow": "beta_slow"},
            **{"truncate": "truncate", "attention_factor": "attention_factor"},
        }.items()
    },
}
"""Maps fields of configurations to the keys of a config.json that set them, in families that have these keys."""

UNSUPPORTED = (
    # Configurations of the text model in a model of several parts.
    *("text_config", "text_encoder", "decoder", "generator"),
    *("fusion_config", "kv_sharing_modes", "rope_scaling", "rope_parameters", "partial_rotary_factor"),
)
"""Keys that `transformers` reads in any family, if they are not null, and that are computed only in families that read them."""

SIZE = re.compile(
    "hidden|layer|head|dim|size|position|vocab|width|depth|embd|inner|ffn|window|expert|(^|_)n_|^num_|^attribute_map$"
)
"""Pattern of keys that name sizes. An unknown key that matches may change the results in `transformers`."""

SUPPORTED_GENERATION_KEYS = (
    *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "early_stopping", "stop_strings", "do_sample", "num_beams"),
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size"),
    *("encoder_no_repeat_ngram_size", "bad_words_ids", "renormalize_logits", "forced_bos_token_id", "forced_eos_token_id"),
    *("suppress_tokens", "begin_suppress_tokens", "num_return_sequences"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),
)
"""Settings of generation that are implemented."""

NEUTRAL_GENERATION_VALUES: dict[str, tuple[Any, ...]] = {
    **{"top_h": (), "typical_p": (1.0,), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "encoder_repetition_penalty": (1.0,)},
    **{"exponential_decay_length_penalty": (), "sequence_bias": (), "token_healing": (False,), "guidance_scale": (1.0,)},
    **{"watermarking_config": (), "penalty_alpha": (0.0,), "dola_layers": (), "diversity_penalty": (0.0,)},
    **{"num_beam_groups": (1,), "constraints": (), "force_words_ids": (), "low_memory": (False,)},
}
"""Settings of generation that are not implemented -> their values, beside null, that change nothing."""

UNUSED_GENERATION_KEYS = (
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "remove_invalid_values", "compile_config"),
    *("disable_compile", "continuous_batching_config", "prefill_chunk_size", "output_attentions", "output_hidden_states"),
    *("output_scores", "output_logits", "return_dict_in_generate", "use_mtp", "is_assistant", "num_assistant_tokens"),
    *("num_assistant_tokens_schedule", "assistant_confidence_threshold", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
    *("assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight", "speculation_type"),
    *("transformers_version", "_from_model_config", "_commit_hash", "_name_or_path", "force_bos_token_to_be_generated"),
)
"""Settings of how `transformers` computes a text and what it returns beside it; the text does not depend on them."""

GENERATION_KEYS = frozenset((*SUPPORTED_GENERATION_KEYS, *NEUTRAL_GENERATION_VALUES, *UNUSED_GENERATION_KEYS, "max_time"))
"""Settings of generation, which old folders have in config.json; `transformers` reads them there if there is no other file."""
