"""The keys of a config.json that set the fields of configurations, and those that may change any model."""

import re

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
