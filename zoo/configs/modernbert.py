"""Sizes of ModernBERT (Warner et al. 2024) and of the six Ettin encoders (Weller et al. 2025), as released.

Layer i is global where i is a multiple of three, else it sees a window. All released depths are 1 more than a multiple of three.
"""

import dataclasses
from typing import Any, Literal, get_args

from zoo.configs import Size, _local_layers
from zoo.configs._encoder import BodyConfig, head_fields, label_entries
from zoo.configs._local_layers import Attention, check_local_layers, pattern_after_first, read_local_layers, write_local_layers
from zoo.errors import require
from zoo.hf.config_json import PublishedConfig

Pooling = Literal["cls", "mean"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BodyConfig):
    """Configuration of a ModernBERT."""

    context: int
    """Number of tokens in the longest row. Positions are rotations, for which there is no table."""
    global_every: int = 3
    """Every this many layers, from the first one on, a layer is global; the others see a window."""
    local_window: int = 128
    """Size of the window of a local layer: a token sees half as many tokens to each side, and itself."""
    global_base: float = 160_000.0
    """Base of the rotations of global layers."""
    local_base: float = 10_000.0
    """Base of the rotations of local layers."""
    pooling: Pooling = "cls"
    """Summary of a sequence for a classifier. cls: the hidden state of its first token; mean: that of all its tokens."""
    eps: float = 1e-5
    dropout: float = 0.0
    """Dropout rate of the embeddings."""
    attention_dropout: float = 0.0
    """Dropout rate of the attention weights, and of the output of attention."""
    mlp_dropout: float = 0.0
    """Dropout rate of the inner states of the feed-forward layers."""
    head_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_fields(pooling=get_args(Pooling))
        check_local_layers(self)
        require(2 <= self.local_window <= 1 << 20, "model.local_window", self.local_window, "choose 2 to 1,048,576 tokens")

    @property
    def types(self) -> int:
        """Number of token types: none."""
        return 0

    @property
    def pattern(self) -> tuple[Attention, ...]:
        """Attention of the layers after the first, repeated over them; all of them where the last period is incomplete."""
        return pattern_after_first(self.layers, self.global_every)


# --- config.json ----------------------------------------------------------------------------------------------------------------

MODEL_TYPE = "modernbert"
"""Name of this family in a published config.json."""


def from_published(published: PublishedConfig) -> Config:
    """Return the configuration in a config.json of type modernbert; absent keys take the defaults of `transformers`.

    `transformers` 5 writes the layers' attention as `layer_types` and the bases as `rope_parameters`, which take precedence over
    `global_attn_every_n_layers`, `global_rope_theta` and `local_rope_theta` of the released files.

    Raises:
        BadInput: a key has a value that this family does not compute.
    """
    fields = KEYS.read(published)
    return Config(
        **fields,
        **read_local_layers(published, fields["layers"]),
        local_window=published.integer("local_attention", 128, least=2),
        pooling=published.choice("classifier_pooling", {"cls": "cls", "mean": "mean"}, "cls"),
        **head_fields(published),
    )


def to_published(config: Config) -> dict[str, Any]:
    """Return the entries of a config.json of type modernbert, with the keys of the released files."""
    return {
        **KEYS.write(config),
        **write_local_layers(config),
        "local_attention": config.local_window,
        "classifier_pooling": config.pooling,
        # The tokenizer of an export sets it; the default of `transformers` would be outside a smaller vocabulary.
        "pad_token_id": None,
        **label_entries(config),
    }


OTHERS = ("is_causal", "cls_token_id", "sep_token_id")
KEYS = dataclasses.replace(_local_layers.KEYS, without_effect=(*_local_layers.KEYS.without_effect, *OTHERS))


# --- sizes ----------------------------------------------------------------------------------------------------------------------

PAPER = "Warner et al. 2024, section 2 and table 4, and the released checkpoint"
ETTIN = "Weller et al. 2025 (JHU-CLSP/ettin-encoder-vs-decoder), and the released checkpoint"
ASSUMED = {"pooling": "a choice of the classifier: the first token does not see all others in local layers, so a mean"}


def released(layers: int, width: int, ffn: int, heads: int, *, source: str = PAPER, note: str = "", **others: Any) -> Size:
    """Return a body as released: heads of size 64, 50,368 tokens, three layers of which the first is global."""
    numbers = {"context": 8192, "pooling": "mean", **others}
    config = Config(vocab=50_368, layers=layers, width=width, ffn=ffn, heads=heads, **numbers)
    return Size(config=config, objective="masked", source=source, assumed=ASSUMED, note=note)


def ettin(layers: int, width: int, ffn: int, heads: int) -> Size:
    """Return an Ettin encoder, whose local layers have the base of the global ones, and 7,999 positions."""
    return released(layers, width, ffn, heads, source=ETTIN, context=7999, local_base=160_000.0)


SIZES: dict[str, Size] = {
    "modernbert-nano": Size.nano(
        Config(vocab=4096, context=128, layers=4, width=192, heads=6, ffn=384, local_window=32, task="masked"),
        "masked",
        "a ModernBERT body small enough to train in minutes on a laptop",
    ),
    "modernbert-base": released(22, 768, 1152, 12, note="the paper says 149M; with the masked head 149,655,232"),
    "modernbert-large": released(28, 1024, 2624, 16, note="the paper says 395M; with the masked head 395,881,664"),
    "ettin-encoder-17m": ettin(7, 256, 384, 4),
    "ettin-encoder-32m": ettin(10, 384, 576, 6),
    "ettin-encoder-68m": ettin(19, 512, 768, 8),
    "ettin-encoder-150m": ettin(22, 768, 1152, 12),
    "ettin-encoder-400m": ettin(28, 1024, 2624, 16),
    "ettin-encoder-1b": ettin(28, 1792, 3840, 28),
}
