"""Perplexity of a causal model on any text, with every token counted once.

Source: the sliding evaluation of Baevski and Auli 2019, "Adaptive Input Representations for Neural Language Modeling", section
5.4; bits per byte as in Gao et al. 2020, "The Pile", section 3.1.

Format: the files that training reads (see `train.data.corpus`). Each document is its tokens and end-of-text.

Rows of `length` tokens (by default the model's positions) slide over the stream of all documents; each begins `stride` tokens
after the previous one (by default half a row), and counts the tokens that the previous one has not counted. So a token sees at
least length - stride tokens before it, once the stream has that many.

Metrics, of the same sum of -log p over all tokens, end-of-text included:
- loss: nats per token; perplexity: e to the loss (both only comparable with the same tokenizer);
- bits_per_byte: bits per UTF-8 byte of the text;
- word_perplexity, with --words: e to the nats per word; words are separated by white space;
- tokens, bytes and words: the numbers that are counted.
Examples are documents. Details: length and stride.
"""

import math
from collections.abc import Iterable

import numpy as np

from eval.scoring import language_model_scores
from eval.scoring.likelihood import chunk_of, positions
from eval.tasks import Progress, Result, Settings, read_documents
from train.data.corpus import Document, Documents
from train.objectives import causal
from train.rows import lm_rows
from train.rows.token_cache import prepare
from train.weights.load import Loaded
from zoo.errors import BadInput, require
from zoo.runtime import caches

OPTIONS = ("field", "limit", "length", "stride", "words")
read = read_documents
PER_TOKEN = ("loss", "perplexity")


def score(subject: Loaded, documents: Documents, settings: Settings, progress: Progress) -> Result:
    """Score every token of the documents.

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
    require(settings.batch >= 1, "batch", settings.batch, "choose 1 or more rows")
    token_bytes = np.zeros(model.config.vocab, np.int64)
    token_bytes[: tokenizer.vocab_size] = tokenizer.token_bytes()
    tokens = prepare(documents, tokenizer, caches.cache_dir() / "text")
    result = language_model_scores.scorer(
        model,
        mesh,
        lm_rows.windows(tokens, length, stride),
        causal.build,
        token_bytes,
        batch=settings.batch,
        dtype=settings.dtype,
        chunk=chunk_of(settings.batch, length, model.config.vocab, mesh),
        progress=progress,
    )(subject.params)
    metrics: dict[str, float] = {**result.record()}
    if settings.words:
        words = count_words(documents)
        require(words > 0, "words", settings.words, "the text has no words")
        metrics |= {"word_perplexity": math.exp(min(result.nats / words, 700.0)), "words": words}
    return Result(metrics, documents.count, {"length": length, "stride": stride})


def count_words(documents: Iterable[Document]) -> int:
    """Return the number of words between white space; a word that is split over two chunks of a document counts once."""
    words, inside = 0, False
    for document in documents:
        words += len(document.text.split()) - (inside and bool(document.text) and not document.text[0].isspace())
        inside = not document.last and not document.text[-1:].isspace()
    return words
