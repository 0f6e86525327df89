"""`zoo bench step` and `zoo bench growth`."""

import dataclasses
from typing import Annotated, Literal

from zoo.cli.options import parse
from zoo.configs import Implementation, Remat


@dataclasses.dataclass(frozen=True)
class Output:
    """What becomes of the results."""

    out: str = ""
    """Their folder; none = runs/bench/<benchmark>_<hardware>_<date>."""
    resume: bool = False
    """Complete those that are there. What its process was killed at twice is recorded as failed."""
    json: bool = False
    """Print the cells as JSON, one a line."""


def step(args: list[str]) -> int:
    """time training, inference and decoding steps of models, beside other implementations of them"""
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Step:
        """Steps of models: what they cost, how near the machine's limit they are, and where their time goes.

        Every way of computing that is named is measured, each with each; the first is what the others' times are stated over. All
        must have the same losses before any is timed. Ends with 1 if one is wrong or fails.
        """

        models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL...")] = ()
        """Sizes as `zoo models` lists them, or how their names begin: gpt2, bert-base, t5-small."""
        mode: Literal["train", "inference", "decode"] = "train"
        """train: the trainer's step with the family's first objective, AdamW and clipping. inference: a forward pass with the
        same loss. decode: one token through the cache."""
        batch: int | None = None
        """Rows; none = what suits the family."""
        length: int | None = None
        """Tokens of a row, of an encoder-decoder those it writes; decoding, slots of the cache. None = what suits the family."""
        source_length: int | None = None
        """Tokens of a row that an encoder-decoder reads."""
        dropout: bool = False
        """Keep the published rates of dropout; otherwise there is none."""
        layers: tuple[Literal["scan", "unroll"], ...] = ("scan", "unroll")
        """How the stack of layers is compiled."""
        remat: tuple[Remat, ...] = ("none",)
        """What the backward pass computes again."""
        precision: tuple[Literal["float32", "bfloat16"], ...] = ()
        """Dtypes of the arithmetic; none = float32 on a CPU, bfloat16 on an accelerator."""
        attention: tuple[Implementation, ...] = ("auto",)
        """Attention implementations, as `zoo doctor` lists them."""
        mesh: tuple[str, ...] = ("data=1",)
        """Meshes, each as data=2,tensor=2."""
        peers: bool = False
        """Also time `transformers` on torch and KerasHub on JAX, where they are installed."""
        profile: bool = False
        """Also say where the time of each of our training steps goes."""
        rounds: int | None = None
        """Rounds of each model; none = until the medians are known to 1 %, or --budget is used up, but at least 5."""
        budget: float | None = None
        """Seconds of rounds for each program; none = 20."""
        cell_seconds: float = 60.0
        """A program whose first call takes longer is timed by that alone."""
        repeats: int = 1
        """Fresh processes, one after the other, that measure everything anew: `zoo bench compare` needs 3."""
        devices: int = 0
        """Simulate this many CPU devices; 0 = use the real ones."""
        output: Annotated[Output, tyro.conf.arg(name="", prefix_name=False)] = Output()

    asked = parse(Step, args=args, prog="zoo bench step")
    from benchmarks.core.runner import Request
    from benchmarks.step import bench
    from benchmarks.step.settings import Settings

    given = dataclasses.asdict(asked)
    devices, output = given.pop("devices"), Request(("bench", "step", *args), **given.pop("output"))
    return bench.main(Settings(**given), output, devices=devices)


def growth(args: list[str]) -> int:
    """how the cost of a small model's step grows with length, layers, width and devices"""
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Growth:
        """How time, memory and compilation of a small model's step grow; each axis by itself, with the exponent fitted."""

        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL]")] = "gpt-nano"
        """A size of the family, as `zoo models` lists them; its depth and width are chosen here."""
        batch: int | None = None
        """Rows, over all devices."""
        length: tuple[int, ...] = ()
        """Tokens of a row."""
        layers: tuple[int, ...] = ()
        """Layers; of an encoder-decoder those of each side."""
        width: tuple[int, ...] = ()
        """Widths, multiples of 32, the size of a head."""
        device_counts: tuple[int, ...] = ()
        """Simulated devices that a batch is split over."""
        rounds: int | None = None
        """Rounds along each axis."""
        quick: bool = False
        """Fewer and smaller, in a minute."""
        output: Annotated[Output, tyro.conf.arg(name="", prefix_name=False)] = Output()

    asked = parse(Growth, args=args, prog="zoo bench growth")
    from benchmarks.core.runner import Request
    from benchmarks.growth import bench as benchmark

    given = dataclasses.asdict(asked)
    quick, output = given.pop("quick"), Request(("bench", "growth", *args), **given.pop("output"))
    return benchmark.main(benchmark.Settings(**given), output, quick=quick)
