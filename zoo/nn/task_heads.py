"""Heads on top of a body: the LM and masked-LM heads, the next sentence, and classifiers of sequences, choices, tokens and spans.

A family declares its heads as a table of `Head`, each with the published names of its leaves. A leaf's path begins with its part:

- `pooler`: dense layer and tanh over the summary's hidden state, published as a part of the body;
- `masked`: the masked-LM head, dense layer, activation, norm, then the tied table and a bias (Devlin et al. 2019, section 3.1);
- `unembed`: the LM head, the tied table and a bias alone (Yang et al. 2019);
- `next`: a linear layer from the pooled summary to next sentence or not;
- `dense`: a dense layer before the classifier, not a part of the body; `dense/norm`: the norm of its activation (ModernBERT);
- `classifier`: a linear layer to the outputs.

Dense layers and norms have the biases that the table names.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.batch import Batch, Output
from zoo.configs import Activation
from zoo.configs._encoder import LABELLED, BodyConfig, Task
from zoo.errors import BadInput
from zoo.hf.param_name_types import ParamName
from zoo.nn.layers import (
    ACTIVATIONS,
    Init,
    LayerNorm,
    Linear,
    Seeds,
    apply_linear,
    dropout,
    fold_seeds,
    layer_norm,
    padded_rows,
    tied_logits,
)
from zoo.sharding import constrain_tokens

SUMMARY_SITE, CLASSIFIER_SITE = range(2)
FINE_TUNED = (
    *("classification", "tagging", "span", "choice", "preference"),
    *("contrastive", "similarity", "ranking", "rerank", "late_interaction", "sentence_denoising"),
)
"""Objectives that train the body of any encoder, most of them with a head."""

SUMMARIES: dict[str, Callable[[Array], Array]] = {"tanh": jnp.tanh, **ACTIVATIONS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """The head of a family for a task."""

    architecture: str
    """The class of `transformers` with this head; "" if there is none."""
    rows: tuple[ParamName, ...] = ()
    """Leaves of the head and their published names."""
    idle: tuple[str, ...] = ()
    """Published names, without the family's prefix, of tensors that its files may contain but that it does not use."""
    summary: str = "tanh"
    """Activation of the dense layer before a classifier, if there is one: a name of `SUMMARIES`."""
    drops_hidden: bool = False
    """True if dropout is also applied before that dense layer."""
    drops: bool = True
    """True if dropout is applied before the classifier."""
    masked_activation: Activation | None = None
    """Activation of the masked head; None: that of the layers."""

    @property
    def leaves(self) -> frozenset[str]:
        return frozenset(row.leaf for row in self.rows)

    @property
    def parts(self) -> frozenset[str]:
        return frozenset(leaf.split("/")[0] for leaf in self.leaves)


Heads = Mapping[Task, Head]


def find_head(heads: Heads, cfg: BodyConfig) -> Head:
    """Return the head of a model, from those of its family.

    Raises:
        BadInput: the family has no head for that task.
    """
    if cfg.task not in heads:
        raise BadInput(f"model.task {cfg.task}: this family has no such head; choose one of {', '.join(heads)}")
    return heads[cfg.task]


def outputs(cfg: BodyConfig) -> int:
    """Return the number of outputs of the classifier.

    Raises:
        ValueError: a task with labels, and `cfg.labels` is empty.
    """
    if cfg.task not in LABELLED:
        return {"choice": 1, "span": 2}[cfg.task]
    if not cfg.labels:
        raise ValueError(f"a {cfg.task} head without labels: they come from the training data; otherwise set model.labels")
    return len(cfg.labels)


class HeadParams(nnx.Module):
    """The parameters of a head; `last_init` initializes the classifier, if not `init`."""

    def __init__(self, cfg: BodyConfig, head: Head, init: Init, rngs: nnx.Rngs, *, last_init: Init | None = None):
        parts, leaves = head.parts, head.leaves
        if "pooler" in parts:
            self.pooler = _linear(cfg.width, cfg.width, init, rngs)
        if "masked" in parts:
            self.masked = Masked(cfg, leaves, init, rngs)
        if "unembed" in parts:
            self.unembed = Unembed(cfg)
        if "next" in parts:
            self.next = _linear(cfg.width, 2, init, rngs)
        if "dense" in parts:
            self.dense = Dense(cfg, leaves, init, rngs)
        if "classifier" in parts:
            self.classifier = _linear(cfg.width, outputs(cfg), last_init or init, rngs)


class Masked(nnx.Module):
    """The masked head: dense layer, activation, norm, and the bias of the vocabulary."""

    def __init__(self, cfg: BodyConfig, leaves: frozenset[str], init: Init, rngs: nnx.Rngs):
        self.dense = _linear(cfg.width, cfg.width, init, rngs, bias="masked/dense/bias" in leaves)
        self.norm = LayerNorm(cfg.width, cfg.eps, bias="masked/norm/bias" in leaves)
        self.bias = nnx.Param(jnp.zeros(padded_rows(cfg.vocab)))


class Dense(Linear):
    """The dense layer before a classifier, and the norm of its activation if it has one."""

    def __init__(self, cfg: BodyConfig, leaves: frozenset[str], init: Init, rngs: nnx.Rngs):
        bias = (cfg.width,) if "dense/bias" in leaves else None
        super().__init__("...d,de->...e", (cfg.width, cfg.width), bias, init, rngs)
        normed, normed_bias = "dense/norm/scale" in leaves, "dense/norm/bias" in leaves
        self.norm = LayerNorm(cfg.width, cfg.eps, bias=normed_bias) if normed else None


class Unembed(nnx.Module):
    """The bias of the vocabulary."""

    def __init__(self, cfg: BodyConfig):
        self.bias = nnx.Param(jnp.zeros(padded_rows(cfg.vocab)))


def gather_positions(hidden: Float[Array, "B T D"], at: Int[Array, "B P"] | None) -> Float[Array, "B P D"]:
    """Return the hidden states at the positions `at` of each row; None: at all positions."""
    if at is None:
        return hidden
    return constrain_tokens(jnp.take_along_axis(hidden, at[..., None], axis=1))  # [B, P, D]


def predicting_states(out: Output, batch: Batch) -> Float[Array, "B P D"]:
    """Return the hidden states that predict: those of the query stream if there is one, else those at `batch.predict_at`."""
    return gather_positions(out.hidden, batch.predict_at) if out.predicted is None else out.predicted


def sequence_summaries(out: Output, batch: Batch) -> Float[Array, "B Q D"]:
    """Return what summarizes sequences: `out.summaries`, else the hidden states at `batch.summary_at`.

    `batch.summary_at` None: those of the first token, for one sequence per row.
    """
    if out.summaries is not None:
        return out.summaries
    return out.hidden[:, :1] if batch.summary_at is None else gather_positions(out.hidden, batch.summary_at)


def masked_logits(heads: Heads, cfg: BodyConfig, params: dict[str, Any], hidden: Float[Array, "*B D"]) -> Float[Array, "*B rows"]:
    """Return the float32 logits of the masked-LM head; rows >= cfg.vocab are padding and get no probability.

    Raises:
        ValueError: the model has no such head.
    """
    part = _part(params, "masked", cfg)
    x = ACTIVATIONS[find_head(heads, cfg).masked_activation or cfg.activation](apply_linear(part["dense"], hidden))
    x = _normed(part, x, cfg)
    return tied_logits(x, params["embed"]["tokens"]["embedding"], cfg.vocab) + part["bias"].astype(jnp.float32)


def lm_logits(cfg: BodyConfig, params: dict[str, Any], hidden: Float[Array, "*B D"]) -> Float[Array, "*B rows"]:
    """Return the float32 logits of the LM head, the tied table and a bias; rows >= cfg.vocab get no probability.

    Raises:
        ValueError: the model has no such head.
    """
    bias = _part(params, "unembed", cfg)["bias"]
    return tied_logits(hidden, params["embed"]["tokens"]["embedding"], cfg.vocab) + bias.astype(jnp.float32)


def sequence_logits(
    heads: Heads, cfg: BodyConfig, params: dict[str, Any], hidden: Float[Array, "B Q D"], *, seeds: Seeds = None
) -> Float[Array, "B Q O"]:
    """Return float32 logits of sequences from the hidden states of their summaries, or of next sentence (0: it is, 1: it is not).

    Raises:
        ValueError: the model has no head for sequences.
    """
    head = find_head(heads, cfg)
    last = _part(params, "next" if "next" in params else "classifier", cfg)
    seeds = fold_seeds(seeds, cfg.layers + 1)
    if head.drops_hidden:
        hidden = dropout(hidden, cfg.head_dropout, seeds, SUMMARY_SITE)
    pooled = _dense(cfg, head, _part(params, "dense" if "dense" in params else "pooler", cfg), hidden)
    if head.drops and "next" not in params:
        pooled = dropout(pooled, cfg.head_dropout, seeds, CLASSIFIER_SITE)
    return apply_linear(last, pooled).astype(jnp.float32)


def token_logits(
    heads: Heads, cfg: BodyConfig, params: dict[str, Any], hidden: Float[Array, "B T D"], *, seeds: Seeds = None
) -> Float[Array, "B T O"]:
    """Return float32 logits of each token: of its labels, or the start and end logits of a span.

    Raises:
        ValueError: the model has no head for tokens.
    """
    head = find_head(heads, cfg)
    if "dense" in params:
        hidden = _dense(cfg, head, params["dense"], hidden)
    if head.drops:
        hidden = dropout(hidden, cfg.head_dropout, fold_seeds(seeds, cfg.layers + 1), CLASSIFIER_SITE)
    return apply_linear(_part(params, "classifier", cfg), hidden).astype(jnp.float32)


def flops(heads: Heads, cfg: BodyConfig, batch: Batch) -> float:
    """Return the matrix-product FLOPs of a head over a batch: the logits of predicted positions, and of labels."""
    *rows, length = batch.tokens.shape
    sequences = math.prod(rows) * (1 if batch.summary_at is None else batch.summary_at.shape[-1])
    head, dense, total = find_head(heads, cfg), 2.0 * cfg.width * cfg.width, 0.0
    if head.parts & {"masked", "unembed"}:
        predicted = math.prod(rows) * (length if batch.predicted_positions is None else batch.predicted_positions.shape[-1])
        total += predicted * (dense * ("masked" in head.parts) + 2.0 * cfg.width * cfg.vocab)
    if batch.labels is None:
        return total
    if cfg.task in ("tokens", "span"):
        return total + math.prod(rows) * length * (dense * ("dense" in head.parts) + 2.0 * cfg.width * outputs(cfg))
    if "classifier" in head.parts or "next" in head.parts:
        last = 2 if "next" in head.parts else outputs(cfg)
        total += sequences * (dense + 2.0 * cfg.width * last)
    return total


def _linear(inputs: int, size: int, init: Init, rngs: nnx.Rngs, *, bias: bool = True) -> Linear:
    return Linear("...d,de->...e", (inputs, size), (size,) if bias else None, init, rngs)


def _dense(cfg: BodyConfig, head: Head, part: dict[str, Any], x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Return the activation of the dense layer before a classifier, normalized if the layer has a norm."""
    return _normed(part, SUMMARIES[head.summary](apply_linear(part, x)), cfg)


def _normed(part: dict[str, Any], x: Float[Array, "*B D"], cfg: BodyConfig) -> Float[Array, "*B D"]:
    norm = part.get("norm")
    return x if norm is None else layer_norm(x, norm["scale"], norm.get("bias"), cfg.eps)


def _part(params: dict[str, Any], name: str, cfg: BodyConfig) -> dict[str, Any]:
    if name not in params:
        raise ValueError(f"a model for the task {cfg.task} has no {name} part; use one whose task has it")
    return params[name]
