"""Configuration shared by the bidirectional models BERT, RoBERTa, DistilBERT, ModernBERT and XLNet, and by their heads.

A family's file in `zoo.configs` subclasses `BodyConfig`, or `EncoderConfig` if it has learned positions, and lists the sources
of its sizes. Nothing here imports JAX.
"""

import dataclasses
from typing import Any, Literal, TypeVar, get_args

from zoo.configs import Activation, Compute, Exported, ModelConfig
from zoo.configs._published_keys import PublishedKeys, check_exportable
from zoo.errors import BadInput, require
from zoo.hf.config_json import PublishedConfig

Task = Literal["body", "pretraining", "masked", "next", "permutation", "sequence", "choice", "tokens", "span"]
"""Head on the body. body: none; pretraining: masked tokens and next sentence; masked, next: one of the two; permutation: tokens
in any order; sequence, choice, tokens, span: a classifier of sequences, choices or tokens, or start and end logits."""
Initializer = Literal["normal", "truncated"]

LABELLED: tuple[Task, ...] = ("sequence", "tokens")
"""Tasks whose head has one output per label."""
MULTI_LABEL = "multi_label_classification"
"""The published `problem_type` of a classifier whose sequences may have several labels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BodyConfig(ModelConfig):
    """Configuration of a body, without its position encoding, and of the head on it."""

    vocab: int
    """Vocabulary size; input and output share one embedding table."""
    layers: int
    """Number of layers."""
    width: int
    """Size of the residual stream, D."""
    heads: int
    """Number of attention heads; each has width / heads dimensions."""
    ffn: int
    """Inner width of the feed-forward layers."""
    activation: Activation = "gelu"
    """Activation of the feed-forward layers and (except in RoBERTa) of the masked head.
    Google's code of BERT (since 2020) and XLNet has GELU's tanh form; `transformers` and all published folders have erf."""
    eps: float
    """Number that layer norms add to the variance."""
    dropout: float = 0.1
    """Dropout rate of the embeddings and of each sub-layer's output."""
    attention_dropout: float = 0.1
    """Dropout rate of the attention weights."""
    head_dropout: float = 0.1
    """Dropout rate before a classifier."""
    initializer: Initializer = "truncated"
    """Distribution of fresh kernels and tables, with standard deviation 0.02.
    truncated: cut off at two standard deviations, as in Google's code. normal: as in `transformers`."""
    task: Task = "body"
    """Head on the body; body = none. sequence, choice, tokens and span are classifiers."""
    labels: tuple[str, ...] = ()
    """Names of a classifier's labels, in the order of its outputs; a single label means regression, unless `multi_label`.
    No names = the labels of the training data."""
    multi_label: bool = False
    """Predict any number of the labels for a sequence, with a sigmoid of each logit instead of a softmax over all."""
    compute: Compute = dataclasses.field(default_factory=Compute)
    exported: Exported = dataclasses.field(default_factory=Exported)

    def __post_init__(self) -> None:
        self.check_fields(activation=get_args(Activation), initializer=get_args(Initializer), task=get_args(Task))
        divides = self.width % self.heads == 0
        require(divides, "model.heads", self.heads, f"it must divide --model.width {self.width}")
        written = " ".join(self.labels)
        require(len(set(self.labels)) == len(self.labels), "model.labels", written, "name each label once")
        needed = self.task in LABELLED or not self.labels
        require(needed, "model.labels", written, f"a head for {self.task} has none; only {' and '.join(LABELLED)} do")
        valid = self.task == "sequence" or not self.multi_label
        require(valid, "model.multi_label", self.multi_label, "only a head for sequences predicts several labels; leave it out")

    @property
    def head(self) -> int:
        """Size of an attention head."""
        return self.width // self.heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(BodyConfig):
    """Configuration of an encoder with learned positions."""

    context: int
    """Number of tokens in the longest row. The table of positions has `position_offset` more rows."""
    types: int
    """Number of token types (sentence A or B); 0 = the family has none."""
    position_offset: int = 0
    """Row of the table of positions that the first token uses."""
    causal: bool = False
    """Let each token see only itself and those before it (Devlin et al. 2019, section 5.1, LTR), in fine-tuning too.
    The objective left_to_right trains such a model. A text is summarized by its last token, since the first one sees no other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.types <= 1024, "model.types", self.types, "choose 0 (none) to 1,024")
        require(0 <= self.position_offset <= 1024, "model.position_offset", self.position_offset, "choose 0 to 1,024")


# --- config.json ----------------------------------------------------------------------------------------------------------------

Config = TypeVar("Config", bound=EncoderConfig)


def read_config(published: PublishedConfig, kind: type[Config], *, position_offset: int = 0, vocab: int = 30_522) -> Config:
    """Return the configuration in a config.json with BERT's keys, which RoBERTa uses too.

    Absent keys take the defaults of `transformers`.

    Raises:
        BadInput: a key has a value that this family does not compute.
    """
    fields = KEYS.read(published, {"vocab_size": vocab})
    rows = published.integer("max_position_embeddings", 512)
    if rows <= position_offset:
        raise published.wrong("max_position_embeddings", rows, f"the first token takes row {position_offset}")
    return kind(
        **fields,
        context=rows - position_offset,
        position_offset=position_offset,
        head_dropout=published.number("classifier_dropout", fields["dropout"], nullable=True),
        **head_fields(published),
    )


def head_fields(published: PublishedConfig) -> dict[str, Any]:
    """Return `task`, `labels` and `multi_label` of a config.json; the task is the one that its tensors are for."""
    task = published.task or "body"
    labels = published.labels() if task in LABELLED else ()
    return {"task": task, "labels": labels, "multi_label": task == "sequence" and _multi_label(published, labels)}


def _multi_label(published: PublishedConfig, labels: tuple[str, ...]) -> bool:
    """Return whether a sequence may have several labels: `problem_type`, or False if it is absent.

    Raises:
        BadInput: regression with several labels, single-label classification with one, or an unknown type.
    """
    usual = _single_label(labels)
    types = {usual: False, MULTI_LABEL: True}
    return published.choice("problem_type", types, usual, why=f"of {len(labels)} labels this family computes")


def _single_label(labels: tuple[str, ...]) -> str:
    """Return the `problem_type` of a classifier whose sequences have one label each, which it need not name."""
    return "regression" if len(labels) == 1 else "single_label_classification"


def config_entries(cfg: EncoderConfig) -> dict[str, Any]:
    """Return the entries of a config.json with BERT's keys.

    Raises:
        BadInput: the model has no token types, or sees only one side, which these keys cannot express.
    """
    check_sides(cfg)
    check_exportable(cfg.types > 0, cfg, "types", "a config.json of this type has 1 or more token types")
    return {
        **KEYS.write(cfg),
        "max_position_embeddings": cfg.context + cfg.position_offset,
        "classifier_dropout": cfg.head_dropout,
        **label_entries(cfg),
    }


def check_sides(cfg: EncoderConfig) -> None:
    """Refuse to export a model whose tokens do not see those after them; no such encoder was published.

    Raises:
        BadInput: the model is causal.
    """
    if cfg.causal:
        raise BadInput("model.causal True: encoders were only published with tokens that see both sides; it cannot be exported")


def label_entries(cfg: BodyConfig) -> dict[str, Any]:
    """Return the entries of a config.json that name a classifier's labels."""
    if cfg.task not in LABELLED:
        return {}
    ids = {"id2label": {str(row): name for row, name in enumerate(cfg.labels)}}
    names = {"label2id": {name: row for row, name in enumerate(cfg.labels)}}
    if cfg.task != "sequence":
        return ids | names
    return ids | names | {"problem_type": MULTI_LABEL if cfg.multi_label else _single_label(cfg.labels)}


KEYS = PublishedKeys(
    fields={
        **{"vocab": ("vocab_size", 30_522), "layers": ("num_hidden_layers", 12), "width": ("hidden_size", 768)},
        **{"heads": ("num_attention_heads", 12), "ffn": ("intermediate_size", 3072), "types": ("type_vocab_size", 2)},
        **{"dropout": ("hidden_dropout_prob", 0.1), "attention_dropout": ("attention_probs_dropout_prob", 0.1)},
        "eps": ("layer_norm_eps", 1e-12),
    },
    activation=("hidden_act", "gelu"),
    computed={
        **{"position_embedding_type": "absolute", "is_decoder": False},
        **{"add_cross_attention": False, "tie_word_embeddings": True},
    },
    without_effect=(
        # Pruned heads are absent from the weights; the keys of a pooler in the multilingual files are not used by any model.
        *("pruned_heads", "is_encoder_decoder", "cross_attention_hidden_size", "directionality", "gradient_checkpointing"),
        *("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"),
        *("is_causal", "output_past", "tie_weights_", "model_max_length", "cls_token_id", "sep_token_id", "mask_token_id"),
    ),
    padding=0,
)
