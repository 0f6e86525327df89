"""Rules that decide whether a published row is planned, and where and how: device, mesh, precision, optimizer, recomputation.

Each rule is a function of a row. It returns its part of the run and remarks on what differs from the published one, or raises
`NotPlanned` with the reason. The rules for the model are in `run_rules`.
"""

import math
import re
from typing import Any

from benchmarks.plan.target_devices import TPUS, Target, parse_target
from benchmarks.published.published_rows import NotPlanned, PublishedRow
from train.config.run_config import Mesh, Optim
from zoo.errors import BadInput

Remarks = list[str]

CHIPS = {
    r"A100 40GB.*": ("a100-40gb", ""),
    r"A100 80GB.*": ("a100", ""),
    r"H100 80GB.*|NVIDIA H100-SXM5-80GB": ("h100", ""),
    r"H100 96GB HBM2e.*": ("h100", "planned for an H100 with 80 GB at 3.35 TB/s; it has 96 GB at 2.4 TB/s and 500 W"),
    r"H200.*|NVIDIA H200-SXM5-141GB": ("h200", ""),
    r"B200.*|NVIDIA Blackwell GPU \(B200-SXM-180GB\)": ("b200", ""),
    r"TPU v4": ("v4", ""),
    r"TPU v5e": ("v5e", ""),
    r"TPU v5p": ("v5p", ""),
    r"TPU v6e.*": ("v6e", ""),
    r"TPU7x.*": ("tpu7x", ""),
}
"""Pattern of a chip's published name -> target, and what differs."""
PRECISIONS = {
    r"bf16|BF16|amp_bf16|bf16 autocast|bf16 \(Transformer Engine\)": ("bfloat16", ""),
    r"fp16 mixed": ("bfloat16", "float16 planned as bfloat16, which has the same rate and size"),
    r"tf32": ("float32", ""),
}
"""Pattern of a published precision -> ours, and what differs. On GPUs from Ampere on, float32 products are computed in TF32."""
OPTIMIZERS = {
    r"(decoupled_)?adamw( \(.*\))?|AdamW( \(.*\))?": "",
    r"adam_pax|adam( \(weight decay .*\))?": "Adam planned as AdamW, which has the same moments",
    r"LAMB": "LAMB planned as AdamW, which has the same moments and computes no norms of matrices",
}
RECOMPUTED = {
    r"none( \(.*\))?": "none",
    r"full( per block| per layer| \(save nothing\)| per layer \(checkpoint-activations\))?": "full",
}
"""Pattern of a published policy -> ours that is exactly the same."""
BETWEEN = r"minimal.*|save.*|selective.*|dots_saveable|custom\(.*\)|qkv_proj_offloaded|offload .*"
"""Policies that recompute a part of the layers, or keep some arrays on the host."""
KEEPS_PRODUCTS = r"minimal.*|save dots.*|dots_saveable"
"""Those that keep the result of every product outside of attention."""


def check_time(row: PublishedRow) -> None:
    """Refuse a row whose time is not that of steps with all settings published."""
    row.number("step_time_s")
    if row.text("completeness") != "full":
        raise NotPlanned(f"settings are missing or rows vary in length (completeness {row.text('completeness')})")
    kind = row.text("timing_kind")
    if not kind.startswith(("table", "log", "inverted from TFLOP/s")):
        raise NotPlanned(f"the time is no step's ({kind})")


def target_of(row: PublishedRow) -> tuple[Target, Remarks]:
    """Return the devices: GPUs on hosts of eight, or one TPU slice, whose shape the number of chips determines."""
    chip, devices = row.text("chip"), row.count("n_devices")
    target, remark = _matching(CHIPS, chip) or ("", "")
    if not target:
        raise NotPlanned(f"chip {chip}")
    if target not in TPUS:
        if devices > 8 and row.count("nodes") * 8 != devices:
            raise NotPlanned("hosts that have not eight GPUs")
        size = str(devices)
    else:
        slices = re.match(r"(\d+) slice", row.optional("topology"))
        if re.search("over DCN", row.optional("parallel_notes")) or (slices and int(slices[1]) > 1):
            raise NotPlanned("several TPU slices")
        chips = row.count("n_chips")
        shapes = [shape for shape in TPUS[target].slices if math.prod(map(int, shape.split("x"))) == chips]
        if not shapes:
            raise NotPlanned(f"{chips} chips are no slice of {target}")
        size = shapes[0]
    try:
        return parse_target(f"{target}:{size}"), [remark] * bool(remark)
    except BadInput as error:
        raise NotPlanned(str(error)) from None


def mesh_of(row: PublishedRow) -> Mesh:
    """Return the mesh: data, fsdp, tensor and expert; other ways to divide a step are not planned."""
    for axis, name in (("cp", "context parallelism"), ("pp", "pipeline parallelism"), ("vpp", "pipeline parallelism")):
        if row.count(axis, 1) > 1:
            raise NotPlanned(name)
    notes = row.optional("parallel_notes")
    if re.search("ZeRO-[12]|distributed optimizer|HSDP|SHARD_GRAD_OP|Muon", notes + row.text("optimizer")):
        raise NotPlanned("optimizer state divided otherwise than the parameters (ZeRO-1, ZeRO-2, HSDP)")
    sizes = {"data": row.count("dp"), "fsdp": row.count("fsdp") * row.count("fsdp_transpose", 1), "tensor": row.count("tp")}
    mesh = Mesh(**sizes, expert=row.count("ep", 1))
    if mesh.data * mesh.fsdp * mesh.tensor * mesh.expert != row.count("n_devices"):
        raise NotPlanned("the degrees do not multiply to the devices")
    return mesh


def precision_of(row: PublishedRow) -> tuple[Any, Remarks]:
    """Return the precision; parameters and moments are float32."""
    precision, remark = _matching(PRECISIONS, row.text("precision")) or ("", "")
    if not precision:
        raise NotPlanned(f"precision {row.text('precision')}")
    for field in ("weights_dtype", "moments_dtype"):
        if "bf" in (value := row.optional(field)):
            raise NotPlanned(f"{field} {value}")
    unsaid = [
        f"{field} not published, float32 planned" for field in ("weights_dtype", "moments_dtype") if not row.optional(field)
    ]
    return precision, [remark] * bool(remark) + unsaid


def optimizer_of(row: PublishedRow, like: Optim) -> tuple[Optim, Remarks]:
    """Return AdamW with clipping, which every published optimizer with two moments is planned as."""
    remark = _matching(OPTIMIZERS, row.text("optimizer"))
    if remark is None:
        raise NotPlanned(f"optimizer {row.text('optimizer')}")
    return Optim(name="adamw", lr=like.lr), [remark] * bool(remark)


def remat_of(row: PublishedRow) -> tuple[Any, bool, Remarks]:
    """Return the recomputation, and whether it is exactly the published one.

    A policy between none and full is planned as full: it needs the least memory, and recomputes more.
    """
    policy = row.text("remat")
    if exact := _matching(RECOMPUTED, policy):
        return exact, True, []
    if re.fullmatch(BETWEEN, policy):
        return "full", False, [f"recomputation {policy} planned as full; the bound leaves recomputation out"]
    raise NotPlanned(f"recomputation {policy}")


def accumulate_of(row: PublishedRow, mesh: Mesh) -> tuple[int, Remarks]:
    """Return the number of micro-batches of a step."""
    batch, rows = row.count("global_batch"), mesh.data * mesh.fsdp * mesh.expert
    if row.optional("grad_accum"):
        number, remarks = row.count("grad_accum"), []
    elif row.optional("micro_batch"):
        number, remarks = batch // (row.count("micro_batch") * rows) or 1, []
    else:
        number, remarks = 1, ["micro-batches not published, one planned"]
    if batch % (number * rows):
        raise NotPlanned("the batch does not divide over micro-batches and devices")
    return number, remarks


def attention_of(row: PublishedRow, target: Target) -> tuple[Any, Remarks]:
    """Return the implementation: the compiler's products where the source says unfused, else the fused kernel of the platform."""
    name = row.optional("attention")
    flash = {"gpu": "cudnn", "tpu": "splash"}[target.platform]
    if "126M: no flash" in name:
        return ("xla" if row.text("model").endswith("126M") else flash), []
    if re.search("unfused|dot product", name):
        return "xla", []
    return flash, [] if re.search("flash|splash", name) else ["attention not published, a fused kernel planned"]


def _matching(table: dict[str, Any], text: str) -> Any:
    """Return the value of the first pattern that matches a text; None if none does."""
    matches = [value for pattern, value in table.items() if re.fullmatch(pattern, text)]
    return matches[0] if matches else None
