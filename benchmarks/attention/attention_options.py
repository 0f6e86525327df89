"""Options of `zoo bench attention`. Importing this module does not import JAX."""

import dataclasses
from typing import Annotated, Literal

import tyro

from benchmarks.core.output_options import Output

Dtype = Literal["float32", "bfloat16"]
Direction = Literal["forward", "both"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Check the numbers of every attention implementation on every kind of attention that the models need, then time it.

    Defaults depend on the machine: float32 and up to 2,048 tokens on a CPU, bfloat16 and up to 16,384 on an accelerator. A
    cell that cannot run states the reason. The exit code is 1 if numbers are wrong or a cell fails.
    """

    impl: tuple[str, ...] = ()
    """Implementations, as `zoo doctor` lists them; none = all. xla is always measured, because ratios are relative to it."""
    dtype: tuple[Dtype, ...] = ()
    """Dtypes: float32, bfloat16."""
    direction: tuple[Direction, ...] = ()
    """Passes: forward, or both (forward and backward)."""
    model: tuple[str, ...] = ()
    """Sizes whose heads are measured, as `zoo models` lists them."""
    lengths: tuple[int, ...] = ()
    """Lengths of an example, in tokens."""
    feature: tuple[str, ...] = ()
    """Kinds of attention: full, causal, window, padding, packed, t5, xlnet, dropout, sinks, grouped."""
    shape: tuple[str, ...] = ()
    """Shapes B,T,S,N,K,H (batch, queries, keys, heads, key/value heads, head size), instead of --model and --lengths."""
    tokens: int | None = None
    """Number of tokens of a batch, over all its examples. None = 2,048 on a CPU, 16,384 on an accelerator."""
    batch: int | None = None
    """Number of examples of a batch, instead of --tokens."""
    rounds: int | None = None
    """Rounds of each row. None = until the medians are certain to 1 %, or --budget is used up, but at least 5."""
    budget: float | None = None
    """Seconds spent on the rounds of each cell."""
    seconds: float | None = None
    """Seconds after which no row begins; the skipped rows are listed. None = measure all rows, or 60 with --quick."""
    cell_seconds: float = 20.0
    """Seconds; a cell whose first call takes longer is timed by that call alone."""
    repeats: int = 1
    """Fresh processes, run one after the other, that each measure everything; `zoo bench compare` needs 3."""
    quick: bool = False
    """Measure a small sweep: the rows that begin within a minute (--seconds)."""
    peers: bool = False
    """Also time torch's attention, if torch is installed."""
    compiled: str = ""
    """A TPU or GPU that need not be present (v4, v5e, v5p, v6e, tpu7x; a100, h100, h200, b200): print what its compiler makes of
    every kernel, and time nothing. Needs the extra tpu or cuda13."""
    output: Annotated[Output, tyro.conf.arg(name="", prefix_name=False)] = Output()
