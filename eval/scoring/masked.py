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

from train.config import run_config
from train.engine import device_mesh
from train.rows import batches
from train.rows.mixture import ordered
from zoo.batch import IGNORED, Batch
from zoo.errors import BadInput
from zoo.models import Model
from zoo.nn import heads

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
    run: run_config.Run, net: Model, mesh: Mesh, data: Any, rows: Any, build: Callable[..., Any], *, batch: int, dtype: Any
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
    size = device_mesh.fitting(mesh, rows.batch if ordered(rows) else min(batch, len(rows)))
    if ordered(rows) and size != rows.batch:
        raise BadInput(
            f"--mesh: its data x fsdp devices do not divide the {rows.batch} streams of rows that continue each other; "
            "choose one that does"
        )
    everywhere = NamedSharding(mesh, PartitionSpec())
    seen = np.maximum(counts.astype(np.float64), 1)
    unigram = jnp.asarray(np.log(seen.sum()) - np.log(seen), jnp.float32)

    @jax.jit
    def cast(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    def row_sums(params: Any, batch: Batch, carry: Any) -> tuple[jax.Array, Any]:
        """[7, rows] of `SUMS`, and the model's carry."""
        assert batch.targets is not None and batch.weights is not None
        out = net.apply(params, batch, carry=carry)
        words = _judged(net.unembed(params, heads.predictions(out, batch)), batch.targets, batch.weights > 0)
        known = jnp.where(batch.weights > 0, unigram[batch.targets], 0).sum(-1)
        pairs = [jnp.zeros_like(known)] * 3
        if batch.labels is not None:
            logits = net.sequence_logits(params, heads.summaries(out.hidden, batch.summary_at))
            pairs = _judged(logits, batch.labels, batch.labels != IGNORED)
        nats, hits, count = words
        return jnp.stack([nats, hits, known, count, *pairs]), out.carry

    along = device_mesh.batch_sharding(mesh)
    compiled = jax.jit(row_sums, out_shardings=(everywhere, along))
    begin = jax.jit(lambda: net.init_carry(size), out_shardings=along)
    local = device_mesh.local_rows(mesh, size)

    def score(params: Any) -> Score:
        totals = np.zeros(len(SUMS))
        with jax.set_mesh(mesh):
            ready, carry = cast(params), begin()
            for mine in batches.in_order(rows, build, size, local):
                sums, carry = compiled(ready, device_mesh.place(mine, mesh, size), carry)
                totals += np.asarray(jax.device_get(sums), np.float64).sum(-1)
        return Score(**dict(zip(SUMS, totals.tolist(), strict=True)))

    return score


def _judged(logits: Float[Array, "B P V"], truth: Int[Array, "B P"], asked: Bool[Array, "B P"]) -> list[Float[Array, " B"]]:
    """Of each row: the surprise in nats of what is asked, how much of it is told rightly, and how much there is."""
    truth = jnp.where(asked, truth, 0)
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), truth[..., None], -1)[..., 0]
    hits = jnp.float32(logits.argmax(-1) == truth)
    return [jnp.where(asked, each, 0).sum(-1) for each in (nats, hits, jnp.ones_like(nats))]
