"""Rows of cross-encoders: each candidate of a query as a pair of texts with it."""

from collections.abc import Iterator, Sequence

import numpy as np

from train.config.embedding_options import RankedTexts
from train.config.rerank_options import Rerank
from train.data.example_types import Ranked
from train.rows.example_rows import ExampleRow, encoded_texts, fill_template, refuse_long, special_tokens_of
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput


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
    candidates_of = [_candidates(example, group) for example in examples]
    texts_of = ((item.query, *texts) for item, texts in zip(examples, candidates_of, strict=True))
    encoded = encoded_texts(tokenizer, (text for texts in texts_of for text in texts))
    for number, (example, candidates) in enumerate(zip(examples, candidates_of, strict=True)):
        query = encoded[example.query]
        inputs, sizes = zip(*(fill_template(query, encoded[text], special, length) for text in candidates), strict=True)
        yield ExampleRow(inputs, np.array(0, np.int32), np.ones(1, np.float32), number, size=max(sizes))


def _candidates(example: Ranked, group: Rerank) -> list[str]:
    """Return the positive of a query and its first negatives."""
    if not example.positive:
        raise BadInput(f"{example.origin}: the query has no positive; name its column with --labelled.positive")
    if len(example.negatives) < group.negatives:
        count = f"{len(example.negatives)} negatives, and --rerank.negatives is {group.negatives}"
        fix = "write more, name their column with --labelled.negatives, or choose fewer"
        raise BadInput(f"{example.origin}: {count}; {fix}")
    return [example.positive, *example.negatives[: group.negatives]]
