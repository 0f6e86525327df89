"""Rows of a decoder-only model for instructions: prompt and response are one text, and only the response counts in the loss."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from train.data.example_types import Pair
from train.rows.seq2seq_rows import concatenate_texts
from train.tokenizers.chat_token_ids import CountedIds
from train.tokenizers.text_borders import common_prefix_length
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput


class PackedDialogue(NamedTuple):
    """An example within a row."""

    example: int
    """Number of the example."""
    text: CountedIds


def encode_completions(pairs: Sequence[Pair], tokenizer: Tokenizer) -> list[CountedIds]:
    """Return the ids of each prompt with its completion and end-of-text; those of the completion and end-of-text count.

    Both are encoded as one text. A token across their border counts, as a part of the completion.

    Raises:
        BadInput: the tokenizer returns no ids for a prompt or a completion.
    """
    prompts = tokenizer.encode_many(pair.source for pair in pairs)
    joined = tokenizer.encode_many(pair.source + pair.target for pair in pairs)
    texts = []
    for pair, prompt, ids in zip(pairs, prompts, joined, strict=True):
        border = common_prefix_length(prompt, ids)
        for name, size in (("prompt", border), ("completion", len(ids) - border)):
            if not size:
                raise BadInput(f"{pair.origin}: the {name} has no tokens of its own; write more of it, or remove the example")
        ids = np.append(ids, tokenizer.end_of_text).astype(np.int32)
        texts.append(CountedIds(ids, np.arange(len(ids)) >= border, border < len(prompt)))
    return texts


def fit_text(text: CountedIds, length: int, where: str, *, truncate: bool) -> CountedIds:
    """Return a text that fits into a row, cut at its end if `truncate`.

    Raises:
        BadInput: it is too long, or no counted token would be left.
    """
    size, prompt = len(text.ids), int(np.flatnonzero(text.counted)[0])
    if prompt >= length:
        raise BadInput(
            f"{where}: the prompt alone has {prompt} tokens, and a row has {length}, so nothing of the response would be "
            "learned; choose a longer --data.length, or remove the example"
        )
    if size > length and not truncate:
        raise BadInput(
            f"{where}: {size} tokens ({prompt} before the response), and a row has {length}; choose a longer --data.length, or "
            "cut the ends of long responses with --labelled.truncate"
        )
    return text._replace(ids=text.ids[:length], counted=text.counted[:length])


def dialogue_row(texts: Sequence[CountedIds], length: int, pad: int) -> dict[str, Any]:
    """Return the fields of `Batch` for a row of texts, each [length].

    tokens: int32, the ids. targets: int32, the next id of the same text. weights: float32, 1 where the target counts, else 0.
    segments: int32, the number of the text from 1; 0 = padding. positions: int32, from 0 in each text.
    """
    row: dict[str, Any] = concatenate_texts([text.ids for text in texts], length, pad)
    targets = concatenate_texts([np.append(text.ids[1:], pad) for text in texts], length, pad)["tokens"]
    counted = concatenate_texts([np.append(text.counted[1:], False) for text in texts], length, 0)["tokens"]
    return {**row, "targets": targets, "weights": counted.astype(np.float32)}
