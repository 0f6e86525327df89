"""Pseudo-perplexity of an encoder on any text, with every token masked once, alone.

Source: Salazar et al. 2020, "Masked Language Model Scoring", section 2.3. The numbers compare encoders of one tokenizer; none is
comparable with the perplexity of a model that reads from left to right: each token is predicted from the tokens on
both sides, which for a word of several tokens include the rest of that word.

Format: the files that training reads (see `train.data.corpus`). Each document is read with the special tokens at its beginning
and end, and sees no other. In a document longer than `length` tokens, special tokens included (default: the model's maximum),
each token sees the window of that length around it, moved inwards at the document's ends.

Metrics, of the same sum of -log p over all tokens, without special tokens:
- loss: nats per token; pseudo_perplexity: e to the loss;
- word_pseudo_perplexity: e to the nats per word; words are separated by white space;
- tokens and words that are counted, and how many of the tokens are unknown to the vocabulary.
Examples are documents. Details: length.
"""

import math

import numpy as np

from eval.scoring.encoder_runner import Encoder
from eval.scoring.pseudo_likelihood import pseudo_nats
from eval.tasks import Progress, Result, Settings, read_documents
from eval.tasks.perplexity import count_words
from train.data.corpus import Documents
from train.rows.token_cache import prepare
from train.weights.load import Loaded
from zoo.errors import BadInput, require
from zoo.runtime import caches

OPTIONS = ("field", "limit", "length")
read = read_documents
PER_TOKEN = ("loss", "pseudo_perplexity")


def score(subject: Loaded, documents: Documents, settings: Settings, progress: Progress) -> Result:
    """Mask every token of the documents in turn.

    Raises:
        BadInput: a length that the model does not allow, text without tokens; see also `Encoder.of` and `pseudo_nats`.
    """
    encoder = Encoder.of(subject, batch=settings.batch, dtype=settings.dtype)
    length = settings.length or encoder.room
    require(3 <= length <= encoder.room, "length", settings.length, f"choose 3 to the model's {encoder.room} positions")
    tokens = prepare(documents, subject.tokenizer, caches.cache_dir() / "text")
    texts = [tokens.ids[start : end - 1] for start, end in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]
    count, words = sum(map(len, texts)), count_words(documents)
    if not count:
        raise BadInput("--files: they have no tokens, only white space; write some text")
    nats = float(pseudo_nats(encoder, texts, length=length, name="document {}".format, progress=progress).sum())
    metrics = {
        "loss": nats / count,
        "pseudo_perplexity": math.exp(min(nats / count, 700.0)),
        "word_pseudo_perplexity": math.exp(min(nats / max(words, 1), 700.0)),
        "tokens": count,
        "words": words,
        "unknown": sum(int(np.count_nonzero(text == encoder.special_tokens.unk)) for text in texts),
    }
    return Result(metrics, documents.count, {"length": length})
