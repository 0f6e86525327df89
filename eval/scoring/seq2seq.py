"""Exact scores of an encoder-decoder with teacher forcing, in nats per target token."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from eval.scoring import language_model
from train.config import run_config
from train.rows.row_source import RowSource
from zoo.models import Model


@dataclasses.dataclass(frozen=True)
class Score(language_model.Score):
    """The summed NLL of the targets; these are not all of a text, so there are no bits per byte."""

    def record(self) -> dict[str, float | int]:
        """Return the score as it is in metrics and JSON."""
        return {"loss": self.loss, "perplexity": self.perplexity, "tokens": self.tokens}


def of_run(
    run: run_config.Run, net: Model, mesh: Mesh, data: Any, rows: RowSource, build: Callable[..., Any], *, batch: int, dtype: Any
) -> Callable[[Any], Score]:
    """Return the scorer of a run's held-out rows; the random choices of a row are a function of the row alone."""
    measure = language_model.scorer(net, mesh, rows, build, data.token_bytes, batch=batch, dtype=dtype, chunk=run.loss_chunk)

    def scored(params: Any) -> Score:
        return Score(**dataclasses.asdict(measure(params)))

    return scored
