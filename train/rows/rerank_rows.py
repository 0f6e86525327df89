"""Rows of cross-encoders: each candidate of a query as a pair of texts with it."""

from collections.abc import Iterator, Sequence

import numpy as np

from train.config.embedding_options import RankedTexts
from train.config.rerank_options import Rerank
from train.data.example_types import Ranked
from train.rows.embedding_rows import example_texts
from train.rows.example_rows import ExampleRow, encoded_texts, fill_template, refuse_long, special_tokens_of
from train.tokenizers.tokenizer import Tokenizer


@refuse_long
def candidate_rows(
    examples: Sequence[Ranked], tokenizer: Tokenizer, options: RankedTexts, length: int, *, group: Rerank
) -> Iterator[ExampleRow]:
    """Yield `cls query sep candidate sep` for the positive of a query and its first `group.negatives` negatives.

    The label, int32 [], is 0: the first candidate is the positive.

    Raises:
        BadInput: an example without a positive, or with too few negatives.
    """
    special = special_tokens_of(tokenizer)
    texts_of = [example_texts(example, "rerank", group.negatives) for example in examples]
    encoded = encoded_texts(tokenizer, (text for texts in texts_of for text in texts))
    for number, (query, *candidates) in enumerate(texts_of):
        pairs = (fill_template(encoded[query], encoded[text], special, length) for text in candidates)
        inputs, sizes = zip(*pairs, strict=True)
        yield ExampleRow(inputs, np.array(0, np.int32), np.ones(1, np.float32), number, size=max(sizes))
