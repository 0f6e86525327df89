"""The words for a family's table of published names: which tensors a leaf is made of, and how their axes become its axes."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """Where one of our leaves is found among published tensors."""

    leaf: str
    """Path of the leaf. One below `layers` is stacked from a tensor (or several) of each layer."""
    names: str | tuple[str, ...]
    """Published name without prefix, `{layer}` standing for the layer's number. Several are stacked along the axis that only the
    right side of `layout` has."""
    layout: str = ""
    """How the axes of one layer's tensor are split and ordered, as "d (c n h) -> d c n h"; none: as they are."""
    bare: bool = False
    """Whether the name stands without the prefix, as those of heads do."""
    optional: bool = False
    """Whether only some configurations of the family have the leaf."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
    """The published names of a family's models with one head, or with none."""

    architecture: str
    """The class of `transformers` that an export is for; "" where there is none: such a model has no published form."""
    prefixes: tuple[str, ...]
    """What may stand before the names; an export writes the first."""
    rows: tuple[Row, ...]
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Full name of a tensor that may be absent -> the leaf it must equal where it is not. Never written, unless it is a row's
    of the configuration."""
    constants: tuple[str, ...] = ()
    """Names of buffers that hold no parameter; they are not read."""
    tables: Mapping[str, Callable[[Any], np.ndarray]] = dataclasses.field(default_factory=dict)
    """Name without prefix of a table that is computed here -> what it must hold where a file has it, by the configuration."""
    idle: tuple[str, ...] = ()
    """Names without prefix of tensors that files of this head may carry without using them: all of them or none."""
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """How old files end a name -> how it ends now."""

    def today(self, name: str) -> str:
        """A tensor's name as files spell it now."""
        old = next((end for end in self.renamed if name.endswith(end)), None)
        return name if old is None else name.removesuffix(old) + self.renamed[old]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The axes of a published tensor, split and ordered into those of a leaf."""

    groups: tuple[tuple[str, ...], ...]
    """The published tensor's axes, each as the axes it is split into."""
    axes: tuple[str, ...]
    """The leaf's. One of them may be in no group: it numbers several published tensors."""

    @classmethod
    def parse(cls, text: str, rank: int) -> "Layout":
        """ "d (c n h) -> d c n h"; an empty text leaves the `rank` axes as they are."""
        if not text:
            axes = tuple(f"axis{number}" for number in range(rank))
            return cls(tuple((axis,) for axis in axes), axes)
        left, right = text.split(" -> ")
        groups = tuple(tuple((group or single).split()) for group, single in re.findall(r"\(([^)]*)\)|(\S+)", left))
        return cls(groups, tuple(right.split()))

    def published(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a published tensor of a leaf of this shape."""
        sizes = dict(zip(self.axes, shape, strict=True))
        return tuple(math.prod(sizes[axis] for axis in group) for group in self.groups)

    def arrange(self, views: Sequence[np.ndarray], shape: tuple[int, ...]) -> Callable[[Index], np.ndarray]:
        """A function from an index into the leaf, of this shape, to that part of it; only that part is read."""
        sizes, split = dict(zip(self.axes, shape, strict=True)), self._split
        order = [split.index(axis) for axis in self.axes if axis in split]
        arranged = [view.reshape([sizes[axis] for axis in split]).transpose(order) for view in views]
        if self._added is None:
            return lambda index: arranged[0][index]
        axis = self._added
        return lambda index: np.stack([view[index[:axis] + index[axis + 1 :]] for view in arranged[index[axis]]], axis)

    def publish(self, leaf: np.ndarray, number: int) -> np.ndarray:
        """The `number`-th published tensor of a leaf."""
        axes = list(self.axes)
        if self._added is not None:
            leaf = leaf.take(number, self._added)
            del axes[self._added]
        sizes = dict(zip(axes, leaf.shape, strict=True))
        shape = [math.prod(sizes[axis] for axis in group) for group in self.groups]
        return leaf.transpose([axes.index(axis) for axis in self._split]).reshape(shape)

    @property
    def _split(self) -> list[str]:
        return [axis for group in self.groups for axis in group]

    @property
    def _added(self) -> int | None:
        """The axis that numbers the tensors, if there is one."""
        return next((number for number, axis in enumerate(self.axes) if axis not in self._split), None)
