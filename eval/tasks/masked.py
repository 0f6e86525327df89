"""Prediction of masked tokens by an encoder, as in its training: several at once, some of them changed or left as they are.

Source: Devlin et al. 2019, section 3.1; the number of masked tokens and their replacements are as in training
(`train.rows.masking`), by the rules of the tokenizer's kind: 15% of them, 80% of these as the mask, 10% as a random entry, 10% as
they are.

Format: the files that training reads (see `train.data.corpus`). A document is cut after sentences, as many as fit into `length`
tokens, special tokens included (by default the model's positions); parts of a document, and other documents, do not see each
other. The masked tokens depend on the text and the length alone, so that models of one tokenizer predict the same tokens.

Metrics:
- loss: nats per masked token; perplexity: e to the loss;
- accuracy: share of masked tokens for which the right entry is the likeliest one;
- predictions: how many there are.
Examples are documents. Details: length.
"""

import dataclasses

import numpy as np

from eval.scoring import masked_lm
from eval.scoring.encoder_runner import Encoder
from eval.tasks import Progress, Result, Settings, read_documents
from train.config.data_options import EncoderData
from train.config.objectives import MaskedOptions
from train.config.run_config import Run
from train.data.corpus import Documents
from train.objectives.masked import Masked
from train.rows import encoder_rows
from train.rows.token_cache import prepare
from train.weights.load import Loaded
from zoo.errors import BadInput, require
from zoo.runtime import jax_setup

OPTIONS = ("field", "limit", "length")
read = read_documents


def score(subject: Loaded, documents: Documents, settings: Settings, progress: Progress) -> Result:
    """Mask the documents and score the predictions.

    Raises:
        BadInput: a length that the model does not allow, text without tokens, or a model without a head for masked words; see
            also `Encoder.of`.
    """
    encoder = Encoder.of(subject, batch=settings.batch, dtype=settings.dtype)
    encoder.check_masked()
    if "masked" not in subject.model.module.OBJECTIVES:
        raise BadInput(f"--task masked: a {subject.model.family} never sees a mask; choose --task permutation_likelihood")
    length = settings.length or encoder.room
    require(3 <= length <= encoder.room, "length", settings.length, f"choose 3 to the model's {encoder.room} positions")
    tokens = prepare(documents, subject.tokenizer, jax_setup.cache_dir() / "text")
    if len(tokens.ids) == documents.count:
        raise BadInput("--files: they have no tokens, only white space; write some text")
    data = EncoderData(rows="doc_sentences", pack=True, length=length, batch=settings.batch)
    model = dataclasses.replace(subject.model.config, task="masked")
    run = Run(recipe="", model=model, options=MaskedOptions(), data=data)
    unseen = np.zeros(subject.model.config.vocab, np.int64)
    metrics = masked_lm.scorer(
        subject.model,
        subject.mesh,
        encoder_rows.plan_rows(tokens, data, subject.tokenizer, seed=0, half="held-out"),
        Masked.builder(run, subject.tokenizer, lambda: unseen),
        unseen,
        batch=settings.batch,
        dtype=settings.dtype,
        progress=progress,
    )(subject.params).record()
    names = ("loss", "perplexity", "accuracy", "predictions")
    return Result({name: metrics[name] for name in names}, documents.count, {"length": length})
