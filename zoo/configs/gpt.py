"""Sizes of GPT-2, GPT-3, Turing-NLG and Megatron-LM: one body, a causal decoder with learned positions.

Sources. GPT-2: Radford et al. 2019, Table 2, and the released checkpoints. GPT-3: Brown et al. 2020, section 2.1. Turing-NLG:
Rajbhandari et al. 2020 (ZeRO), section 10.6. Megatron-LM: Shoeybi et al. 2019.
"""

import dataclasses
from typing import Any, get_args

from zoo.configs import Activation, AttentionPattern, Compute, Exported, ModelConfig, Size
from zoo.configs._published_keys import PublishedKeys, check_exportable
from zoo.configs._score_head import check_labels, label_entries, read_labels
from zoo.errors import BadInput, require
from zoo.hf.config_json import PublishedConfig

DROPOUTS = ("dropout", "embedding_dropout", "attention_dropout")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Configuration of a GPT."""

    vocab: int
    """Vocabulary size; input and output share one embedding table."""
    context: int
    """Number of learned positions, which is the length of the longest row."""
    layers: int
    """Number of layers."""
    width: int
    """Size of the residual stream, D."""
    heads: int
    """Number of attention heads."""
    head: int
    """Size of a head; heads x head, the inner width of attention, need not equal the width of the model."""
    ffn: int
    """Inner width of the feed-forward layers."""
    activation: Activation = "gelu_tanh"
    """Activation of the feed-forward layers."""
    eps: float = 1e-5
    """Number that layer norms add to the variance."""
    dropout: float
    """Dropout rate of each sub-layer's output, before it is added to the residual stream."""
    embedding_dropout: float
    """Dropout rate of the sum of embeddings."""
    attention_dropout: float
    """Dropout rate of the attention weights."""
    pattern: tuple[AttentionPattern, ...] = ("full",)
    """Attention of the layers, repeated over all of them: full (all tokens before), or window (only the last ones)."""
    window: int = 0
    """Number of tokens visible to a window layer, including the current token; 0 = no layer has a window."""
    labels: tuple[str, ...] = ()
    """Name of the score that a reward model computes for a text; none = the model has an LM head in place of the score's."""
    compute: Compute = dataclasses.field(default_factory=Compute)
    exported: Exported = dataclasses.field(default_factory=Exported)

    def __post_init__(self) -> None:
        self.check_fields(activation=get_args(Activation))
        check_labels(self.labels)
        pattern = " ".join(self.pattern)
        valid = bool(self.pattern) and set(self.pattern) <= set(get_args(AttentionPattern))
        require(valid, "model.pattern", pattern or "()", f"name layers, each one of {', '.join(get_args(AttentionPattern))}")
        divides = self.layers % len(self.pattern) == 0
        require(divides, "model.pattern", pattern, f"its length, {len(self.pattern)}, must divide --model.layers {self.layers}")
        if "window" in self.pattern:
            fix = f"the pattern has window layers; choose 1 to {self.context:,} tokens (--model.context)"
            require(1 <= self.window <= self.context, "model.window", self.window, fix)
        else:
            require(
                self.window == 0, "model.window", self.window, "no layer has a window; add one to --model.pattern or choose 0"
            )


# --- config.json ----------------------------------------------------------------------------------------------------------------

MODEL_TYPE = "gpt2"
"""Name of this family in a published config.json."""


def from_published(published: PublishedConfig) -> Config:
    """Return the configuration in a config.json of type gpt2; absent keys take the defaults of `transformers`' GPT2Config.

    Raises:
        BadInput: a key has a value that this family does not compute.
    """
    fields = KEYS.read(published)
    width, heads = fields["width"], fields["heads"]
    if width % heads:
        raise published.wrong("n_head", heads, f"it must divide n_embd, {width}")
    ffn = published.integer("n_inner", 4 * width, nullable=True)
    return Config(**fields, head=width // heads, ffn=ffn, labels=read_labels(published))


def to_published(config: Config) -> dict[str, Any]:
    """Return the entries of a config.json of type gpt2.

    Raises:
        BadInput: window layers, or attention that is not as wide as the model, which this type cannot express.
    """
    if "window" in config.pattern:
        pattern = " ".join(config.pattern)
        raise BadInput(f"model.pattern {pattern}: a gpt2 config.json has no window layers; this model cannot be exported")
    inner = f"{config.heads} x {config.head} is not {config.width}"
    why = f"a gpt2 config.json can only express heads x head = width, and {inner}"
    check_exportable(config.heads * config.head == config.width, config, "head", why)
    return {**KEYS.write(config), "n_inner": config.ffn, **label_entries(config.labels)}


KEYS = PublishedKeys(
    fields={
        **{"vocab": ("vocab_size", 50_257), "context": ("n_positions", 1024)},
        **{"layers": ("n_layer", 12), "width": ("n_embd", 768), "heads": ("n_head", 12), "eps": ("layer_norm_epsilon", 1e-5)},
        **{"dropout": ("resid_pdrop", 0.1), "embedding_dropout": ("embd_pdrop", 0.1), "attention_dropout": ("attn_pdrop", 0.1)},
    },
    activation=("activation_function", "gelu_new"),
    aliases={
        **{"hidden_size": "n_embd", "max_position_embeddings": "n_positions"},
        **{"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    },
    computed={
        **{"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
        **{"add_cross_attention": False, "tie_word_embeddings": True},
    },
    without_effect=(
        # The old name of n_positions, which other files repeat; the rounding of scores; a head that is not imported.
        *("n_ctx", "reorder_and_upcast_attn", "n_special", "predict_special_tokens"),
        *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
    ),
    is_causal=True,
)


# --- sizes ----------------------------------------------------------------------------------------------------------------------


def decoder(
    *, layers: int, width: int, heads: int, dropout: float, context: int, head: int | None = None, **others: Any
) -> Config:
    """Return a GPT-2 body: feed-forward layers of four times the width, GPT-2's vocabulary, one rate for every dropout."""
    body = {
        "vocab": 50_257,
        "head": width // heads if head is None else head,
        "ffn": 4 * width,
        "embedding_dropout": dropout,
        "attention_dropout": dropout,
    }
    return Config(**{**body, **others}, layers=layers, width=width, heads=heads, context=context, dropout=dropout)


def _because(reason: str, *fields: str) -> dict[str, str]:
    return dict.fromkeys(fields, reason)


# --- nano -----------------------------------------------------------------------------------------------------------------------

NANO = Size.nano(
    decoder(layers=4, width=192, heads=6, context=256, vocab=4096, dropout=0.1, attention_dropout=0.0),
    "causal",
    "a GPT-2 body small enough to train in minutes on a laptop",
)


# --- GPT-2 ----------------------------------------------------------------------------------------------------------------------


def gpt2(layers: int, width: int, heads: int, *, count: int, paper: str) -> Size:
    """Return a row of Radford et al. 2019, Table 2, as released."""
    return Size(
        config=decoder(layers=layers, width=width, heads=heads, context=1024, dropout=0.1),
        source="Radford et al. 2019, Table 2, and the released checkpoint",
        published_count=count,
        note=f"the paper calls this checkpoint {paper}",
    )


DISTILGPT2 = Size(
    config=decoder(layers=6, width=768, heads=12, context=1024, dropout=0.1),
    source="transformers, the distillation example's README: GPT-2's shape with 6 layers",
    assumed=_because(
        "not stated apart from the shape: as in gpt2, its teacher",
        "activation",
        "eps",
        *DROPOUTS,
    ),
)


# --- GPT-3 ----------------------------------------------------------------------------------------------------------------------

UNSTATED = {
    **_because("the paper does not state it: as in GPT-2", "eps"),
    **_because("published as GELU; GPT-2's code, whose architecture the paper says it uses, has the tanh form", "activation"),
    **_because("the paper does not state it: 0, as usual if text is seldom seen twice", *DROPOUTS),
}
DENSE = _because(
    "dense: the paper alternates dense and banded layers but publishes no band; gpt3-*-alternating assumes one",
    "pattern",
    "window",
)
ALTERNATING = {
    "pattern": "the alternation is published, which layer comes first is not: dense first, as GPT-Neo, another project, chose",
    "window": "the paper publishes no band width: 256 tokens, as GPT-Neo, another project, chose",
}
XL = "the paper's row contradicts itself: 24 heads x 128 = 3072, width 2048. "
THIRTEEN = "the paper's row contradicts itself: 40 heads x 128 = 5120, width 5140, which 40 does not divide. "


def gpt3(layers: int, width: int, heads: int, head: int, assumed: dict[str, str] | None = None, note: str = "") -> Size:
    """Return a row of Brown et al. 2020, Table 2.1, with every layer dense."""
    return Size(
        config=decoder(layers=layers, width=width, heads=heads, head=head, context=2048, dropout=0.0),
        source="Brown et al. 2020, section 2.1 and Table 2.1",
        assumed={**UNSTATED, **DENSE, **(assumed or {})},
        note=note,
    )


def alternating(dense: Size) -> Size:
    """Return the same size with attention in a window in every second layer."""
    config = dataclasses.replace(dense.config, pattern=("full", "window"), window=256)
    return dataclasses.replace(dense, config=config, assumed={**dense.assumed, **ALTERNATING})


ROWS = {
    "gpt3-small": gpt3(12, 768, 12, 64),
    "gpt3-medium": gpt3(24, 1024, 16, 64),
    "gpt3-large": gpt3(24, 1536, 16, 96),
    "gpt3-xl": gpt3(
        24,
        2048,
        16,
        128,
        assumed=_because("published as 24, but 24 x 128 is not the width; 16 x 128 = 2048 is", "heads"),
        note=XL + "This row keeps the width; gpt3-xl-literal has the row as printed (1,517,123,584 parameters)",
    ),
    "gpt3-2.7b": gpt3(32, 2560, 32, 80),
    "gpt3-6.7b": gpt3(32, 4096, 32, 128),
    "gpt3-13b": gpt3(
        40,
        5120,
        40,
        128,
        assumed={
            **_because("published as 5140; 40 heads x 128 = 5120 is what the heads need", "width"),
            **_because("4 x the width, as published, here of the assumed width", "ffn"),
        },
        note=THIRTEEN + "This row keeps the heads; gpt3-13b-literal has the row as printed (12,936,488,380 parameters); "
        "width 5140 with attention as wide would have 12,952,938,780",
    ),
    "gpt3-175b": gpt3(96, 12288, 96, 128),
}
LITERAL = {
    "gpt3-xl-literal": gpt3(24, 2048, 24, 128, note=XL + "This row has it as printed: attention is wider than the model"),
    "gpt3-13b-literal": gpt3(40, 5140, 40, 128, note=THIRTEEN + "This row has it as printed: attention is narrower"),
}


# --- Turing-NLG and Megatron-LM -------------------------------------------------------------------------------------------------

BODY = ("vocab", "context", "activation", "eps", *DROPOUTS, "pattern", "window")
TURING_NLG = Size(
    config=decoder(layers=78, width=4256, heads=28, context=1024, dropout=0.1),
    source="Rajbhandari et al. 2020 (ZeRO), section 10.6",
    assumed=_because("unpublished: as in GPT-2", "ffn", *BODY),
    note="published as 17B, which this count is consistent with; its weights were never released. A head of 152 is not a "
    "multiple of 16: fused attention must pad or refuse it",
)
MEGATRON = Size(
    config=decoder(layers=72, width=3072, heads=24, context=1024, dropout=0.1),
    source="Shoeybi et al. 2019 (Megatron-LM)",
    assumed={
        **_because("not in the sources checked here: as in GPT-2", *BODY),
        **_because("not in the sources checked here: heads of 128, as in GPT-3 6.7B and up, make 24", "heads", "head"),
    },
    note="published as 8.3B, which this count is consistent with; how the width is cut into heads does not change it",
)

SIZES: dict[str, Size] = {
    "gpt-nano": NANO,
    "gpt2": gpt2(12, 768, 12, count=124_439_808, paper="117M"),
    "gpt2-medium": gpt2(24, 1024, 16, count=354_823_168, paper="345M"),
    "gpt2-large": gpt2(36, 1280, 20, count=774_030_080, paper="762M"),
    "gpt2-xl": gpt2(48, 1600, 25, count=1_557_611_200, paper="1542M"),
    "distilgpt2": DISTILGPT2,
    **ROWS,
    **LITERAL,
    **{f"{name}-alternating": alternating(size) for name, size in ROWS.items()},
    "turing-nlg": TURING_NLG,
    "megatron-8.3b": MEGATRON,
}
