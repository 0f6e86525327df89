"""Rows with a source and a target: for an encoder and a decoder, or for a decoder that reads both."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from train.tokenizers.special_tokens import TextSpecialTokens
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.errors import BadInput


class SourceTarget(NamedTuple):
    """The ids of an example, without padding; each side ends with its end token."""

    source: Int32[np.ndarray, " a"]
    target: Int32[np.ndarray, " b"]


def encoder_decoder_row(examples: Sequence[SourceTarget], source: int, target: int, pad: int) -> dict[str, Any]:
    """Return the fields of `Batch` for a row of an encoder of `source` tokens and a decoder of `target` tokens.

    source: a `Batch` of tokens, segments and positions, int32 [source]. tokens, targets, segments and positions, int32 [target]:
    the input at each target is the target before it, and the padding id for the first. weights, float32 [target]: 1, or 0 for
    padding. Segments number the examples from 1, 0 is padding; positions restart in each.
    """
    inputs = [np.append(pad, example.target[:-1]) for example in examples]
    decoder = concatenate_texts(inputs, target, pad)
    targets = concatenate_texts([example.target for example in examples], target, pad)["tokens"]
    weights = (decoder["segments"] > 0).astype(np.float32)
    encoder: dict[str, Any] = {**concatenate_texts([example.source for example in examples], source, pad)}
    return {**decoder, "targets": targets, "weights": weights, "source": Batch(**encoder)}


def decoder_only_row(example: SourceTarget, length: int, pad: int, *, causal: bool) -> dict[str, Any]:
    """Return the fields of `Batch` for a row of a decoder-only model: the source and then the target, which alone is predicted.

    The fields are those of `encoder_decoder_row`, without a source. Unless `causal`, order, int32 [length], is 0 in the source,
    which attends to all of itself, and then 1, 2, ... in the target, which attends to everything before it.
    """
    ids, source_size = np.concatenate(example), len(example.source)
    row: dict[str, Any] = concatenate_texts([np.append(pad, ids[:-1])], length, pad)
    weights = np.zeros(length, np.float32)
    weights[source_size : len(ids)] = 1
    row |= {"targets": concatenate_texts([ids], length, pad)["tokens"], "weights": weights}
    # The last token of the source predicts the first of the target.
    return row if causal else row | {"order": np.maximum(np.arange(length) - source_size, 0).astype(np.int32)}


def concatenate_texts(parts: Sequence[np.ndarray], length: int, pad: int) -> dict[str, Int32[np.ndarray, " T"]]:
    """Return texts one after the other, padded: tokens, segments (from 1; 0 = padding), positions (from 0 in each)."""
    tokens = np.full(length, pad, np.int32)
    segments, positions = np.zeros((2, length), np.int32)
    start = 0
    for number, part in enumerate(parts, 1):
        end = start + len(part)
        tokens[start:end], segments[start:end], positions[start:end] = part, number, np.arange(len(part))
        start = end
    return {"tokens": tokens, "segments": segments, "positions": positions}


class PackedPair(NamedTuple):
    """A pair within a row."""

    example: int
    """Number of the example."""
    sides: SourceTarget
    """Ids of the source and of the target, end tokens included."""


def text_special_tokens_of(tokenizer: Tokenizer) -> TextSpecialTokens:
    """Return the special tokens of a tokenizer of T5's kind.

    Raises:
        BadInput: the tokenizer has none.
    """
    if tokenizer.text_special_tokens is None:
        raise BadInput(
            f"--tokenizer.kind {tokenizer.kind}: this tokenizer has no special tokens for text to text; choose sentencepiece, "
            "or a --tokenizer.path of T5's kind"
        )
    return tokenizer.text_special_tokens
