"""Layouts of a step over devices, with and without a pipeline, and the fastest of them that fits."""

import dataclasses
import itertools
from collections.abc import Iterator

from benchmarks.pipeline.layer_costs import SAVED, Shape
from benchmarks.pipeline.step_model import Layout, Schedule, Step, predict_step
from benchmarks.plan.target_devices import Target

CHUNKS = (2, 3, 4, 6, 8, 12)
"""Parts of the model on a stage of an interleaved schedule."""


def layouts(shape: Shape, devices: int, batch: int, *, host: int, pipeline: bool) -> Iterator[Layout]:
    """Yield every layout of a batch of `batch` rows whose axes and micro-batches are powers of two or the rest of the rows.

    Axes that share a row are within a host. A pipeline has at least two stages, in any schedule; interleaved, its micro-batches
    are a multiple of the stages (Narayanan et al. 2021, section 2.2.2).

    Args:
        host: devices of a host.
        pipeline: whether the layers are divided into stages.
    """
    counts = _powers(2, min(devices, shape.layers)) if pipeline else [1]
    for stages, tensor, sequence in itertools.product(counts, _powers(1, host), _powers(1, host)):
        rest = devices // (stages * tensor * sequence)
        if tensor * sequence > host or rest * stages * tensor * sequence != devices:
            continue
        for fsdp in _powers(1, rest):
            if rest % fsdp or batch % rest:
                continue
            replica = batch // rest
            for rows in (count for count in range(1, replica + 1) if replica % count == 0):
                axes = {"stages": stages, "data": rest // fsdp, "fsdp": fsdp, "tensor": tensor, "sequence": sequence}
                for schedule, chunks, keeps in _schedules(shape, stages, replica // rows):
                    if keeps and fsdp * sequence == 1:
                        continue
                    for remat in SAVED:
                        how = {"schedule": schedule, "chunks": chunks, "keeps": keeps, "remat": remat}
                        yield Layout(**axes, rows=rows, micro=replica // rows, **how)


Best = dict[tuple[Schedule, bool], tuple[Layout, Step]]
"""(schedule, whether links overlap) -> the layout with the shortest step, and its prediction."""


def fastest_layouts(shape: Shape, target: Target, batch: int, *, divides_residual: bool = False) -> Best:
    """Return the fastest of the layouts that fit a device, for each schedule that has one, with overlapping links and without.

    Args:
        divides_residual: whether the residual stream is divided along `tensor`, and summed in bfloat16; see `Layout`.
    """
    device = target.published
    assert device is not None and device.memory is not None
    best: Best = {}
    for pipeline in (False, True):
        for layout in layouts(shape, int(target.size), batch, host=device.host, pipeline=pipeline):
            if divides_residual:
                layout = dataclasses.replace(layout, divides_residual=True, sum_bytes=2)
            step = predict_step(shape, layout, target)
            for overlap in (True, False) if step.memory <= device.memory else ():
                before = best.get((layout.schedule, overlap))
                if before is None or step.seconds(overlap) < before[1].seconds(overlap):
                    best[layout.schedule, overlap] = layout, step
    return best


def _schedules(shape: Shape, stages: int, micro: int) -> Iterator[tuple[Schedule, int, bool]]:
    """Yield (schedule, parts of a stage, whether it keeps gathered parameters)."""
    if stages == 1:
        yield "none", 1, False
        return
    for keeps in (False, True):
        yield "gpipe", 1, keeps
        yield "1f1b", 1, keeps
        for chunks in CHUNKS if micro % stages == 0 else ():
            if stages * chunks <= shape.layers:
                yield "interleaved", chunks, keeps


def _powers(first: int, last: int) -> list[int]:
    """Return the powers of two from one of them to a limit."""
    return list(itertools.takewhile(lambda power: power <= last, (first << place for place in range(last.bit_length()))))
