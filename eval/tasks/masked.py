"""Prediction of masked tokens by an encoder, several at once.

Source: Devlin et al. 2019, section 3.1. 15% of the tokens are predicted, a number that is rounded by the rule of the tokenizer's
kind (`train.targets.masking`). `masked` replaces them as training does: 80% by the mask, 10% by a random entry, and 10% are left
as they are. `masked:all` hides all of them, and so compares models of any objective: encoders and an XLNet that is trained by
denoising see the mask at each of them; an XLNet that is trained by permutation predicts them last in the order, each from all
tokens that are not predicted and from none that is.

Format: the files that training reads (see `train.data.corpus`). A document is cut after sentences, as many as fit into `length`
tokens, special tokens included (by default the model's positions); parts of a document, and other documents, do not see each
other. The masked tokens depend on the text and the length alone, so that models of one tokenizer predict the same tokens, also in
`masked` and `masked:all`.

Metrics:
- loss: nats per masked token; perplexity: e to the loss;
- accuracy: share of masked tokens for which the right entry is the most likely one;
- unigram_loss: loss of predicting by the frequencies of the tokens in these files, without special tokens;
- predictions: how many there are.
Examples are documents. Details: length, and with `all` also hidden.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.inference.batch_loop import Progress
from eval.inference.encoder_runner import Encoder
from eval.tasks.held_out.masked_lm_scores import prediction_scorer
from eval.tasks.held_out.scoring_inputs import RowsToScore
from eval.tasks.perplexity import read_documents, row_length, tokens_of
from eval.tasks.task import Result, Settings, Task
from train.config.data_options import EncoderData
from train.config.objectives import MaskedOptions, PermutationOptions
from train.config.option_groups import Masking
from train.config.run_config import Run
from train.data.corpus import Documents
from train.objectives.masked import Masked
from train.rows import encoder_rows
from train.rows.batches import Build
from train.rows.encoder_rows import EncoderRow
from train.weights.load import Loaded
from zoo import models
from zoo.errors import BadInput

ALL = "all"
"""The argument that replaces every predicted token by the mask."""


def read_masked(names: Sequence[str], settings: Settings) -> Documents:
    """Read the documents of all files.

    Raises:
        BadInput: an unknown argument; see also `read_documents`.
    """
    if settings.argument not in ("", ALL):
        raise BadInput(f"--task masked:{settings.argument}: no such rule; choose masked, or masked:{ALL} to hide all targets")
    return read_documents(names, settings)


def score_masked(subject: Loaded, documents: Documents, settings: Settings, progress: Progress) -> Result:
    """Mask the documents and score the predictions.

    Raises:
        BadInput: a length that the model does not allow, text without tokens, or a model without a head for masked words; see
            also `Encoder.of`.
    """
    encoder = Encoder.of(subject, batch=settings.batch, dtype=settings.dtype)
    encoder.check_masked()
    model, hides_all = subject.model, settings.argument == ALL
    if "masked" not in model.definition.objectives and not hides_all:
        raise BadInput(
            f"--task masked: a {model.family} never sees a token that it predicts; choose --task masked:{ALL}, which hides all "
            "of them, for all models that are compared"
        )
    length, tokens = row_length(encoder, settings), tokens_of(documents, subject)
    data = EncoderData(rows="doc_sentences", pack=True, length=length, batch=settings.batch)
    masking = Masking(masked=1.0, random=0.0) if hides_all else Masking()
    run = Run(
        recipe="", model=dataclasses.replace(model.config, task="masked"), options=MaskedOptions(masking=masking), data=data
    )
    unseen = np.zeros(model.config.vocab, np.int64)
    build = Masked.builder(run, subject.tokenizer, lambda: unseen)
    rows = encoder_rows.plan_rows(tokens, data, subject.tokenizer, seed=0, half="held-out")
    names = [document.name for document in documents if document.last]
    to_score = RowsToScore(
        # Rows do not continue each other, so an XLNet has no memory here.
        model=models.model(dataclasses.replace(model.config, memory=0)) if hasattr(model.config, "memory") else model,
        mesh=subject.mesh,
        rows=rows,
        build=_predicted_last(build) if _permutes(subject) else build,
        batch=settings.batch,
        dtype=settings.dtype,
        progress=progress,
        origins=lambda: [names[number] for number in rows.first_documents.tolist()],
    )
    # The training text is not known here. The frequencies of the scored text itself are the best that frequencies can be.
    counts = np.bincount(tokens.ids, minlength=model.config.vocab)
    special = encoder.special_tokens
    counts[[special.cls, special.sep, special.end]] = 0  # never predicted
    score = prediction_scorer(to_score, counts)(subject.params)
    metrics = score.record()
    details = {"length": length} | ({"hidden": ALL} if hides_all else {})
    numbers = {name: metrics[name] for name in TASK.metrics}
    return Result(numbers, documents.count, details, items=details, outcomes=score.outcomes)


def _permutes(subject: Loaded) -> bool:
    """Return whether a model predicts with its query stream; published weights of such a family do."""
    options = None if subject.run is None else subject.run.options
    denoises = isinstance(options, PermutationOptions) and options.permutation.kind == "denoising"
    return "masked" not in subject.model.definition.objectives and not denoises


def _predicted_last(build: Build) -> Build:
    """Return the build of rows whose predicted tokens are last in the order: each sees only tokens that are not predicted.

    `query_at` takes the place of `predict_at`; `order`, int32 [length], is 0 for predicted tokens, else -1.
    """

    def build_last(rng: np.random.Generator, row: EncoderRow, length: int) -> dict[str, Any]:
        fields = build(rng, row, length)
        predict_at = fields.pop("predict_at")
        order = np.full(length, -1, np.int32)
        order[predict_at[fields["weights"] > 0]] = 0
        return {**fields, "order": order, "query_at": predict_at}

    return build_last


TASK = Task(
    read=read_masked,
    score=score_masked,
    metrics=("loss", "perplexity", "accuracy", "unigram_loss", "predictions"),
    per_token=("loss", "perplexity", "accuracy", "unigram_loss"),
    options=("field", "limit", "length"),
    argument="optional",
)
