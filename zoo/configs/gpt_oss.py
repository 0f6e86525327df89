"""Sizes of gpt-oss: a causal decoder whose feed-forward layers are experts, with attention sinks and alternating windows.

Sources: the model card (OpenAI 2025, arXiv:2508.10925, section 2 and table 1), openai/gpt-oss (`gpt_oss/torch/model.py`), and the
config.json of the released checkpoints, whose defaults are those of `configuration_gpt_oss.py` in `transformers` 5.
"""

import dataclasses
from typing import Any

from zoo.configs import AttentionPattern, Compute, Exported, ModelConfig, Size
from zoo.configs._published_keys import PublishedKeys
from zoo.configs._score_head import check_labels, label_entries, read_labels
from zoo.errors import require
from zoo.hf.config_json import PublishedConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Configuration of a gpt-oss."""

    vocab: int
    """Vocabulary size. Input and output have a table each."""
    context: int
    """Number of tokens in the longest row. Positions are rotations, for which there is no table."""
    layers: int
    """Number of layers: those with an even index see a window, the others all tokens before."""
    width: int
    """Size of the residual stream, D."""
    heads: int
    """Number of heads of queries."""
    kv_heads: int
    """Number of heads of keys and values, each of which heads / kv_heads query heads share."""
    head: int
    """Size of a head; heads x head, the inner width of attention, need not equal the width of the model."""
    ffn: int
    """Inner width of an expert."""
    experts: int
    """Number of experts of a layer."""
    active_experts: int
    """Number of experts that a token goes to."""
    window: int
    """Number of tokens visible to a window layer, including the current token."""
    limit: float = 7.0
    """Largest input of an expert's activation: both halves of the first projection are clamped to it."""
    eps: float = 1e-5
    """Number that norms add to the mean of squares."""
    base: float = 150_000.0
    """Base of the rotations."""
    scaling_factor: float = 1.0
    """Number by which YaRN divides low frequencies of the rotations, for longer rows than before; 1 = no scaling."""
    beta_fast: float = 32.0
    """A pair of dimensions with more turns in original_context positions is not scaled."""
    beta_slow: float = 1.0
    """A pair of dimensions with fewer turns is scaled in full."""
    original_context: int = 4096
    """Number of positions before scaling, in which turns are counted."""
    attention_dropout: float = 0.0
    """Dropout rate of the attention weights."""
    router_loss: float = 0.0
    """Factor of the load-balancing loss of the routers in the training loss; 0: it is only reported."""
    labels: tuple[str, ...] = ()
    """Name of the score that a reward model computes for a text; none = the model has an LM head in place of the score's."""
    compute: Compute = dataclasses.field(default_factory=Compute)
    exported: Exported = dataclasses.field(default_factory=Exported)

    def __post_init__(self) -> None:
        self.check_fields()
        check_labels(self.labels)
        fix = f"choose a divisor of --model.heads {self.heads}"
        require(self.kv_heads >= 1 and self.heads % self.kv_heads == 0, "model.kv_heads", self.kv_heads, fix)
        require(self.head % 2 == 0, "model.head", self.head, "heads rotate in pairs of dimensions; choose an even number")
        require(1 <= self.experts <= 4096, "model.experts", self.experts, "choose 1 to 4,096 experts")
        fix = f"choose 1 to --model.experts {self.experts}"
        require(1 <= self.active_experts <= self.experts, "model.active_experts", self.active_experts, fix)
        require(1 <= self.window <= 1 << 20, "model.window", self.window, "choose 1 to 1,048,576 tokens")
        require(0 < self.limit <= 1e6, "model.limit", self.limit, "choose more than 0, to 1e6")
        require(1 < self.base <= 1e12, "model.base", self.base, "choose more than 1, to 1e12")
        require(1 <= self.scaling_factor <= 1e6, "model.scaling_factor", self.scaling_factor, "choose 1 to 1e6")
        require(0 < self.beta_slow <= 1e6, "model.beta_slow", self.beta_slow, "choose more than 0, to 1e6")
        fix = f"choose more than --model.beta-slow {self.beta_slow}, to 1e6"
        require(self.beta_slow < self.beta_fast <= 1e6, "model.beta_fast", self.beta_fast, fix)
        in_range = 1 <= self.original_context <= 1 << 20
        require(in_range, "model.original_context", self.original_context, "choose 1 to 1,048,576 positions")
        require(0 <= self.router_loss <= 100, "model.router_loss", self.router_loss, "choose a factor of 0 to 100")

    @property
    def pattern(self) -> tuple[AttentionPattern, ...]:
        """Attention of the layers, repeated over them; that of all layers if their number is odd."""
        pair: tuple[AttentionPattern, ...] = ("window", "full")
        return pair if self.layers % 2 == 0 else (pair * self.layers)[: self.layers]


def active_parameters(config: Config, parameters: int) -> int:
    """Return how many of a model's parameters a token uses: its experts', and not the input table, of which it reads a row."""
    expert = 3 * config.width * config.ffn + 2 * config.ffn + config.width
    return parameters - config.vocab * config.width - config.layers * (config.experts - config.active_experts) * expert


# --- config.json ----------------------------------------------------------------------------------------------------------------

MODEL_TYPE = "gpt_oss"
"""Name of this family in a published config.json."""


def from_published(published: PublishedConfig) -> Config:
    """Return the configuration in a config.json of type gpt_oss; absent keys take the defaults of `transformers`.

    Raises:
        BadInput: a key has a value that this family does not compute.
    """
    _check_quantization(published)
    fields = KEYS.read(published)
    active = fields["active_experts"]
    if (other := published.integer("experts_per_token", active)) != active:
        raise published.wrong("experts_per_token", other, f"num_experts_per_tok is {active}; remove one of the two keys")
    _check_layers(published, fields["layers"])
    return Config(**fields, **_rotations(published, fields["context"]), labels=read_labels(published))


def to_published(config: Config) -> dict[str, Any]:
    """Return the entries of a config.json of type gpt_oss, with the keys of the released files."""
    scaling = {
        "rope_type": "yarn",
        "factor": config.scaling_factor,
        "beta_fast": config.beta_fast,
        "beta_slow": config.beta_slow,
        "truncate": False,
        "original_max_position_embeddings": config.original_context,
    }
    return {
        **KEYS.write(config),
        "layer_types": _layer_types(config.layers),
        "rope_parameters": {"rope_theta": config.base, **scaling},
        # The tokenizer of an export sets it.
        "pad_token_id": None,
        **label_entries(config.labels),
    }


def _layer_types(layers: int) -> list[str]:
    return ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]


def _check_layers(published: PublishedConfig, layers: int) -> None:
    kinds = published.strings("layer_types")
    if kinds is not None and list(kinds) != _layer_types(layers):
        raise published.wrong(
            "layer_types", list(kinds), f"this family computes {layers}, sliding_attention and full_attention in turn"
        )


def _check_quantization(published: PublishedConfig) -> None:
    """Refuse quantized weights of another format than MXFP4 (`zoo.hf.mxfp4`)."""
    section = published.subsection("quantization_config")
    if section is None:
        return
    section.choice("quant_method", {"mxfp4": None}, "none", why="quantized weights that are read are of the format")
    # Which modules are quantized is seen by their tensors; how they are computed elsewhere is of no effect.
    section.without_effect("modules_to_not_convert", "dequantize")
    section.nothing_else()


def _rotations(published: PublishedConfig, context: int) -> dict[str, Any]:
    """Return the fields of the rotations.

    Released files have `rope_theta` and `rope_scaling`; `transformers` 5 writes `rope_parameters`. Without either the rotations
    are scaled as in the released models.

    Raises:
        BadInput: a scaling that this family does not compute.
    """
    base = published.number("rope_theta", 150_000.0)
    section = published.either_subsection("rope_scaling", "rope_parameters")
    if section is None:
        return {"base": base, "scaling_factor": 32.0}
    section.without_effect("type")
    is_scaled = section.choice("rope_type" if section.has("rope_type") else "type", {"yarn": True, "default": False}, "default")
    fields: dict[str, Any] = {"base": section.number("rope_theta", base)}
    if is_scaled:
        # `transformers` rounds the ends of YaRN's ramp unless this key is false.
        if section.flag("truncate", True):
            raise section.wrong("truncate", True, "this family computes false")
        fields["scaling_factor"] = section.number("factor")
        fields["beta_fast"], fields["beta_slow"] = section.number("beta_fast", 32.0), section.number("beta_slow", 1.0)
        fields["original_context"] = section.integer("original_max_position_embeddings", context)
    section.nothing_else()
    return fields


KEYS = PublishedKeys(
    fields={
        **{"vocab": ("vocab_size", 201_088), "context": ("max_position_embeddings", 131_072), "width": ("hidden_size", 2880)},
        **{"layers": ("num_hidden_layers", 36), "heads": ("num_attention_heads", 64), "kv_heads": ("num_key_value_heads", 8)},
        **{"head": ("head_dim", 64), "ffn": ("intermediate_size", 2880), "window": ("sliding_window", 128)},
        **{"experts": ("num_local_experts", 128), "active_experts": ("num_experts_per_tok", 4), "limit": ("swiglu_limit", 7.0)},
        **{"eps": ("rms_norm_eps", 1e-5), "attention_dropout": ("attention_dropout", 0.0)},
    },
    aliases={"num_experts": "num_local_experts"},
    computed={"attention_bias": True, "hidden_act": "silu", "swiglu_alpha": 1.702, "tie_word_embeddings": False},
    # The loss of the routers, which is an option of training here; the context before scaling, which rope_scaling has too.
    without_effect=("router_aux_loss_coef", "output_router_logits", "initial_context_length"),
    padding=-1,
    is_causal=True,
    reads_quantized=True,
)


# --- sizes ----------------------------------------------------------------------------------------------------------------------


def gpt_oss(layers: int, experts: int, *, note: str) -> Size:
    """Return a size as released: width 2,880, 64 heads of 64, four experts a token."""
    config = Config(
        vocab=201_088,
        context=131_072,
        layers=layers,
        width=2880,
        heads=64,
        kv_heads=8,
        head=64,
        ffn=2880,
        experts=experts,
        active_experts=4,
        window=128,
        scaling_factor=32.0,
    )
    return Size(config=config, source=CARD, note=note)


CARD = "OpenAI 2025 (gpt-oss model card, arXiv:2508.10925), table 1, and the released checkpoint"

NANO = Size.nano(
    Config(
        vocab=4096,
        context=256,
        layers=4,
        width=192,
        heads=6,
        kv_heads=2,
        head=32,
        ffn=192,
        experts=8,
        active_experts=2,
        window=64,
        router_loss=0.01,
    ),
    "causal",
    "a gpt-oss body small enough to train in minutes on a laptop",
)

SIZES: dict[str, Size] = {
    "gpt-oss-nano": NANO,
    "gpt-oss-20b": gpt_oss(24, 32, note="the card says 20.91B parameters, of which 3.61B are active"),
    "gpt-oss-120b": gpt_oss(36, 128, note="the card says 116.83B parameters, of which 5.13B are active"),
}
