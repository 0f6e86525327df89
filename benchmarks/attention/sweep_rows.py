"""Rows of the sweep of `zoo bench attention`, which follow from its options and from their defaults for the machine."""

import dataclasses
from typing import Any, NamedTuple

from benchmarks.attention.problems import FEATURES, Shape
from benchmarks.core import bench_command
from benchmarks.core.options import AttentionOptions, fill_options
from zoo import configs
from zoo.attention import attention
from zoo.errors import BadInput, require

UNIT = "xla"
"""The implementation that is the unit of ratios: it is always measured."""


_CPU = AttentionOptions(
    impl=tuple(attention.IMPLEMENTATIONS),
    dtype=("float32",),
    direction=("forward", "both"),
    model=("gpt2",),
    lengths=(128, 512, 2048),
    feature=("full", "causal", "padding", "packed", "t5", "xlnet"),
    tokens=2048,
    budget=1.0,
)
_ACCELERATOR = dataclasses.replace(
    _CPU,
    dtype=("bfloat16",),
    model=("gpt2", "gpt3-xl"),
    lengths=(512, 1024, 2048, 4096, 8192, 16384),
    feature=tuple(FEATURES),
    tokens=16384,
)
_QUICK = {"feature": ("full", "causal", "t5"), "model": ("gpt2",), "budget": 0.5, "seconds": 60.0}
DEFAULTS = {
    "sweep": {"cpu": _CPU, "accelerator": _ACCELERATOR},
    "quick": {
        "cpu": dataclasses.replace(_CPU, **_QUICK, lengths=(128, 512), tokens=1024),
        "accelerator": dataclasses.replace(_ACCELERATOR, **_QUICK, lengths=(1024, 4096)),
    },
    "compiled": {
        "accelerator": dataclasses.replace(
            _ACCELERATOR,
            feature=("causal", "packed", "t5", "dropout"),
            direction=("both",),
            model=("gpt2",),
            lengths=(2048,),
            tokens=8192,
        ),
    },
    "tune": {
        "cpu": dataclasses.replace(_CPU, impl=("blocked",), feature=("full", "causal"), lengths=(512, 2048), direction=("both",)),
        "accelerator": dataclasses.replace(
            _ACCELERATOR, feature=("full", "causal", "packed", "t5", "dropout"), direction=("both",), lengths=(1024, 4096, 16384)
        ),
    },
}
"""Kind of a sweep -> its options for a CPU and for an accelerator."""


class SweepRow(NamedTuple):
    """A row of the sweep: all implementations are measured side by side, in the same rounds."""

    dtype: str
    direction: str
    feature: str
    shape: Shape

    def key(self, impl: str) -> dict[str, Any]:
        """Return the key of a cell of this row."""
        numbers = self.shape._asdict()
        return {"implementation": impl, "dtype": self.dtype, "direction": self.direction, "feature": self.feature, **numbers}

    def __str__(self) -> str:
        return f"{self.feature} {self.direction} {self.shape.batch} x {self.shape.queries} {self.dtype}"


def resolve_sweep_options(options: AttentionOptions, backend: str) -> AttentionOptions:
    """Return the options with all omitted fields filled in for a machine.

    Raises:
        BadInput: an unknown name, a wrong shape, a number that is too small, or options that exclude each other.
    """
    _check(options)
    kind = "compiled" if options.compiled else "tune" if options.tune else "quick" if options.quick else "sweep"
    default = DEFAULTS[kind]["cpu" if backend == "cpu" else "accelerator"]
    filled = fill_options(options, default, _NAMES)
    impl = filled["impl"]
    filled["impl"] = impl if UNIT in impl else (UNIT, *impl)
    if options.shape:
        filled |= {"model": (), "lengths": ()}
    if options.shape or options.batch:
        filled["tokens"] = None
    if options.rounds:
        filled["budget"] = None
    complete = dataclasses.replace(options, **filled)
    sweep_rows(complete)
    return complete


def sweep_rows(options: AttentionOptions) -> list[SweepRow]:
    """Return all rows that complete options request, without duplicates."""
    shapes = [Shape.parse(text) for text in options.shape]
    for name in options.model:
        cfg = configs.find_size(name)[1].config
        for length in options.lengths:
            batch = options.batch or max(1, (options.tokens or 0) // length)
            shapes.append(Shape(batch, length, length, cfg.heads, cfg.heads, cfg.head))
    combinations = [
        SweepRow(dtype, direction, feature, FEATURES[feature].shaped(shape))
        for dtype in options.dtype
        for feature in options.feature
        for direction in options.direction
        for shape in shapes
    ]
    return list(dict.fromkeys(combinations))


_NAMES = ("impl", "dtype", "direction", "model", "lengths", "feature", "tokens", "budget", "seconds")


def _check(options: AttentionOptions) -> None:
    for name, choices in (("impl", attention.implementation_names()), ("feature", FEATURES)):
        for value in getattr(options, name):
            require(value in choices, name, value, f"choose from {', '.join(choices)}")
    for name in options.impl:
        # A plug-in that cannot be used is refused before anything is measured.
        attention.find_implementation(name)
    for length in options.lengths:
        require(length >= 1, "lengths", length, "choose 1 or more tokens")
    bench_command.check_numbers(options, "tokens", "batch", "rounds", "budget", "seconds", "cell_seconds", "repeats")
    for one, other in (("shape", "model"), ("shape", "lengths"), ("shape", "batch"), ("shape", "tokens"), ("batch", "tokens")):
        if getattr(options, one) and getattr(options, other):
            raise BadInput(f"--{one} with --{other}: both determine the same; leave one of them out")
