"""Sizes of the Transformer (Vaswani et al. 2017, Table 3): an encoder and a decoder with norms after each sub-layer."""

import dataclasses
from typing import Any, Literal, get_args

from zoo.configs import Activation, Compute, Exported, Size
from zoo.errors import BadInput, require
from zoo.hf.config_json import BOOKKEEPING, Published, first_name

Sinusoids = Literal["interleaved", "halves"]

LARGEST = {
    "vocab": 1 << 21,
    "layers": 512,
    "width": 1 << 16,
    "heads": 1 << 12,
    "ffn": 1 << 20,
}
"""Whole-numbered fields and the largest value that is still a model rather than a slip of the finger."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Numbers of a Transformer. Its positions are computed and take rows of any length, so there is no `context`."""

    vocab: int
    """Entries of the tokenizer; source, target and output share one table."""
    layers: int
    """Of the encoder, and as many of the decoder."""
    width: int
    """Size of the residual stream, D."""
    heads: int
    """They share the width evenly."""
    ffn: int
    """Inner width of the feed-forward layers."""
    activation: Activation = "relu"
    attention_bias: bool = False
    """Whether the projections of attention have biases; the paper writes none."""
    output_bias: bool = False
    """Whether each entry of the vocabulary has a bias in the logits. The paper's have none, Marian's have."""
    sinusoids: Sinusoids = "interleaved"
    """The paper's sines and cosines alternate along the width; in most codes, Marian's too, the sines are its first half."""
    eps: float = 1e-5
    """Added to the variance in layer norms."""
    dropout: float
    """Share of the embedding sums and of each sub-layer's output dropped."""
    compute: Compute = dataclasses.field(default_factory=Compute)
    exported: Exported = dataclasses.field(default_factory=Exported)

    def __post_init__(self) -> None:
        for field, largest in LARGEST.items():
            value = getattr(self, field)
            require(1 <= value <= largest, f"model.{field}", value, f"choose 1 to {largest:,}")
        require(self.width % 2 == 0, "model.width", self.width, "sines and cosines come in pairs; choose an even number")
        divides = self.width % self.heads == 0
        require(divides, "model.heads", self.heads, f"it must divide --model.width {self.width}")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "choose a share of at least 0 and less than 1")
        require(0 < self.eps <= 1, "model.eps", self.eps, "choose 0 < eps <= 1")
        for field, known in {"activation": get_args(Activation), "sinusoids": get_args(Sinusoids)}.items():
            value = getattr(self, field)
            require(value in known, f"model.{field}", value, f"choose one of {', '.join(known)}")

    @property
    def head(self) -> int:
        """Size of an attention head."""
        return self.width // self.heads

    @property
    def sourced(self) -> bool:
        """It has an encoder, whose text the decoder reads."""
        return True


# --- config.json ----------------------------------------------------------------------------------------------------------------

MODEL_TYPE = "marian"
"""What a config.json calls models of this form. The paper's own weights were never published."""

ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Published name -> ours; an export writes the first that fits."""

EPS = 1e-5
"""What `transformers` has in its code: no key says it."""


def from_published(published: Published) -> Config:
    """The numbers in a config.json of type marian; absent ones are those of `transformers`' MarianConfig.

    Raises:
        BadInput: something this family does not compute.
    """
    published.use_aliases(ALIASES)
    for key, value in COMPUTED.items():
        published.only(key, value)
    # Its default is another one than what is computed here.
    if not published.flag("scale_embedding", False):
        raise published.wrong("scale_embedding", False, "this family computes true")
    published.never("quantization_config")
    published.without_effect(*BOOKKEEPING, *WITHOUT_EFFECT)
    vocab, layers = published.whole("vocab_size", 58_101), published.whole("encoder_layers", 12)
    heads, ffn = published.whole("encoder_attention_heads", 16), published.whole("encoder_ffn_dim", 4096)
    for key, default, ours in (
        ("decoder_layers", 12, layers),
        ("decoder_attention_heads", 16, heads),
        ("decoder_ffn_dim", 4096, ffn),
    ):
        if (value := published.whole(key, default)) != ours:
            fix = f"this family computes {ours}, as in the encoder; an absent key means {default}"
            raise published.wrong(key, value, fix)
    # Zero and null both mean the vocabulary of the encoder.
    if (entries := published.whole("decoder_vocab_size", 0, least=0, nullable=True)) not in (0, vocab):
        raise published.wrong("decoder_vocab_size", entries, f"this family computes {vocab}, as in the encoder")
    padding = published.whole("pad_token_id", PADDING, least=0)
    if padding >= vocab:
        raise published.wrong("pad_token_id", padding, f"choose an entry of the vocabulary of {vocab}; absent, it is {PADDING}")
    if (start := published.whole("decoder_start_token_id", PADDING, least=0)) != padding:
        fix = f"this family computes {padding}, the padding, as the token before a text; an absent key means {PADDING}"
        raise published.wrong("decoder_start_token_id", start, fix)
    return Config(
        vocab=vocab,
        layers=layers,
        width=published.whole("d_model", 1024),
        heads=heads,
        ffn=ffn,
        activation=published.choice("activation_function", ACTIVATIONS, "gelu"),
        attention_bias=True,
        output_bias=True,
        sinusoids="halves",
        eps=EPS,
        dropout=published.number("dropout", 0.1),
        exported=Exported(
            initializer=published.initializer("init_std"),
            activation=published.spelling("activation_function", ACTIVATIONS),
            positions=published.whole("max_position_embeddings", POSITIONS),
        ),
    )


def to_published(cfg: Config) -> dict[str, Any]:
    """The numbers as a config.json of type marian has them.

    Raises:
        BadInput: the paper's form, which the type has no words for.
    """
    for field, only in {"sinusoids": "halves", "attention_bias": True, "output_bias": True, "eps": EPS}.items():
        if (value := getattr(cfg, field)) != only:
            raise BadInput(f"model.{field} {value}: a marian config.json knows only {only}; there is no export of this model")
    return {
        "vocab_size": cfg.vocab,
        "decoder_vocab_size": cfg.vocab,
        "max_position_embeddings": table_rows(cfg),
        "encoder_layers": cfg.layers,
        "decoder_layers": cfg.layers,
        "d_model": cfg.width,
        "encoder_attention_heads": cfg.heads,
        "decoder_attention_heads": cfg.heads,
        "encoder_ffn_dim": cfg.ffn,
        "decoder_ffn_dim": cfg.ffn,
        **cfg.exported.keys("init_std", "activation_function", first_name(ACTIVATIONS, cfg.activation), ACTIVATIONS),
        "dropout": cfg.dropout,
        "scale_embedding": True,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
        **COMPUTED,
    }


def table_rows(cfg: Config) -> int:
    """Return the number of rows of the table of sinusoids that `transformers` makes of an export."""
    return POSITIONS if cfg.exported.positions is None else cfg.exported.positions


POSITIONS = 1024
"""Rows of the table of sinusoids, where a config.json does not say: `transformers` takes no longer rows."""

PADDING = 58_100
"""Id of the padding, and of the token before a text, where a config.json does not say."""

ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}
"""Other names of keys, which win in `transformers`."""

COMPUTED = {
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "share_encoder_decoder_embeddings": True,
    "tie_word_embeddings": True,
    "is_encoder_decoder": True,
    "is_decoder": False,
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
    "static_position_embeddings": True,
    "add_bias_logits": False,
}
"""Keys that change the arithmetic, with the value that is computed here."""

WITHOUT_EFFECT = (
    *("classif_dropout", "classifier_dropout", "bad_words_ids"),
    *("forced_eos_token_id", "max_length", "num_beams", "extra_pos_embeddings"),
)


# --- sizes ----------------------------------------------------------------------------------------------------------------------

ASSUMED = {
    "vocab": "the paper says about 37,000 pieces, shared by English and German",
    "attention_bias": "the paper does not state it: its formulas have none",
    "output_bias": "the paper does not state it: its formulas have none",
    "eps": "the paper does not state it: 1e-5",
}


def published_size(width: int, heads: int, ffn: int, dropout: float, note: str) -> Size:
    """A row of Vaswani et al. 2017, Table 3."""
    return Size(
        config=Config(vocab=37_000, layers=6, width=width, heads=heads, ffn=ffn, dropout=dropout),
        objective="text_to_text",
        source="Vaswani et al. 2017, Table 3",
        assumed=ASSUMED,
        note=note,
    )


NANO = Size(
    config=Config(
        vocab=8192,
        layers=3,
        width=256,
        heads=4,
        ffn=1024,
        attention_bias=True,
        output_bias=True,
        sinusoids="halves",
        dropout=0.1,
    ),
    objective="text_to_text",
    source="this project",
    assumed=dict.fromkeys(
        Size.numbers_of(Config),
        "ours: small enough to train in minutes on a laptop, in the form of Marian's models, so that there is an export",
    ),
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
