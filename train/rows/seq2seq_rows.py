"""Rows with two sides, what is read and what is written: for an encoder and a decoder, or for a decoder that reads both."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from train.tokenizers.special_tokens import TextMarks
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.errors import BadInput


class Sides(NamedTuple):
    """An example, without padding; each side ends with its mark."""

    source: Int32[np.ndarray, " a"]
    target: Int32[np.ndarray, " b"]


def two(examples: Sequence[Sides], source: int, target: int, pad: int) -> dict[str, Any]:
    """The fields of `Batch` for a row of an encoder of `source` tokens and a decoder of `target` tokens.

    source: a `Batch` of tokens, segments and positions, int32 [source]. tokens, targets, segments and positions, int32 [target]:
    before each target the one before it, and the padding's id before the first. weights, float32 [target]: 1, or 0 for padding.
    Segments number the examples, 0 is padding; positions restart in each.
    """
    inputs = [np.append(pad, each.target[:-1]) for each in examples]
    decoder = _laid(inputs, target, pad)
    targets = _laid([each.target for each in examples], target, pad)["tokens"]
    weights = (decoder["segments"] > 0).astype(np.float32)
    encoder: dict[str, Any] = {**_laid([each.source for each in examples], source, pad)}
    return {**decoder, "targets": targets, "weights": weights, "source": Batch(**encoder)}


def one(example: Sides, length: int, pad: int, *, causal: bool) -> dict[str, Any]:
    """The fields of `Batch` for a row of a decoder alone: the source, then the target, which alone is predicted.

    As `two`, without a source. Unless it is `causal`, order, int32 [length], is 0 as far as what is read goes, which sees all of
    itself, and then 1, 2, ...: what is written sees what is before it.
    """
    whole, read = np.concatenate(example), len(example.source)
    row: dict[str, Any] = _laid([np.append(pad, whole[:-1])], length, pad)
    weights = np.zeros(length, np.float32)
    weights[read : len(whole)] = 1
    row |= {"targets": _laid([whole], length, pad)["tokens"], "weights": weights}
    # The last token that is read predicts the first that is written.
    return row if causal else row | {"order": np.maximum(np.arange(length) - read, 0).astype(np.int32)}


def _laid(parts: Sequence[np.ndarray], length: int, pad: int) -> dict[str, Int32[np.ndarray, " T"]]:
    tokens = np.full(length, pad, np.int32)
    segments, positions = np.zeros((2, length), np.int32)
    start = 0
    for number, part in enumerate(parts, 1):
        end = start + len(part)
        tokens[start:end], segments[start:end], positions[start:end] = part, number, np.arange(len(part))
        start = end
    return {"tokens": tokens, "segments": segments, "positions": positions}


class Placed(NamedTuple):
    """A pair in a row."""

    example: int
    """Its number."""
    sides: Sides
    """Its ids, the marks at their ends included."""


def marks_of(tokenizer: Tokenizer) -> TextMarks:
    """The marks of a tokenizer of T5's kind.

    Raises:
        BadInput: it has none.
    """
    if tokenizer.text_marks is None:
        raise BadInput(
            f"--tokenizer.kind {tokenizer.kind}: this tokenizer has no marks for text to text; choose sentencepiece, or a "
            "--tokenizer.path of T5's kind"
        )
    return tokenizer.text_marks
