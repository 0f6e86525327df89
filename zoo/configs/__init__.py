"""Numbers: one file per family with its `Config` and its published `SIZES`. Nothing here imports jax.

A number is `published` (the source states it), `assumed` (we chose it, and say why) or refused: an architecture that was
never published has no size, and asking for one is answered with the nearest published model.
"""

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal

from zoo.errors import BadInput, require

Activation = Literal["gelu", "gelu_tanh", "relu"]
Attends = Literal["full", "window"]
Objective = Literal[
    "causal", "masked", "distilled", "permutation", "classification", "tagging", "span", "choice", "denoising", "text_to_text"
]
Implementation = Literal["auto", "reference", "xla", "blocked", "cudnn", "tokamax", "splash"]
Remat = Literal["none", "full", "attention"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """How a model is computed; it changes speed and memory, never what is computed or how parameters are laid out."""

    attention: Implementation = "auto"
    """Attention implementation; one that cannot do what the model asks refuses."""
    remat: Remat = "none"
    """What the backward pass recomputes: nothing, whole layers, or all but attention (its output is kept)."""
    unroll: int = 1
    """Layers unrolled per scan step; more compiles longer and may run faster."""

    def __post_init__(self) -> None:
        require(self.unroll >= 1, "model.compute.unroll", self.unroll, "choose 1 or more layers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export's config.json says beyond the numbers of the model. It is kept from an import and changes nothing here."""

    initializer: float | None = None
    """`initializer_range` (`initializer_factor` of T5, `init_std` of Marian); None = the default of `transformers`."""
    activation: str = ""
    """Name of the activation, where several have the same meaning ("gelu_pytorch_tanh"); "" = the usual one."""
    positions: int | None = None
    """Rows of Marian's table of sinusoids, the longest text that `transformers` takes; None = 1,024."""

    def __post_init__(self) -> None:
        if self.positions is not None:
            in_range = 1 <= self.positions <= 1 << 20
            require(in_range, "model.exported.positions", self.positions, "choose 1 to 1,048,576")

    def keys(self, initializer: str, activation: str, usual: str, names: Mapping[str, Any]) -> dict[str, Any]:
        """Return what an export has under the keys `initializer` and `activation`.

        Args:
            usual: the name of the activation that the model has.
            names: meanings of all names.
        """
        spread = {} if self.initializer is None else {initializer: self.initializer}
        return {**spread, activation: self.activation if names.get(self.activation) == names[usual] else usual}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """A named configuration and where its numbers come from."""

    config: Any
    source: str
    """Paper and table, or repository and file."""
    objective: Objective = "causal"
    assumed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Field -> why we chose this value; every field not named here is published in `source`."""
    published_count: int | None = None
    """Parameter count the source prints, where it prints an exact one."""
    note: str = ""
    """A contradiction in the source, stated."""

    @staticmethod
    def numbers_of(kind: Any) -> list[str]:
        """Return the names of the fields of a configuration that say what is computed."""
        return [field.name for field in dataclasses.fields(kind) if field.name not in ("compute", "exported")]


REFUSED: dict[str, str] = {
    "gpt-4": "the architecture of gpt-4 is unpublished: its technical report withholds size, shape and training compute, so "
    "there is nothing to build. The nearest published architecture here is gpt3-175b",
}


def families() -> list[str]:
    """Names of the families, found by listing this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def family(name: str) -> ModuleType:
    """The configuration module of a family."""
    return importlib.import_module(f"{__name__}.{name}")


def find(size: str) -> tuple[str, Size]:
    """(family, Size) of a published name.

    Raises:
        BadInput: an unpublished or unknown name; the message names the nearest one.
    """
    if size in REFUSED:
        raise BadInput(REFUSED[size])
    known = {name: (f, entry) for f in families() for name, entry in family(f).SIZES.items()}
    if size not in known:
        near = difflib.get_close_matches(size, known, n=1, cutoff=0.0)[0]
        raise BadInput(f"no model is called {size!r}; the nearest is {near!r} (all: zoo models)")
    return known[size]


def family_of(config: Any) -> str:
    """The family a configuration belongs to."""
    return type(config).__module__.rpartition(".")[2]


def shape(config: Any) -> dict[str, Any]:
    """What the weights of a model's body depend on: all numbers but how it is computed, what is dropped while it is learned, how
    fresh parameters are drawn, what is remembered from row to row, and what stands on top of it."""
    numbers = dataclasses.asdict(config)
    return {name: value for name, value in numbers.items() if name not in APART and not name.endswith("dropout")}


APART = ("compute", "exported", "initializer", "memory", "reuse", "task", "labels")


def named(config: Any) -> str | None:
    """The published name whose weights would fit a configuration."""
    sizes = family(family_of(config)).SIZES
    return next((name for name, size in sizes.items() if shape(size.config) == shape(config)), None)
