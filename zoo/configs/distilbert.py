"""Sizes of DistilBERT (Sanh et al. 2019), as released: BERT's body with half the layers, without token types and pooler."""

import dataclasses
from typing import Any

from zoo.configs import Size
from zoo.configs._encoder import EncoderConfig, check_sides, head_fields, label_entries
from zoo.configs._published_keys import PublishedKeys, check_exportable
from zoo.hf.config_json import PublishedConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """Configuration of a DistilBERT."""

    types: int = 0
    eps: float = 1e-12
    head_dropout: float = 0.2


# --- config.json ----------------------------------------------------------------------------------------------------------------

MODEL_TYPE = "distilbert"
"""Name of this family in a published config.json."""

EPS = 1e-12
"""Fixed in the code of `transformers`; no key sets it."""


def from_published(published: PublishedConfig) -> Config:
    """Return the configuration in a config.json of type distilbert.

    Raises:
        BadInput: a key has a value that this family does not compute.
    """
    fields = KEYS.read(published)
    before_classifier, before_span = published.number("seq_classif_dropout", 0.2), published.number("qa_dropout", 0.1)
    head_dropout = {"span": before_span, "tokens": fields["dropout"]}.get(published.task, before_classifier)
    return Config(**fields, eps=EPS, head_dropout=head_dropout, **head_fields(published))


def to_published(config: Config) -> dict[str, Any]:
    """Return the entries of a config.json of type distilbert.

    Raises:
        BadInput: a causal model, token types, positions that do not begin at row 0, or another eps, none of which this type can
            express.
    """
    check_sides(config)
    for field, only in {"types": 0, "position_offset": 0, "eps": EPS}.items():
        why = f"a distilbert config.json can only express {only}"
        check_exportable(getattr(config, field) == only, config, field, why)
    return {
        **KEYS.write(config),
        # A classifier of tokens has the `dropout` of the layers in this type, whatever rate was used in training.
        "qa_dropout" if config.task == "span" else "seq_classif_dropout": config.head_dropout,
        **label_entries(config),
    }


KEYS = PublishedKeys(
    fields={
        **{"vocab": ("vocab_size", 30_522), "context": ("max_position_embeddings", 512), "layers": ("n_layers", 6)},
        **{"width": ("dim", 768), "heads": ("n_heads", 12), "ffn": ("hidden_dim", 3072)},
        **{"dropout": ("dropout", 0.1), "attention_dropout": ("attention_dropout", 0.1)},
    },
    activation=("activation", "gelu"),
    aliases={"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
    computed={"sinusoidal_pos_embds": False, "tie_word_embeddings": True},
    without_effect=(
        *("pruned_heads", "tie_weights_", "output_past", "is_decoder", "is_causal", "add_cross_attention", "is_encoder_decoder"),
    ),
    padding=0,
)


# --- sizes ----------------------------------------------------------------------------------------------------------------------

SOURCE = "Sanh et al. 2019, section 3, and the released checkpoint"
ASSUMED = {"initializer": "published weights begin as layers of their teacher; fresh ones are initialized as BERT's"}


def released(vocab: int, count: int) -> Size:
    """Return a body as released."""
    config = Config(vocab=vocab, context=512, layers=6, width=768, heads=12, ffn=3072)
    return Size(config=config, objective="distilled", source=SOURCE, published_count=count, assumed=ASSUMED)


SIZES: dict[str, Size] = {
    "distilbert-nano": Size.nano(
        Config(vocab=4096, context=128, layers=2, width=192, heads=6, ffn=768, dropout=0.0, attention_dropout=0.0, task="masked"),
        "distilled",
        "half the layers of bert-nano, its teacher",
    ),
    "distilbert-base-uncased": released(30_522, 66_362_880),
    "distilbert-base-cased": released(28_996, 65_190_912),
}
