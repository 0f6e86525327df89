"""Rules for the model of a published row, and the run that all rules together make."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from benchmarks.plan.find_run import find_run
from benchmarks.plan.target_devices import Target
from benchmarks.published import row_rules
from benchmarks.published.published_rows import NotPlanned, PublishedRow
from benchmarks.published.row_rules import Remarks
from train.config.find_objective import with_objective
from train.config.run_config import Run
from zoo.errors import BadInput

LOGITS = 8 << 30
"""Bytes of float32 logits of a device above which the loss is computed in chunks of positions."""
CHUNK = 128
"""Positions of a chunk."""


@dataclasses.dataclass(frozen=True)
class Translation:
    """A published row as a run of this project."""

    row: PublishedRow
    run: Run
    target: Target
    same_recomputation: bool
    """False if the run recomputes more than the published one."""
    keeps_products: bool
    """True if the published run recomputes no product of a layer, and the run does."""
    remarks: tuple[str, ...]
    """Differences between the published run and its plan, and facts that were not published."""


def translate_row(row: PublishedRow) -> Translation:
    """Return a row as a run.

    Raises:
        NotPlanned: with the first reason.
    """
    row_rules.check_time(row)
    target, remarks = row_rules.target_of(row)
    mesh = row_rules.mesh_of(row)
    precision, unlike_precision = row_rules.precision_of(row)
    remat, same, unlike_remat = row_rules.remat_of(row)
    accumulate, unlike_batch = row_rules.accumulate_of(row, mesh)
    attention, unlike_attention = row_rules.attention_of(row, target)
    base, model, unlike_model = model_of(row)
    optim, unlike_optimizer = row_rules.optimizer_of(row, base.optim)
    remarks += [*unlike_model, *unlike_precision, *unlike_optimizer, *unlike_remat, *unlike_batch, *unlike_attention]
    dropout, unlike_dropout = dropout_of(row, model, attention)
    compute = dataclasses.replace(model.compute, attention=attention, remat=remat)
    model = dataclasses.replace(model, **dropout, compute=compute)
    values = {
        "recipe": row.optional("model"),
        "model": model,
        "mesh": mesh,
        "precision": precision,
        "accumulate": accumulate,
        "optim": optim,
    }
    try:
        run = _with_rows(base, row, values)
    except BadInput as error:
        raise NotPlanned(str(error)) from None
    chunk = run.options.loss_chunk
    if chunk:
        remarks += ["logits computed in chunks, and again in the backward pass; the bound leaves recomputation out"]
    keeps = bool(re.fullmatch(row_rules.KEEPS_PRODUCTS, row.text("remat")))
    return Translation(row, run, target, same and not chunk, keeps, (*remarks, *unlike_dropout))


def model_of(row: PublishedRow) -> tuple[Run, Any, Remarks]:
    """Return a run of the family, and its model with the published sizes."""
    shape = row.text("extra_sizes")
    kind = row.text("model_kind")
    matching = [family for pattern, family in FAMILIES.items() if re.search(pattern, f"{kind}: {shape}")]
    if not matching or re.search(OTHERS, shape):
        raise NotPlanned(f"{kind} of another architecture ({_short(shape)})")
    size, renames, remark = matching[0]
    base = find_run(size)
    if (experts := row.optional("experts")) not in ("", "0", "1") and not hasattr(base.model, "experts"):
        raise NotPlanned(f"{kind} of another architecture ({_short(shape)}, {experts} experts)")
    sizes = {name: row.count(column) for column, name in renames.items()}
    if hasattr(base.model, "context"):
        sizes["context"] = row.count("seq_len")
    return base, dataclasses.replace(base.model, **sizes), [remark] * bool(remark)


_DECODER = {"layers": "layers", "d_model": "width", "heads": "heads", "head_dim": "head", "ffn": "ffn", "vocab": "vocab"}
_BERT = {"layers": "layers", "d_model": "width", "heads": "heads", "ffn": "ffn", "vocab": "vocab"}
FAMILIES: Mapping[str, tuple[str, Mapping[str, str], str]] = {
    r"decoder: mlp_activations=\[silu,linear\];decoder_block=(llama2|mistral)$|decoder: swiglu$": (
        "llama-3.1-8b",
        {**_DECODER, "kv_heads": "kv_heads"},
        "",
    ),
    r"decoder: .*decoder_block=gpt_oss": (
        "gpt-oss-120b",
        {"layers": "layers", "d_model": "width", "heads": "heads", "head_dim": "head", "ffn": "ffn", "vocab": "vocab"}
        | {"kv_heads": "kv_heads", "experts": "experts", "experts_active": "active_experts"},
        "",
    ),
    r"decoder: mlp_activations=\[relu\]": (
        "gpt3-175b",
        _DECODER,
        "learned positions, biases and GELU in place of rotations, no biases and ReLU, which have the same products",
    ),
    r"decoder: (gelu( mlp)? \(2 matrices\);.*learned positions(?! unless)|mlp_activations=\[gelu\];decoder_block=gpt3)": (
        "gpt3-175b",
        _DECODER,
        "",
    ),
    r"encoder: gelu.*post-norm.*NSP head": ("bert-large-uncased", _BERT, ""),
    r"encoder-decoder: gated gelu.*relative position bias": ("t5-v1.1-small", {**_DECODER, "dec_layers": "decoder_layers"}, ""),
}
"""Pattern of the kind and the published shape -> a run of the family, published field -> field of the model, what differs."""
OTHERS = r"alibi|capacity_factor|sliding_window_size=(?!128;.*gpt_oss)"
"""Pattern of shapes that no family here has."""


def dropout_of(row: PublishedRow, model: Any, attention: str) -> tuple[dict[str, float], Remarks]:
    """Return the dropout rates of a model: the published one for all, or none; fused kernels have none."""
    rate = float(row.optional("dropout") or 0)
    rates = {field.name: rate for field in dataclasses.fields(model) if field.name.endswith("dropout")}
    remarks = ["dropout not published, none planned"] * (not row.optional("dropout"))
    if rate and attention != "xla" and "attention_dropout" in rates:
        rates["attention_dropout"] = 0.0
        remarks += ["the fused kernel is planned without dropout of attention weights"]
    return rates, remarks


def _with_rows(run: Run, row: PublishedRow, values: dict[str, Any]) -> Run:
    """Return the run with these values and rows of the published lengths: pairs for an encoder-decoder.

    Raises:
        BadInput: the run is impossible.
    """
    length = row.count("seq_len")
    sizes: dict[str, Any] = {"length": length, "batch": row.count("global_batch"), "ramp": ()}
    predicted = length
    if run.model.is_encoder_decoder:
        run = with_objective(run, "text_to_text")
        predicted = sizes["target_length"] = row.count("dec_seq_len")
    options = run.options
    if hasattr(options, "masking"):
        # BERT's source predicts at most 20 of 128 positions, or 80 of 512.
        predicted = round(length * 20 / 128)
        options = dataclasses.replace(options, masking=dataclasses.replace(options.masking, most=predicted))
    mesh = values["mesh"]
    rows = sizes["batch"] // values["accumulate"] // (mesh.data * mesh.fsdp * mesh.expert)
    chunked = 4.0 * rows * predicted * values["model"].vocab / mesh.tensor > LOGITS and predicted % CHUNK == 0
    options = dataclasses.replace(options, loss_chunk=CHUNK if chunked else 0)
    return dataclasses.replace(run, data=dataclasses.replace(run.data, **sizes), options=options, **values)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
