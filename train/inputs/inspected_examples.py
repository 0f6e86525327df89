"""Training examples as JSON: `zoo data inspect --json`."""

import dataclasses
from typing import Any

import numpy as np

from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch


def batch_record(tokenizer: Tokenizer, example: Batch) -> dict[str, Any]:
    """Return the fields of an example that are not None, as arrays, and as "text" the spelling of each of its tokens.

    The encoder's side, in `source`, has the same form.
    """
    values = {field.name: getattr(example, field.name) for field in dataclasses.fields(example)}
    record = {name: value for name, value in values.items() if value is not None}
    if example.source is not None:
        record["source"] = batch_record(tokenizer, example.source)
    return {"text": _spelled(tokenizer, np.asarray(example.tokens)), **record}


def _spelled(tokenizer: Tokenizer, ids: np.ndarray) -> list[Any]:
    """Return the text of each id, in lists of the shape of `ids`; None for an id that the vocabulary does not have."""
    if ids.ndim > 1:
        return [_spelled(tokenizer, row) for row in ids]
    return [tokenizer.spell(number) if 0 <= number < tokenizer.vocab_size else None for number in ids.tolist()]
