"""Token ids of a text that continues another one, as a language model reads the two."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int32

from train.tokenizers.text_borders import common_prefix_length
from train.tokenizers.tokenizer import Tokenizer


def encode_continuations(
    tokenizer: Tokenizer, texts: Sequence[tuple[str, str]]
) -> Iterator[tuple[Int32[np.ndarray, " a"], Int32[np.ndarray, " b"]]]:
    """Yield the ids of (context, continuation) texts, divided as lm-evaluation-harness does.

    White space at a context's end moves to its continuation, whose first word it belongs to in a byte-level vocabulary. An empty
    context becomes end-of-text, as at the beginning of a document; nothing is added before any other. The two texts are encoded
    as one. A token across the border belongs to the continuation, so that the tokens always spell the text.
    """
    stripped = [(text.rstrip(), text[len(text.rstrip()) :] + continuation) for text, continuation in texts]
    contexts = tokenizer.encode_many([context for context, _ in stripped])
    joined = tokenizer.encode_many([context + continuation for context, continuation in stripped])
    for context, ids in zip(contexts, joined, strict=True):
        border = common_prefix_length(context, ids)
        yield ids[:border] if border else np.array([tokenizer.end_of_text], np.int32), ids[border:]
