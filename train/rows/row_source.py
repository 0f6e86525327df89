"""The interface that all sets of rows share, `RowSource`, and the code that several of them have in common.

Rows are planned once, before training, and on the host: a row says which ids of which documents or examples go together. It is
not an array yet; the `builder` of an objective converts it to the fields of a `zoo.batch.Batch`, again in each epoch if the
objective samples something, such as masks.
"""

import abc
import functools
import hashlib
from collections.abc import Iterable
from typing import Any, Protocol, TypeGuard, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int64

from train.rows.token_cache import Tokens


@runtime_checkable
class RowSource(Protocol):
    """Numbered rows of one kind, of the same length T, in a fixed order.

    Implemented by `LmRows`, `EncoderRows` and `ContiguousRows` of this package for text, and for examples by classes in
    `train.inputs`, such as `LabelledRows`. A `train.rows.mixture.Mixture` numbers the rows of one row source or of several.
    """

    @property
    def length(self) -> int:
        """Number of tokens per row, T, padding included; of a row with a source and a target, those of the source."""
        ...

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def row(self, number: int) -> Any:
        """Return row `number`, from 0 to `len(self) - 1`: an `LmRow`, `EncoderRow`, `Window`, `ExampleRow`, ...

        Its ids are integer arrays [n] with n at most T. Those of a text are views of the memory-mapped tokens.
        """
        ...

    @property
    def text_size(self) -> int:
        """Number of tokens of the data, special tokens that belong to it included and padding excluded."""
        ...

    @property
    def targets(self) -> int:
        """Number of tokens in all rows that the loss is computed on, or that it may choose its predictions from."""
        ...

    @property
    def fingerprint(self) -> str:
        """A SHA-256 digest that is equal if and only if all rows are equal; a checkpoint is only resumed on equal rows."""
        ...

    def subsample(self, count: int) -> "RowSource":
        """Return about `count` of the rows, the same ones in every call, for a validation during training."""
        ...


@runtime_checkable
class ContinuedRowSource(RowSource, Protocol):
    """Rows that may continue each other: row n begins where row n - `batch` ends."""

    @property
    def batch(self) -> int:
        """Number of rows per batch, B, each of which is continued by the row in the same place of the next batch."""
        ...

    @property
    def ordered(self) -> bool:
        """True if the rows are used in order, `batch` at a time, and never shuffled."""
        ...


def are_rows_ordered(rows: RowSource) -> TypeGuard[ContinuedRowSource]:
    """Return whether rows have to be used in order, because a model carries its state from row to row."""
    return isinstance(rows, ContinuedRowSource) and rows.ordered


def evenly_spaced(size: int, count: int) -> Int64[np.ndarray, " n"]:
    """Return at most `count` of the numbers 0 to `size` - 1, evenly spaced, ascending and without repetition."""
    return np.unique(np.linspace(0, size - 1, min(count, size)).round().astype(np.int64))


def digest_of(header: str, parts: Iterable[bytes]) -> str:
    """Return the SHA-256 digest of a text and the bytes that follow it, in hexadecimal digits."""
    digest = hashlib.sha256(header.encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def array_digests(*arrays: np.ndarray) -> list[bytes]:
    """Return the SHA-256 digest of each array's bytes; digests have one size, so the end of each array is unambiguous."""
    return [hashlib.sha256(array.tobytes()).digest() for array in arrays]


Sampled = TypeVar("Sampled", bound="SampledRows")


class SampledRows(abc.ABC):
    """Base class of row sources from which any rows can be selected; it implements `subsample`."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def select_rows(self: Sampled, chosen: Int64[np.ndarray, " n"]) -> Sampled:
        """Return a row source of the rows with the numbers `chosen`, in this order."""

    def subsample(self: Sampled, count: int) -> Sampled:
        """Return at most `count` of the rows, evenly spaced; the choice is deterministic."""
        return self.select_rows(self.sampled_rows(count))

    def sampled_rows(self, count: int) -> Int64[np.ndarray, " n"]:
        """Return the numbers of the rows that `subsample` selects."""
        return evenly_spaced(len(self), count)


class TextRows(abc.ABC):
    """Base class of row sources of a tokenized text; it implements `text_size` and `fingerprint`."""

    tokens: Tokens
    """The documents, memory-mapped."""

    @property
    def text_size(self) -> int:
        """Number of tokens of the text, the special token after each document included."""
        return len(self.tokens.ids)

    @property
    @abc.abstractmethod
    def first_documents(self) -> Int64[np.ndarray, " rows"]:
        """Number of the document that each row begins in; where a row has context, of its first counted target."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the tokens and the plan: equal if and only if all rows are equal."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        numbers, arrays = self.fingerprint_parts()
        return digest_of(f"{self.tokens.fingerprint} {numbers}", arrays)

    @abc.abstractmethod
    def fingerprint_parts(self) -> tuple[str, Iterable[bytes]]:
        """Return what determines the rows apart from the tokens: numbers as a text, and arrays as bytes or as their digests."""
