"""Exact scores of what an encoder-decoder writes, given the right tokens before each: nats per target token."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from eval.scoring import language_model
from train.config import run_config
from zoo.models import Model


@dataclasses.dataclass(frozen=True)
class Score(language_model.Score):
    """Summed surprise of the targets. What they leave out is not counted, so bytes say nothing of a text."""

    def record(self) -> dict[str, float | int]:
        """The score as metrics and JSON carry it."""
        return {"loss": self.loss, "perplexity": self.perplexity, "tokens": self.tokens}


def of_run(
    run: run_config.Run, net: Model, mesh: Mesh, data: Any, rows: Any, build: Callable[..., Any], *, batch: int, dtype: Any
) -> Callable[[Any], Score]:
    """The scorer of a run's held-out rows; what a row draws is a function of the row alone."""
    measure = language_model.scorer(net, mesh, rows, build, data.token_bytes, batch=batch, dtype=dtype, chunk=run.loss_chunk)

    def scored(params: Any) -> Score:
        return Score(**dataclasses.asdict(measure(params)))

    return scored
