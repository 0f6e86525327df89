"""Options of `zoo bench growth`. Importing this module does not import JAX."""

import dataclasses
from typing import Annotated

import tyro

from benchmarks.core.output_options import Output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure how time, memory and compilation of a small model's step grow along each axis, and fit the exponents."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL]")] = "gpt-nano"
    """A size of the family, as `zoo models` lists them; --layers and --width replace its depth and width."""
    batch: int | None = None
    """Number of rows of a batch, over all devices."""
    length: tuple[int, ...] = ()
    """Lengths of a row, in tokens."""
    layers: tuple[int, ...] = ()
    """Numbers of layers, for an encoder-decoder of each stack."""
    width: tuple[int, ...] = ()
    """Model widths: multiples of 32, the size of a head."""
    device_counts: tuple[int, ...] = ()
    """Numbers of simulated devices that a batch is split over."""
    rounds: int | None = None
    """Rounds of measurement along each axis."""
    quick: bool = False
    """Measure fewer and smaller models, in about a minute."""
    output: Annotated[Output, tyro.conf.arg(name="", prefix_name=False)] = Output()
