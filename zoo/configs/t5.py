"""Sizes of T5 (Raffel et al. 2020) and T5 1.1, as released, and the architectures of its Table 2: shared stacks, decoder only.

The files of Flan-T5, and those of T5 1.1 that were further trained as language models, have the sizes of T5 1.1.
"""

import dataclasses
import math
import struct
from typing import Any, Literal, get_args

from zoo.configs import Activation, Compute, Exported, ModelConfig, Size
from zoo.configs._score_head import check_labels, label_entries, read_labels
from zoo.errors import BadInput, require
from zoo.hf.config_json import ACTIVATIONS, BOOKKEEPING, PublishedConfig

Architecture = Literal["encoder_decoder", "shared", "decoder"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Configuration of a T5. Relative positions allow rows of any length, so there is no `context`."""

    vocab: int
    """Number of rows of the embedding table that encoder and decoder share; in published files more than tokenizer entries."""
    layers: int
    """Number of layers of the encoder."""
    decoder_layers: int
    """Number of layers of the decoder; must equal that of the encoder unless they are two stacks."""
    width: int
    """Size of the residual stream, D."""
    heads: int
    """Number of attention heads."""
    head: int
    """Size of a head; heads x head, the inner width of attention, need not equal the width of the model."""
    ffn: int
    """Inner width of the feed-forward layers."""
    buckets: int = 32
    """Number of buckets of relative positions; each has a bias."""
    max_distance: int = 128
    """Distance from which on all relative positions share the last bucket."""
    activation: Activation
    """Activation of the feed-forward layers."""
    gated: bool
    """Multiply the activation by a second, linear projection, as in T5 1.1."""
    tied: bool
    """Use the input embeddings as output table, with hidden states scaled by width^-1/2; T5 1.1 has a separate output table."""
    eps: float = 1e-6
    """Number that norms add to the mean square."""
    dropout: float = 0.1
    """Dropout rate of embeddings, attention weights, inner feed-forward states, outputs of sub-layers, and of the last norm."""
    architecture: Architecture = "encoder_decoder"
    """encoder_decoder: two stacks. shared: two stacks that share all common parameters. decoder: a decoder only, whose row begins
    with the source as a prefix."""
    labels: tuple[str, ...] = ()
    """Name of the score that a reward model computes for a text, in place of words; none = the model predicts words."""
    compute: Compute = dataclasses.field(default_factory=Compute)
    exported: Exported = dataclasses.field(default_factory=Exported)

    def __post_init__(self) -> None:
        self.check_fields(activation=get_args(Activation), architecture=get_args(Architecture))
        check_labels(self.labels)
        # An encoder has half of the buckets for each direction, and half of those for a single distance each.
        require(4 <= self.buckets <= 1 << 16, "model.buckets", self.buckets, "choose 4 to 65,536")
        far = self.buckets // 2 < self.max_distance <= 1 << 20
        fix = f"choose more than {self.buckets // 2} (half of --model.buckets) and at most 1,048,576"
        require(far, "model.max_distance", self.max_distance, fix)
        consistent = self.architecture == "encoder_decoder" or self.decoder_layers == self.layers
        fix = f"--model.architecture {self.architecture} has one stack; choose {self.layers}, as --model.layers"
        require(consistent, "model.decoder_layers", self.decoder_layers, fix)

    @property
    def is_encoder_decoder(self) -> bool:
        """True if the model has an encoder, whose source text the decoder attends to."""
        return self.architecture != "decoder"

    @property
    def generates(self) -> bool:
        """True if the model predicts words, and not a score."""
        return not self.labels


# --- config.json ----------------------------------------------------------------------------------------------------------------

MODEL_TYPE = "t5"
"""Name of this family in a published config.json."""

FEED_FORWARD: dict[str, tuple[Activation, bool]] = {
    "relu": ("relu", False),
    "gated-gelu": ("gelu_tanh", True),
    "gelu": ("gelu", False),
    "gelu_new": ("gelu_tanh", False),
    "gated-gelu_new": ("gelu_tanh", True),
    "gated-relu": ("relu", True),
}
"""Maps published names to (activation, gated); an export writes the first name that fits."""


def from_published(published: PublishedConfig) -> Config:
    """Return the configuration in a config.json of type t5; absent keys take the defaults of `transformers`' T5Config.

    Raises:
        BadInput: a key has a value that this family does not compute.
    """
    # `transformers` sets the default of the decoder's layers before it looks at the other name of `num_layers`.
    layers = published.integer("num_layers", 6)
    published.use_aliases(ALIASES)
    for key, value in COMPUTED.items():
        published.only(key, value)
    published.never("quantization_config")
    published.without_effect(*BOOKKEEPING, *WITHOUT_EFFECT)
    activation, gated = published.choice("feed_forward_proj", FEED_FORWARD, "relu")
    # `transformers` also writes these two, which it derives from `feed_forward_proj`.
    published.only("is_gated_act", gated)
    names = {name: meaning for name, meaning in ACTIVATIONS.items() if meaning == activation}
    published.choice("dense_act_fn", names, next(iter(names)), why="feed_forward_proj says")
    # `transformers` 5 ties whenever it can, and stores the value of the file under the second name.
    tied = published.flag("tie_word_embeddings", True, nullable=True)
    config = Config(
        vocab=published.integer("vocab_size", 32_128),
        layers=published.integer("num_layers", 6),
        decoder_layers=published.integer("num_decoder_layers", layers, nullable=True),
        width=published.integer("d_model", 512),
        heads=published.integer("num_heads", 8),
        head=published.integer("d_kv", 64),
        ffn=published.integer("d_ff", 2048),
        buckets=published.integer("relative_attention_num_buckets", 32),
        max_distance=published.integer("relative_attention_max_distance", 128),
        activation=activation,
        gated=gated,
        tied=published.flag("scale_decoder_outputs", tied),
        eps=published.number("layer_norm_epsilon", 1e-6, decimal=True),
        dropout=published.number("dropout_rate", 0.1),
        labels=read_labels(published),
        exported=Exported(
            initializer=published.initializer("initializer_factor"),
            activation=published.spelling("feed_forward_proj", FEED_FORWARD),
        ),
    )
    if (distance := uncertain_distance(config.buckets, config.max_distance)) is not None:
        why = f"with {config.buckets} buckets, the bucket of distance {distance} depends on the machine in `transformers`"
        raise published.wrong("relative_attention_max_distance", config.max_distance, why)
    return config


def uncertain_distance(buckets: int, max_distance: int) -> int | None:
    """Return a distance for which `transformers` may compute another bucket than this family does, or None.

    Distance n >= exact belongs to bucket exact + floor(log(n / exact) / log(max_distance / exact) * growing). This family
    computes the floor exactly. `transformers` computes it from float32 numbers; if they are within rounding errors of an integer,
    the floor depends on the library's logarithm and thus on the machine. Only powers of two have the same logarithm everywhere:
    the released values (32, 128) are right.
    """
    for side in (buckets // 2, buckets):
        exact, growing = side // 2, side - side // 2
        largest = math.log(max_distance / exact)
        for distance in range(exact + 1, max_distance):
            share = math.log(distance / exact) / largest * growing
            if abs(share - round(share)) > SHARE_ERROR * share:
                continue
            power = math.log2(distance / exact).is_integer()
            if not power or _rounded_share(distance, exact, max_distance, growing) != round(share):
                return distance
    return None


def _rounded_share(distance: int, exact: int, max_distance: int, growing: int) -> float:
    """Return log(distance / exact) / log(max_distance / exact) * growing with every step rounded to float32."""

    def rounded(x: float) -> float:
        return struct.unpack("f", struct.pack("f", x))[0]

    share = rounded(math.log(distance / exact)) / rounded(math.log(max_distance / exact))
    return rounded(rounded(share) * growing)


SHARE_ERROR = 2.0**-21
"""Bound of the relative error of a share in float32: 2^-23 for one logarithm, 2^-24 for the other and for each of two steps."""


def to_published(config: Config) -> dict[str, Any]:
    """Return the entries of a config.json of type t5.

    Raises:
        BadInput: shared stacks, a decoder only, or an activation, which this type cannot express; or a distance whose bucket may
            differ in `transformers`.
    """
    if (distance := uncertain_distance(config.buckets, config.max_distance)) is not None:
        raise BadInput(
            f"model.max_distance {config.max_distance}: with {config.buckets} buckets, `transformers` may put distance "
            f"{distance} into another bucket; this model cannot be exported"
        )
    if config.architecture != "encoder_decoder":
        raise BadInput(f"model.architecture {config.architecture}: no such T5 was published; this model cannot be exported")
    names = [name for name, meaning in FEED_FORWARD.items() if meaning == (config.activation, config.gated)]
    if not names:
        raise BadInput(
            f"model.activation {config.activation}: a t5 config.json cannot express it with a gate; this model cannot be exported"
        )
    return {
        "vocab_size": config.vocab,
        "num_layers": config.layers,
        "num_decoder_layers": config.decoder_layers,
        "d_model": config.width,
        "num_heads": config.heads,
        "d_kv": config.head,
        "d_ff": config.ffn,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        **config.exported.keys("initializer_factor", "feed_forward_proj", names[0], FEED_FORWARD),
        "tie_word_embeddings": config.tied,
        "layer_norm_epsilon": config.eps,
        "dropout_rate": config.dropout,
        "pad_token_id": 0,
        **label_entries(config.labels),
        **COMPUTED,
    }


ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}
"""Other names of keys, which take precedence in `transformers`."""

PADDING = 0
"""Id of the padding token, which is also the first input of the decoder, if a config.json does not give it."""

COMPUTED = {"is_encoder_decoder": True, "is_decoder": False, "decoder_start_token_id": 0}
"""Keys that change the results, with the only value that is implemented here; the decoder begins with the padding token."""

WITHOUT_EFFECT = (
    # The length of rows, which is not limited here; a classifier that is not imported; generation.
    *("n_positions", "classifier_dropout", "output_past", "max_length"),
)


# --- sizes ----------------------------------------------------------------------------------------------------------------------

VOCAB = 32_128


def released(layers: int, width: int, head: int, heads: int, ffn: int, *, count: int | None = None) -> Size:
    """Return a size of Raffel et al. 2020, section 3.7, as released."""
    return Size(
        config=Config(
            vocab=VOCAB,
            layers=layers,
            decoder_layers=layers,
            width=width,
            heads=heads,
            head=head,
            ffn=ffn,
            activation="relu",
            gated=False,
            tied=True,
        ),
        objective="denoising",
        source="Raffel et al. 2020, section 3.7, and the released checkpoint",
        published_count=count,
    )


def released_1_1(layers: int, width: int, heads: int, ffn: int, *, count: int, flan: str) -> Size:
    """Return a size of T5 1.1, with gated feed-forward layers and a separate output table."""
    return Size(
        config=Config(
            vocab=VOCAB,
            layers=layers,
            decoder_layers=layers,
            width=width,
            heads=heads,
            head=64,
            ffn=ffn,
            activation="gelu_tanh",
            gated=True,
            tied=False,
        ),
        objective="denoising",
        source="google-research/text-to-text-transfer-transformer, released_checkpoints.md, and the released checkpoint",
        published_count=count,
        note=f"pretrained without dropout, 0.1 is for fine-tuning. {flan} and the LM-adapted files have the same sizes",
    )


NANO = Size(
    config=Config(
        vocab=4096,
        layers=4,
        decoder_layers=4,
        width=192,
        heads=6,
        head=32,
        ffn=512,
        activation="gelu_tanh",
        gated=True,
        tied=True,
        dropout=0.0,
    ),
    objective="denoising",
    source="this project",
    assumed=dict.fromkeys(
        Size.numbers_of(Config),
        "chosen here: a T5 1.1 body small enough to train in minutes on a laptop; a second table would be a sixth of it",
    ),
)

SIZES: dict[str, Size] = {
    "t5-nano": NANO,
    "t5-small": released(6, 512, 64, 8, 2048, count=60_506_624),
    "t5-base": released(12, 768, 64, 12, 3072, count=222_903_552),
    "t5-large": released(24, 1024, 64, 16, 4096, count=737_668_096),
    "t5-3b": released(24, 1024, 128, 32, 16384),
    "t5-11b": released(24, 1024, 128, 128, 65536),
    "t5-v1.1-small": released_1_1(8, 512, 6, 1024, count=76_961_152, flan="flan-t5-small"),
    "t5-v1.1-base": released_1_1(12, 768, 12, 2048, count=247_577_856, flan="flan-t5-base"),
    "t5-v1.1-large": released_1_1(24, 1024, 16, 2816, count=783_150_080, flan="flan-t5-large"),
    "t5-v1.1-xl": released_1_1(24, 2048, 32, 5120, count=2_849_757_184, flan="flan-t5-xl"),
    "t5-v1.1-xxl": released_1_1(24, 4096, 64, 10240, count=11_135_332_352, flan="flan-t5-xxl"),
}
