"""Published training steps as shapes and layouts of the model, and its predictions beside the measured times."""

import dataclasses
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from benchmarks.pipeline.layer_costs import Shape, Stack
from benchmarks.pipeline.step_model import Layout, Step, predict_step
from benchmarks.plan.target_devices import Target
from benchmarks.published import row_rules
from benchmarks.published.published_rows import NotPlanned, PublishedRow
from zoo.errors import BadInput

VOCABULARY = {"about 250k": 250_880, "": 51_200}
"""Part of a row's shape that has no vocabulary -> the one of the model: BLOOM's, else the padded one of GPT-2."""
SMALL = ("megatron-ci",)
"""Sources of small models, whose steps the starts of kernels bound."""
FEWEST_LINKS = 0.15
"""Difference in the share of links between two rows that tell how much of them overlaps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictedRow:
    """A published step and its prediction."""

    row: PublishedRow
    layout: Layout
    measured: float
    """Seconds of a step."""
    step: Step

    @property
    def ratio(self) -> float:
        """Measured time over the prediction without overlap."""
        return self.measured / self.step.apart


def predict_row(row: PublishedRow, chunks: int = 0) -> PredictedRow:
    """Return a row with its prediction.

    Args:
        chunks: parts of the model on a stage, where they are not published; 0 = as published, or one.

    Raises:
        NotPlanned: the row is no step of a transformer on GPUs, or lacks a size or a degree.
    """
    target, shape = _target(row), shape_of_row(row)
    layout = layout_of_row(row, shape, chunks)
    if not row.optional("step_time_s"):
        # Model FLOPs, as in the Llama 3 paper.
        seconds = shape.needed * layout.batch / (row.number("tflops_per_chip") * 1e12 * layout.devices)
    else:
        seconds = row.number("step_time_s")
    return PredictedRow(row=row, layout=layout, measured=seconds, step=predict_step(shape, layout, target))


def shape_of_row(row: PublishedRow) -> Shape:
    """Return the shape of a published decoder or encoder of one kind of layer."""
    kind, extra = row.text("model_kind"), row.optional("extra_sizes")
    if kind == "encoder-decoder" or row.optional("experts") not in ("", "0", "1") or re.search("window|MLA", extra):
        raise NotPlanned("layers of another kind")
    heads, width = row.count("heads"), row.count("d_model")
    head = row.count("head_dim", width // heads)
    gated = bool(re.search("silu,linear|swiglu|geglu", extra))
    stack = Stack(
        layers=row.count("layers"),
        length=row.count("seq_len"),
        width=width,
        inner=heads * head,
        keys=row.count("kv_heads", heads) * head,
        ffn=row.count("ffn"),
        up=2 if gated else 1,
        causal=kind == "decoder",
    )
    vocab = row.count("vocab", next(size for part, size in VOCABULARY.items() if part in extra))
    parameters = float(stack.parameters * stack.layers + vocab * width * (2 if gated else 1))
    fused = "unfused" not in row.optional("attention")
    name = row.text("model")
    return Shape(name=name, stacks=(stack,), vocab=vocab, predicted=stack.length, parameters=parameters, fused=fused, heads=heads)


def layout_of_row(row: PublishedRow, shape: Shape, chunks: int = 0) -> Layout:
    """Return the layout of a published step: a pipeline that keeps its parameters, or `fsdp` without one."""
    if row.count("cp", 1) > 1 or row.count("ep", 1) > 1:
        raise NotPlanned("context or expert parallelism")
    stages, data, fsdp = row.count("pp", 1), row.count("dp", 1), row.count("fsdp", 1)
    rest = row.count("n_devices") // (stages * row.count("tp", 1))
    batch = row.count("global_batch")
    rows = row.count("micro_batch", 1 if stages > 1 else max(1, batch // rest // row.count("grad_accum", 1)))
    micro = batch // (rest * rows)
    if not micro or rest != data * fsdp * row.count("fsdp_transpose", 1):
        raise NotPlanned("the degrees do not multiply to the devices, or the rows do not divide over them")
    full = row.text("remat").startswith("full")
    notes = row.optional("parallel_notes") + row.optional("framework")
    parts = chunks or row.count("vpp", 1)
    common = {"tensor": row.count("tp", 1), "rows": rows, "micro": micro, "remat": "full" if full else "save_dots"}
    common |= {"divides_residual": bool(re.search("sequence parallel|Llama 3", notes)), "sum_bytes": 2}
    if stages > 1:
        schedule = "interleaved" if parts > 1 else "1f1b"
        return Layout(**common, stages=stages, chunks=parts, schedule=schedule, fsdp=rest, keeps=True)
    return Layout(**common, data=rest // fsdp, fsdp=fsdp)


def _target(row: PublishedRow) -> Target:
    target, _ = row_rules.target_of(row)
    precision = row.text("precision").lower()
    if target.platform != "gpu" or not re.match("bf16|fp16|amp_bf16", precision) or "float8" in precision:
        raise NotPlanned("no products in 16 bits on a GPU")
    if row.text("completeness") not in ("full", "parallel", "partial") or row.text("source_group") in SMALL:
        raise NotPlanned("a small model, or a run that did not fit")
    return target


def predict_rows(rows: Iterable[PublishedRow], *, pipelines: bool) -> list[PredictedRow]:
    """Return the predictions of all rows with a pipeline, or of those with `fsdp` over several hosts and no other axis."""
    predicted = []
    for row in rows:
        try:
            one = predict_row(row)
        except (NotPlanned, BadInput):
            continue
        layout = one.layout
        plain = layout.stages == layout.tensor == 1 and layout.fsdp > 1 and layout.devices > 8
        if layout.stages > 1 if pipelines else plain:
            predicted.append(one)
    return predicted


def exposed_shares(rows: Sequence[PredictedRow]) -> list[tuple[PredictedRow, PredictedRow, float]]:
    """Return pairs of rows of one model and device that differ in how much they send, and the share of it that both wait for.

    Of measured time m, computation b and links l, m / b - e l / b is equal in both, which gives the share e.
    """
    groups: defaultdict[tuple[str, ...], list[PredictedRow]] = defaultdict(list)
    for one in rows:
        fields = (one.row.text("source_group"), one.row.text("model"), one.row.text("chip"), one.row.text("seq_len"))
        groups[(*fields, one.layout.remat)].append(one)
    pairs = []
    for group in groups.values():
        ordered = sorted(group, key=_links_share)
        low, high = ordered[0], ordered[-1]
        difference = _links_share(high) - _links_share(low)
        if difference >= FEWEST_LINKS:
            share = (high.measured / high.step.busy - low.measured / low.step.busy) / difference
            pairs.append((low, high, share))
    return pairs


def _links_share(one: PredictedRow) -> float:
    return one.step.links / one.step.busy


def describe_ratios(rows: Sequence[PredictedRow]) -> str:
    """Return the median and the range of measured over predicted time in words."""
    ratios = sorted(one.ratio for one in rows)
    return f"{len(ratios)} rows, median {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}"
