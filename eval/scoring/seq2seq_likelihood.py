"""Exact scores of an encoder-decoder with teacher forcing, in nats per target token."""

import dataclasses
from collections.abc import Callable
from typing import Any

from eval.scoring import language_model_scores
from eval.scoring.batch_loop import ScoringInputs


@dataclasses.dataclass(frozen=True)
class Score(language_model_scores.Score):
    """The summed NLL of the targets; these are not all of a text, so there are no bits per byte."""

    def record(self) -> dict[str, float | int]:
        """Return the score as it is in metrics and JSON."""
        return {"loss": self.loss, "perplexity": self.perplexity, "tokens": self.tokens}


def of_run(inputs: ScoringInputs) -> Callable[[Any], Score]:
    """Return the scorer of a run's held-out rows; the random choices of a row are a function of the row alone."""
    measure = language_model_scores.of_run(inputs)

    def scored(params: Any) -> Score:
        return Score(**dataclasses.asdict(measure(params)))

    return scored
