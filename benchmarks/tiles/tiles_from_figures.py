"""Judge the cost model of tiles by published times, and write the table of tiles of `splash`.

`python -m benchmarks.tiles.tiles_from_figures FOLDER > RESULT.md` fits the model to one half of the shapes in attention_times.csv
and experts_times.csv, and prints how it predicts and orders the other half. `--table zoo/ops/tile_sizes.json` replaces the lines
of `splash`, and `--rates benchmarks/tiles/rates.json` the rates of the model, both made from all shapes.
"""

import argparse
import collections
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tiles import tile_model
from benchmarks.tiles.tile_model import TimedTile, main_sizes, predicted_micros
from zoo.errors import BadInput
from zoo.file_access import read_regular_text

SOURCE = "openxla/tokamax@783ea95704a5:tokamax/data/autotuning"
FEWEST = 4
"""Rows of a half below which a group is not judged."""
FIRST = 3
"""The recorded best tile should be among so many."""
SMALLEST, LARGEST = 512, 1024
"""Sizes of the table. With segments, heads of 256 and both passes, kernels with tiles of 1,024 and 512 keys at once fit what the
compilers for v5e, v5p, v6e and TPU7x give a kernel; larger ones are not in the table."""
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
KINDS = {
    "TPU v5p": ("TPU v5", "TPU v5p", "TPU v5 lite", "TPU v5e"),
    "TPU v6e": ("TPU v6 lite", "TPU v6e"),
    "TPU7x": ("TPU7x",),
}
"""Device with figures -> the beginnings of the `device_kind` of those that use its lines: v5e has the matrix unit of v5p."""
BACKWARD = "TPU7x"
"""The device whose times of the backward pass are used for all TPUs: there are no others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The prediction and the orders of tiles for a row that the model was not fitted to."""

    error: float
    """Relative error of the predicted time."""
    number: int
    """Number of tiles that the model orders."""
    model: float
    """Place of the recorded best tile in the model's order, from 0 on; infinite if it is not there."""
    record: float
    """Likewise, in the order of recorded tiles."""


def judge(rows: Sequence[TimedTile]) -> list[Verdict]:
    """Fit the model to one half of the rows of a group, and return verdicts on the other."""
    fitted, held_out = ([row for row in rows if row.is_held_out is half] for half in (False, True))
    rates = tile_model.fit_rates(fitted)
    verdicts = []
    for row in held_out:
        best = main_sizes(row, row.tile)
        orders = tile_model.order_by_model(rates, fitted, row), tile_model.order_by_record(fitted, row)
        model, record = (float(order.index(best)) if best in order else math.inf for order in orders)
        error = abs(predicted_micros(rates, row, row.tile) / row.micros - 1)
        verdicts.append(Verdict(error=error, number=len(orders[0]), model=model, record=record))
    return verdicts


def _cells(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the cells of a row of the result page, from the errors on."""
    errors, numbers = np.array([v.error for v in verdicts]), np.array([v.number for v in verdicts])
    chance = np.minimum(1, FIRST / numbers).mean()
    shares = [np.mean([place < count for place in places]) for places in _places(verdicts) for count in (FIRST, 1)]
    percents = [f"{100 * value:.0f} %" for value in (chance, *shares)]
    return [f"{100 * np.quantile(errors, share):.1f} %" for share in (0.5, 0.9)] + [f"{numbers.mean():.0f}", *percents]


def _places(verdicts: Sequence[Verdict]) -> tuple[list[float], list[float]]:
    return [v.model for v in verdicts], [v.record for v in verdicts]


HEAD = ["device", "kernel", "pass", "rows", "median error", "90th percentile", "candidates", "chance of 3"]
HEAD += ["model: first 3", "first", "nearest record: first 3", "first"]
PAGE = f"""\
# A cost model of tiles, judged by published times

Made by `python -m benchmarks.tiles.tiles_from_figures FOLDER`. The times are those of the newest revision of the autotuning files
of tokamax ({SOURCE}), medians of five runs; a row has the tile that the tuner found best, and
nothing of the others. The model (`benchmarks/tiles/tile_model.py`) is fitted to the shapes of one half and judged by those of the
other; the half follows from a hash of the shape, so that variants of a shape (with log-sum-exp, float16) are in the same half.
"rows" has the numbers of rows of both halves.

A tile is a number of queries and one of keys; of experts the three sizes of a product's blocks. "Candidates": mean number of
tiles that are ordered, and "chance of 3" how often three drawn at random contain the recorded one. They are all powers of two
between the smallest and the largest recorded sizes, with at most as many scores as the largest recorded tile; for experts on a
TPU, blocks of the axes that need no more memory than the largest recorded ones; on a GPU the recorded tiles. "Nearest record"
orders the tiles recorded in the first half by how similar their shapes are.
"""


def result_page(rows: Sequence[TimedTile]) -> str:
    """Return the page of results."""
    groups: dict[tuple[str, str, str], list[TimedTile]] = collections.defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    judged = {key: judge(groups[key]) for key in sorted(groups) if _is_enough(groups[key])}
    lines = [HEAD, ["---"] * 3 + ["---:"] * (len(HEAD) - 3)]
    lines += [
        [*key, f"{len(groups[key]) - len(verdicts)}/{len(verdicts)}", *_cells(verdicts)] for key, verdicts in judged.items()
    ]
    for kernel in sorted({kernel for _, kernel, _ in judged}):
        verdicts = [verdict for key, of_group in judged.items() if key[1] == kernel for verdict in of_group]
        lines.append(["all", kernel, "", f"{len(verdicts)}", *_cells(verdicts)])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{PAGE}\n{table}\n\n## Tiles of the table beside those of 512\n\n{_gains(groups)}"


def _is_enough(rows: Sequence[TimedTile]) -> bool:
    held_out = sum(row.is_held_out for row in rows)
    return min(held_out, len(rows) - held_out) >= FEWEST


def _gains(groups: dict[tuple[str, str, str], list[TimedTile]]) -> str:
    """Return the predicted times of the table's tiles, relative to tiles of 512, for 16,384 tokens of 16 heads of 128."""
    lines = [f"| device | pass | {' | '.join(f'{length:,}' for length in LENGTHS)} |", "| --- | --- |" + " ---: |" * len(LENGTHS)]
    for (device, kernel, direction), rows in sorted(groups.items()):
        if kernel != "splash":
            continue
        rates = tile_model.fit_rates(rows)
        for causal in (False, True):
            cells = []
            for length in LENGTHS:
                shape = (max(1, LENGTHS[-1] // length), length, length, 16, 16, 128)
                row = TimedTile(
                    device=device, kernel=kernel, direction=direction, shape=shape, tile=(), micros=1.0, causal=causal
                )
                size, compute = recorded_size(rows, length)
                times = [predicted_micros(rates, row, tile) for tile in ((size, size, compute), (SMALLEST,) * 3)]
                cells.append(f"{size:,}: {times[0] / times[1]:.2f}")
            lines.append(f"| {device} | {direction}{', causal' if causal else ''} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


# --- the table ------------------------------------------------------------------------------------------------------------------


def recorded_size(rows: Sequence[TimedTile], length: int) -> tuple[int, int]:
    """Return the size of square tiles for a length, and the keys at once.

    It is the most frequent one that fits into the recorded best tiles of the nearest length, at most `LARGEST`.
    """
    nearest = min({row.shape[1] for row in rows}, key=lambda other: (abs(np.log(other / length)), other))
    sizes = collections.Counter(min(*row.tile[:2], LARGEST) for row in rows if row.shape[1] == nearest)
    size = max(sizes, key=lambda one: (sizes[one], one))
    return size, min(size, SMALLEST)


def splash_lines(rows: Sequence[TimedTile]) -> list[dict[str, Any]]:
    """Return the lines of `splash` in the table, for each device those of the longest rows first."""
    lines: list[dict[str, Any]] = []
    backward = [row for row in rows if row.group == (BACKWARD, "splash", "vjp")]
    for device, kinds in KINDS.items():
        forward = [row for row in rows if row.group == (device, "splash", "forward")]
        for length in sorted(LENGTHS, reverse=True):
            (size, compute), (back, back_compute) = (recorded_size(one, length) for one in (forward, backward))
            sizes = {"queries": size, "keys": size, "compute": compute, "backward_queries": back, "backward_keys": back}
            line = {"devices": list(kinds), "length": length, "dtypes": ["bfloat16"]}
            line["sizes"] = sizes | {"backward_compute": back_compute}
            if lines and {**lines[-1], "length": length} == line:
                lines.pop()  # the same for shorter rows
            lines.append(line)
    small = dict.fromkeys(lines[-1]["sizes"], SMALLEST)
    return [*(line for line in lines if line["sizes"] != small), {"sizes": small}]


def table_text(table: dict[str, Any]) -> str:
    """Return the text of the table, each line of it in a line."""
    kernels = (f"{json.dumps(name)}: [\n  " + ",\n  ".join(map(json.dumps, lines)) + "\n]" for name, lines in table.items())
    return "{\n" + ",\n".join(kernels) + "\n}\n"


def main(arguments: Sequence[str]) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiles.tiles_from_figures", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of attention_times.csv and experts_times.csv")
    parser.add_argument("--table", type=Path, help="tile_sizes.json, whose lines of splash are replaced")
    parser.add_argument("--rates", type=Path, help="the file of the model's rates that is written")
    options = parser.parse_args(arguments)
    try:
        attention = tile_model.read_attention(options.folder / "attention_times.csv")
        rows = attention + tile_model.read_experts(options.folder / "experts_times.csv")
    except BadInput as error:
        print(f"tiles_from_figures: {error}", file=sys.stderr)
        return 2
    if options.table:
        table = json.loads(read_regular_text(options.table))
        options.table.write_text(table_text({**table, "splash": splash_lines(attention)}))
    if options.rates:
        groups = sorted({row.group for row in attention})
        rates = {" ".join(key): tile_model.fit_rates([row for row in attention if row.group == key]) for key in groups}
        options.rates.write_text(json.dumps(rates, indent=1) + "\n")
    print(result_page(rows), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
