"""Options of `zoo bench`, and which of them determine a result. Importing this module does not import JAX."""

import dataclasses
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import tyro

from zoo.configs import Implementation, Remat

Precision = Literal["float32", "bfloat16"]
Direction = Literal["forward", "both"]
Mode = Literal["train", "inference", "decode"]


@dataclasses.dataclass(frozen=True)
class Output:
    """Options for the results."""

    out: str = ""
    """Folder of the results; empty = runs/bench/<benchmark>_<hardware>_<date>."""
    resume: bool = False
    """Complete the results in the folder. A cell at which the process was killed twice is recorded as failed."""
    json: bool = False
    """Print the cells as JSON, one per line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """Options of the benchmarks that time programs side by side."""

    rounds: int | None = None
    """Number of rounds. None = until the medians are certain to 1 %, or --budget is used up, but at least 5, or 3 if a call takes
    over 2 seconds."""
    budget: float | None = None
    """Seconds spent on the rounds of each program. None = 20, with --quick 5; attention: 1, with --quick 0.5."""
    repeats: int = 1
    """Fresh processes, run one after the other, that each measure everything; `zoo bench compare` needs 3."""
    output: Annotated[Output, tyro.conf.arg(name="", prefix_name=False)] = Output()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionOptions(Measurement):
    """Check the numbers of every attention implementation on every kind of attention that the models need, then time it.

    Defaults depend on the machine: float32 and up to 2,048 tokens on a CPU, bfloat16 and up to 16,384 on an accelerator. A
    cell that cannot run states the reason. The exit code is 1 if numbers are wrong or a cell fails.
    """

    impl: tuple[str, ...] = ()
    """Implementations, as `zoo doctor` lists them; none = all. xla is always measured, because ratios are relative to it."""
    dtype: tuple[Precision, ...] = ()
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
    seconds: float | None = None
    """Seconds after which no row begins; the skipped rows are listed. None = measure all rows, or 60 with --quick."""
    cell_seconds: float = 20.0
    """Seconds; a cell whose first call takes longer is timed by that call alone."""
    quick: bool = False
    """Measure a small sweep: the rows that begin within a minute (--seconds)."""
    peers: bool = False
    """Also time torch's attention, if torch is installed."""
    compiled: str = ""
    """A TPU or GPU that need not be present (v4, v5e, v5p, v6e, tpu7x; a100, h100, h200, b200): print what its compiler makes of
    every kernel, and time nothing. Needs the extra tpu or cuda13."""
    tune: bool = False
    """Measure sizes of tiles on this device, and store the fastest for all later commands. With --compiled: only order them, by
    what the compiler makes of them and a model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepOptions(Measurement):
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
    precision: tuple[Precision, ...] = ()
    """Dtypes of the arithmetic; none = float32 on a CPU, bfloat16 on an accelerator."""
    attention: tuple[Implementation | str, ...] = ("auto",)
    """Attention implementations, as `zoo doctor` lists them."""
    mesh: tuple[str, ...] = ("data=1",)
    """Meshes, each written as data=2,tensor=2."""
    peers: bool = False
    """Also time `transformers` on torch and KerasHub on JAX, where they are installed."""
    profile: bool = False
    """Also break down the time of each training step of this project by kind of operation."""
    cell_seconds: float = 60.0
    """Seconds; a program whose first call takes longer is timed by that call alone."""
    devices: int = 0
    """Simulate this many CPU devices; 0 = use the real ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrowthOptions:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedbackOptions(Measurement):
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
    precision: Precision | None = None
    """Dtype of the arithmetic. None = float32 on a CPU, bfloat16 on an accelerator. The peer runs in float32 only."""
    peers: bool = False
    """Also time the parts of TRL's GRPO trainer on torch, if it is installed."""
    quick: bool = False
    """Measure a nano model, in about a minute."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedOptions(Measurement):
    """Measure vectors of texts of mixed lengths, from text to numpy, on all processors that the process may use.

    The vectors of the peer must equal ours to 1e-5 before it is timed. The exit code is 1 if they differ or a program fails.
    """

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = ""
    """Folder of published weights of an encoder, with its tokenizer, also of sentence-transformers."""
    files: tuple[str, ...] = ()
    """Files with a text in each line; none = random texts."""
    texts: int | None = None
    """Number of random texts. None = 512, with --quick 64."""
    words: int = 180
    """Words of the longest random text; the shortest has 3, and the logarithms of lengths are uniform."""
    batch: int = 16
    """Rows of the model's full length that are computed at a time; on a CPU a batch has at most 1,024 tokens."""
    peers: bool = False
    """Also time sentence-transformers on torch, if it is installed."""
    quick: bool = False
    """Measure fewer texts."""


UNRECORDED = ("output", "quick", "devices", "seconds", "tune")
"""Options that do not change any cell, or only through other options; a larger `seconds` completes rows that were left out."""


def recorded_options(options: Any) -> dict[str, Any]:
    """Return the options that a result file records, which must be the same when it is resumed."""
    return {name: value for name, value in dataclasses.asdict(options).items() if name not in UNRECORDED}


def fill_options(options: Any, default: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return these options by name, those that were omitted from the defaults."""
    return {name: getattr(options, name) or getattr(default, name) for name in names}
