"""Sizes of XLNet (Yang et al. 2019), as released.

The released Base model was trained on all of the data; those of the paper's ablations, on Wikipedia and books alone.
"""

import dataclasses
from typing import Any

from zoo.configs import Size
from zoo.configs._encoder import BodyConfig, Initializer, head_fields, label_entries
from zoo.configs._published_keys import PublishedKeys, check_exportable
from zoo.errors import require
from zoo.hf.config_json import PublishedConfig

LONGEST = 1 << 20
"""Largest number of positions in the memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BodyConfig):
    """Configuration of an XLNet. Relative positions allow rows of any length, so there is no `context`."""

    eps: float = 1e-12
    initializer: Initializer = "normal"
    memory: int = 0
    """Number of positions whose hidden states the next row of the same text can attend to; 0 = none.
    Only pretraining uses it (tasks permutation and pretraining), because only its rows continue each other."""
    reuse: int = 0
    """Number of positions of each row, from the first on, that enter the memory; 0 = all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.width % 2 == 0, "model.width", self.width, "sines and cosines come in pairs; choose an even number")
        for field, zero in {"memory": "no memory", "reuse": "whole rows"}.items():
            value = getattr(self, field)
            require(0 <= value <= LONGEST, f"model.{field}", value, f"choose 0 ({zero}) to {LONGEST:,} positions")

    @property
    def types(self) -> int:
        """Number of token types: first text, second text, summary. Only the equality of two types matters."""
        return 3

    @property
    def generates(self) -> bool:
        """True if the model can generate text: only the heads of pretraining predict tokens."""
        return self.task in ("permutation", "pretraining")

    @property
    def reads_both_ways(self) -> bool:
        """True, since pretraining uses every order."""
        return True


# --- config.json ----------------------------------------------------------------------------------------------------------------

MODEL_TYPE = "xlnet"
"""Name of this family in a published config.json."""


def from_published(published: PublishedConfig) -> Config:
    """Return the configuration in a config.json of type xlnet; absent keys take the defaults of `transformers`' XLNetConfig.

    An absent `mem_len` means no memory instead: the outputs differ only for rows that continue each other.

    Raises:
        BadInput: a key has a value that this family does not compute.
    """
    # `transformers` computes the default size of a head before it looks at the other names of keys.
    head = published.integer("d_model", 1024) // published.integer("n_head", 16)
    fields = KEYS.read(published)
    if (first := published.number("summary_first_dropout", 0.0)) != 0:
        raise published.wrong("summary_first_dropout", first, "this family computes 0")
    config = Config(
        **fields,
        attention_dropout=fields["dropout"],
        memory=published.integer("mem_len", 0, least=0, nullable=True),
        reuse=published.integer("reuse_len", 0, least=0, nullable=True),
        **head_fields(published),
    )
    if (size := published.integer("d_head", head, nullable=True)) != config.head:
        raise published.wrong("d_head", size, f"this family computes {config.head}, d_model / n_head")
    return config


def to_published(config: Config) -> dict[str, Any]:
    """Return the entries of a config.json of type xlnet.

    Raises:
        BadInput: two different dropout rates, which this type cannot express.
    """
    why = f"an xlnet config.json has one rate for all, and model.dropout is {config.dropout}"
    check_exportable(config.attention_dropout == config.dropout, config, "attention_dropout", why)
    return {
        **KEYS.write(config),
        "d_head": config.head,
        "mem_len": config.memory or None,
        "reuse_len": config.reuse or None,
        **label_entries(config),
    }


KEYS = PublishedKeys(
    fields={
        **{"vocab": ("vocab_size", 32_000), "layers": ("n_layer", 24), "width": ("d_model", 1024)},
        **{"heads": ("n_head", 16), "ffn": ("d_inner", 4096), "eps": ("layer_norm_eps", 1e-12)},
        **{"dropout": ("dropout", 0.1), "head_dropout": ("summary_last_dropout", 0.1)},
    },
    activation=("ff_activation", "gelu"),
    aliases={
        **{"n_token": "vocab_size", "hidden_size": "d_model"},
        **{"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    },
    computed={
        **{"untie_r": True, "attn_type": "bi", "same_length": False, "clamp_len": -1, "tie_word_embeddings": True},
        # In `transformers` the second half of any batch would run backwards; here `Batch.backward` says it for each row.
        "bi_data": False,
        **{"summary_type": "last", "summary_use_proj": True, "summary_activation": "tanh", "summary_proj_to_labels": False},
    },
    without_effect=(
        # Whether the memory is used: an argument of calls here. The width of the search for answers, which is not implemented.
        *("use_mems_eval", "use_mems_train", "start_n_top", "end_n_top"),
        *("is_causal", "output_past", "max_length", "cls_token_id", "sep_token_id", "mask_token_id"),
    ),
)


# --- sizes ----------------------------------------------------------------------------------------------------------------------

MEMORY = "as in the repository's README for Large"


def released(layers: int, width: int, heads: int, *, assumed: dict[str, str], note: str = "") -> Size:
    """Return a body as released: heads of size 64, feed-forward layers of four times the width, 32,000 tokens."""
    config = Config(vocab=32_000, layers=layers, width=width, heads=heads, ffn=4 * width, memory=384, reuse=256)
    return Size(
        config=config,
        objective="permutation",
        source="Yang et al. 2019, appendix A.4.1, zihangdai/xlnet and the released checkpoint",
        assumed=assumed,
        note=f"{note}its own code has GELU's tanh form, the published folders erf",
    )


NANO = Size.nano(
    Config(
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
    "permutation",
    "an XLNet small enough to train in minutes on a laptop",
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
