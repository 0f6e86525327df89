"""Log-probabilities of sampled responses under a model, at the temperature of sampling."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float64

from eval.scoring.batch_loop import BatchLoop
from eval.scoring.feedback.completion_scores import SideRows
from train.engine import device_mesh
from train.engine.log_probs import token_log_probs
from train.rows.feedback.preference_rows import Side
from train.rows.feedback.response_rows import row_builder
from train.weights.load import Loaded
from zoo.batch import Batch
from zoo.models import Model


def response_log_probs(
    subject: Loaded, sides: Sequence[Side], *, tokens: int, temperature: float, batch: int, dtype: Any
) -> Float64[np.ndarray, " N"]:
    """Return the log-probability in nats of each response after its prompt, summed over its tokens.

    Args:
        sides: ids of prompts with their responses; those of a response have the end mark if it was sampled.
        tokens: most tokens of a response.
        temperature: divides the logits.
        batch: rows computed at a time.
    """
    build = row_builder(subject.model.config, subject.tokenizer, target_length=tokens)
    length = max(len(side.ids if side.source is None else side.source) for side in sides)
    loop = _loop(subject.model, subject.mesh, np.dtype(dtype), tokens, temperature)
    rows = device_mesh.round_up_rows(subject.mesh, min(batch, len(sides)))
    results = loop.results(
        loop.cast(subject.params), SideRows(sides, length), lambda rng, side, length: build(side, length), rows
    )
    return np.concatenate(list(results))[: len(sides)]


@functools.cache
def _loop(model: Model, mesh: Mesh, dtype: np.dtype, tokens: int, temperature: float) -> BatchLoop:
    def compute(params: Any, batch: Batch, carry: Any) -> tuple[jax.Array, Any]:
        nats = token_log_probs(model, params, batch, temperature=temperature, longest=tokens)
        return nats.sum(1), carry

    return BatchLoop(mesh, dtype, compute)
