"""Sizes of the six Ettin decoders (Weller et al. 2025): ModernBERT's body with causal attention.

Sources: JHU-CLSP/ettin-encoder-vs-decoder, `pretraining/README.md` for the shapes, and for the other numbers the configuration of
the last stage of training, `pretraining/configs/standard/*/prolong_decay/decoder_*.yaml`. The config.json of the released
checkpoints was not available; an import takes its numbers. The defaults of absent keys are those of
`configuration_modernbert_decoder.py` in `transformers` 5.24.
"""

import dataclasses
from typing import Any, get_args

from zoo.configs import Activation, Compute, Exported, ModelConfig, Size, _local_layers
from zoo.configs._local_layers import Attention, check_local_layers, pattern_after_first, read_local_layers, write_local_layers
from zoo.configs._score_head import check_labels, label_entries, read_labels
from zoo.errors import require
from zoo.hf.config_json import PublishedConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Configuration of an Ettin decoder."""

    vocab: int
    """Vocabulary size; input and output share one embedding table."""
    context: int
    """Number of tokens in the longest row. Positions are rotations, for which there is no table."""
    layers: int
    """Number of layers."""
    width: int
    """Size of the residual stream, D."""
    heads: int
    """Number of attention heads; each has width / heads dimensions."""
    ffn: int
    """Inner width of the feed-forward layers."""
    activation: Activation = "gelu"
    """Activation of the feed-forward layers. That of the head is always gelu."""
    global_every: int = 3
    """Every this many layers, from the first one on, a layer is global; the others see a window."""
    window: int = 64
    """Number of tokens visible to a local layer, including the current token."""
    global_base: float = 160_000.0
    """Base of the rotations of global layers."""
    local_base: float = 10_000.0
    """Base of the rotations of local layers."""
    eps: float = 1e-5
    """Number that layer norms add to the variance."""
    dropout: float = 0.0
    """Dropout rate of the embeddings."""
    attention_dropout: float = 0.0
    """Dropout rate of the attention weights, and of the output of attention."""
    mlp_dropout: float = 0.0
    """Dropout rate of the inner states of the feed-forward layers."""
    head_dropout: float = 0.0
    """Dropout rate before the score of a reward model."""
    labels: tuple[str, ...] = ()
    """Name of the score that a reward model computes for a text; none = the model has an LM head in place of the score's."""
    compute: Compute = dataclasses.field(default_factory=Compute)
    exported: Exported = dataclasses.field(default_factory=Exported)

    def __post_init__(self) -> None:
        self.check_fields(activation=get_args(Activation))
        check_labels(self.labels)
        divides = self.width % self.heads == 0
        require(divides, "model.heads", self.heads, f"it must divide --model.width {self.width}")
        check_local_layers(self)
        require(1 <= self.window <= 1 << 19, "model.window", self.window, "choose 1 to 524,288 tokens")

    @property
    def head(self) -> int:
        """Size of an attention head."""
        return self.width // self.heads

    @property
    def pattern(self) -> tuple[Attention, ...]:
        """Attention of the layers after the first, repeated over them; all of them where the last period is incomplete."""
        return pattern_after_first(self.layers, self.global_every)


# --- config.json ----------------------------------------------------------------------------------------------------------------

MODEL_TYPE = "modernbert-decoder"
"""Name of this family in a published config.json."""


def from_published(published: PublishedConfig) -> Config:
    """Return the configuration in a config.json of type modernbert-decoder; absent keys take the defaults of `transformers`.

    `local_attention` is twice the number of visible tokens (`ModernBertDecoderConfig`, whose mask is that of
    `sliding_window_overlay`: the current token and `local_attention` // 2 - 1 before it).

    Raises:
        BadInput: a key has a value that this family does not compute.
    """
    fields = KEYS.read(published)
    for key in ("pad_token_id", "bos_token_id", "cls_token_id", "sep_token_id"):
        # None of them may be null, as in the class of `transformers`.
        published.integer(key, 0, least=-fields["vocab"])
    layers = read_local_layers(published, fields["layers"])
    return Config(**fields, **layers, window=_window(published), labels=read_labels(published))


def to_published(config: Config) -> dict[str, Any]:
    """Return the entries of a config.json of type modernbert-decoder."""
    return {
        **KEYS.write(config),
        **write_local_layers(config),
        "local_attention": 2 * config.window,
        # The tokenizer of an export sets it. It may not be null, and the default of `transformers` is not in a small vocabulary.
        "pad_token_id": min(_local_layers.PADDING, config.vocab - 1),
        **label_entries(config.labels),
    }


def _window(published: PublishedConfig) -> int:
    """Return the number of tokens visible to a local layer.

    Raises:
        BadInput: `sliding_window`, which `transformers` writes too, is another number.
    """
    window = published.integer("local_attention", 128, least=2) // 2
    if (other := published.integer("sliding_window", window)) != window:
        raise published.wrong("sliding_window", other, f"half of local_attention is {window}; remove sliding_window")
    return window


KEYS = dataclasses.replace(
    _local_layers.KEYS,
    # The key of the encoders, which the same program wrote; the class of `transformers` has none of these.
    without_effect=(*_local_layers.KEYS.without_effect, "classifier_pooling"),
    is_causal=True,
)


# --- sizes ----------------------------------------------------------------------------------------------------------------------

ETTIN = "Weller et al. 2025 (JHU-CLSP/ettin-encoder-vs-decoder, pretraining/README.md and configs/standard)"


def ettin(layers: int, width: int, ffn: int, heads: int, *, local_base: float) -> Size:
    """Return an Ettin decoder: heads of size 64, 50,368 tokens, 7,999 positions; each third layer is global."""
    numbers = {"vocab": 50_368, "context": 7999, "local_base": local_base}
    config = Config(layers=layers, width=width, ffn=ffn, heads=heads, **numbers)
    return Size(config=config, source=ETTIN, assumed={"window": WINDOW})


WINDOW = "that of `transformers` for the published 128, which counts tokens on both sides"

SIZES: dict[str, Size] = {
    "ettin-decoder-nano": Size.nano(
        Config(vocab=4096, context=256, layers=4, width=192, heads=6, ffn=384, window=32),
        "causal",
        "an Ettin body small enough to train in minutes on a laptop",
    ),
    "ettin-decoder-17m": ettin(7, 256, 384, 4, local_base=10_000.0),
    "ettin-decoder-32m": ettin(10, 384, 576, 6, local_base=10_000.0),
    "ettin-decoder-68m": ettin(19, 512, 768, 8, local_base=10_000.0),
    "ettin-decoder-150m": ettin(22, 768, 1152, 12, local_base=160_000.0),
    "ettin-decoder-400m": ettin(28, 1024, 2624, 16, local_base=10_000.0),
    "ettin-decoder-1b": ettin(28, 1792, 3840, 28, local_base=160_000.0),
}
