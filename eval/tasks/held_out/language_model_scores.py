"""Exact scores of held-out text: every token is counted once, at any batch size, stride and number of devices."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Int64

from eval.tasks.held_out.scoring_inputs import RowsToScore, ScoringInputs, no_items
from train.engine.losses import token_losses
from train.rows import batches
from train.rows.row_source import RowSource
from train.run.item_outcomes import Outcomes
from zoo.batch import Batch


@dataclasses.dataclass(frozen=True)
class TextScore:
    """The summed negative log-likelihood of the targets, and their number in tokens and bytes."""

    nats: float
    tokens: int
    """Predicted tokens, end-of-text included."""
    bytes: int
    """UTF-8 bytes of the text of these tokens."""
    items: Callable[[], Outcomes | None] = no_items
    """Returns the loss of each row."""

    @property
    def outcomes(self) -> Outcomes | None:
        """The loss of each row, if the places that rows were read from can be named."""
        return self.items()

    @property
    def loss(self) -> float:
        """Loss in nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Compression of the raw text, comparable between tokenizers."""
        return self.nats / math.log(2) / self.bytes

    def record(self) -> dict[str, float | int]:
        """Return the score as it is in metrics and JSON, without bits per byte where a tokenizer knows no byte of the text."""
        derived = {"loss": self.loss, "perplexity": self.perplexity}
        derived |= {"bits_per_byte": self.bits_per_byte} if self.bytes else {}
        return {**derived, "tokens": self.tokens, "bytes": self.bytes}


@dataclasses.dataclass(frozen=True)
class TargetScore(TextScore):
    """The score of an encoder-decoder's targets with teacher forcing; they are not all of a text: there are no bits per byte."""

    def record(self) -> dict[str, float | int]:
        """Return the score as it is in metrics and JSON."""
        return {"loss": self.loss, "perplexity": self.perplexity, "tokens": self.tokens}


def score_text(inputs: ScoringInputs) -> Callable[[Any], TextScore]:
    """Return the scorer of a run's text."""
    return text_scorer(inputs, inputs.data.tokenizer.token_bytes(), inputs.run.loss_chunk)


def score_targets(inputs: ScoringInputs) -> Callable[[Any], TextScore]:
    """Return the scorer of the targets of a run's held-out rows; the random choices of a row are a function of the row alone."""
    return text_scorer(inputs, inputs.data.tokenizer.token_bytes(), inputs.run.loss_chunk, TargetScore)


def text_scorer(
    inputs: RowsToScore,
    token_bytes: np.ndarray,
    chunk: int = 0,
    kind: type[TextScore] = TextScore,
    losses: Callable[[Any, Batch], Array] | None = None,
) -> Callable[[Any], TextScore]:
    """Return a function of parameters that scores every row of `inputs`.

    Row sums are added in float64 on the host, so that the batch size does not affect the result. A batch that the mesh does not
    divide is padded with rows that are not counted.

    Args:
        token_bytes: number of UTF-8 bytes of each token, [V].
        chunk: number of predictions per row whose logits are computed at a time; 0 = all.
        losses: returns the loss of each target in nats from (parameters, batch), [B, T]; None = that of the model's LM head.
    """
    model = inputs.model

    def of_head(params: Any, batch: Batch) -> Array:
        assert batch.targets is not None
        hidden = model.apply(params, batch).hidden
        return token_losses(Partial(model.unembed, params), hidden, batch.targets, vocabulary=model.config.vocab, chunk=chunk)

    def row_nats(params: Any, batch: Batch, carry: Any) -> tuple[jax.Array, Any]:
        assert batch.weights is not None
        return ((losses or of_head)(params, batch) * batch.weights).sum(-1), carry

    tokens, size = _count(inputs.rows, inputs.build, token_bytes)

    def summarize(results: Iterator[np.ndarray]) -> TextScore:
        nats = np.concatenate([*results])
        items = functools.partial(inputs.outcomes, np.full(len(tokens), np.nan), nats[: len(tokens)], tokens)
        return kind(float(nats.sum()), int(tokens.sum()), size, items)

    return inputs.scorer(row_nats, summarize)


def _count(
    rows: RowSource, build: Callable[..., dict[str, Any]], token_bytes: np.ndarray
) -> tuple[Int64[np.ndarray, " rows"], int]:
    """Return the number of counted targets of each row, and of the bytes of all, from the same arrays that the model gets."""
    tokens, size = np.zeros(len(rows), np.int64), 0
    for number, batch in enumerate(batches.in_order(rows, build, 1, np.arange(1))):
        assert batch.targets is not None and batch.weights is not None
        counted = batch.targets[batch.weights > 0]
        tokens[number] = counted.size
        size += int(token_bytes[counted].sum())
    return tokens, size
