"""Sizes of RoBERTa (Liu et al. 2019), of DistilRoBERTa, and of XLM-R (Conneau et al. 2020), as released.

XLM-R is a RoBERTa with another vocabulary, of 100 languages. A published table of positions has 514 rows: the first token uses
row 2, and row 1 is for padding.
"""

import dataclasses
from typing import Any

from zoo.configs import Objective, Size
from zoo.configs._encoder import EncoderConfig, config_entries, read_config
from zoo.errors import require
from zoo.hf.config_json import PublishedConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """Configuration of a RoBERTa."""

    types: int = 1
    position_offset: int = 2
    eps: float = 1e-5


# --- config.json ----------------------------------------------------------------------------------------------------------------

PADDING = 1
"""Id of the padding token if a config.json does not give it."""

MODEL_TYPE = "roberta"
"""Name of this family in a published config.json."""
XLM = "xlm-roberta"
CLASSES = {MODEL_TYPE: "Roberta", XLM: "XLMRoberta"}
"""Maps each such name to the beginning of the names of its classes in `transformers`."""


def from_published(published: PublishedConfig) -> Config:
    """Return the configuration in a config.json of type roberta or xlm-roberta.

    The first token's row of positions is `pad_token_id` + 1. Absent keys take the defaults of `transformers`. The released models
    differ from them: they have 514 positions, one type and an eps of 1e-5.

    Raises:
        BadInput: a key has a value that this family does not compute.
    """
    offset = published.integer("pad_token_id", PADDING, least=0) + 1
    model_type = published.choice("model_type", {name: name for name in CLASSES}, MODEL_TYPE)
    vocab = 30_522 if model_type == XLM else 50_265
    published.check_padding(published.integer("vocab_size", vocab), PADDING)
    config = read_config(published, Config, position_offset=offset, vocab=vocab)
    return with_type(config, "" if model_type == MODEL_TYPE else model_type)


def with_type(config: Config, model_type: str) -> Config:
    """Return a configuration that is exported under another name of the family."""
    return dataclasses.replace(config, exported=dataclasses.replace(config.exported, model_type=model_type))


def to_published(config: Config) -> dict[str, Any]:
    """Return the entries of a config.json of type roberta or xlm-roberta, but for its type.

    Raises:
        BadInput: positions begin at row 0, which leaves no row for padding.
    """
    fix = "a roberta config.json has padding in the row before the first token's; choose 1 or more"
    require(config.position_offset >= 1, "model.position_offset", config.position_offset, fix)
    return {**config_entries(config), "pad_token_id": config.position_offset - 1}


# --- sizes ----------------------------------------------------------------------------------------------------------------------

ASSUMED = {"initializer": "the paper does not state it: as in BERT"}


def released(layers: int, width: int, *, source: str, count: int | None = None, objective: Objective = "masked") -> Size:
    """Return a body as released: heads of size 64, feed-forward layers of four times the width, 512 positions."""
    config = Config(vocab=50_265, context=512, layers=layers, width=width, heads=width // 64, ffn=4 * width)
    return Size(config=config, objective=objective, source=source, published_count=count, assumed=ASSUMED)


def multilingual(layers: int, width: int, *, count: int) -> Size:
    """Return a body of XLM-R as released: a RoBERTa with a vocabulary of 250,002 entries."""
    size = released(layers, width, source=XLM_PAPER, count=count)
    return dataclasses.replace(size, config=with_type(dataclasses.replace(size.config, vocab=250_002), XLM))


XLM_PAPER = "Conneau et al. 2020, section 3 and appendix B, and the released checkpoint"
PAPER = "Liu et al. 2019, section 3, and the released checkpoint"

SIZES: dict[str, Size] = {
    "roberta-nano": Size.nano(
        Config(vocab=4096, context=128, layers=4, width=192, heads=6, ffn=768, dropout=0.0, attention_dropout=0.0, task="masked"),
        "masked",
        "a RoBERTa body small enough to train in minutes on a laptop",
    ),
    "roberta-base": released(12, 768, source=PAPER, count=124_645_632),
    "roberta-large": released(24, 1024, source=PAPER, count=355_359_744),
    "distilroberta-base": released(
        6, 768, source="transformers, the distillation example: RoBERTa's shape with 6 layers", objective="distilled"
    ),
    "xlm-roberta-base": multilingual(12, 768, count=278_043_648),
    "xlm-roberta-large": multilingual(24, 1024, count=559_890_432),
}
