"""How well a model tells masked words, and whether sentences follow each other, on held-out text."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from train import batches, config
from train import mesh as meshes
from zoo import heads
from zoo.batch import IGNORED, Batch
from zoo.models import Model

SUMS = ("masked_nats", "hits", "unigram_nats", "predictions", "next_nats", "next_hits", "pairs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Sums over the predictions of all rows."""

    masked_nats: float
    hits: float
    unigram_nats: float
    """Surprise of the same words for whoever knows how often each occurs in the training text, and nothing else."""
    predictions: float
    next_nats: float
    next_hits: float
    pairs: float

    def record(self) -> dict[str, float | int]:
        """The score as metrics and JSON carry it; without pairs there is nothing of next sentences."""
        masked = self.masked_nats / self.predictions
        found: dict[str, float | int] = {
            "loss": masked + (self.next_nats / self.pairs if self.pairs else 0.0),
            "perplexity": math.exp(min(masked, 700.0)),
            "accuracy": self.hits / self.predictions,
            "masked_loss": masked,
            "unigram_loss": self.unigram_nats / self.predictions,
            "predictions": round(self.predictions),
        }
        if self.pairs:
            found |= {"next_loss": self.next_nats / self.pairs, "next_accuracy": self.next_hits / self.pairs}
            found["pairs"] = round(self.pairs)
        return found


def of_run(
    run: config.Run, net: Model, mesh: Mesh, data: Any, rows: Any, build: Callable[..., Any], *, batch: int, dtype: Any
) -> Callable[[Any], Score]:
    """The scorer of a masked run's text; each row's mask is a function of the row alone."""
    return scorer(net, mesh, rows, build, data.counts(), batch=batch, dtype=dtype)


def scorer(
    net: Model, mesh: Mesh, rows: Any, build: Callable[..., Any], counts: np.ndarray, *, batch: int, dtype: Any
) -> Callable[[Any], Score]:
    """A function of parameters that scores every row of `rows`, `batch` rows at a time over the mesh.

    `counts[V]` is how often each id occurs in the training text; one that does not occur counts as if it did once. Row sums are
    added up in float64 on the host, so that the batch size does not enter the result.
    """
    batch = meshes.fitting(mesh, min(batch, len(rows)))
    everywhere = NamedSharding(mesh, PartitionSpec())
    seen = np.maximum(counts.astype(np.float64), 1)
    unigram = jnp.asarray(np.log(seen.sum()) - np.log(seen), jnp.float32)

    @jax.jit
    def cast(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    def row_sums(params: Any, batch: Batch) -> jax.Array:
        """[7, rows] of `SUMS`."""
        assert batch.targets is not None and batch.weights is not None
        hidden = net.apply(params, batch).hidden
        words = _judged(net.unembed(params, heads.gather(hidden, batch.predict_at)), batch.targets, batch.weights > 0)
        known = jnp.where(batch.weights > 0, unigram[batch.targets], 0).sum(-1)
        pairs = [jnp.zeros_like(known)] * 3
        if batch.labels is not None:
            logits = net.sequence_logits(params, heads.summaries(hidden, batch.summary_at))
            pairs = _judged(logits, batch.labels, batch.labels != IGNORED)
        nats, hits, count = words
        return jnp.stack([nats, hits, known, count, *pairs])

    compiled = jax.jit(row_sums, out_shardings=everywhere)
    local = meshes.local_rows(mesh, batch)

    def score(params: Any) -> Score:
        totals = np.zeros(len(SUMS))
        with jax.set_mesh(mesh):
            ready = cast(params)
            for mine in batches.in_order(rows, build, batch, local):
                totals += np.asarray(jax.device_get(compiled(ready, meshes.place(mine, mesh, batch))), np.float64).sum(-1)
        return Score(**dict(zip(SUMS, totals.tolist(), strict=True)))

    return score


def _judged(logits: Float[Array, "B P V"], truth: Int[Array, "B P"], asked: Bool[Array, "B P"]) -> list[Float[Array, " B"]]:
    """Of each row: the surprise in nats of what is asked, how much of it is told rightly, and how much there is."""
    truth = jnp.where(asked, truth, 0)
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), truth[..., None], -1)[..., 0]
    return [
        jnp.where(asked, each, 0).sum(-1, dtype=jnp.float32) for each in (nats, logits.argmax(-1) == truth, jnp.ones_like(nats))
    ]
