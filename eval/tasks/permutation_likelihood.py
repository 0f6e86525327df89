"""Likelihood of texts whose tokens are predicted in random orders, the objective of a permutation language model.

Source: Yang et al. 2019, "XLNet", section 2.2. The numbers compare models of one tokenizer that are trained so; none is
comparable with the perplexity of a model that reads from left to right, the easiest order.

Format: the files that training reads (see `train.data.corpus`). Each document is scored alone; a document longer than `length`
tokens (by default 512) is scored in chunks that do not see each other.

Metrics, over all documents and `orders` random orders of each:
- loss: mean nats per token; loss_stderr: the standard error of that mean over the orders, for fixed documents (for one order
  there is none); perplexity: e to the loss;
- tokens that are counted, and how many of them are unknown to the vocabulary.
Examples are documents. Details: length, orders.
"""

import math

import numpy as np

from eval.metrics.standard_error import mean_and_error
from eval.scoring.encoder_runner import Encoder
from eval.scoring.permutation_likelihood import permuted_nats
from eval.tasks import Progress, Result, Settings, read_documents
from train.data.corpus import Documents
from train.rows.token_cache import prepare
from train.weights.load import Loaded
from zoo.errors import BadInput, require
from zoo.runtime import caches

OPTIONS = ("field", "limit", "length", "orders")
read = read_documents
PER_TOKEN = ("loss", "perplexity")
ORDERS = 8
"""Orders of a document by default."""


def score(subject: Loaded, documents: Documents, settings: Settings, progress: Progress) -> Result:
    """Score every document in some orders.

    Raises:
        BadInput: text without tokens; see also `Encoder.of` and `permuted_nats`.
    """
    encoder = Encoder.of(subject, batch=settings.batch, dtype=settings.dtype)
    length, orders = settings.length or encoder.room, settings.orders or ORDERS
    require(1 <= length <= encoder.room, "length", settings.length, f"choose 1 to {encoder.room} tokens")
    require(orders >= 1, "orders", orders, "choose 1 or more")
    tokens = prepare(documents, subject.tokenizer, caches.cache_dir() / "text")
    texts = [tokens.ids[start : end - 1] for start, end in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]
    if not (count := sum(map(len, texts))):
        raise BadInput("--files: they have no tokens, only white space; write some text")
    nats = permuted_nats(encoder, texts, orders=orders, length=length, name="document {}".format, progress=progress)
    loss, error = mean_and_error((nats.sum(0) / count).tolist())
    metrics = {
        "loss": loss,
        **({} if error is None else {"loss_stderr": error}),
        "perplexity": math.exp(min(loss, 700.0)),
        "tokens": count,
        "unknown": sum(int(np.count_nonzero(text == encoder.special_tokens.unk)) for text in texts),
    }
    details = {"length": length, "orders": orders}
    return Result(metrics, documents.count, details, items=details)
