"""Perplexity of any text: of a causal model, of an encoder that predicts each token from both sides, and in random orders.

Format of all three: the files that training reads (see `train.data.corpus`). Examples are documents. Sources:

- perplexity: the sliding evaluation of Baevski and Auli 2019, "Adaptive Input Representations for Neural Language Modeling",
  section 5.4; bits per byte as in Gao et al. 2020, "The Pile", section 3.1.
- pseudo_perplexity: Salazar et al. 2020, "Masked Language Model Scoring", section 2.3, with every token masked once, alone.
- permutation_likelihood: Yang et al. 2019, "XLNet", section 2.2, the objective of a permutation language model.

The numbers of the last two compare models of one tokenizer that are trained so. None is comparable with the perplexity of a model
that reads from left to right: a masked token is predicted from the tokens on both sides, which for a word of several tokens
include the rest of that word, and left to right is the easiest order.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt

from eval.inference.batch_loop import Progress
from eval.inference.encoder_likelihoods import permuted_nats, pseudo_nats
from eval.inference.encoder_runner import Encoder
from eval.inference.likelihood import chunk_of, positions
from eval.metrics.standard_error import with_error
from eval.tasks.held_out.language_model_scores import text_scorer
from eval.tasks.held_out.scoring_inputs import RowsToScore
from eval.tasks.task import Result, Settings, Task
from train.config.data_options import TextData
from train.data import corpus
from train.data.corpus import Document, Documents
from train.objectives import causal
from train.rows import lm_rows
from train.rows.token_cache import Tokens, tokenize_documents
from train.weights.load import Loaded
from zoo.errors import BadInput, require
from zoo.runtime import caches

ORDERS = 8
"""Orders of a document by default."""


def read_documents(names: Sequence[str], settings: Settings) -> Documents:
    """Read the documents of all files, each checked once.

    Raises:
        BadInput: see `train.data.corpus.read_documents`.
    """
    return corpus.read_documents(names, TextData(field=settings.field), settings.limit)


def score_perplexity(subject: Loaded, documents: Documents, settings: Settings, progress: Progress) -> Result:
    """Score every token of the documents under a causal model, with every token counted once.

    Each document is its tokens and end-of-text. Rows of `length` tokens (by default the model's positions) slide over the stream
    of all documents; each begins `stride` tokens after the previous one (by default half a row), and counts the tokens that the
    previous one has not counted. So a token sees at least length - stride tokens before it, once the stream has that many.

    Metrics, of the same sum of -log p over all tokens, end-of-text included: loss, nats per token; perplexity, e to the loss;
    bits_per_byte, bits per UTF-8 byte of the text; word_perplexity, with --words, e to the nats per word, where words are
    separated by white space; tokens, bytes and words, the numbers that are counted. Details: length and stride.

    Raises:
        BadInput: a length or stride that the model or the length does not allow; or a model that predicts no text left to right.
    """
    model, tokenizer, mesh = subject.model, subject.tokenizer, subject.mesh
    if "causal" not in model.definition.objectives:
        raise BadInput(f"{model.family} predicts no text from left to right, so it has no perplexity; choose GPT")
    limit = positions(model)
    require(settings.length > 0 or limit is not None, "length", settings.length, "the model reads any length; choose one")
    length = settings.length or limit or 1
    require(limit is None or length <= limit, "length", length, f"choose at most the model's {limit} positions")
    stride = settings.stride or max(1, length // 2)
    require(1 <= stride <= length, "stride", stride, f"choose 1 to {length} tokens, or 0 for half a row")
    token_bytes = np.zeros(model.config.vocab, np.int64)
    token_bytes[: tokenizer.vocab_size] = tokenizer.token_bytes()
    tokens = tokenize_documents(documents, tokenizer, caches.cache_dir() / "text")
    rows = RowsToScore(
        model=model,
        mesh=mesh,
        rows=lm_rows.stream_windows(tokens, length, stride),
        build=causal.build,
        batch=settings.batch,
        dtype=settings.dtype,
        progress=progress,
    )
    chunk = chunk_of(settings.batch, length, model.config.vocab, mesh)
    result = text_scorer(rows, token_bytes, chunk)(subject.params)
    metrics: dict[str, float] = {**result.record()}
    if settings.words:
        words = count_words(documents)
        require(words > 0, "words", settings.words, "the text has no words")
        metrics |= {"word_perplexity": math.exp(min(result.nats / words, 700.0)), "words": words}
    return Result(metrics, documents.count, {"length": length, "stride": stride})


def score_pseudo_perplexity(subject: Loaded, documents: Documents, settings: Settings, progress: Progress) -> Result:
    """Mask every token of the documents in turn.

    Each document is read with the special tokens at its beginning and end, and sees no other. In a document longer than `length`
    tokens, special tokens included (default: the model's maximum), each token sees the window of that length around it, moved
    inwards at the document's ends.

    Metrics, of the same sum of -log p over all tokens, without special tokens: loss, nats per token; pseudo_perplexity, e to the
    loss; word_pseudo_perplexity, e to the nats per word, where words are separated by white space; tokens and words that are
    counted, and how many of the tokens are unknown to the vocabulary. Details: length.

    Raises:
        BadInput: a length that the model does not allow, text without tokens; see also `Encoder.of` and `pseudo_nats`.
    """
    encoder = Encoder.of(subject, batch=settings.batch, dtype=settings.dtype)
    length = row_length(encoder, settings)
    texts, words = document_ids(tokens_of(documents, subject)), count_words(documents)
    nats = float(pseudo_nats(encoder, texts, length=length, name="document {}".format, progress=progress).sum())
    count = sum(map(len, texts))
    metrics = {
        "loss": nats / count,
        "pseudo_perplexity": math.exp(min(nats / count, 700.0)),
        "word_pseudo_perplexity": math.exp(min(nats / max(words, 1), 700.0)),
        "tokens": count,
        "words": words,
        "unknown": _unknown(encoder, texts),
    }
    return Result(metrics, documents.count, {"length": length})


def score_permutations(subject: Loaded, documents: Documents, settings: Settings, progress: Progress) -> Result:
    """Score every document in some random orders of its tokens, alone.

    A document longer than `length` tokens (by default 512) is scored in chunks that do not see each other.

    Metrics, over all documents and `orders` random orders of each: loss, mean nats per token; loss_stderr, the standard error of
    that mean over the orders, for fixed documents (for one order there is none); perplexity, e to the loss; tokens that are
    counted, and how many of them are unknown to the vocabulary. Details: length, orders.

    Raises:
        BadInput: text without tokens; see also `Encoder.of` and `permuted_nats`.
    """
    encoder = Encoder.of(subject, batch=settings.batch, dtype=settings.dtype)
    length, orders = settings.length or encoder.room, settings.orders or ORDERS
    require(1 <= length <= encoder.room, "length", settings.length, f"choose 1 to {encoder.room} tokens")
    require(orders >= 1, "orders", orders, "choose 1 or more")
    texts = document_ids(tokens_of(documents, subject))
    count = sum(map(len, texts))
    nats = permuted_nats(encoder, texts, orders=orders, length=length, name="document {}".format, progress=progress)
    metrics = with_error("loss", (nats.sum(0) / count).tolist())
    metrics |= {"perplexity": math.exp(min(metrics["loss"], 700.0)), "tokens": count, "unknown": _unknown(encoder, texts)}
    details = {"length": length, "orders": orders}
    return Result(metrics, documents.count, details, items=details)


def row_length(encoder: Encoder, settings: Settings) -> int:
    """Return the tokens of a row, special tokens included: `length`, or the model's positions.

    Raises:
        BadInput: fewer than 3, or more than the model's positions.
    """
    length = settings.length or encoder.room
    require(3 <= length <= encoder.room, "length", settings.length, f"choose 3 to the model's {encoder.room} positions")
    return length


def tokens_of(documents: Documents, subject: Loaded) -> Tokens:
    """Return the tokens of documents, for an encoder.

    Raises:
        BadInput: they have none.
    """
    tokens = tokenize_documents(documents, subject.tokenizer, caches.cache_dir() / "text")
    if len(tokens.ids) == documents.count:
        raise BadInput("--files: they have no tokens, only white space; write some text")
    return tokens


def document_ids(tokens: Tokens) -> list[UInt[np.ndarray, " _"]]:
    """Return the ids of each document, without end-of-text."""
    return [tokens.ids[start : end - 1] for start, end in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]


def _unknown(encoder: Encoder, texts: Sequence[np.ndarray]) -> int:
    return sum(int(np.count_nonzero(text == encoder.special_tokens.unk)) for text in texts)


def count_words(documents: Iterable[Document]) -> int:
    """Return the number of words between white space; a word that is split over two chunks of a document counts once."""
    words, inside = 0, False
    for document in documents:
        words += len(document.text.split()) - (inside and bool(document.text) and not document.text[0].isspace())
        inside = not document.last and not document.text[-1:].isspace()
    return words


PERPLEXITY = Task(
    read=read_documents,
    score=score_perplexity,
    metrics=("loss", "perplexity", "bits_per_byte", "tokens", "bytes", "word_perplexity", "words"),
    per_token=("loss", "perplexity"),
    options=("field", "limit", "length", "stride", "words"),
)
PSEUDO_PERPLEXITY = Task(
    read=read_documents,
    score=score_pseudo_perplexity,
    metrics=("loss", "pseudo_perplexity", "word_pseudo_perplexity", "tokens", "words", "unknown"),
    per_token=("loss", "pseudo_perplexity"),
    options=("field", "limit", "length"),
)
PERMUTATION_LIKELIHOOD = Task(
    read=read_documents,
    score=score_permutations,
    metrics=("loss", "loss_stderr", "perplexity", "tokens", "unknown"),
    per_token=("loss", "perplexity"),
    options=("field", "limit", "length", "orders"),
)
