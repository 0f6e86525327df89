"""Sizes of the original Transformer (Vaswani et al. 2017, Table 3): an encoder and a decoder with norms after each sub-layer."""

import dataclasses
from typing import Any, Literal, get_args

from zoo.configs import LARGEST, Activation, Compute, Exported, ModelConfig, Size
from zoo.configs._published_keys import PublishedKeys, check_exportable
from zoo.configs._score_head import check_labels
from zoo.errors import require
from zoo.hf.config_json import PublishedConfig

Sinusoids = Literal["interleaved", "halves"]
Positions = Literal["sinusoid", "learned"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Configuration of a Transformer. Sinusoidal positions allow rows of any length, so there is no `context`."""

    vocab: int
    """Vocabulary size; source, target and output share one embedding table."""
    layers: int
    """Number of layers of the encoder, and of the decoder."""
    width: int
    """Size of the residual stream, D."""
    heads: int
    """Number of attention heads; each has values of width / heads dimensions."""
    head_dim: int = 0
    """Size of the queries and keys of a head, the paper's d_k (Table 3, rows B); 0 = width / heads, as of its values."""
    ffn: int
    """Inner width of the feed-forward layers."""
    activation: Activation = "relu"
    """Activation of the feed-forward layers."""
    attention_bias: bool = False
    """Add biases to the projections of attention; the paper has none."""
    output_bias: bool = False
    """Add a bias to the logit of each token; the paper has none, Marian has them."""
    positions: Positions = "sinusoid"
    """sinusoid: fixed encodings of positions, for rows of any length. learned: a table for the encoder and one for the decoder
    (Table 3, row E)."""
    max_positions: int = 512
    """Number of rows of each table of learned positions, and so of tokens in the longest source or target."""
    sinusoids: Sinusoids = "interleaved"
    """interleaved: sines and cosines alternate along the width, as in the paper. halves: sines come first, as in Marian."""
    eps: float = 1e-5
    """Number that layer norms add to the variance."""
    dropout: float
    """Dropout rate of the sums of embeddings and of each sub-layer's output."""
    labels: tuple[str, ...] = ()
    """Name of the score that a reward model computes for a text; none = the model has an LM head in place of the score's."""
    compute: Compute = dataclasses.field(default_factory=Compute)
    exported: Exported = dataclasses.field(default_factory=Exported)

    def __post_init__(self) -> None:
        self.check_fields(activation=get_args(Activation), sinusoids=get_args(Sinusoids), positions=get_args(Positions))
        check_labels(self.labels)
        in_range = 0 <= self.head_dim <= LARGEST["head"]
        require(in_range, "model.head_dim", self.head_dim, f"choose 0 (width / heads) to {LARGEST['head']:,}")
        require(self.width % 2 == 0, "model.width", self.width, "sines and cosines come in pairs; choose an even number")
        divides = self.width % self.heads == 0
        require(divides, "model.heads", self.heads, f"it must divide --model.width {self.width}")

    @property
    def head(self) -> int:
        """Size of the values of an attention head."""
        return self.width // self.heads

    @property
    def key_size(self) -> int:
        """Size of the queries and keys of an attention head."""
        return self.head_dim or self.head

    @property
    def is_encoder_decoder(self) -> bool:
        """True: the model has an encoder, whose source text the decoder attends to."""
        return True


# --- config.json ----------------------------------------------------------------------------------------------------------------

MODEL_TYPE = "marian"
"""Name of models of this form in a config.json. The paper's own weights were never published."""

EPS = 1e-5
"""Fixed in the code of `transformers`; no key sets it."""


def from_published(published: PublishedConfig) -> Config:
    """Return the configuration in a config.json of type marian; absent keys take the defaults of `transformers`' MarianConfig.

    Raises:
        BadInput: a key has a value that this family does not compute.
    """
    fields = KEYS.read(published, positions=published.integer("max_position_embeddings", POSITIONS))
    # The default of this key is not the value that is implemented here.
    if not published.flag("scale_embedding", False):
        raise published.wrong("scale_embedding", False, "this family computes true")
    vocab = fields["vocab"]
    for field, key in DECODER.items():
        default, expected = int(KEYS.fields[field][1]), fields[field]
        if (value := published.integer(key, default)) != expected:
            fix = f"this family computes {expected}, as in the encoder; an absent key means {default}"
            raise published.wrong(key, value, fix)
    # Zero and null both mean the vocabulary of the encoder.
    if (entries := published.integer("decoder_vocab_size", 0, least=0, nullable=True)) not in (0, vocab):
        raise published.wrong("decoder_vocab_size", entries, f"this family computes {vocab}, as in the encoder")
    padding = published.integer("pad_token_id", PADDING, least=0)
    if padding >= vocab:
        raise published.wrong(
            "pad_token_id", padding, f"choose an id below the vocabulary size {vocab}; an absent key means {PADDING}"
        )
    if (start := published.integer("decoder_start_token_id", PADDING, least=0)) != padding:
        fix = f"this family computes {padding}, the padding, as the decoder's first input; an absent key means {PADDING}"
        raise published.wrong("decoder_start_token_id", start, fix)
    return Config(**fields, attention_bias=True, output_bias=True, sinusoids="halves", eps=EPS)


def to_published(config: Config) -> dict[str, Any]:
    """Return the entries of a config.json of type marian.

    Raises:
        BadInput: the form of the paper, which this type cannot express.
    """
    for field, only in EXPRESSIBLE.items():
        check_exportable(getattr(config, field) == only, config, field, f"a marian config.json can only express {only}")
    why = f"a marian config.json can only express width / heads, {config.head}"
    check_exportable(config.key_size == config.head, config, "head_dim", why)
    return {
        **KEYS.write(config),
        **{key: getattr(config, field) for field, key in DECODER.items()},
        "decoder_vocab_size": config.vocab,
        "max_position_embeddings": table_rows(config),
        "scale_embedding": True,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }


EXPRESSIBLE: dict[str, Any] = {
    "positions": "sinusoid",
    "sinusoids": "halves",
    "attention_bias": True,
    "output_bias": True,
    "eps": EPS,
}
"""Fields that a config.json of type marian has no key for, with the only value of its models."""


def table_rows(config: Config) -> int:
    """Return the number of rows of the table of sinusoids that `transformers` builds for an export."""
    return POSITIONS if config.exported.positions is None else config.exported.positions


POSITIONS = 1024
"""Number of rows of the table of sinusoids if a config.json does not give them; `transformers` accepts no longer rows."""

PADDING = 58_100
"""Id of the padding token, which is also the first input of the decoder, if a config.json does not give it."""

KEYS = PublishedKeys(
    fields={
        **{"vocab": ("vocab_size", 58_101), "layers": ("encoder_layers", 12), "width": ("d_model", 1024)},
        **{"heads": ("encoder_attention_heads", 16), "ffn": ("encoder_ffn_dim", 4096), "dropout": ("dropout", 0.1)},
    },
    activation=("activation_function", "gelu"),
    initializer="init_std",
    aliases={
        **{"hidden_size": "d_model", "num_hidden_layers": "encoder_layers"},
        "num_attention_heads": "encoder_attention_heads",
    },
    computed={
        **{"attention_dropout": 0.0, "activation_dropout": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0},
        **{"share_encoder_decoder_embeddings": True, "tie_word_embeddings": True},
        **{"is_encoder_decoder": True, "is_decoder": False, "normalize_before": False, "normalize_embedding": False},
        **{"add_final_layer_norm": False, "static_position_embeddings": True, "add_bias_logits": False},
    },
    without_effect=("classif_dropout", "classifier_dropout", "extra_pos_embeddings"),
    is_causal=True,
)

DECODER = {"layers": "decoder_layers", "heads": "decoder_attention_heads", "ffn": "decoder_ffn_dim"}
"""Maps a field to its key for the decoder, which must have the value of the encoder's."""


# --- sizes ----------------------------------------------------------------------------------------------------------------------

ASSUMED = {
    "vocab": "the paper says about 37,000 subwords, shared by English and German",
    "attention_bias": "the paper does not state it: its formulas have none",
    "output_bias": "the paper does not state it: its formulas have none",
    "max_positions": "only of learned positions; the paper does not state it",
    "eps": "the paper does not state it: 1e-5",
}


def published_size(width: int, heads: int, ffn: int, dropout: float, note: str) -> Size:
    """Return a row of Vaswani et al. 2017, Table 3."""
    return Size(
        config=Config(vocab=37_000, layers=6, width=width, heads=heads, ffn=ffn, dropout=dropout),
        objective="text_to_text",
        source="Vaswani et al. 2017, Table 3",
        assumed=ASSUMED,
        note=note,
    )


NANO = Size.nano(
    Config(
        vocab=8192, layers=3, width=256, heads=4, ffn=1024, attention_bias=True, output_bias=True, sinusoids="halves", dropout=0.1
    ),
    "text_to_text",
    "small enough to train in minutes on a laptop, in the form of Marian's models, so that it can be exported",
)

SIZES: dict[str, Size] = {
    "transformer-nano": NANO,
    "transformer-base": published_size(
        512, 8, 2048, 0.1, "the paper says 65M; with biases in attention there would be 63,082,496"
    ),
    "transformer-big": published_size(
        1024,
        16,
        4096,
        0.3,
        "the paper says 213M; with biases in attention there would be 214,245,376. English to French had dropout 0.1",
    ),
}
