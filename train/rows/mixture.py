"""Mixtures of components by weight: the component of each example of the stream, and one numbering of all rows."""

import dataclasses
import fractions
import functools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from train.data.text_files import Document
from train.rows.row_source import RowSource, digest_of


@dataclasses.dataclass(frozen=True, eq=False)
class Component:
    """A part of the training text that is split, tokenized, planned and shuffled separately."""

    name: str
    """The path it is read from."""
    weight: float
    """Number of the component's examples, relative to the weights of the other components; above 0."""
    documents: Iterable[Document]
    """Training documents of the component, in the order of their numbers in the tokens."""
    rows: RowSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """The contribution of a component to a run."""

    name: str
    weight: float
    """Share of the examples."""
    tokens: int
    """Number of tokens of its training text."""
    rows: int
    drawn: int
    """Number of its examples in the run; a row is used again after all others of the component have been."""
    share: float
    """Share of the tokens trained on; it differs from that of the examples if components fill rows differently."""

    @property
    def epochs(self) -> float:
        """Number of passes over its rows."""
        return self.drawn / self.rows


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """The rows a run trains on, of one component or several, in one numbering: those of the first component come first."""

    components: tuple[Component, ...]
    block: int = 1
    """Number of consecutive examples of the stream that are of one component."""

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def length(self) -> int:
        """Number of tokens per row, T."""
        return self.components[0].rows.length

    def row(self, number: int) -> Any:
        """Return a row, whose ids are views of the memory-mapped tokens."""
        component, row = self.locate(number)
        return self.components[component].rows.row(row)

    def locate(self, number: int) -> tuple[int, int]:
        """Return (component, row within it) of row `number`."""
        component = int(np.searchsorted(self._first, number, side="right")) - 1
        return component, number - int(self._first[component])

    def number(self, component: int, row: int) -> int:
        """Return the number of a component's row; the inverse of `locate`."""
        return int(self._first[component]) + row

    def component_of(self, example: int) -> tuple[int, int]:
        """Return (component of an example of the stream, number of earlier examples of that component): a pure function.

        Components alternate such that after any number of blocks each has contributed its share, to within a block or two.
        (Grain's `mix` rounds weights to hundredths of the smallest, and makes a heavy component wait for all light ones.)
        """
        block, place = divmod(example, self.block)
        for component, part, tail in self._heaviest_first:
            remaining = _remaining_after(block, part, tail)
            if _remaining_after(block + 1, part, tail) == remaining:
                return component, (block - remaining) * self.block + place
            block = remaining
        raise AssertionError("the last component takes all remaining examples")

    def shares(self, examples: int) -> list[Share]:
        """Return the contribution of each component to a run of `examples` examples (steps times the batch), at least one."""
        counts, blocks = [0] * len(self.components), examples // self.block
        for component, part, tail in self._heaviest_first:
            remaining = _remaining_after(blocks, part, tail)
            counts[component], blocks = (blocks - remaining) * self.block, remaining
        targets = [item.rows.targets * count / len(item.rows) for count, item in zip(counts, self.components, strict=True)]
        return [
            Share(
                name=item.name,
                weight=part / sum(self._parts),
                tokens=item.rows.text_size,
                rows=len(item.rows),
                drawn=count,
                share=item_targets / sum(targets),
            )
            for item, part, count, item_targets in zip(self.components, self._parts, counts, targets, strict=True)
        ]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the rows, weights and block of all components; with a single component, the fingerprint of its rows."""
        if len(self.components) == 1:
            return self.components[0].rows.fingerprint
        parts = [f"{part} {component.rows.fingerprint}" for part, component in zip(self._parts, self.components, strict=True)]
        return digest_of("\n".join([*parts, *([f"block {self.block}"] if self.block > 1 else [])]), ())

    @functools.cached_property
    def _parts(self) -> tuple[int, ...]:
        """The weights as the smallest integers in the same proportions, so that positions are computed without rounding."""
        # The decimal as written, not the nearest binary number: 0.7 and 0.3 are 7 and 3.
        exact = [fractions.Fraction(repr(float(component.weight))) for component in self.components]
        denominator = math.lcm(*(weight.denominator for weight in exact))
        parts = [int(weight * denominator) for weight in exact]
        return tuple(part // math.gcd(*parts) for part in parts)

    @functools.cached_property
    def _heaviest_first(self) -> tuple[tuple[int, int, int], ...]:
        """(component, its part, the sum of its part and those after it), heaviest first, which keeps the shares most exact."""
        order = sorted(range(len(self._parts)), key=lambda component: -self._parts[component])
        parts = [self._parts[component] for component in order]
        return tuple((component, part, sum(parts[at:])) for at, (component, part) in enumerate(zip(order, parts, strict=True)))

    @functools.cached_property
    def _first(self) -> np.ndarray:
        """Number of the first row of each component; the last entry is the total number of rows."""
        return np.concatenate([[0], np.cumsum([len(component.rows) for component in self.components])]).astype(np.int64)


def _remaining_after(examples: int, part: int, left: int) -> int:
    """Return how many of the first `examples` are of later components; `left` is the sum of their parts and `part`."""
    return (2 * examples * (left - part) + left) // (2 * left)
