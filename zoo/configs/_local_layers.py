"""Global and local layers of ModernBERT and Ettin: which layer is which, the bases of their rotations, and keys of a config.json.

Layer i is global where i is a multiple of the period, else it sees a window (Warner et al. 2024, section 2.1.2).
"""

from typing import Any, Literal

from zoo.configs._published_fields import Keys
from zoo.errors import require
from zoo.hf.config_json import PublishedConfig

Attention = Literal["global", "local"]

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


def read_global_every(published: PublishedConfig, layers: int) -> int:
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


def read_bases(published: PublishedConfig) -> dict[str, Any]:
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


KEYS: Keys = {
    **{"vocab": ("vocab_size", 50_368), "context": ("max_position_embeddings", 8192), "layers": ("num_hidden_layers", 22)},
    **{"width": ("hidden_size", 768), "heads": ("num_attention_heads", 12), "ffn": ("intermediate_size", 1152)},
    "eps": ("norm_eps", 1e-5),
    **{"dropout": ("embedding_dropout", 0.0), "attention_dropout": ("attention_dropout", 0.0)},
    **{"mlp_dropout": ("mlp_dropout", 0.0), "head_dropout": ("classifier_dropout", 0.0)},
}
"""Keys that have the value of a field under another name, and the value of an absent key."""
