"""Sizes of BERT (Devlin et al. 2019) and of the 24 small ones (Turc et al. 2019), as released.

The paper prints 30,000 tokens and 110 and 340 million parameters; the sizes here are those of the released files, with
30,522 tokens (uncased) and 109.5 and 335.1 million parameters.
"""

import dataclasses
from typing import Any

from zoo.configs import Size
from zoo.configs._encoder import EncoderConfig, config_entries, read_config
from zoo.hf.config_json import PublishedConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """Configuration of a BERT."""

    types: int = 2
    eps: float = 1e-12


# --- config.json ----------------------------------------------------------------------------------------------------------------

MODEL_TYPE = "bert"
"""Name of this family in a published config.json."""


def from_published(published: PublishedConfig) -> Config:
    """Return the configuration in a config.json of type bert.

    Raises:
        BadInput: a key has a value that this family does not compute.
    """
    return read_config(published, Config)


def to_published(config: Config) -> dict[str, Any]:
    """Return the entries of a config.json of type bert."""
    return config_entries(config)


# --- sizes ----------------------------------------------------------------------------------------------------------------------

UNCASED, CASED, MULTILINGUAL, CHINESE = 30_522, 28_996, 119_547, 21_128
ASSUMED = {"initializer": "the paper does not state it: the normal of Google's code, truncated at two standard deviations"}


def released(layers: int, width: int, vocab: int, *, source: str, count: int | None = None, note: str = "") -> Size:
    """Return a body as released: heads of size 64, feed-forward layers of four times the width, 512 positions."""
    config = Config(vocab=vocab, context=512, layers=layers, width=width, heads=width // 64, ffn=4 * width)
    return Size(config=config, objective="masked", source=source, published_count=count, assumed=ASSUMED, note=note)


PAPER = "Devlin et al. 2019, section 3, and the released checkpoint"
SMALL = "Turc et al. 2019, and the checkpoints released with it"

NANO = Size.nano(
    Config(
        vocab=4096, context=128, layers=4, width=192, heads=6, ffn=768, dropout=0.0, attention_dropout=0.0, task="pretraining"
    ),
    "masked",
    "a BERT body small enough to train in minutes on a laptop",
)

SIZES: dict[str, Size] = {
    "bert-nano": NANO,
    "bert-base-uncased": released(12, 768, UNCASED, source=PAPER, count=109_482_240, note="the paper says 110M"),
    "bert-base-cased": released(12, 768, CASED, source=PAPER, count=108_310_272),
    "bert-large-uncased": released(24, 1024, UNCASED, source=PAPER, count=335_141_888, note="the paper says 340M"),
    "bert-large-cased": released(24, 1024, CASED, source=PAPER, count=333_579_264),
    "bert-base-multilingual-cased": released(12, 768, MULTILINGUAL, source="the released checkpoint", count=177_853_440),
    "bert-base-chinese": released(12, 768, CHINESE, source="the released checkpoint", count=102_267_648),
    "bert-tiny": released(2, 128, UNCASED, source=SMALL, note="bert-uncased-l2-h128 of the grid"),
    "bert-mini": released(4, 256, UNCASED, source=SMALL, note="bert-uncased-l4-h256 of the grid"),
    "bert-small": released(4, 512, UNCASED, source=SMALL, note="bert-uncased-l4-h512 of the grid"),
    "bert-medium": released(8, 512, UNCASED, source=SMALL, note="bert-uncased-l8-h512 of the grid"),
    **{
        f"bert-uncased-l{layers}-h{width}": released(layers, width, UNCASED, source=SMALL)
        for layers in (2, 4, 6, 8, 10, 12)
        for width in (128, 256, 512, 768)
    },
}
