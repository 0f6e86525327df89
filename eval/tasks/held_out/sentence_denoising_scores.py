"""The score of reconstructed held-out texts: the perplexity of their tokens given the vector of some of their words."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array

from eval.tasks.held_out.language_model_scores import TargetScore, TextScore, text_scorer
from eval.tasks.held_out.scoring_inputs import ScoringInputs
from train.inputs.labelled_inputs import LabelledRows
from train.objectives.sentence_denoising import DenoisedSentences
from zoo.batch import Batch


def score_sentences(inputs: ScoringInputs) -> Callable[[Any], TextScore]:
    """Return a function of parameters, the decoder's among them, that scores all rows; the words left are those of the row."""
    rows, model, chunk = inputs.rows, inputs.model, inputs.run.loss_chunk
    assert isinstance(rows, LabelledRows)
    objective = DenoisedSentences(inputs.run.options.sentence_denoising)
    inputs = dataclasses.replace(inputs, origins=lambda: [rows.examples[row.example].origin for row in rows.rows])

    def losses(params: Any, batch: Batch) -> Array:
        return objective.token_nats(model, params, batch, chunk=chunk)

    # The score has no bits per byte.
    return text_scorer(inputs, np.zeros(model.config.vocab, np.int64), chunk, TargetScore, losses)
