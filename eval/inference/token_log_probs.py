"""Log-probabilities of each token of a text after those before it, with the likeliest tokens in its place."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32, Int32

from eval.inference.likelihood import chunk_of, positions, row_length
from train.engine import device_mesh
from zoo.batch import Batch
from zoo.models import Model

MOST = 20
"""Largest number of likeliest tokens. There are programs for one and for this many."""


class TokenLogProbs(NamedTuple):
    """Log-probabilities in nats of the tokens of a text from the second one on."""

    chosen: Float32[np.ndarray, " n"]
    top: Float32[np.ndarray, "n K"]
    """Those of the likeliest tokens, the likeliest first."""
    top_ids: Int32[np.ndarray, "n K"]


def log_probs_with_likeliest(
    model: Model, params: Any, mesh: Mesh, ids: Int32[np.ndarray, " m"], *, top: int, entries: int
) -> TokenLogProbs:
    """Return the log-probabilities of the tokens of one text, n = m - 1, under a model that reads from left to right.

    `train.engine.log_probs.token_log_probs` has those of batches, without the likeliest tokens.

    Args:
        params: in the dtype of the arithmetic; log-probabilities are float32.
        ids: two or more ids, at most one more than the model's positions.
        top: number K of likeliest tokens, 1 to `MOST`.
        entries: number of ids that may be among the likeliest: those of the tokenizer, while the model may have more.
    """
    count = len(ids) - 1
    length, rows = row_length(count, positions(model)), device_mesh.round_up_rows(mesh, 1)
    tokens, targets = np.zeros((2, rows, length), np.int32)
    tokens[:, :count], targets[:, :count] = ids[:-1], ids[1:]
    # No token before sees the padding: neither segments nor a mask are needed.
    batch = Batch(tokens=tokens, targets=targets)
    if model.config.scales_with_length:
        row = np.minimum(np.arange(length, dtype=np.int32), count - 1)
        batch = dataclasses.replace(batch, positions=np.tile(row, (rows, 1)))
    compiled = _compiled(model, mesh, min(1 if top == 1 else MOST, entries), entries)
    with jax.set_mesh(mesh):
        local = device_mesh.local_rows(mesh, rows)
        local_batch = jax.tree.map(lambda array: array[local], batch)
        arrays = compiled(params, device_mesh.shard_batch(local_batch, mesh, rows))
    chosen, values, best = (array[:count] for array in jax.device_get(arrays))
    return TokenLogProbs(chosen, values[:, :top], best[:, :top])


@functools.lru_cache(maxsize=4)
def _compiled(model: Model, mesh: Mesh, top: int, entries: int) -> Callable[[Any, Batch], tuple[jax.Array, jax.Array, jax.Array]]:
    """Return the compiled function of (parameters, batch) to the arrays of `TokenLogProbs` of its first row."""

    def score(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        assert batch.targets is not None
        hidden = model.apply(params, batch).hidden[0]  # [T, D]
        length = hidden.shape[0]
        chunk = chunk_of(1, length, model.config.vocab, mesh)

        def score_chunk(inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            hidden, ids = inputs
            logits = model.unembed(params, hidden[None])[0, :, : model.config.vocab]
            log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
            values, best = jax.lax.top_k(log_probs[:, :entries], top)
            return jnp.take_along_axis(log_probs, ids[:, None], axis=-1)[:, 0], values, best

        chunks = hidden.reshape(length // chunk, chunk, -1), batch.targets[0].reshape(length // chunk, chunk)
        return jax.tree.map(lambda x: x.reshape(length, *x.shape[2:]), jax.lax.map(score_chunk, chunks))

    return jax.jit(score, out_shardings=NamedSharding(mesh, PartitionSpec()))
