"""The command `zoo bench`."""

import dataclasses
from typing import Annotated

from zoo.cli.commands.bench_step import Output, growth, step
from zoo.cli.options import parse
from zoo.errors import BadInput


def bench(args: list[str]) -> int:
    """Run `zoo bench attention|step|growth [options]` or `zoo bench compare A B [options]`."""
    kinds = {"attention": attention, "step": step, "growth": growth, "compare": compare}
    if args[:1] in (["-h"], ["--help"]):
        for name, kind in kinds.items():
            print(f"zoo bench {name:<10} {(kind.__doc__ or '').strip()}")
        return 0
    if not args or args[0] not in kinds:
        raise BadInput(f"zoo bench {' '.join(args[:1])}: choose from {', '.join(kinds)}")
    return kinds[args[0]](args[1:])


def attention(args: list[str]) -> int:
    """Time every attention implementation on every kind of attention that the models need."""
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Attention:
        """Check the numbers of every attention implementation on every kind of attention that the models need, then time it.

        Defaults depend on the machine: float32 and up to 2,048 tokens on a CPU, bfloat16 and up to 16,384 on an accelerator. A
        cell that cannot run states the reason. The exit code is 1 if numbers are wrong or a cell fails.
        """

        impl: tuple[str, ...] = ()
        """Implementations, as `zoo doctor` lists them; none = all. xla is always measured, because ratios are relative to it."""
        dtype: tuple[str, ...] = ()
        """Dtypes: float32, bfloat16."""
        direction: tuple[str, ...] = ()
        """Passes: forward, or both (forward and backward)."""
        model: tuple[str, ...] = ()
        """Sizes whose heads are measured, as `zoo models` lists them."""
        lengths: tuple[int, ...] = ()
        """Lengths of an example, in tokens."""
        feature: tuple[str, ...] = ()
        """Kinds of attention: full, causal, window, padding, packed, t5, xlnet, dropout, grouped."""
        shape: tuple[str, ...] = ()
        """Shapes B,T,S,N,K,H (batch, queries, keys, heads, key/value heads, head size), instead of --model and --lengths."""
        tokens: int | None = None
        """Tokens of a batch, over all its examples. None = 2,048 on a CPU, 16,384 on an accelerator."""
        batch: int | None = None
        """Examples of a batch, instead of --tokens."""
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
        output: Annotated[Output, tyro.conf.arg(name="", prefix_name=False)] = Output()

    options = parse(Attention, args=args, prog="zoo bench attention")
    from benchmarks.attention import sweep
    from benchmarks.attention.settings import Settings
    from benchmarks.core.bench_command import Request

    settings = dataclasses.asdict(options)
    quick, output = settings.pop("quick"), Request(("bench", "attention", *args), **settings.pop("output"))
    return sweep.main(Settings(**settings), output, quick=quick)


def compare(args: list[str]) -> int:
    """Compare two results of one benchmark. The exit code is 1 if a cell became slower or wrong."""
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Compare:
        """Compare two results of one benchmark, B against A.

        For results of one machine, each cell's ratio to the unit in the same rounds is compared; results of two machines are only
        shown side by side. The exit code is 1 if a cell is slower by more than its spread and the threshold, became wrong, or
        failed.
        """

        a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
        """Folder or cells.jsonl of `zoo bench`, the earlier result."""
        b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
        """Folder or cells.jsonl of the later result."""
        threshold: float = 0.05
        """Relative change below which a difference counts as neither regression nor improvement."""
        json: bool = False
        """Print JSON."""

    options = parse(Compare, args=args, prog="zoo bench compare")
    from benchmarks.core import compare_results

    return compare_results.main(options.a, options.b, threshold=options.threshold, as_json=options.json)
