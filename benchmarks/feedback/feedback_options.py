"""Options of `zoo bench feedback`. Importing this module does not import JAX."""

import dataclasses
from typing import Annotated, Literal

import tyro

from benchmarks.core.output_options import Output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure an iteration of learning by sampling (GRPO): responses, log-probabilities and a training step.

    All responses have the same length. The peer must write the same greedy tokens and have the same losses before it is timed.
    The exit code is 1 if it is wrong or fails.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL]")] = ""
    """Size of a GPT as `zoo models` lists them; empty = gpt2, with --quick gpt-nano. Its weights are random."""
    prompts: int | None = None
    """Number of prompts in an iteration. None = 2, with --quick 4."""
    group: int | None = None
    """Number of responses to each prompt. None = 4."""
    prompt_length: int | None = None
    """Number of tokens in each prompt. None = 32, with --quick 16."""
    tokens: int | None = None
    """Number of tokens in each response. None = 32, with --quick 16."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Dtype of the arithmetic. None = float32 on a CPU, bfloat16 on an accelerator. The peer runs in float32 only."""
    peers: bool = False
    """Also time the parts of TRL's GRPO trainer on torch, if it is installed."""
    rounds: int | None = None
    """Number of timed iterations. None = until the medians are certain to 1 %, or --budget is used up, but at least 3."""
    budget: float | None = None
    """Seconds spent on the iterations of each program. None = 20, with --quick 5."""
    repeats: int = 1
    """Number of fresh processes, run one after the other, that each measure everything; `zoo bench compare` needs 3."""
    quick: bool = False
    """Measure a nano model, in about a minute."""
    output: Annotated[Output, tyro.conf.arg(name="", prefix_name=False)] = Output()
