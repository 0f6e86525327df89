"""nanochat: a causal decoder whose sizes follow from its depth: a width of 64 times the depth, and heads of 128 dimensions.

Sources: karpathy/nanochat at b8076dd (October 2025), `nanochat/gpt.py` and `scripts/base_train.py`, and
`configuration_nanochat.py` of `transformers` 5.24, whose defaults are those of absent keys. Later versions of the repository are
other architectures.
"""

import dataclasses
from typing import Any, get_args

from zoo.configs import Activation, Compute, Exported, ModelConfig, Size
from zoo.configs._published_keys import PublishedKeys
from zoo.errors import require
from zoo.hf.config_json import PublishedConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Configuration of a nanochat model."""

    vocab: int
    """Vocabulary size. Input and output have a table each."""
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
    ffn: int
    """Inner width of the feed-forward layers."""
    activation: Activation = "relu2"
    """Activation of the feed-forward layers."""
    softcap: float = 15.0
    """Bound c of the logits, which are c tanh(x / c) of the products x with the output table."""
    eps: float = 1e-6
    """Number that norms, which have no parameters, add to the mean of squares."""
    base: float = 10_000.0
    """Base of the rotations."""
    attention_dropout: float = 0.0
    """Dropout rate of the attention weights."""
    compute: Compute = dataclasses.field(default_factory=Compute)
    exported: Exported = dataclasses.field(default_factory=Exported)

    def __post_init__(self) -> None:
        self.check_fields(activation=get_args(Activation))
        fix = f"choose a divisor of --model.heads {self.heads}"
        require(self.kv_heads >= 1 and self.heads % self.kv_heads == 0, "model.kv_heads", self.kv_heads, fix)
        fix = f"choose a divisor of --model.width {self.width} whose heads, which rotate in pairs of dimensions, are even"
        require(self.width % (2 * self.heads) == 0, "model.heads", self.heads, fix)
        require(0 < self.softcap <= 1e6, "model.softcap", self.softcap, "choose more than 0, to 1e6")
        require(1 <= self.base <= 1e12, "model.base", self.base, "choose 1 to 1e12")

    @property
    def head(self) -> int:
        """Size of a head."""
        return self.width // self.heads


# --- config.json ----------------------------------------------------------------------------------------------------------------

MODEL_TYPE = "nanochat"
"""Name of this family in a published config.json."""


def from_published(published: PublishedConfig) -> Config:
    """Return the configuration in a config.json of type nanochat; absent keys take the defaults of `transformers`.

    Raises:
        BadInput: a key has a value that this family does not compute.
    """
    fields = KEYS.read(published)
    width, heads = fields["width"], fields["heads"]
    if width % (2 * heads):
        raise published.wrong("num_attention_heads", heads, f"it must divide hidden_size, {width}, into an even number")
    published.only("head_dim", width // heads)
    published.only("partial_rotary_factor", 1.0)
    kv_heads = published.integer("num_key_value_heads", heads, nullable=True)
    return Config(**fields, kv_heads=kv_heads, base=_base(published))


def to_published(config: Config) -> dict[str, Any]:
    """Return the entries of a config.json of type nanochat."""
    return {
        **KEYS.write(config),
        "num_key_value_heads": config.kv_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.base},
        # The tokenizer of an export sets it; the default would be outside a smaller vocabulary.
        "pad_token_id": None,
    }


def _base(published: PublishedConfig) -> float:
    """Return the base of the rotations, which have no scaling."""
    base = published.number("rope_theta", 10_000.0)
    section = published.either_subsection("rope_scaling", "rope_parameters")
    if section is None:
        return base
    section.without_effect("type")
    section.choice("rope_type" if section.has("rope_type") else "type", {"default": None}, "default")
    base = section.number("rope_theta", base)
    section.nothing_else()
    return base


KEYS = PublishedKeys(
    fields={
        **{"vocab": ("vocab_size", 50_304), "context": ("max_position_embeddings", 2048), "width": ("hidden_size", 768)},
        **{"layers": ("num_hidden_layers", 12), "heads": ("num_attention_heads", 6), "ffn": ("intermediate_size", 8192)},
        **{"softcap": ("final_logit_softcapping", 15.0), "eps": ("rms_norm_eps", 1e-6)},
        "attention_dropout": ("attention_dropout", 0.0),
    },
    activation=("hidden_act", "relu2"),
    computed={"attention_bias": False, "tie_word_embeddings": False},
    padding=1,
    is_causal=True,
)


# --- sizes ----------------------------------------------------------------------------------------------------------------------


def nanochat(depth: int, note: str) -> Size:
    """Return the model of a depth: `scripts/base_train.py` computes all other numbers from it."""
    width = 64 * depth
    heads = -(-width // 128)
    return Size(
        config=Config(vocab=1 << 16, context=2048, layers=depth, width=width, heads=heads, kv_heads=heads, ffn=4 * width),
        source="karpathy/nanochat b8076dd, scripts/base_train.py and nanochat/gpt.py",
        assumed={"eps": "the code adds the smallest difference of the dtype from 1: as in transformers' NanoChatConfig"},
        note=note,
    )


NANO = Size.nano(
    Config(vocab=4096, context=256, layers=4, width=192, heads=6, kv_heads=6, ffn=768),
    "causal",
    "a nanochat body small enough to train in minutes on a laptop",
)

SIZES: dict[str, Size] = {
    "nanochat-nano": NANO,
    "nanochat-d20": nanochat(20, "the model of speedrun.sh, 561 million parameters"),
    "nanochat-d32": nanochat(32, "the model of run1000.sh, 1.9 billion parameters"),
}
