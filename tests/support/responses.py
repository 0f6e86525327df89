"""Prompts with responses as rows of small models."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tests.support import preferences
from train.rows.feedback.preference_rows import Side
from train.rows.feedback.response_rows import row_builder
from zoo.batch import Batch
from zoo.models import Model


def rows(
    net: Model, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, length: int, target_length: int
) -> Batch:
    """Return the rows of `train.rows.feedback.response_rows`."""
    build = row_builder(net.config, preferences.tokenizer(net.family), target_length=target_length)

    def side(prompt: Sequence[int], response: Sequence[int]) -> Side:
        source, answer = np.array(prompt, np.int32), np.array(response, np.int32)
        return Side(answer, 0, source) if net.is_encoder_decoder else Side(np.concatenate([source, answer]), len(source))

    built = [build(side(*pair), length) for pair in zip(prompts, responses, strict=True)]
    return Batch(**jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *built))
