"""Print the tables that compare steps with and without a pipeline: `python -m benchmarks.pipeline.pipeline_tables FILE`.

FILE is a CSV of published training steps; docs/plan-checks.md describes its columns. Nothing is compiled; it takes a minute or
more.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.pipeline import published_pipelines
from benchmarks.pipeline.layer_costs import Shape, shape_of_model
from benchmarks.pipeline.layouts import fastest_layouts
from benchmarks.pipeline.published_pipelines import PredictedRow
from benchmarks.pipeline.step_model import Layout, Schedule, Step
from benchmarks.plan.find_run import find_run
from benchmarks.plan.target_devices import parse_target
from benchmarks.published.published_rows import PublishedRow, read_published
from zoo.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Case:
    """A published size with the batch that it was trained with."""

    size: str
    target: str
    batch: int
    length: int
    target_length: int
    source: str

    @property
    def shape(self) -> Shape:
        return shape_of_model(find_run(self.size).model, self.size, length=self.length, target_length=self.target_length)


CASES = (
    Case("gpt3-175b", "h100:512", 1536, 2048, 0, "Brown et al. 2020, table 2.1: 3.2 million tokens"),
    Case("llama-3.1-405b", "h100:1024", 2048, 8192, 0, "Llama Team 2024, section 3.4.1: 16 million tokens"),
    Case("t5-11b", "h100:512", 2048, 512, 114, "Raffel et al. 2020, section 3.7, pretraining: 2,048 rows of 512"),
    Case("t5-11b", "h100:64", 128, 512, 114, "Raffel et al. 2020, section 3.1.2, fine-tuning: 128 rows of 512"),
)
HEAD = ("job", "links", "schedule", "layout", "products", "other", "waits", "idle", "sent", "sends", "a step", "holds", "gain")
LLAMA = "misc3-008"
"""Row of the Llama 3 paper."""
MICRO_BATCHES = ("bs-102", "bs-103", "bs-104")
"""Rows that differ only in the number of micro-batches."""
NAMES: dict[Schedule, str] = {"none": "no pipeline", "gpipe": "GPipe", "1f1b": "1F1B", "interleaved": "interleaved"}


def gains_table(cases: Iterable[Case], *, divides_residual: bool) -> Iterator[str]:
    """Yield the lines of the table of the fastest layouts: seconds of a step by part, GiB of a device, gain in throughput."""
    yield table_line(HEAD)
    yield table_line(["---"] * 4 + ["---:"] * 9)
    for case in cases:
        best = fastest_layouts(case.shape, parse_target(case.target), case.batch, divides_residual=divides_residual)
        job = f"{case.size}, {case.target}, {case.batch:,} rows of {case.length:,}"
        for overlap, (schedule, name) in itertools.product((True, False), NAMES.items()):
            if (schedule, overlap) in best:
                layout, step = best[schedule, overlap]
                gain = best["none", overlap][1].seconds(overlap) / step.seconds(overlap) - 1
                cells = (job, "overlap" if overlap else "apart", name, describe_layout(layout), *_parts(step))
                numbers = (f"{step.seconds(overlap):.4g}", f"{step.memory / 2**30:.1f}")
                yield table_line([*cells, *numbers, "" if schedule == "none" else f"{gain:+.1%}"])


def describe_layout(layout: Layout) -> str:
    """Return the axes, micro-batches and remat policy of a layout in words."""
    axes = {"stages": layout.stages, **{axis: getattr(layout, axis) for axis in ("data", "fsdp", "tensor", "sequence")}}
    parts = [f"{axis} {size}" for axis, size in axes.items() if size > 1]
    if layout.chunks > 1:
        parts[0] += f" x {layout.chunks} parts"
    parts.append(f"{layout.micro} x {layout.rows} row{'s' * (layout.rows > 1)}")
    return ", ".join([*parts, layout.remat, *["parameters kept"] * layout.keeps])


def published_table(rows: Sequence[PredictedRow]) -> Iterator[str]:
    """Yield the lines of the table of published pipelines beside their predictions."""
    yield table_line(
        ("row", "model", "devices", "layout", "measured, s", "overlap, s", "apart, s", "measured / apart", "idle share")
    )
    yield table_line(["---"] * 4 + ["---:"] * 5)
    for one in rows:
        step, layout = one.step, one.layout
        devices = f"{one.row.text('chip')} x {layout.devices:,}"
        times = (f"{one.measured:.4g}", f"{step.overlapped:.4g}", f"{step.apart:.4g}", f"{one.ratio:.2f}")
        cells = (one.row.name, one.row.text("model"), devices, describe_layout(layout), *times, f"{layout.idle_share:.1%}")
        yield table_line(cells)


def compare_published(rows: Sequence[PublishedRow]) -> Iterator[str]:
    """Yield the section of published steps: those with a pipeline, and what those without one say about overlap."""
    pipelines = published_pipelines.predict_rows(rows, pipelines=True)
    trials = [one for one in pipelines if one.row.text("source_group") == "bigscience-176b-trials"]
    others = [one for one in pipelines if one not in trials]
    yield from published_table(others)
    yield ""
    for name, group in (("All rows with a pipeline", pipelines), ("BigScience's trials", trials), ("the others", others)):
        if group:
            yield f"- {name}, measured time over the prediction without overlap: {published_pipelines.describe_ratios(group)}."
    plain = published_pipelines.predict_rows(rows, pipelines=False)
    if plain:
        yield f"- Rows without a pipeline, with `fsdp` alone over several hosts: {published_pipelines.describe_ratios(plain)}."
    for low, high, share in published_pipelines.exposed_shares(plain):
        names = f"{low.row.name} and {high.row.name} ({low.row.text('model')} on {low.row.text('chip')})"
        shares = " and ".join(f"{one.step.links / one.step.busy:.0%}" for one in (low, high))
        yield f"- {names} send for {shares} of the time that they compute, and waited for {share:.0%} of what they sent."
    for row in (row for row in rows if row.name == LLAMA):
        yield ""
        yield "The Llama 3 paper does not say how many parts its stages have. The same row with eight, a layer each:"
        yield ""
        yield from published_table([published_pipelines.predict_row(row, chunks=8)])


def bubble_table(rows: Sequence[PublishedRow]) -> Iterator[str]:
    """Yield a table of steps that differ only in their micro-batches, with the idle time and without it."""
    chosen = [published_pipelines.predict_row(row) for row in rows if row.name in MICRO_BATCHES]
    if not chosen:
        return
    last = max(chosen, key=lambda one: one.layout.micro)
    yield table_line(("row", "micro-batches", "measured", "predicted", "error", "without idle time", "error"))
    yield table_line(["---"] + ["---:"] * 6)
    for one in chosen:
        measured, predicted = one.measured / last.measured, one.step.apart / last.step.apart
        wrong = (one.step.apart - one.step.idle) / (last.step.apart - last.step.idle)
        errors = (f"{value / measured - 1:+.1%}" for value in (predicted, wrong))
        cells = (f"{measured:.3f}", f"{predicted:.3f}", next(errors), f"{wrong:.3f}", next(errors))
        yield table_line([one.row.name, str(one.layout.micro), *cells])


def _parts(step: Step) -> list[str]:
    return [f"{value:.3g}" for value in (step.products, step.other, step.waits, step.idle, step.links, step.sends)]


def table_line(cells: Iterable[str]) -> str:
    """Return the line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def pipeline_tables(rows: Sequence[PublishedRow]) -> Iterator[str]:
    """Yield the lines of all tables, each after its title."""
    yield from ("## Best layouts", "")
    yield from gains_table(CASES, divides_residual=False)
    yield from ("", "## With a residual stream that `tensor` divides", "")
    yield from gains_table(CASES, divides_residual=True)
    yield from ("", "## Published steps beside the model", "")
    yield from compare_published(rows)
    yield from ("", "## Idle time", "")
    yield from bubble_table(rows)


if __name__ == "__main__":
    try:
        published = read_published(Path(sys.argv[1]))
    except (BadInput, IndexError) as error:
        reason = "name the CSV file of published steps" if isinstance(error, IndexError) else error
        print(f"pipeline_tables: {reason}", file=sys.stderr)
        raise SystemExit(2) from None
    print("\n".join(pipeline_tables(published)))
