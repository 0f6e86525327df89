"""Sizes of XLNet (Yang et al. 2019), as released.

The released Base model is trained on all of the data, the Base rows of the paper's ablations on Wikipedia and books alone.
"""

import dataclasses
from typing import Any

from zoo.configs import Size
from zoo.configs._encoder import ACTIVATIONS, BodyConfig, Initializer, activation, exported, named_labels, on_top
from zoo.errors import BadInput, require
from zoo.hf.config_json import BOOKKEEPING, Published

LONGEST = 1 << 20
"""Positions that are remembered at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BodyConfig):
    """Numbers of an XLNet. Relative positions take rows of any length, so there is no `context`."""

    eps: float = 1e-12
    initializer: Initializer = "normal"
    memory: int = 0
    """Positions whose hidden states the next row of the same text sees; 0 = none. Only pretraining (`task` permutation or
    pretraining) has rows that continue each other, so only there it is used."""
    reuse: int = 0
    """Positions of each row, from its first on, that are remembered; 0 = all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.width % 2 == 0, "model.width", self.width, "sines and cosines come in pairs; choose an even number")
        for field, zero in {"memory": "nothing is remembered", "reuse": "whole rows"}.items():
            value = getattr(self, field)
            require(0 <= value <= LONGEST, f"model.{field}", value, f"choose 0 ({zero}) to {LONGEST:,} positions")

    @property
    def types(self) -> int:
        """Token types that its texts have: first text, second text, summary. Only whether two are equal counts."""
        return 3

    @property
    def generates(self) -> bool:
        """Whether it writes text: only the heads of pretraining have words."""
        return self.task in ("permutation", "pretraining")


# --- config.json ----------------------------------------------------------------------------------------------------------------

MODEL_TYPE = "xlnet"
"""What a published config.json calls this family."""


def from_published(published: Published) -> Config:
    """The numbers in a config.json of type xlnet; absent ones are those of `transformers`' XLNetConfig.

    But that nothing is remembered where `mem_len` is absent: a file's own rows, one at a time, give the same.

    Raises:
        BadInput: something this family does not compute.
    """
    # `transformers` works out the size of a head before it looks at the other names of its numbers.
    head = published.whole("d_model", 1024) // published.whole("n_head", 16)
    published.use_aliases(ALIASES)
    for key, value in COMPUTED.items():
        published.only(key, value)
    published.never("quantization_config")
    published.without_effect(*BOOKKEEPING, *WITHOUT_EFFECT)
    dropout = published.number("dropout", 0.1)
    if (first := published.number("summary_first_dropout", 0.0)) != 0:
        raise published.wrong("summary_first_dropout", first, "this family computes 0")
    cfg = Config(
        vocab=published.whole("vocab_size", 32_000),
        layers=published.whole("n_layer", 24),
        width=published.whole("d_model", 1024),
        heads=published.whole("n_head", 16),
        ffn=published.whole("d_inner", 4096),
        activation=published.choice("ff_activation", ACTIVATIONS, "gelu"),
        eps=published.number("layer_norm_eps", 1e-12, decimal=True),
        dropout=dropout,
        attention_dropout=dropout,
        head_dropout=published.number("summary_last_dropout", 0.1),
        memory=published.whole("mem_len", 0, least=0, nullable=True),
        reuse=published.whole("reuse_len", 0, least=0, nullable=True),
        exported=exported(published, "ff_activation"),
        **on_top(published),
    )
    if (size := published.whole("d_head", head, nullable=True)) != cfg.head:
        raise published.wrong("d_head", size, f"this family computes {cfg.head}, d_model / n_head")
    return cfg


def to_published(cfg: Config) -> dict[str, Any]:
    """The numbers as a config.json of type xlnet has them.

    Raises:
        BadInput: two rates of dropout, which the type has one word for.
    """
    if cfg.attention_dropout != cfg.dropout:
        raise BadInput(
            f"model.attention_dropout {cfg.attention_dropout}: an xlnet config.json has one rate for all, and model.dropout is "
            f"{cfg.dropout}; there is no export of this model"
        )
    return {
        "vocab_size": cfg.vocab,
        "n_layer": cfg.layers,
        "d_model": cfg.width,
        "n_head": cfg.heads,
        "d_head": cfg.head,
        "d_inner": cfg.ffn,
        **cfg.exported.keys("initializer_range", "ff_activation", activation(cfg), ACTIVATIONS),
        "layer_norm_eps": cfg.eps,
        "dropout": cfg.dropout,
        "summary_last_dropout": cfg.head_dropout,
        "mem_len": cfg.memory or None,
        "reuse_len": cfg.reuse or None,
        **named_labels(cfg),
        **COMPUTED,
    }


ALIASES = {
    "n_token": "vocab_size",
    "hidden_size": "d_model",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
"""Other names of keys, which win in `transformers`."""

COMPUTED = {
    "untie_r": True,
    "attn_type": "bi",
    "same_length": False,
    "clamp_len": -1,
    # There the second half of any batch would run backwards; here a batch says of each row whether it does.
    "bi_data": False,
    "summary_type": "last",
    "summary_use_proj": True,
    "summary_activation": "tanh",
    "summary_proj_to_labels": False,
    "tie_word_embeddings": True,
}
"""Keys that change the arithmetic, with the value that is computed here."""

WITHOUT_EFFECT = (
    # Whether to remember is asked of a call; how wide the search for answers is, which is not here.
    *("use_mems_eval", "use_mems_train", "start_n_top", "end_n_top"),
    *("output_past", "max_length", "cls_token_id", "sep_token_id", "mask_token_id"),
)


# --- sizes ----------------------------------------------------------------------------------------------------------------------

MEMORY = "as the repository's README gives for Large"


def released(layers: int, width: int, heads: int, *, assumed: dict[str, str], note: str = "") -> Size:
    """A body as released: heads of 64, feed-forward layers of four times the width, a vocabulary of 32,000."""
    config = Config(vocab=32_000, layers=layers, width=width, heads=heads, ffn=4 * width, memory=384, reuse=256)
    return Size(
        config=config,
        objective="permutation",
        source="Yang et al. 2019, appendix A.4.1, zihangdai/xlnet and the released checkpoint",
        assumed=assumed,
        note=f"{note}its own code has GELU's tanh form, the published folders erf",
    )


NANO = Size(
    config=Config(
        vocab=4096,
        layers=4,
        width=192,
        heads=4,
        ffn=768,
        dropout=0.0,
        attention_dropout=0.0,
        memory=64,
        reuse=32,
        task="permutation",
    ),
    objective="permutation",
    source="this project",
    assumed=dict.fromkeys(
        Size.numbers_of(Config),
        "ours: an XLNet small enough to train in minutes on a laptop",
    ),
)

SIZES: dict[str, Size] = {
    "xlnet-nano": NANO,
    "xlnet-base-cased": released(
        12,
        768,
        12,
        assumed={"memory": MEMORY, "reuse": MEMORY},
        note="trained on more data than the Base of the paper's ablations; ",
    ),
    "xlnet-large-cased": released(24, 1024, 16, assumed={}),
}
