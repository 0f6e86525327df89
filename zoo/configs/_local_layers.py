"""Global and local layers of ModernBERT and Ettin: which layer is which, the bases of their rotations, and keys of a config.json.

Layer i is global where i is a multiple of the period, else it sees a window (Warner et al. 2024, section 2.1.2).
"""

from typing import Any, Literal

from zoo.configs._published_keys import PublishedKeys
from zoo.errors import require
from zoo.hf.config_json import PublishedConfig

Attention = Literal["global", "local"]

PADDING = 50_283
"""Id of the padding token if a config.json does not give it."""

TYPES = {"full_attention": "global", "sliding_attention": "local"}
"""Published name of the attention of a layer -> name here."""


def check_local_layers(config: Any) -> None:
    """Refuse numbers of layers, periods and bases that these bodies do not compute."""
    require(config.head % 2 == 0, "model.heads", config.heads, f"heads rotate in pairs of dimensions, and have {config.head}")
    require(config.layers >= 2, "model.layers", config.layers, "choose 2 or more: the first one has parameters of its own")
    require(1 <= config.global_every <= 512, "model.global_every", config.global_every, "choose 1 (all) to 512 layers")
    for field in ("global_base", "local_base"):
        value = getattr(config, field)
        require(1 <= value <= 1e12, f"model.{field}", value, "choose 1 to 1e12")


def pattern_after_first(layers: int, global_every: int) -> tuple[Attention, ...]:
    """Return the attention of the layers after the first, repeated over them; of all of them if the last period is incomplete."""
    kinds: tuple[Attention, ...] = tuple("local" if layer % global_every else "global" for layer in range(1, layers))
    return kinds if (layers - 1) % global_every else kinds[:global_every]


def read_local_layers(published: PublishedConfig, layers: int) -> dict[str, Any]:
    """Return `global_every`, `global_base` and `local_base`.

    Raises:
        BadInput: layers or rotations that these bodies do not compute.
    """
    published.never("rope_scaling")
    return {"global_every": _read_global_every(published, layers), **_read_bases(published)}


def _read_global_every(published: PublishedConfig, layers: int) -> int:
    """Return the period of global layers; `layer_types` takes precedence over `global_attn_every_n_layers`.

    Raises:
        BadInput: layers whose attention is not periodic from the first one on.
    """
    every = published.integer("global_attn_every_n_layers", 3)
    kinds = published.strings("layer_types")
    if kinds is None:
        return every
    periods = (n for n in range(1, layers + 1) if kinds == _layer_types(layers, n))
    if (period := next(periods, None)) is None:
        raise published.wrong("layer_types", list(kinds), f"this family computes {layers}, the first of each n full_attention")
    return every if kinds == _layer_types(layers, every) else period


def _read_bases(published: PublishedConfig) -> dict[str, Any]:
    """Return `global_base` and `local_base`.

    `rope_parameters`, as `transformers` 5 writes them, take precedence over `global_rope_theta` and `local_rope_theta`.

    Raises:
        BadInput: rotations of another type than the default.
    """
    bases, old = {}, {"global": ("global_rope_theta", 160_000.0), "local": ("local_rope_theta", 10_000.0)}
    sections = published.section("rope_parameters", TYPES)
    for name, kind in TYPES.items():
        base = published.number(*old[kind])
        if name in sections:
            sections[name].only("rope_type", "default")
            base = sections[name].number("rope_theta", base)
            sections[name].nothing_else()
        bases[f"{kind}_base"] = base
    return bases


def _layer_types(layers: int, every: int) -> tuple[str, ...]:
    return tuple("sliding_attention" if layer % every else "full_attention" for layer in range(layers))


def write_local_layers(config: Any) -> dict[str, Any]:
    """Return the entries of a config.json of the period and the bases."""
    periods = {"global_attn_every_n_layers": config.global_every}
    return {**periods, "global_rope_theta": config.global_base, "local_rope_theta": config.local_base}


KEYS = PublishedKeys(
    fields={
        **{"vocab": ("vocab_size", 50_368), "context": ("max_position_embeddings", 8192), "layers": ("num_hidden_layers", 22)},
        **{"width": ("hidden_size", 768), "heads": ("num_attention_heads", 12), "ffn": ("intermediate_size", 1152)},
        **{"eps": ("norm_eps", 1e-5), "dropout": ("embedding_dropout", 0.0), "attention_dropout": ("attention_dropout", 0.0)},
        **{"mlp_dropout": ("mlp_dropout", 0.0), "head_dropout": ("classifier_dropout", 0.0)},
    },
    activation=("hidden_activation", "gelu"),
    computed={
        **{"norm_bias": False, "attention_bias": False, "mlp_bias": False, "classifier_bias": False, "decoder_bias": True},
        **{"classifier_activation": "gelu", "tie_word_embeddings": True},
    },
    without_effect=(
        # How the model is computed, or its loss. The next two are BERT's keys, which the released files repeat.
        *("deterministic_flash_attn", "reference_compile", "repad_logits_with_grad", "sparse_prediction"),
        *("sparse_pred_ignore_index", "layer_norm_eps", "position_embedding_type"),
        *("initializer_cutoff_factor", "mask_token_id", "is_encoder_decoder"),
    ),
    padding=PADDING,
)
