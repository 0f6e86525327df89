"""Numbers that bidirectional bodies share, and the head they carry: BERT, RoBERTa and DistilBERT, and XLNet.

A family's file in `zoo.configs` subclasses `BodyConfig`, or `EncoderConfig` if it has learned positions, and says where its
numbers are published. Nothing here imports jax.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal, TypeVar, get_args

from zoo.configs import Activation, Compute, Exported
from zoo.errors import BadInput, require
from zoo.hf.config_json import BOOKKEEPING, Published, first_name

Task = Literal["body", "pretraining", "masked", "next", "permutation", "sequence", "choice", "tokens", "span"]
"""What a body has on top: nothing, masked words and next sentence, one of these, words in any order of prediction, or a
classifier of sequences, of choices, of tokens or of the ends of a span."""
Initializer = Literal["normal", "truncated"]

LABELLED: tuple[Task, ...] = ("sequence", "tokens")
"""Tasks whose head has a row for each label."""

LARGEST = {
    "vocab": 1 << 21,
    "context": 1 << 20,
    "layers": 512,
    "width": 1 << 16,
    "heads": 1 << 12,
    "ffn": 1 << 20,
}
"""Whole-numbered fields and the largest value that is still a model rather than a slip of the finger."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BodyConfig:
    """Numbers of a body, however it knows where a token is, and of the head on it."""

    vocab: int
    """Entries of the tokenizer; input and output share one table."""
    layers: int
    width: int
    """Size of the residual stream, D."""
    heads: int
    """They share the width evenly."""
    ffn: int
    """Inner width of the feed-forward layers."""
    activation: Activation = "gelu"
    """Of the feed-forward layers and, but in RoBERTa, of the masked head. Google's BERT code has had the tanh form since 2020, as
    XLNet's has; `transformers`, and with it every published folder, erf."""
    eps: float
    """Added to the variance in layer norms."""
    dropout: float = 0.1
    """Share of the embeddings and of each sub-layer's output dropped."""
    attention_dropout: float = 0.1
    """Share of the attention weights dropped."""
    head_dropout: float = 0.1
    """Share dropped before a classifier."""
    initializer: Initializer = "truncated"
    """Fresh kernels and tables, of deviation 0.02: Google's code cuts the normal at two deviations, `transformers` does not."""
    task: Task = "body"
    """What stands on top of the body."""
    labels: tuple[str, ...] = ()
    """Names of what a classifier tells apart, in the order of its rows; a single one is a regression's. (): those of the training
    data."""
    compute: Compute = dataclasses.field(default_factory=Compute)
    exported: Exported = dataclasses.field(default_factory=Exported)

    def __post_init__(self) -> None:
        # Not every family has each of them.
        for field in (field.name for field in dataclasses.fields(self) if field.name in LARGEST):
            value, largest = getattr(self, field), LARGEST[field]
            require(1 <= value <= largest, f"model.{field}", value, f"choose 1 to {largest:,}")
        divides = self.width % self.heads == 0
        require(divides, "model.heads", self.heads, f"it must divide --model.width {self.width}")
        for field in ("dropout", "attention_dropout", "head_dropout"):
            value = getattr(self, field)
            require(0 <= value < 1, f"model.{field}", value, "choose a share of at least 0 and less than 1")
        require(0 < self.eps <= 1, "model.eps", self.eps, "choose 0 < eps <= 1")
        choices: dict[str, Iterable[str]] = {
            "activation": get_args(Activation),
            "initializer": get_args(Initializer),
            "task": get_args(Task),
        }
        for field, known in choices.items():
            value = getattr(self, field)
            require(value in known, f"model.{field}", value, f"choose one of {', '.join(known)}")
        written = " ".join(self.labels)
        require(len(set(self.labels)) == len(self.labels), "model.labels", written, "name each label once")
        needed = self.task in LABELLED or not self.labels
        require(needed, "model.labels", written, f"a head for {self.task} has none; only {' and '.join(LABELLED)} do")

    @property
    def head(self) -> int:
        """Size of an attention head."""
        return self.width // self.heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(BodyConfig):
    """Numbers of an encoder with learned positions."""

    context: int
    """The longest row. The table of positions has `position_offset` rows more."""
    types: int
    """Token types (sentence A or B); 0 = the family has none."""
    position_offset: int = 0
    """Row of the table of positions that the first token takes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.types <= 1024, "model.types", self.types, "choose 0 (none) to 1,024")
        require(0 <= self.position_offset <= 1024, "model.position_offset", self.position_offset, "choose 0 to 1,024")


# --- config.json ----------------------------------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""Published name -> ours; an export writes the first that fits."""

Config = TypeVar("Config", bound=EncoderConfig)


def numbers(published: Published, kind: type[Config], *, position_offset: int, types: int, eps: float, vocab: int) -> Config:
    """The numbers of a config.json with BERT's keys, which RoBERTa has too; what is absent takes the default of `transformers`.

    Raises:
        BadInput: something that is not computed here.
    """
    for key, value in COMPUTED.items():
        published.only(key, value)
    published.never("quantization_config")
    published.without_effect(*BOOKKEEPING, *WITHOUT_EFFECT)
    rows = published.whole("max_position_embeddings", 512)
    if rows <= position_offset:
        raise published.wrong("max_position_embeddings", rows, f"the first token takes row {position_offset}")
    dropout = published.number("hidden_dropout_prob", 0.1)
    entries = published.whole("vocab_size", vocab)
    published.check_padding(entries)
    return kind(
        vocab=entries,
        context=rows - position_offset,
        layers=published.whole("num_hidden_layers", 12),
        width=published.whole("hidden_size", 768),
        heads=published.whole("num_attention_heads", 12),
        ffn=published.whole("intermediate_size", 3072),
        types=published.whole("type_vocab_size", types),
        position_offset=position_offset,
        activation=published.choice("hidden_act", ACTIVATIONS, "gelu"),
        eps=published.number("layer_norm_eps", eps, decimal=True),
        dropout=dropout,
        attention_dropout=published.number("attention_probs_dropout_prob", 0.1),
        head_dropout=published.number("classifier_dropout", dropout, nullable=True),
        exported=exported(published, "hidden_act"),
        **on_top(published),
    )


def exported(published: Published, activation: str) -> Exported:
    """What an export will repeat; `activation` is the key of the activation's name."""
    spelling = published.spelling(activation, ACTIVATIONS)
    return Exported(initializer=published.initializer("initializer_range"), activation=spelling)


def on_top(published: Published) -> dict[str, Any]:
    """`task` and `labels` of a config.json, the task being the one its tensors are for."""
    task = published.task or "body"
    labels = published.labels() if task in LABELLED else ()
    if task == "sequence":
        _check_problem(published, labels)
    return {"task": task, "labels": labels}


def _check_problem(published: Published, labels: tuple[str, ...]) -> None:
    """Refuse a `problem_type` that the classifier is not fitted to here; without one the number of labels decides.

    Raises:
        BadInput: several labels at a time, a number for each of several labels, a class of one, or an unknown type.
    """
    usual = "regression" if len(labels) == 1 else "single_label_classification"
    published.choice("problem_type", {usual: usual}, usual, why=f"of {len(labels)} labels this family computes")


def spelled(cfg: EncoderConfig) -> dict[str, Any]:
    """The numbers under BERT's keys.

    Raises:
        BadInput: a family without types, which the keys have no words for.
    """
    if cfg.types == 0:
        raise BadInput("model.types 0: this config.json knows only 1 or more token types; there is no export of this model")
    return {
        "vocab_size": cfg.vocab,
        "max_position_embeddings": cfg.context + cfg.position_offset,
        "num_hidden_layers": cfg.layers,
        "hidden_size": cfg.width,
        "num_attention_heads": cfg.heads,
        "intermediate_size": cfg.ffn,
        "type_vocab_size": cfg.types,
        **cfg.exported.keys("initializer_range", "hidden_act", activation(cfg), ACTIVATIONS),
        "layer_norm_eps": cfg.eps,
        "hidden_dropout_prob": cfg.dropout,
        "attention_probs_dropout_prob": cfg.attention_dropout,
        "classifier_dropout": cfg.head_dropout,
        **named_labels(cfg),
        **COMPUTED,
    }


def activation(cfg: BodyConfig) -> str:
    """The published name of the activation."""
    return first_name(ACTIVATIONS, cfg.activation)


def named_labels(cfg: BodyConfig) -> dict[str, Any]:
    """The keys that name a classifier's rows."""
    if cfg.task not in LABELLED:
        return {}
    ids = {"id2label": {str(row): name for row, name in enumerate(cfg.labels)}}
    names = {"label2id": {name: row for row, name in enumerate(cfg.labels)}}
    if cfg.task != "sequence":
        return ids | names
    return ids | names | {"problem_type": "regression" if len(cfg.labels) == 1 else "single_label_classification"}


COMPUTED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
"""Keys that change the arithmetic, with the value that is computed here."""

WITHOUT_EFFECT = (
    # Of heads that were pruned away nothing is left; what the multilingual files say of a pooler nobody has.
    *("pruned_heads", "is_encoder_decoder", "cross_attention_hidden_size", "directionality", "gradient_checkpointing"),
    *("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"),
    *("output_past", "tie_weights_", "model_max_length", "cls_token_id", "sep_token_id", "mask_token_id"),
)
