"""Scores of masked-token prediction, and of next-sentence prediction, on held-out text."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from eval.tasks.held_out.scoring_inputs import RowsToScore, ScoringInputs, no_items
from train.engine import device_mesh
from train.rows.row_source import are_rows_ordered
from train.run.item_outcomes import Outcomes
from zoo.batch import IGNORED, Batch
from zoo.errors import BadInput
from zoo.nn import task_heads

SUMS = ("masked_nats", "hits", "unigram_nats", "predictions", "next_nats", "next_hits", "pairs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedScore:
    """Sums over the predictions of all rows."""

    masked_nats: float
    hits: float
    unigram_nats: float
    """Negative log-likelihood of the same tokens by token frequencies alone."""
    predictions: float
    next_nats: float
    next_hits: float
    pairs: float
    items: Callable[[], Outcomes | None] = no_items
    """Returns the outcomes of each row."""

    @property
    def outcomes(self) -> Outcomes | None:
        """Right predictions of masked tokens and their loss, of each row; None if the rows cannot be named."""
        return self.items()

    def record(self) -> dict[str, float | int]:
        """Return the score as it is in metrics and JSON; without pairs it has no next-sentence metrics."""
        masked = self.masked_nats / self.predictions
        result: dict[str, float | int] = {
            "loss": masked + (self.next_nats / self.pairs if self.pairs else 0.0),
            "perplexity": math.exp(min(masked, 700.0)),
            "accuracy": self.hits / self.predictions,
            "masked_loss": masked,
            "unigram_loss": self.unigram_nats / self.predictions,
            "predictions": round(self.predictions),
        }
        if self.pairs:
            result |= {"next_loss": self.next_nats / self.pairs, "next_accuracy": self.next_hits / self.pairs}
            result["pairs"] = round(self.pairs)
        return result


def score_predictions(inputs: ScoringInputs) -> Callable[[Any], MaskedScore]:
    """Return the scorer of a masked run's text; each row's mask is a function of the row alone."""
    # An id that the training text lacks may be in the scored one, so it counts as one.
    return prediction_scorer(inputs, np.maximum(inputs.data.counts(), 1))


def prediction_scorer(inputs: RowsToScore, counts: np.ndarray) -> Callable[[Any], MaskedScore]:
    """Return a function of parameters that scores every row of `inputs`.

    Row sums are added in float64 on the host, so that the batch size does not affect the result.

    Args:
        counts: number of occurrences of each id, [V], whose frequencies `unigram_nats` is of; 0 for ids that are no targets.
    """
    model, mesh, rows = inputs.model, inputs.mesh, inputs.rows
    size = device_mesh.round_up_rows(mesh, rows.batch) if are_rows_ordered(rows) else inputs.size
    if are_rows_ordered(rows) and size != rows.batch:
        raise BadInput(
            f"--mesh: its data x fsdp devices do not divide the {rows.batch} streams of rows that continue each other; "
            "choose one that does"
        )
    total = counts.sum(dtype=np.float64)
    unigram = jnp.asarray(np.log(total) - np.log(np.maximum(counts, 1)), jnp.float32)

    def row_sums(params: Any, batch: Batch, carry: Any) -> tuple[jax.Array, Any]:
        """Return the `SUMS` of each row, [7, rows], and the model's carry."""
        assert batch.targets is not None and batch.weights is not None
        out = model.apply(params, batch, carry=carry)
        masked_sums = _row_sums(model.unembed(params, task_heads.predicting_states(out, batch)), batch.targets, batch.weights > 0)
        unigram_nats = jnp.where(batch.weights > 0, unigram[batch.targets], 0).sum(-1)
        pairs = [jnp.zeros_like(unigram_nats)] * 3
        if batch.labels is not None:
            logits = model.sequence_logits(params, task_heads.sequence_summaries(out, batch))
            pairs = _row_sums(logits, batch.labels, batch.labels != IGNORED)
        nats, hits, count = masked_sums
        return jnp.stack([nats, hits, unigram_nats, count, *pairs]), out.carry

    def summarize(results: Iterable[np.ndarray]) -> MaskedScore:
        # The sums of rows that fill up the last batch are 0.
        sums = np.concatenate([*results], axis=-1)
        nats, hits, _, predictions, *_ = sums[:, : len(rows)]
        items = functools.partial(inputs.outcomes, hits, nats, predictions)
        return MaskedScore(**dict(zip(SUMS, sums.sum(-1).tolist(), strict=True)), items=items)

    return inputs.scorer(row_sums, summarize, init_carry=model.init_carry, size=size)


def _row_sums(logits: Float[Array, "B P V"], truth: Int[Array, "B P"], counted: Bool[Array, "B P"]) -> list[Float[Array, " B"]]:
    """Return (NLL in nats, correct predictions, number of predictions) of each row, over the positions where `counted`."""
    truth = jnp.where(counted, truth, 0)
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), truth[..., None], -1)[..., 0]
    hits = jnp.float32(logits.argmax(-1) == truth)
    return [jnp.where(counted, values, 0).sum(-1) for values in (nats, hits, jnp.ones_like(nats))]
