"""Llama 3.1 and 3.2, Qwen2.5, Qwen3, SmolLM2 and SmolLM3: one body, a causal decoder with rotary positions and grouped heads.

The sizes and their sources are in `zoo.configs._llama_sizes`. The defaults of absent keys are those of `configuration_llama.py`,
`configuration_qwen2.py`, `configuration_qwen3.py` and `configuration_smollm3.py` in `transformers` 5.24.
"""

import dataclasses
import math
import sys
from typing import Any, Literal, get_args

from zoo.configs import Activation, Compute, Exported, ModelConfig, Size
from zoo.configs._llama_sizes import PUBLISHED
from zoo.configs._published_keys import PublishedKeys, check_exportable
from zoo.configs._score_head import check_labels, label_entries, read_labels
from zoo.errors import require
from zoo.hf.config_json import PublishedConfig

Scaling = Literal["none", "linear", "dynamic", "yarn", "llama3"]
Positions = Literal["rotary", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Configuration of a Llama, a Qwen2.5, a Qwen3 or a SmolLM."""

    vocab: int
    """Vocabulary size."""
    context: int
    """Number of tokens in the longest row. Positions are rotations, for which there is no table."""
    layers: int
    """Number of layers."""
    width: int
    """Size of the residual stream, D."""
    heads: int
    """Number of heads of queries."""
    kv_heads: int
    """Number of heads of keys and values, each of which heads / kv_heads query heads share."""
    head: int
    """Size of a head; heads x head, the inner width of attention, need not equal the width of the model."""
    ffn: int
    """Inner width of the feed-forward layers."""
    activation: Activation = "silu"
    """Activation of the gate of the feed-forward layers."""
    tied: bool
    """True if input and output share one embedding table."""
    query_key_norm: bool = False
    """True if each head of queries and of keys is RMS-normalized, as in Qwen3."""
    attention_bias: bool = False
    """True if the four projections of attention have biases."""
    qkv_bias: bool = False
    """True if those of queries, keys and values have biases and that of the output has none, as in Qwen2.5."""
    eps: float = 1e-5
    """Number that norms add to the mean of squares."""
    base: float = 10_000.0
    """Base of the rotations."""
    scaling: Scaling = "none"
    """Scaling of the rotations to longer rows. linear: all frequencies are divided; yarn and llama3: low ones are, high ones are
    not; dynamic: low ones are, by more, the longer a document is, and not at all up to original_context tokens."""
    scaling_factor: float = 1.0
    """Number by which scaled frequencies are divided. dynamic: they are divided by at most 1 + factor x (length /
    original_context - 1), in a document of so many tokens."""
    low_freq_factor: float = 1.0
    """A pair of dimensions with fewer turns in original_context positions is scaled in full, if the scaling is llama3."""
    high_freq_factor: float = 4.0
    """A pair of dimensions with more turns is not scaled, if the scaling is llama3."""
    beta_fast: float = 32.0
    """A pair of dimensions with more turns in original_context positions is not scaled, if the scaling is yarn."""
    beta_slow: float = 1.0
    """A pair of dimensions with fewer turns is scaled in full, if the scaling is yarn."""
    truncate: bool = True
    """Round the first and the last pair that YaRN scales in part outwards, as published models do; gpt-oss does not."""
    attention_factor: float = 0.0
    """Number by which YaRN multiplies queries and keys; 0 = 0.1 x ln(scaling_factor) + 1."""
    original_context: int = 8192
    """Number of positions before scaling, in which turns are counted, if the scaling is dynamic, yarn or llama3."""
    unrotated_every: int = 0
    """Every this many layers, one has no positions, the last of them, as in SmolLM3; 0 = all layers have rotations."""
    attention_dropout: float = 0.0
    """Dropout rate of the attention weights."""
    labels: tuple[str, ...] = ()
    """Name of the score that a reward model computes for a text; none = the model has an LM head in place of the score's."""
    compute: Compute = dataclasses.field(default_factory=Compute)
    exported: Exported = dataclasses.field(default_factory=Exported)

    def __post_init__(self) -> None:
        self.check_fields(activation=get_args(Activation), scaling=get_args(Scaling))
        check_labels(self.labels)
        fix = f"choose a divisor of --model.heads {self.heads}"
        require(self.kv_heads >= 1 and self.heads % self.kv_heads == 0, "model.kv_heads", self.kv_heads, fix)
        require(self.head % 2 == 0, "model.head", self.head, "heads rotate in pairs of dimensions; choose an even number")
        require(0 <= self.unrotated_every <= 512, "model.unrotated_every", self.unrotated_every, "choose 0 (never) to 512 layers")
        fix = "--model.attention-bias adds these biases too; leave one of the two out"
        require(not (self.qkv_bias and self.attention_bias), "model.qkv_bias", self.qkv_bias, fix)
        require(1 <= self.base <= 1e12, "model.base", self.base, "choose 1 to 1e12")
        self._check_scaling()

    def _check_scaling(self) -> None:
        """Refuse numbers of a scaling that are out of range, or that the scaling does not use."""
        for field in sorted({field for fields in SCALING_FIELDS.values() for field in fields}):
            value, default = getattr(self, field), type(self).__dataclass_fields__[field].default
            fix = f"--model.scaling {self.scaling} does not use it; choose {default}"
            require(field in SCALING_FIELDS[self.scaling] or value == default, f"model.{field}", value, fix)
        require(1 <= self.scaling_factor <= 1e6, "model.scaling_factor", self.scaling_factor, "choose 1 to 1e6")
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            fewest, turns = getattr(self, low), getattr(self, high)
            require(0 < fewest <= 1e6, f"model.{low}", fewest, "choose more than 0, to 1e6")
            fix = f"choose more than --model.{low.replace('_', '-')} {fewest}, to 1e6"
            require(fewest < turns <= 1e6, f"model.{high}", turns, fix)
        in_range = 0 <= self.attention_factor <= 1e6
        fix = "choose 0 (computed from the factor) to 1e6"
        require(in_range, "model.attention_factor", self.attention_factor, fix)
        in_range = 1 <= self.original_context <= 1 << 20
        require(in_range, "model.original_context", self.original_context, "choose 1 to 1,048,576 positions")
        if self.scaling == "yarn":
            require(self.base > 1, "model.base", self.base, "YaRN divides by its logarithm; choose more than 1, to 1e12")
            fix = f"a model is scaled to longer rows than it had; choose at most --model.context {self.context}"
            require(self.original_context <= self.context, "model.original_context", self.original_context, fix)
        if self.scaling == "dynamic":
            require(self.head >= 4, "model.head", self.head, "dynamic scaling needs two pairs of dimensions; choose 4 or more")
            longest = scaled_context(self.scaling_factor, self.original_context)
            fix = f"dynamic scaling extends rows to --model.scaling-factor x --model.original-context tokens; choose {longest}"
            require(self.context == longest, "model.context", self.context, fix)

    @property
    def pattern(self) -> tuple[Positions, ...]:
        """Positions of the layers, repeated over them; those of all layers where the last period is incomplete."""
        if not 0 < self.unrotated_every <= self.layers:
            return ("rotary",)
        complete = self.layers % self.unrotated_every == 0
        count = self.unrotated_every if complete else self.layers
        return tuple("rotary" if rotated else "none" for rotated in _rotated(count, self.unrotated_every))


SCALING_FIELDS: dict[Scaling, tuple[str, ...]] = {
    "none": (),
    "linear": ("scaling_factor",),
    "dynamic": ("scaling_factor", "original_context"),
    "yarn": ("scaling_factor", "beta_fast", "beta_slow", "truncate", "attention_factor", "original_context"),
    "llama3": ("scaling_factor", "low_freq_factor", "high_freq_factor", "original_context"),
}
"""Maps each scaling to the fields that it uses."""


def scaled_context(factor: float, original_context: int) -> int:
    """Return the number of tokens in the longest row of a model with dynamic scaling, whose config.json does not have it."""
    return int(min(factor * original_context, sys.maxsize))


def _rotated(layers: int, unrotated_every: int) -> list[int]:
    """Return 1 for each layer with rotations and 0 for each without, as `no_rope_layers` of a config.json."""
    return [int(not unrotated_every or (layer + 1) % unrotated_every != 0) for layer in range(layers)]


# --- config.json ----------------------------------------------------------------------------------------------------------------

MODEL_TYPE = "llama"
"""Name of this family in a published config.json."""
QWEN2, QWEN3, SMOLLM3 = "qwen2", "qwen3", "smollm3"
CLASSES = {MODEL_TYPE: "Llama", QWEN2: "Qwen2", QWEN3: "Qwen3", SMOLLM3: "SmolLM3"}
"""Maps each such name to the beginning of the names of its classes in `transformers`."""


def from_published(published: PublishedConfig) -> Config:
    """Return the configuration in a config.json of a type of `CLASSES`; absent keys take the defaults of `transformers`.

    Raises:
        BadInput: a key has a value that this family does not compute.
    """
    model_type = published.choice("model_type", {name: name for name in CLASSES}, MODEL_TYPE)
    absent = ABSENT[model_type]
    for key, value in NOT_WRITTEN.items():
        published.only(key, value)
    if model_type == MODEL_TYPE:
        # `transformers` limits the cache of this type to it, although its layers see all tokens.
        published.only("sliding_window", None)
    largest = 1.0 if model_type == MODEL_TYPE else math.inf
    # The numbers determine the other types.
    exported = {"model_type": SMOLLM3 if model_type == SMOLLM3 else ""}
    initializer = published.initializer("initializer_range", largest=largest)
    fields = KEYS.read(published, absent, initializer=initializer, **exported)
    layers, width, heads = fields["layers"], fields["width"], fields["heads"]
    _check_attention(published, layers)
    if model_type != QWEN3 and width % heads:
        raise published.wrong("num_attention_heads", heads, f"it must divide hidden_size, {width}")
    # Without the key, keys have as many heads as queries in a llama; null means this in all types.
    kv_heads = published.integer("num_key_value_heads", heads, nullable=True)
    if not published.has("num_key_value_heads"):
        kv_heads = absent.get("num_key_value_heads", heads)
    return Config(
        **{**fields, **_rotations(published, absent.get("rope_theta", 10_000.0), fields["context"])},
        kv_heads=kv_heads,
        head=published.integer("head_dim", absent.get("head_dim", width // heads), nullable=model_type == MODEL_TYPE),
        query_key_norm=model_type == QWEN3,
        attention_bias=model_type != QWEN2 and published.flag("attention_bias", False),
        qkv_bias=model_type == QWEN2,
        unrotated_every=_unrotated_every(published, layers) if model_type == SMOLLM3 else 0,
        labels=read_labels(published),
    )


def exported_type(config: Config) -> str:
    """Return the type of a config.json that expresses a model: biases, norms of queries and keys, and layers determine it.

    A model without any of these is a llama, or a smollm3 if it was one.

    Raises:
        BadInput: no type has two of these.
    """
    own = {"qkv_bias": QWEN2, "query_key_norm": QWEN3, "unrotated_every": SMOLLM3}
    fields = [field for field in own if getattr(config, field)]
    if len(fields) > 1:
        first, second = fields[:2]
        check_exportable(False, config, second, f"no published type has it with model.{first} {getattr(config, first)}")
    if fields:
        return own[fields[0]]
    return SMOLLM3 if config.exported.model_type == SMOLLM3 else MODEL_TYPE


def to_published(config: Config) -> dict[str, Any]:
    """Return the entries of a config.json of a type of `CLASSES`, but for its type.

    Raises:
        BadInput: numbers that no type can express.
    """
    model_type = exported_type(config)
    why = f"a {model_type} config.json can only express numbers that divide the width, {config.width}"
    check_exportable(model_type == QWEN3 or config.width % config.heads == 0, config, "heads", why)
    layers = {
        # The key may not be 0.
        "no_rope_layer_interval": config.unrotated_every or config.layers + 1,
        "no_rope_layers": _rotated(config.layers, config.unrotated_every),
    }
    return {
        **KEYS.write(config),
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head,
        **({} if model_type == QWEN2 else {"attention_bias": config.attention_bias}),
        "rope_theta": config.base,
        **_scaling_entries(config),
        **(layers if model_type == SMOLLM3 else {}),
        # The tokenizer of an export sets it; SmolLM3's default would be outside a smaller vocabulary.
        "pad_token_id": None,
        **label_entries(config.labels),
    }


def _check_attention(published: PublishedConfig, layers: int) -> None:
    """Refuse layers that see a window."""
    kinds = published.strings("layer_types")
    if kinds is not None and kinds != ("full_attention",) * layers:
        raise published.wrong("layer_types", list(kinds), f"this family computes {layers}, all of them full_attention")


def _rotations(published: PublishedConfig, base: float, context: int) -> dict[str, Any]:
    """Return the fields of the rotations, and the context if the scaling changes it.

    Released files have `rope_theta` and `rope_scaling`. `transformers` 5 writes `rope_parameters`, whose base takes precedence
    (`convert_rope_params_to_dict` of its `modeling_rope_utils.py`).

    Args:
        context: `max_position_embeddings`.

    Raises:
        BadInput: a scaling that this family does not compute.
    """
    base = published.number("rope_theta", base)
    section = published.either_subsection("rope_scaling", "rope_parameters")
    if section is None:
        return {"base": base}
    kind: Scaling = section.choice("rope_type" if section.has("rope_type") else "type", SCALINGS, "default")
    section.without_effect("type")
    fields: dict[str, Any] = {"base": section.number("rope_theta", base), "scaling": kind}
    if kind != "none":
        fields["scaling_factor"] = section.number("factor")
    if kind == "llama3":
        fields["low_freq_factor"] = section.number("low_freq_factor")
        fields["high_freq_factor"] = section.number("high_freq_factor")
    if kind == "yarn":
        # `transformers` takes null as its default.
        fields["beta_fast"] = section.number("beta_fast", 32.0, nullable=True)
        fields["beta_slow"] = section.number("beta_slow", 1.0, nullable=True)
        fields["truncate"] = section.flag("truncate", True)
        fields["attention_factor"] = _attention_factor(section, fields["scaling_factor"])
    if kind in ("yarn", "llama3"):
        fields["original_context"] = section.integer("original_max_position_embeddings", context)
    if kind == "dynamic":
        fields |= {"original_context": context, "context": scaled_context(fields["scaling_factor"], context)}
    section.nothing_else()
    return fields


def _attention_factor(section: PublishedConfig, factor: float) -> float:
    """Return the attention factor of YaRN; 0 if it is that of the paper, as in `Config`.

    `mscale` and `mscale_all_dim`, of DeepSeek's files, have an effect only if both are there and `attention_factor` is not.
    """

    def with_scale(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    scale, all_dim = (section.number(key, 0.0, nullable=True) for key in ("mscale", "mscale_all_dim"))
    # A divisor of 0 gives 0, which is refused.
    absent = with_scale(scale) / (with_scale(all_dim) or math.inf) if scale and all_dim else with_scale(1.0)
    stated = section.number("attention_factor", absent, nullable=True)
    if stated <= 0:
        raise section.wrong("attention_factor", stated, "it must be more than 0")
    return 0.0 if stated == with_scale(1.0) else stated


def _scaling_entries(config: Config) -> dict[str, Any]:
    """Return the `rope_scaling` of a config.json; with dynamic scaling, `max_position_embeddings` too."""
    if config.scaling == "none":
        return {"rope_scaling": None}
    entries: dict[str, Any] = {"rope_type": config.scaling, "factor": config.scaling_factor}
    if config.scaling == "dynamic":
        # The length up to which `transformers` does not scale. It has no longest row.
        return {"rope_scaling": entries, "max_position_embeddings": config.original_context}
    if config.scaling == "llama3":
        entries |= {"low_freq_factor": config.low_freq_factor, "high_freq_factor": config.high_freq_factor}
    if config.scaling == "yarn":
        entries |= {"beta_fast": config.beta_fast, "beta_slow": config.beta_slow, "truncate": config.truncate}
        entries |= {"attention_factor": config.attention_factor} if config.attention_factor else {}
    if config.scaling in ("yarn", "llama3"):
        entries["original_max_position_embeddings"] = config.original_context
    return {"rope_scaling": entries}


def _unrotated_every(published: PublishedConfig, layers: int) -> int:
    """Return the period of layers without rotations; `no_rope_layers` takes precedence over `no_rope_layer_interval`.

    Raises:
        BadInput: layers without rotations that are not periodic, the last one of each period.
    """
    every = published.integer("no_rope_layer_interval", 4)
    rotated = published.integers("no_rope_layers")
    if rotated is None:
        return every if every <= layers else 0
    for period in (every, *range(layers + 1)):
        if list(rotated) == _rotated(layers, period):
            return period if period <= layers else 0
    raise published.wrong("no_rope_layers", list(rotated), f"this family computes {layers}, 0 for the last one of each n, else 1")


SCALINGS: dict[str, Scaling] = {"default": "none", **{name: name for name in get_args(Scaling) if name != "none"}}
"""Maps published names of scalings to those of this project."""

KEYS = PublishedKeys(
    fields={
        **{"vocab": ("vocab_size", 32_000), "context": ("max_position_embeddings", 2048), "eps": ("rms_norm_eps", 1e-6)},
        **{"layers": ("num_hidden_layers", 32), "width": ("hidden_size", 4096), "heads": ("num_attention_heads", 32)},
        **{"ffn": ("intermediate_size", 11_008), "attention_dropout": ("attention_dropout", 0.0)},
        "tied": ("tie_word_embeddings", False),
    },
    activation=("hidden_act", "silu"),
    computed={"mlp_bias": False, "use_sliding_window": False},
    without_effect=(
        # Slices of products in old versions; windows, which no layer has; names that SmolLM2's files repeat.
        *("pretraining_tp", "sliding_window", "max_window_layers", "is_llama_config", "transformers.js_config"),
        "is_encoder_decoder",
    ),
    padding=0,
    is_causal=True,
)

QWEN = {"vocab_size": 151_936, "max_position_embeddings": 32_768, "num_key_value_heads": 32, "intermediate_size": 22_016}
ABSENT: dict[str, dict[str, Any]] = {
    MODEL_TYPE: {},
    QWEN2: QWEN,
    QWEN3: {**QWEN, "head_dim": 128},
    SMOLLM3: {
        **{"vocab_size": 128_256, "max_position_embeddings": 32_768, "num_hidden_layers": 36, "hidden_size": 2048},
        **{"num_attention_heads": 16, "num_key_value_heads": 4, "tie_word_embeddings": True, "rope_theta": 2_000_000.0},
        "pad_token_id": 128_004,
    },
}
"""Values of keys that a config.json of each type leaves out, where they are not those of a llama."""

NOT_WRITTEN = {"rope_interleaved": False, "partial_rotary_factor": 1.0}
"""Keys that only some files have and that change the results, with the only value that is implemented here."""


# --- sizes ----------------------------------------------------------------------------------------------------------------------


NANO = Size.nano(
    Config(vocab=4096, context=256, layers=4, width=192, heads=6, kv_heads=2, head=32, ffn=512, tied=True),
    "causal",
    "a Llama body small enough to train in minutes on a laptop",
)

SIZES: dict[str, Size] = {
    "llama-nano": NANO,
    **{name: Size(config=Config(**numbers), source=source, note=note) for name, (numbers, source, note) in PUBLISHED.items()},
}
