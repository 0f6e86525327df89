"""Cross-encoders: score each candidate of a query in one row with the query (Nogueira and Cho 2019, section 3)."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from train.config.rerank_options import Rerank, RerankOptions
from train.config.run_config import Run
from train.engine.group_losses import group_losses
from train.objectives.choice import MultipleChoice, option_logits
from zoo.batch import Batch
from zoo.models import Model


@dataclasses.dataclass(frozen=True)
class Reranking(MultipleChoice):
    """Training of the scores of a query's candidates, which are the options of a row: the positive, then its negatives.

    The arrays are those of `MultipleChoice`; the right option is always the first one.
    """

    OPTIONS = RerankOptions

    options: Rerank

    @classmethod
    def bind(cls, run: Run, mesh: Mesh) -> "Reranking":
        """Return the objective of a run."""
        assert isinstance(run.options, RerankOptions)
        return cls(run.options.rerank)

    def loss(
        self, model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
    ) -> tuple[dict[str, jax.Array], Any]:
        """Return the summed losses of the groups, see `group_losses`, and the model's carry."""
        assert batch.weights is not None
        losses = group_losses(option_logits(model, params, batch, seeds), self.options)
        return {"rerank": (losses * batch.weights[:, 0]).sum()}, carry


OBJECTIVE = Reranking
