"""Compare published times and memory of the cross-entropy over a vocabulary: fused or in chunks, relative to all logits at once.

`python -m benchmarks.micro.published_cross_entropy cross_entropy_times.csv > RESULT.md`
"""

import argparse
import collections
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.core.published_rows import read_published_rows
from benchmarks.micro.script_setup import run_measurement
from zoo.errors import BadInput

DEVICES = {"nvidia_h100_80gb_hbm3": "NVIDIA H100", "tpu7x": "TPU7x", "tpu_v6_lite": "TPU v6e"}
DENSE = "linear_softmax_cross_entropy_loss"
NAMES = {f"chunked_xla_{DENSE}": "chunks, XLA", f"pallas_mosaic_tpu_{DENSE}": "fused, Pallas"}
SIZES = ("x_dtype", "tokens", "hidden", "w_dtype", "vocab", "reduction")
ARGUMENTS = (*SIZES, "return_residuals", "residuals", "out_dtype")
NEEDED = (*ARGUMENTS, "device", "implementation", "direction", "at_head", "time_us_median", "peak_memory_mb")
Case = tuple[str, ...]
"""Device, direction and the values of `ARGUMENTS`."""
Figures = Mapping[Case, Mapping[str, tuple[float, float]]]
"""Case -> implementation -> (microseconds, peak bytes)."""


def read_figures(path: Path) -> Figures:
    """Return the figures of the newest revision; of several rows of a configuration the fastest counts.

    Raises:
        BadInput: the table cannot be read, or a row has an unknown device or implementation, or no number.
    """
    figures: dict[Case, dict[str, tuple[float, float]]] = collections.defaultdict(dict)
    for number, row in enumerate(read_published_rows(path, NEEDED), 2):
        name, device = row["implementation"], DEVICES.get(row["device"])
        numbers = [row[column] for column in ("tokens", "vocab", "time_us_median", "peak_memory_mb") if row["at_head"] == "1"]
        if device is None or name not in (DENSE, *NAMES) or not all(re.fullmatch(r"\d+(\.\d+)?", text) for text in numbers):
            raise BadInput(f"{path}:{number}: the device, the implementation, a size or a figure is unknown; leave the row out")
        if row["at_head"] == "1":
            case = (device, row["direction"], *(row[argument] for argument in ARGUMENTS))
            figure = float(row["time_us_median"]), 1e6 * float(row["peak_memory_mb"])
            figures[case][name] = min(figure, figures[case].get(name, figure))
    return figures


def ratio_rows(figures: Figures) -> list[list[str]]:
    """Return rows of time and memory relative to all logits at once, by device, direction, implementation and tokens."""
    groups: dict[tuple[str, str, str, int], list[tuple[float, ...]]] = collections.defaultdict(list)
    for (device, direction, *arguments), by_name in figures.items():
        sizes = dict(zip(ARGUMENTS, arguments, strict=True))
        for name in by_name.keys() & NAMES.keys() if DENSE in by_name else ():
            (time, memory), (dense_time, dense_memory) = by_name[name], by_name[DENSE]
            tokens = int(sizes["tokens"])
            per_logit = dense_memory / (tokens * int(sizes["vocab"]))
            # Tokens 0 are all together.
            for key in (tokens, 0):
                groups[device, direction, NAMES[name], key].append((time / dense_time, memory / dense_memory, per_logit))
    return [
        [device, direction, name, f"{tokens:,}" if tokens else "all", str(len(values)), *map(_range, zip(*values, strict=True))]
        for (device, direction, name, tokens), values in sorted(groups.items())
    ]


def step_rows(figures: Figures) -> list[list[str]]:
    """Return rows of the time of both directions together, relative to all logits at once.

    The published backward pass of these computes the logits again: three products. A loss that keeps them has two.
    """
    times: dict[tuple[str, Case], dict[tuple[str, str], float]] = collections.defaultdict(dict)
    for (device, direction, *arguments), by_name in figures.items():
        for name, (time, _) in by_name.items():
            # Of the forward passes with and without residuals the slower one counts.
            shared = times[device, tuple(arguments[: len(SIZES)])]
            shared[name, direction] = max(time, shared.get((name, direction), time))
    groups: dict[tuple[str, str], list[tuple[float, ...]]] = collections.defaultdict(list)
    for (device, _), by_name in times.items():
        for name in NAMES:
            if {(which, direction) for which in (name, DENSE) for direction in ("forward", "vjp")} <= by_name.keys():
                forward, backward = by_name[DENSE, "forward"], by_name[DENSE, "vjp"]
                time = by_name[name, "forward"] + by_name[name, "vjp"]
                ratios = time / (forward + backward), time / (forward + backward * 2 / 3), backward / forward
                groups[device, NAMES[name]].append(ratios)
    return [[*key, str(len(values)), *map(_range, zip(*values, strict=True))] for key, values in sorted(groups.items())]


def _range(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return f"{statistics.median(ordered):.2f} ({ordered[0]:.2f} to {ordered[-1]:.2f})"


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    for row in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(row)} |")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("times", type=Path, help="cross_entropy_times.csv of the published figures")
    figures = read_figures(parser.parse_args(arguments).times)
    head = ["device", "direction", "form", "tokens", "cases", "time", "peak memory", "bytes per logit, all at once"]
    _print_table(head, ratio_rows(figures))
    print()
    head = ["device", "form", "cases", "time", "time, if the logits were kept", "backward over forward, all at once"]
    _print_table(head, step_rows(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_measurement(main))
