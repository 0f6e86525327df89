"""The commands `zoo bench step` and `zoo bench growth`."""

import dataclasses
from typing import Annotated, Literal

from zoo.cli.options import parse
from zoo.configs import Implementation, Remat


@dataclasses.dataclass(frozen=True)
class Output:
    """Options for the results."""

    out: str = ""
    """Folder of the results; empty = runs/bench/<benchmark>_<hardware>_<date>."""
    resume: bool = False
    """Complete the results in the folder. A cell at which the process was killed twice is recorded as failed."""
    json: bool = False
    """Print the cells as JSON, one per line."""


def step(args: list[str]) -> int:
    """Time training, inference and decoding steps of models, and of other implementations of them."""
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Step:
        """Measure steps of models: their cost, how close they are to the machine's limit, and where their time goes.

        Every combination of --layers, --remat, --precision, --attention and --mesh is measured; times are relative to the first
        combination. All must give the same losses before any is timed. The exit code is 1 if one is wrong or fails.
        """

        models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL...")] = ()
        """Sizes as `zoo models` lists them, or the beginnings of their names: gpt2, bert-base, t5-small."""
        mode: Literal["train", "inference", "decode"] = "train"
        """train: the trainer's step with the family's first objective, AdamW and clipping.
        inference: a forward pass with the same loss.
        decode: one token through the cache."""
        batch: int | None = None
        """Rows of a batch. None = a default for the family."""
        length: int | None = None
        """Tokens of a row (encoder-decoders: of its target); for decode, slots of the cache. None = a default for the family."""
        source_length: int | None = None
        """Tokens of the source of a row, for an encoder-decoder."""
        dropout: bool = False
        """Use the published dropout rates; otherwise there is no dropout."""
        layers: tuple[Literal["scan", "unroll"], ...] = ("scan", "unroll")
        """Ways to compile the stack of layers."""
        remat: tuple[Remat, ...] = ("none",)
        """Recomputation in the backward pass: none, full (layers), or attention (all but attention)."""
        precision: tuple[Literal["float32", "bfloat16"], ...] = ()
        """Dtypes of the arithmetic; none = float32 on a CPU, bfloat16 on an accelerator."""
        attention: tuple[Implementation, ...] = ("auto",)
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

    options = parse(Step, args=args, prog="zoo bench step")
    from benchmarks.core.bench_command import Request
    from benchmarks.step import bench
    from benchmarks.step.settings import Settings

    settings = dataclasses.asdict(options)
    devices, output = settings.pop("devices"), Request(("bench", "step", *args), **settings.pop("output"))
    return bench.main(Settings(**settings), output, devices=devices)


def growth(args: list[str]) -> int:
    """Measure how the cost of a small model's step grows with length, layers, width and devices."""
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Growth:
        """Measure how time, memory and compilation of a small model's step grow along each axis, and fit the exponents."""

        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL]")] = "gpt-nano"
        """A size of the family, as `zoo models` lists them; --layers and --width replace its depth and width."""
        batch: int | None = None
        """Rows of a batch, over all devices."""
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

    options = parse(Growth, args=args, prog="zoo bench growth")
    from benchmarks.core.bench_command import Request
    from benchmarks.growth import bench as benchmark

    settings = dataclasses.asdict(options)
    quick, output = settings.pop("quick"), Request(("bench", "growth", *args), **settings.pop("output"))
    return benchmark.main(benchmark.Settings(**settings), output, quick=quick)
