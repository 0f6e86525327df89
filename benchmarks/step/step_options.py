"""Options of `zoo bench step`. Importing this module does not import JAX."""

import dataclasses
from typing import Annotated, Literal

import tyro

from benchmarks.core.output_options import Output
from zoo.configs import Implementation, Remat

Mode = Literal["train", "inference", "decode"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure steps of models: their cost, how close they are to the machine's limit, and where their time goes.

    Every combination of --layers, --remat, --precision, --attention and --mesh is measured; times are relative to the first
    combination. All must give the same losses before any is timed. The exit code is 1 if one is wrong or fails.
    """

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL...")] = ()
    """Sizes as `zoo models` lists them, or the beginnings of their names: gpt2, bert-base, t5-small."""
    mode: Mode = "train"
    """train: the trainer's step with the family's first objective, AdamW and clipping.
    inference: a forward pass with the same loss.
    decode: one token through the cache. On a CPU, where generation splits the layers, --layers makes no difference."""
    batch: int | None = None
    """Number of rows of a batch. None = a default for the family."""
    length: int | None = None
    """Number of tokens of a row (encoder-decoder: of its target); decode: of slots of the cache. None = the family's default."""
    source_length: int | None = None
    """Number of tokens of the source of a row, for an encoder-decoder."""
    dropout: bool = False
    """Use the published dropout rates; otherwise there is no dropout."""
    layers: tuple[Literal["scan", "unroll"], ...] = ("scan", "unroll")
    """Ways to compile the stack of layers."""
    remat: tuple[Remat, ...] = ("none",)
    """Recomputation in the backward pass: none, full (layers), or attention (all but attention)."""
    precision: tuple[Literal["float32", "bfloat16"], ...] = ()
    """Dtypes of the arithmetic; none = float32 on a CPU, bfloat16 on an accelerator."""
    attention: tuple[Implementation | str, ...] = ("auto",)
    """Attention implementations, as `zoo doctor` lists them."""
    mesh: tuple[str, ...] = ("data=1",)
    """Meshes, each written as data=2,tensor=2."""
    peers: bool = False
    """Also time `transformers` on torch and KerasHub on JAX, where they are installed."""
    profile: bool = False
    """Also break down the time of each training step of this project by kind of operation."""
    rounds: int | None = None
    """Rounds of each model. None = until the medians are certain to 1 %, or --budget is used up, but at least 5."""
    budget: float | None = None
    """Seconds spent on the rounds of each program. None = 20."""
    cell_seconds: float = 60.0
    """Seconds; a program whose first call takes longer is timed by that call alone."""
    repeats: int = 1
    """Fresh processes, run one after the other, that each measure everything; `zoo bench compare` needs 3."""
    devices: int = 0
    """Simulate this many CPU devices; 0 = use the real ones."""
    output: Annotated[Output, tyro.conf.arg(name="", prefix_name=False)] = Output()
