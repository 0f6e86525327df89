"""Sizes of T5 (Raffel et al. 2020) and its successors, as released, and the architectures of its Table 2: shared, decoder only.

T5 1.1, mT5, ByT5, umT5 and UL2 have gated feed-forward layers and an output table of their own. The files of Flan-T5, and those
of T5 1.1 that were further trained as language models, have the sizes of T5 1.1. umT5 has position biases in every layer.
"""

import dataclasses
import math
import struct
from typing import Any, Literal, get_args

from zoo.configs import Activation, Compute, Exported, ModelConfig, Size
from zoo.configs._published_keys import PublishedKeys, check_exportable
from zoo.configs._score_head import check_labels, label_entries, read_labels
from zoo.errors import require
from zoo.hf.config_json import ACTIVATIONS, PublishedConfig

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
    bias_per_layer: bool = False
    """Give every layer its own table of position biases, as in umT5; otherwise the layers of a side share one."""
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
    """Name of the score that a reward model computes for a text; none = the model has an LM head in place of the score's."""
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
        apart = not self.bias_per_layer or self.architecture != "shared"
        fix = "the two sides' buckets are different distances, and --model.architecture shared has one stack; leave it out"
        require(apart, "model.bias_per_layer", self.bias_per_layer, fix)
        consistent = self.architecture == "encoder_decoder" or self.decoder_layers == self.layers
        fix = f"--model.architecture {self.architecture} has one stack; choose {self.layers}, as --model.layers"
        require(consistent, "model.decoder_layers", self.decoder_layers, fix)

    @property
    def is_encoder_decoder(self) -> bool:
        """True if the model has an encoder, whose source text the decoder attends to."""
        return self.architecture != "decoder"


# --- config.json ----------------------------------------------------------------------------------------------------------------

MODEL_TYPE = "t5"
"""Name of this family in a published config.json; UL2, Flan-T5 and ByT5 have it too."""
MT5, UMT5 = "mt5", "umt5"
CLASSES = {MODEL_TYPE: "T5", MT5: "MT5", UMT5: "UMT5"}
"""Maps each name of the family to the beginning of the names of its classes in `transformers`."""

FEED_FORWARD: dict[str, tuple[Activation, bool]] = {
    "relu": ("relu", False),
    "gated-gelu": ("gelu_tanh", True),
    "gelu": ("gelu", False),
    "gelu_new": ("gelu_tanh", False),
    "gated-gelu_new": ("gelu_tanh", True),
    "gated-relu": ("relu", True),
    "gated-silu": ("silu", True),
    "silu": ("silu", False),
}
"""Maps published names to (activation, gated); an export writes the first name that fits."""


def from_published(published: PublishedConfig) -> Config:
    """Return the configuration in a config.json of type t5, mt5 or umt5; absent keys take the defaults of `transformers`.

    Raises:
        BadInput: a key has a value that this family does not compute.
    """
    # `transformers` sets the default of the decoder's layers before it looks at the other name of `num_layers`.
    model_type = published.choice("model_type", {name: name for name in CLASSES}, MODEL_TYPE)
    absent = {} if model_type == MODEL_TYPE else ABSENT_IN_MT5
    layers = published.integer("num_layers", absent.get("num_layers", KEYS.fields["layers"][1]))
    fields = KEYS.read(published, absent, model_type="" if model_type == MODEL_TYPE else model_type)
    if model_type == MODEL_TYPE and published.task == "sequence" and not published.has("decoder_start_token_id"):
        # The type has no default, without which this head of `transformers` cannot make the decoder's input.
        raise published.wrong("decoder_start_token_id", None, f"a T5 with a score head needs it; set it to {PADDING}")
    # The rate of a classifier, which has no dropout here.
    if not 0 <= (rate := published.number("classifier_dropout", 0.0)) <= 1:
        raise published.wrong("classifier_dropout", rate, "it must be 0 to 1")
    # `transformers` also writes these two, which it derives from `feed_forward_proj`.
    published.only("is_gated_act", fields["gated"])
    names = {name: meaning for name, meaning in ACTIVATIONS.items() if meaning == fields["activation"]}
    published.choice("dense_act_fn", names, next(iter(names)), why="feed_forward_proj says")
    # `transformers` 5 ties whenever it can, and stores the value of the file under the second name.
    tied = published.flag("tie_word_embeddings", True, nullable=model_type != MT5)
    config = Config(
        **fields,
        decoder_layers=published.integer("num_decoder_layers", layers, nullable=True),
        # mT5's tables are never tied, and its states never scaled, whatever `transformers` 5 writes into its files.
        tied=model_type != MT5 and published.flag("scale_decoder_outputs", tied),
        bias_per_layer=model_type == UMT5,
        labels=read_labels(published),
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


def exported_type(config: Config) -> str:
    """Return the type of a config.json that expresses a model: umt5 if every layer has position biases; else mt5, if it was one.

    mt5's tables are not tied; a model with tied tables is a t5.
    """
    if config.bias_per_layer:
        return UMT5
    return MT5 if config.exported.model_type == MT5 and not config.tied else MODEL_TYPE


def to_published(config: Config) -> dict[str, Any]:
    """Return the entries of a config.json of type t5, mt5 or umt5, but for its type.

    Raises:
        BadInput: shared stacks, a decoder only, or an activation, which these types cannot express; or a distance whose bucket
            may differ in `transformers`.
    """
    distance = uncertain_distance(config.buckets, config.max_distance)
    why = f"with {config.buckets} buckets, `transformers` may put distance {distance} into another bucket"
    check_exportable(distance is None, config, "max_distance", why)
    check_exportable(config.architecture == "encoder_decoder", config, "architecture", "no such T5 was published")
    is_named = (config.activation, config.gated) in FEED_FORWARD.values()
    check_exportable(is_named, config, "activation", "a t5 config.json cannot express it with a gate")
    return {
        **KEYS.write(config),
        "num_decoder_layers": config.decoder_layers,
        "tie_word_embeddings": config.tied,
        "pad_token_id": 0,
        **label_entries(config.labels),
    }


PADDING = 0
"""Id of the padding token, which is also the first input of the decoder, if a config.json does not give it."""

KEYS = PublishedKeys(
    fields={
        **{"vocab": ("vocab_size", 32_128), "layers": ("num_layers", 6), "width": ("d_model", 512), "heads": ("num_heads", 8)},
        **{"head": ("d_kv", 64), "ffn": ("d_ff", 2048), "buckets": ("relative_attention_num_buckets", 32)},
        **{"max_distance": ("relative_attention_max_distance", 128), "eps": ("layer_norm_epsilon", 1e-6)},
        "dropout": ("dropout_rate", 0.1),
    },
    activation=("feed_forward_proj", "relu"),
    activation_fields=("activation", "gated"),
    activations=FEED_FORWARD,
    initializer="initializer_factor",
    aliases={
        **{"hidden_size": "d_model", "num_attention_heads": "num_heads"},
        **{"num_hidden_layers": "num_layers", "head_dim": "d_kv"},
    },
    # The decoder begins with the padding token.
    computed={"is_encoder_decoder": True, "is_decoder": False, "decoder_start_token_id": PADDING},
    # The length of rows, which is not limited here; generation.
    without_effect=("n_positions", "output_past", "max_length"),
    is_causal=True,
)

ABSENT_IN_MT5: dict[str, Any] = {
    **{"vocab_size": 250_112, "num_layers": 8, "num_heads": 6, "d_ff": 1024, "feed_forward_proj": "gated-gelu"},
}
"""Values of keys that a config.json of type mt5 or umt5 leaves out, where they are not those of a t5."""


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


def gated(
    layers: int,
    width: int,
    heads: int,
    ffn: int,
    *,
    source: str,
    vocab: int = VOCAB,
    decoder_layers: int | None = None,
    count: int | None = None,
    note: str = "",
    **changes: Any,
) -> Size:
    """Return a size with gated feed-forward layers and a separate output table, as T5 1.1; heads of size 64, or of `changes`."""
    numbers: dict[str, Any] = {"head": 64, "activation": "gelu_tanh", **changes}
    config = Config(
        vocab=vocab,
        layers=layers,
        decoder_layers=layers if decoder_layers is None else decoder_layers,
        width=width,
        heads=heads,
        ffn=ffn,
        gated=True,
        tied=False,
        **numbers,
    )
    return Size(config=config, objective="denoising", source=source, published_count=count, note=note)


def released_1_1(layers: int, width: int, heads: int, ffn: int, *, count: int, flan: str) -> Size:
    """Return a size of T5 1.1."""
    source = "google-research/text-to-text-transfer-transformer, released_checkpoints.md, and the released checkpoint"
    note = f"pretrained without dropout, 0.1 is for fine-tuning. {flan} and the LM-adapted files have the same sizes"
    return gated(layers, width, heads, ffn, source=source, count=count, note=note)


def multilingual(layers: int, width: int, heads: int, ffn: int, *, count: int | None = None) -> Size:
    """Return a size of mT5: T5 1.1 with a vocabulary of 101 languages."""
    source = "Xue et al. 2021, section 3.2, t5x/examples/t5/mt5, and the released checkpoint"
    exported = Exported(model_type=MT5)
    note = "pretrained without dropout, 0.1 is for fine-tuning"
    return gated(layers, width, heads, ffn, vocab=250_112, source=source, count=count, note=note, exported=exported)


def of_bytes(layers: int, decoder_layers: int, width: int, heads: int, ffn: int, *, count: int | None = None) -> Size:
    """Return a size of ByT5, whose tokens are bytes and whose encoder is three times as deep as its decoder."""
    return gated(
        layers,
        width,
        heads,
        ffn,
        decoder_layers=decoder_layers,
        vocab=384,
        source="Xue et al. 2022, Table 1, t5x/examples/t5/byt5, and the released checkpoint",
        count=count,
        note="pretrained without dropout, 0.1 is for fine-tuning. Pretraining marked spans with the ids 258, 257, ... of bytes; "
        "the tokens <extra_id_0>, ... of `transformers` and of this project have the ids 259, 260, ...",
    )


def per_layer(layers: int, width: int, heads: int, ffn: int) -> Size:
    """Return a size of umT5: mT5 with a larger vocabulary and position biases in every layer."""
    source = "Chung et al. 2023, t5x/examples/scalable_t5/umt5, and the released checkpoint"
    exported = Exported(model_type=UMT5)
    return gated(layers, width, heads, ffn, vocab=256_384, source=source, bias_per_layer=True, exported=exported)


def ul2(source: str, note: str = "") -> Size:
    """Return UL2: T5 1.1 with SiLU gates and heads of size 256."""
    return gated(32, 4096, 16, 16_384, source=source, note=note, head=256, activation="silu", dropout=0.0)


def flan(size: Size) -> Size:
    """Return the size of a Flan-T5, that of the T5 1.1 it was fine-tuned from."""
    source = "Chung et al. 2022, section 3, and the released checkpoint"
    return dataclasses.replace(size, source=source, note="T5 1.1, LM-adapted and fine-tuned on instructions")


NANO = Size.nano(
    Config(
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
    "denoising",
    "a T5 1.1 body small enough to train in minutes on a laptop; a second table would be a sixth of it",
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
    "mt5-small": multilingual(8, 512, 6, 1024, count=300_176_768),
    "mt5-base": multilingual(12, 768, 12, 2048, count=582_401_280),
    "mt5-large": multilingual(24, 1024, 16, 2816),
    "mt5-xl": multilingual(24, 2048, 32, 5120),
    "mt5-xxl": multilingual(24, 4096, 64, 10240),
    "ul2": ul2("Tay et al. 2022, section 5.1, and the released checkpoint", "the paper's 20B"),
    "flan-ul2": ul2("google/flan-ul2, the released checkpoint", "UL2, fine-tuned on instructions"),
    "byt5-small": of_bytes(12, 4, 1472, 6, 3584, count=299_637_760),
    "byt5-base": of_bytes(18, 6, 1536, 12, 3968, count=581_653_248),
    "byt5-large": of_bytes(36, 12, 1536, 16, 3840),
    "byt5-xl": of_bytes(36, 12, 2560, 32, 6720),
    "byt5-xxl": of_bytes(36, 12, 4672, 64, 12352),
    "umt5-small": per_layer(8, 512, 6, 1024),
    "umt5-base": per_layer(12, 768, 12, 2048),
    "umt5-xl": per_layer(24, 2048, 32, 5120),
    "umt5-xxl": per_layer(24, 4096, 64, 10240),
}
SIZES |= {f"flan-t5-{size}": flan(SIZES[f"t5-v1.1-{size}"]) for size in ("small", "base", "large", "xl", "xxl")}
