"""Components mixed by weight: which of them gives example i of the stream, and one numbering of all their rows."""

import dataclasses
import fractions
import functools
import hashlib
import math
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from train.data.text_files import Document


@runtime_checkable
class Planned(Protocol):
    """Rows as `train.rows.lm_rows`, `train.rows.encoder_rows` and `train.inputs.labelled_inputs` plan them: numbered, each made
    into arrays by an objective."""

    @property
    def length(self) -> int:
        """Tokens a row has room for, T."""
        ...

    def __len__(self) -> int: ...

    def row(self, number: int) -> Any:
        """A row, its ids mapped rather than copied."""
        ...

    @property
    def text_size(self) -> int:
        """Tokens of what is planned."""
        ...

    @property
    def targets(self) -> int:
        """Tokens that are learned from in all rows."""
        ...

    @property
    def fingerprint(self) -> Any:
        """A string: equal if and only if every row is."""
        ...


@runtime_checkable
class Continued(Planned, Protocol):
    """Rows that may continue each other: row n reads on where row n - `batch` stopped."""

    batch: int
    ordered: bool
    """Whether they are used in order, `batch` at a time."""


def ordered(rows: Planned) -> bool:
    """Whether rows have to be used in order."""
    return isinstance(rows, Continued) and rows.ordered


@dataclasses.dataclass(frozen=True, eq=False)
class Component:
    """Text that is split, tokenized, planned and shuffled on its own."""

    name: str
    """The path it is read from."""
    weight: float
    """Examples it gives, against the weights of the other components; above 0."""
    documents: Iterable[Document]
    """Its training documents, in the order in which its tokens number them."""
    rows: Planned


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """What a component gives to a run."""

    name: str
    weight: float
    """Share of the examples."""
    tokens: int
    """Tokens of its training text."""
    rows: int
    drawn: int
    """Examples it gives; a row is drawn again once all others of the component were."""
    share: float
    """Share of the tokens trained on; another than that of the examples where rows are filled differently."""

    @property
    def epochs(self) -> float:
        """How often its text is seen."""
        return self.drawn / self.rows


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """The rows a run trains on, of one component or several, numbered through: those of the first component come first."""

    components: tuple[Component, ...]

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def length(self) -> int:
        """Tokens a row has room for, T."""
        return self.components[0].rows.length

    def row(self, number: int) -> Any:
        """A row, its ids mapped rather than copied."""
        component, row = self.locate(number)
        return self.components[component].rows.row(row)

    def locate(self, number: int) -> tuple[int, int]:
        """Where row `number` lies: (component, row of it)."""
        component = int(np.searchsorted(self._first, number, side="right")) - 1
        return component, number - int(self._first[component])

    def number(self, component: int, row: int) -> int:
        """The number of a component's row: undoes `locate`."""
        return int(self._first[component]) + row

    def draw(self, example: int) -> tuple[int, int]:
        """Which component gives an example of the stream, and how many examples it has given before: a pure function.

        They take turns such that after any number of examples each has given its share, to within a row or two. (Grain's `mix`
        cuts weights to hundredths of the smallest, and lets a heavy component wait for all light ones before it.)
        """
        for component, part, left in self._turns:
            rest = _left(example, part, left)
            if _left(example + 1, part, left) == rest:
                return component, example - rest
            example = rest
        raise AssertionError("the last component leaves none")

    def shares(self, examples: int) -> list[Share]:
        """What each component gives to a run of so many examples (steps times the batch), at least one."""
        drawn, rest = [0] * len(self.components), examples
        for component, part, left in self._turns:
            drawn[component] = rest - _left(rest, part, left)
            rest -= drawn[component]
        targets = [each.rows.targets * count / len(each.rows) for count, each in zip(drawn, self.components, strict=True)]
        return [
            Share(
                name=each.name,
                weight=part / sum(self._parts),
                tokens=each.rows.text_size,
                rows=len(each.rows),
                drawn=count,
                share=seen / sum(targets),
            )
            for each, part, count, seen in zip(self.components, self._parts, drawn, targets, strict=True)
        ]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of every component's rows and of the weights; that of one component is its rows'."""
        if len(self.components) == 1:
            return self.components[0].rows.fingerprint
        parts = [f"{part} {component.rows.fingerprint}" for part, component in zip(self._parts, self.components, strict=True)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @functools.cached_property
    def _parts(self) -> tuple[int, ...]:
        """The weights as the smallest whole numbers of their proportions: a position is computed without rounding."""
        # The decimal that was written, not the binary number nearest to it: 0.7 and 0.3 are 7 and 3.
        exact = [fractions.Fraction(repr(float(component.weight))) for component in self.components]
        whole = math.lcm(*(weight.denominator for weight in exact))
        parts = [int(weight * whole) for weight in exact]
        return tuple(part // math.gcd(*parts) for part in parts)

    @functools.cached_property
    def _turns(self) -> tuple[tuple[int, int, int], ...]:
        """(component, its part, the sum of its part and those after it), the heaviest first: that keeps the shares closest."""
        order = sorted(range(len(self._parts)), key=lambda component: -self._parts[component])
        parts = [self._parts[component] for component in order]
        return tuple((component, part, sum(parts[at:])) for at, (component, part) in enumerate(zip(order, parts, strict=True)))

    @functools.cached_property
    def _first(self) -> np.ndarray:
        """Number of the first row of each component; the last entry is the number of all rows."""
        return np.concatenate([[0], np.cumsum([len(component.rows) for component in self.components])]).astype(np.int64)


def _left(examples: int, part: int, left: int) -> int:
    """How many of the first `examples` a component leaves to those after it, whose parts and its own sum to `left`."""
    return (2 * examples * (left - part) + left) // (2 * left)
