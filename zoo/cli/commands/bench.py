"""`zoo bench`."""

import dataclasses
from typing import Annotated

from zoo.cli.commands.bench_step import Output, growth, step
from zoo.cli.options import parse
from zoo.errors import BadInput


def bench(args: list[str]) -> int:
    """`zoo bench attention|step|growth [options]`, `zoo bench compare A B [options]`."""
    kinds = {"attention": attention, "step": step, "growth": growth, "compare": compare}
    if args[:1] in (["-h"], ["--help"]):
        for name, kind in kinds.items():
            print(f"zoo bench {name:<10} {(kind.__doc__ or '').strip()}")
        return 0
    if not args or args[0] not in kinds:
        raise BadInput(f"zoo bench {' '.join(args[:1])}: choose from {', '.join(kinds)}")
    return kinds[args[0]](args[1:])


def attention(args: list[str]) -> int:
    """time every attention implementation, on every kind of attention the models need"""
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Attention:
        """Every attention implementation on every kind of attention the models need: its numbers are checked, then it is timed.

        What is left out is chosen by the machine: on a CPU float32 and up to 2,048 tokens, on an accelerator bfloat16 and up to
        16,384. Cells that cannot run say why. Ends with 1 if something is wrong or fails.
        """

        impl: tuple[str, ...] = ()
        """Implementations, as `zoo doctor` lists them; none = all. xla is measured in any case: ratios are over it."""
        dtype: tuple[str, ...] = ()
        """float32, bfloat16."""
        direction: tuple[str, ...] = ()
        """forward, both (forward and backward)."""
        model: tuple[str, ...] = ()
        """Sizes whose heads to take, as `zoo models` lists them."""
        lengths: tuple[int, ...] = ()
        """Tokens of an example."""
        feature: tuple[str, ...] = ()
        """full, causal, window, padding, packed, t5, xlnet, dropout, grouped."""
        shape: tuple[str, ...] = ()
        """Instead of models and lengths B,T,S,N,K,H: batch, queries, keys, heads, key/value heads, size of a head."""
        tokens: int | None = None
        """Tokens of a batch, over all its examples: on a CPU 2,048, on an accelerator 16,384."""
        batch: int | None = None
        """Examples of a batch, instead."""
        rounds: int | None = None
        """Rounds of each row; none = until the medians are known to 1 %, or --budget is used up, but at least 5."""
        budget: float | None = None
        """Seconds of rounds for each cell."""
        seconds: float | None = None
        """Seconds after which no row begins; those left out are named. None = all are measured, with --quick 60."""
        cell_seconds: float = 20.0
        """A cell whose first call takes longer is timed by that alone."""
        repeats: int = 1
        """Fresh processes, one after the other, that measure everything anew: `zoo bench compare` needs 3."""
        quick: bool = False
        """A small sweep, of the rows that begin within a minute (--seconds)."""
        peers: bool = False
        """Also time torch's attention, if torch is installed."""
        output: Annotated[Output, tyro.conf.arg(name="", prefix_name=False)] = Output()

    asked = parse(Attention, args=args, prog="zoo bench attention")
    from benchmarks.attention import sweep
    from benchmarks.attention.settings import Settings
    from benchmarks.core.runner import Request

    given = dataclasses.asdict(asked)
    quick, output = given.pop("quick"), Request(("bench", "attention", *args), **given.pop("output"))
    return sweep.main(Settings(**given), output, quick=quick)


def compare(args: list[str]) -> int:
    """two results of one benchmark; ends with 1 if something became slower or wrong"""
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Compare:
        """Two results of one benchmark, B against A. On one machine each cell's ratio to the unit in the same rounds is compared;
        results of two machines are only shown side by side. Ends with 1 if a cell is slower beyond its spread and the threshold,
        or became wrong or failed."""

        a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
        """Folder or cells.jsonl of `zoo bench`: before."""
        b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
        """After."""
        threshold: float = 0.05
        """Relative change below which nothing is a regression or an improvement."""
        json: bool = False
        """Print JSON."""

    asked = parse(Compare, args=args, prog="zoo bench compare")
    from benchmarks.core import compare as comparison

    return comparison.main(asked.a, asked.b, threshold=asked.threshold, as_json=asked.json)
