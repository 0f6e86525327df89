"""The base class of objectives that compare the vectors of texts, in most of them those of all texts of a batch.

The loss of a row then depends on all others, so micro-batches have no losses of their own. Where a batch is divided,
`complete_batch` computes all vectors without a gradient, and the gradient of the batch's loss with respect to them; `loss`
computes the vectors of a micro-batch again and continues this gradient to the parameters (Gao et al. 2021, "Scaling deep
contrastive learning batch size under memory limited setup", section 3). The result is the gradient of the complete batch, with
the activations of one micro-batch.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from train.config.embedding_options import Embedding
from train.config.run_config import Run
from train.engine.micro_batches import map_rows
from train.objectives.base import LabelledObjective
from train.objectives.choice import option_rows, stacked_options
from zoo.batch import Batch
from zoo.models import Model
from zoo.nn.pooling import pool_tokens


@dataclasses.dataclass(frozen=True)
class EmbeddingObjective(LabelledObjective):
    """Training of the vectors of texts, C of them in a row.

    tokens, segments, positions and types are int32 [C, T], with XLNet's special tokens also summary_at, int32 [C, 1]. weights is
    1, float32 [1]: every row counts.
    """

    options: Embedding
    divided: bool = False
    """True if batches are divided into micro-batches, whose rows are compared with each other."""

    @classmethod
    def bind(cls, run: Run, mesh: Mesh) -> "EmbeddingObjective":
        """Return the objective of a run."""
        options = getattr(run.options, run.objective)
        return cls(options, run.accumulate > 1 and options.compares_rows)

    @classmethod
    def join_options(cls, options: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return the fields of all texts, stacked on a first axis C."""
        return stacked_options(options)

    @abc.abstractmethod
    def row_losses(self, vectors: Float[Array, "B C D"], log_scale: Float[Array, ""], batch: Batch) -> Float[Array, " B"]:
        """Return the losses of the rows of a batch, whose mean is the loss.

        Args:
            vectors: those of `vectors`.
            log_scale: minus the logarithm of the temperature.
            batch: the complete batch.
        """

    def log_scale(self, params: Any) -> Float[Array, ""]:
        """Return minus the logarithm of the temperature."""
        return jnp.float32(-math.log(self.options.temperature))

    def vectors(self, model: Model, params: Any, batch: Batch, seeds: Any = None) -> Float[Array, "B C D"]:
        """Return the pooled vectors of all texts, float32, before any normalization. Texts of a row have different dropout."""
        rows, seeds = option_rows(batch, seeds)
        hidden = model.apply(params, rows, seeds=seeds).hidden.astype(jnp.float32)
        return pool_tokens(hidden, rows, self.options.pool).reshape(*batch.tokens.shape[:2], -1)

    def complete_batch(
        self,
        model: Model,
        params: Callable[[], Any],
        batch: Batch,
        frozen: Any,
        *,
        seeds: Any,
        reduce: Callable[[Any], Any],
        num_micro: int,
        chunk: int,
    ) -> Batch:
        """Return the batch; if it is to be divided, with its row losses, [B], and their gradients in `extra`.

        The gradients are of the sum of the losses of all rows: "vectors" [B, C, D], and "log_scale" [B], shares of equal size. A
        loss that does not compare rows needs neither.
        """
        if num_micro == 1 or not self.options.compares_rows:
            return batch
        cast = params()
        vectors = map_rows(lambda micro: self.vectors(model, cast, *micro), (batch, seeds), num_micro)
        losses, pull = jax.vjp(lambda x, scale: self.row_losses(x, scale, batch), vectors, self.log_scale(cast))
        of_vectors, of_scale = pull(jnp.ones_like(losses))
        shares = jnp.broadcast_to(of_scale / len(losses), losses.shape)
        gradients = {"losses": losses, "vectors": of_vectors, "log_scale": shares}
        return dataclasses.replace(batch, extra={**(batch.extra or {}), **gradients})

    def loss(
        self, model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
    ) -> tuple[dict[str, jax.Array], Any]:
        """Return the summed losses of the rows, and the model's carry; the gradient is that of the complete batch's losses."""
        vectors, log_scale = self.vectors(model, params, batch, seeds), self.log_scale(params)
        if batch.extra is None or "losses" not in batch.extra:
            total = self.row_losses(vectors, log_scale, batch).sum()
        else:
            # Its value is that of the losses, its gradient that of `linear`.
            linear = (vectors * batch.extra["vectors"]).sum() + log_scale * batch.extra["log_scale"].sum()
            total = batch.extra["losses"].sum() + linear - jax.lax.stop_gradient(linear)
        return {self.OPTIONS.objective: total}, carry

    def flops(self, model: Model, batch: Batch) -> float:
        """Return the FLOPs of a step: 3 forward passes, and 1 more where micro-batches need the vectors of the batch first."""
        return (4 if self.divided else 3) * self.forward_flops(model, batch)
