"""Types for the table of a family's published parameter names: the tensors of each leaf, and the layout of their axes."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class ParamName:
    """Mapping between a parameter leaf of this project and published tensors."""

    leaf: str
    """Path of the leaf. A leaf below `layers` is stacked from one or more tensors of each layer."""
    names: str | tuple[str, ...]
    """Published name without prefix; `{layer}` stands for the index of the layer. Several tensors are stacked along the axis that
    is only on the right side of `layout`."""
    layout: str = ""
    """Split and order of the axes of one layer's tensor, as "d (c n h) -> d c n h"; empty = unchanged."""
    bare: bool = False
    """True if the name has no prefix, as the names of heads."""
    optional: bool = False
    """True if only some configurations of the family have the leaf."""
    first: int = 0
    """Index, in published names, of the first layer of a stacked leaf."""
    linear: bool = True
    """False if the tensor is a matrix, but its module in `transformers` is not a linear layer."""


DENSE = "o i -> i o"
"""Layout of a kernel that is published as [out, in]."""


def linear_names(leaf: str, name: str, layout: str = DENSE, bias: str | None = "", **options: Any) -> tuple[ParamName, ...]:
    """Return the rows of a linear layer: its kernel and, unless the layout `bias` is None, its bias."""
    kernel = ParamName(f"{leaf}/kernel", f"{name}.weight", layout, **options)
    return (kernel,) if bias is None else (kernel, ParamName(f"{leaf}/bias", f"{name}.bias", bias, **options))


def head_names(leaf: str, name: str) -> tuple[ParamName, ...]:
    """Return the rows of a linear layer of a head, whose names have no prefix."""
    return linear_names(leaf, name, bare=True)


def names_of_split_projection(leaf: str, *names: str) -> tuple[ParamName, ParamName]:
    """Return the rows of a linear layer to heads that is published as several, such as those of queries, keys and values."""
    kernels, biases = (tuple(f"{name}.{kind}" for name in names) for kind in ("weight", "bias"))
    return ParamName(f"{leaf}/kernel", kernels, "(n h) d -> d c n h"), ParamName(f"{leaf}/bias", biases, "(n h) -> c n h")


def norm_names(leaf: str, name: str, **options: Any) -> tuple[ParamName, ParamName]:
    """Return the rows of a layer norm."""
    return ParamName(f"{leaf}/scale", f"{name}.weight", **options), ParamName(f"{leaf}/bias", f"{name}.bias", **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParamNames:
    """Published parameter names of a family's models with one kind of head, or with none."""

    architecture: str
    """Class of `transformers` for which an export is written; "" if there is none, so the model has no published form."""
    prefixes: tuple[str, ...]
    """Possible prefixes of the names; an export writes the first."""
    rows: tuple[ParamName, ...]
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Maps the full name of an optional tensor to the leaf that it must equal. It is never written, unless a row of the
    configuration has this name."""
    substitutes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Maps the full name of a tensor to the name of the one that is read in its place from files without it, as in
    `transformers`."""
    constants: tuple[str, ...] = ()
    """Names of buffers that are not parameters; they are not read."""
    tables: Mapping[str, Callable[[Any], np.ndarray]] = dataclasses.field(default_factory=dict)
    """Maps the name without prefix of a table that is computed here to a function of the configuration that returns its values; a
    file that has the table must have the same values."""
    idle: tuple[str, ...] = ()
    """Names without prefix of unused tensors that files with this head may have: all of them or none."""
    input_first: bool = False
    """True if matrices are published as [in, out], False if as [out, in]."""
    released_in_bfloat16: bool = False
    """True if an export is bfloat16, as the released files are, unless that would round a number."""
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Maps the ending of a name in old files to its ending in current files."""

    def today(self, name: str) -> str:
        """Return the name of a tensor in current files."""
        old = next((end for end in self.renamed if name.endswith(end)), None)
        return name if old is None else name.removesuffix(old) + self.renamed[old]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Split and order of the axes of a published tensor into the axes of a leaf."""

    groups: tuple[tuple[str, ...], ...]
    """Axes of the published tensor, each as the tuple of axes that it is split into."""
    axes: tuple[str, ...]
    """Axes of the leaf. One of them may be in no group: it is the index of several published tensors."""

    @classmethod
    def parse(cls, text: str, rank: int) -> "Layout":
        """Parse a layout such as "d (c n h) -> d c n h"; an empty text leaves the `rank` axes unchanged."""
        if not text:
            axes = tuple(f"axis{number}" for number in range(rank))
            return cls(tuple((axis,) for axis in axes), axes)
        left, right = text.split(" -> ")
        groups = tuple(tuple((group or single).split()) for group, single in re.findall(r"\(([^)]*)\)|(\S+)", left))
        return cls(groups, tuple(right.split()))

    def published(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a published tensor of a leaf of this shape."""
        sizes = dict(zip(self.axes, shape, strict=True))
        return tuple(math.prod(sizes[axis] for axis in group) for group in self.groups)

    def arrange(self, views: Sequence[np.ndarray], shape: tuple[int, ...]) -> Callable[[Index], np.ndarray]:
        """Return a function from an index into the leaf, which has this shape, to that part of it; only that part is read."""
        sizes, split = dict(zip(self.axes, shape, strict=True)), self._split
        order = [split.index(axis) for axis in self.axes if axis in split]
        arranged = [view.reshape([sizes[axis] for axis in split]).transpose(order) for view in views]
        if self._added is None:
            return lambda index: arranged[0][index]
        axis = self._added
        return lambda index: np.stack([view[index[:axis] + index[axis + 1 :]] for view in arranged[index[axis]]], axis)

    def publish(self, leaf: np.ndarray, number: int) -> np.ndarray:
        """Return the `number`-th published tensor of a leaf."""
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
        """Index of the leaf's axis that numbers the published tensors, or None."""
        return next((number for number, axis in enumerate(self.axes) if axis not in self._split), None)
