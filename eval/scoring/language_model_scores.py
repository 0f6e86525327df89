"""Exact scores of held-out text: every token is counted once, at any batch size, stride and number of devices."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from eval.scoring.batch_loop import BatchLoop, Progress, ScoringInputs, no_progress
from train.engine import device_mesh
from train.engine.losses import token_losses
from train.rows import batches
from train.rows.row_source import RowSource
from zoo.batch import Batch
from zoo.models import Model


@dataclasses.dataclass(frozen=True)
class Score:
    """The summed negative log-likelihood of the targets, and their number in tokens and bytes."""

    nats: float
    tokens: int
    """Predicted tokens, end-of-text included."""
    bytes: int
    """UTF-8 bytes of the text of these tokens."""

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


def of_run(inputs: ScoringInputs) -> Callable[[Any], Score]:
    """Return the scorer of a run's text."""
    token_bytes, chunk = inputs.data.tokenizer.token_bytes(), inputs.run.loss_chunk
    options: dict[str, Any] = {"batch": inputs.batch, "dtype": inputs.dtype, "progress": inputs.progress}
    return scorer(inputs.model, inputs.mesh, inputs.rows, inputs.build, token_bytes, chunk=chunk, **options)


def scorer(
    model: Model,
    mesh: Mesh,
    rows: RowSource,
    build: Callable[..., dict[str, Any]],
    token_bytes: np.ndarray,
    *,
    batch: int,
    dtype: Any,
    chunk: int = 0,
    progress: Progress = no_progress,
) -> Callable[[Any], Score]:
    """Return a function of parameters that scores every row of `rows`, `batch` rows at a time over the mesh.

    `token_bytes[V]` is the number of UTF-8 bytes of each token. Row sums are added in float64 on the host, so that the batch size
    does not affect the result. A batch that the mesh does not divide is padded with rows that are not counted.
    """
    batch = device_mesh.round_up_rows(mesh, min(batch, len(rows)))

    def row_nats(params: Any, batch: Batch, carry: Any) -> tuple[jax.Array, Any]:
        assert batch.targets is not None and batch.weights is not None
        hidden = model.apply(params, batch).hidden
        nats = token_losses(Partial(model.unembed, params), hidden, batch.targets, vocabulary=model.config.vocab, chunk=chunk)
        return (nats * batch.weights).sum(-1), carry

    loop = BatchLoop(mesh, np.dtype(dtype), row_nats)
    tokens, size = _count(rows, build, token_bytes)

    def score(params: Any) -> Score:
        nats = sum(float(sums.sum()) for sums in loop.results(loop.cast(params), rows, build, batch, progress=progress))
        return Score(nats=nats, tokens=tokens, bytes=size)

    return score


def _count(rows: RowSource, build: Callable[..., dict[str, Any]], token_bytes: np.ndarray) -> tuple[int, int]:
    """Return the number of counted targets of all rows and of their bytes, from the same arrays that the model gets."""
    tokens, size = 0, 0
    for batch in batches.in_order(rows, build, 1, np.arange(1)):
        assert batch.targets is not None and batch.weights is not None
        counted = batch.targets[batch.weights > 0]
        tokens += counted.size
        size += int(token_bytes[counted].sum())
    return tokens, size
