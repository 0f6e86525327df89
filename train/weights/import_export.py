"""`zoo import` checks and copies published weights; `zoo export` writes a run as a folder that `transformers` loads."""

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train.config import run_config
from train.config.late_interaction_options import LateInteractionOptions
from train.engine import device_mesh
from train.engine.token_projection import PROJECTION
from train.run.run_dir import read_config
from train.tokenizers import hf_files
from train.tokenizers.tokenizer import Tokenizer
from train.weights import adapter_params
from train.weights.cross_encoder_settings import cross_encoder_settings, is_cross_encoder
from train.weights.generation_settings import GENERATION_FILE, write_generation
from train.weights.load import Loaded, load_average, load_model, load_width, restore_trained
from train.weights.resolve_model_name import import_source, import_target, resolve_model_name
from train.weights.reward_scale import RewardScale, write_scale
from train.weights.token_modules import loaded_modules
from train.weights.written_folder import Written, folder_record
from zoo import configs, models, published_weights
from zoo.cross_encoder_files import activation_entries
from zoo.embedding_modules import write_modules
from zoo.errors import require
from zoo.hf import hub, safetensors_dir
from zoo.lora import peft_files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """The origin of the weights in an exported folder."""

    source: Path
    """Folder of the run, or of the published weights."""
    config: Any
    """Configuration of the model."""
    run: run_config.Run | None = None
    """The run; None for published weights."""
    step: int | None = None
    """Step of the checkpoint, the newest one of an average."""
    origin: str = ""
    """Published weights on the hub, as ORG/NAME@COMMIT; "" = a run, or weights of another origin."""
    adapter: str = ""
    """Words for the adapters, if the folder has only these."""
    average: str = ""
    """Words for an average that this command made, whose parameters the run never had; "" = a checkpoint as it is."""


Describe = Callable[[Path, Exported], None]
"""Writes a description of exported weights into their folder, before it gets its name."""


def import_weights(where: str, *, out: str, name: str, explain: bool, mesh: run_config.Mesh) -> Written:
    """Check a complete published model and write it to the folder `out`/`name`: float32, or bfloat16 if it was released so.

    Args:
        where: a folder, or the id of a model on the hub.
        name: the name of the new folder; empty: that of the folder or of the model on the hub.
        explain: only return the parameter that each tensor becomes; the weights are not read.

    Raises:
        BadInput: see `train.weights.load.load_model`; or `out`/`name` exists.
    """
    folder = import_source(where)
    if explain:
        return _explain(published_weights.read_config(folder)[0])
    target = import_target(where, out, name)
    with safetensors_dir.new_folder(target) as new_folder:
        loaded = load_model(folder, device_mesh.make_mesh(mesh))
        dtype = _write(new_folder, loaded)
        if (folder / GENERATION_FILE).exists():
            shutil.copyfile(folder / GENERATION_FILE, new_folder / GENERATION_FILE)
        if not Path(where).is_dir():
            hub.write_origin(new_folder, where, folder)
    command = _next_command(loaded)
    first = f"zoo {command} {target}, " if command else ""
    text = f"{target}: {_summary(loaded)}\n{first}zoo eval {target} --task ..., or zoo train RECIPE --init {target}"
    return Written(text=text, record=folder_record(target, loaded, dtype=dtype))


def _next_command(loaded: Loaded) -> str:
    """Return the command that uses a model; empty for one that must be fine-tuned first."""
    if loaded.model.generates:
        return "generate"
    if loaded.model.task == "body":
        modules = loaded_modules(loaded)
        return "" if modules is not None and modules.multi_vector else "embed"
    return "fill-mask" if "masked" in loaded.params else ""


def export_run(
    run: str,
    target: str,
    *,
    step: int | None,
    last: int,
    shard: float,
    mesh: run_config.Mesh,
    width: float = 0.0,
    describe: Describe | None = None,
) -> Written:
    """Write a run's checkpoint as a published folder: config.json, safetensors of at most `shard` GB, the tokenizer's files.

    Args:
        last: write the mean of this many of its newest checkpoints instead; 0 = write one checkpoint.
        width: write an average of this width at the newest step; 0 = write what the run computed.
        describe: adds a description to the folder; None = it gets none.

    Raises:
        BadInput: see `train.weights.load.load_model`; `target` exists; or the model has no published form.
    """
    with safetensors_dir.new_folder(Path(target)) as new_folder:
        loaded = load_exported(run, step=step, last=last, mesh=mesh, width=width)
        dtype = _write(new_folder, loaded, largest=int(shard * 1e9))
        if describe is not None:
            average = f"the mean of the {last} newest checkpoints" if last > 1 else ""
            average = f"an average of width {width:g} over the steps" if width else average
            source, config = resolve_model_name(run, step), loaded.model.config
            origin = hub.read_origin(source, run) if loaded.run is None else ""
            facts = Exported(source=source, config=config, run=loaded.run, step=loaded.step, origin=origin, average=average)
            describe(new_folder, facts)
    at = "" if loaded.step is None else f", step {loaded.step:,}" + (f" and {last - 1} before it, averaged" if last else "")
    at += f", an average of width {width:g}" if width else ""
    form = "" if dtype == "float32" else f", written as {dtype}, which rounds none of these numbers"
    record = folder_record(target, loaded, form="transformers", step=loaded.step, last=last, average_width=width, dtype=dtype)
    return Written(text=f"{target}: {_summary(loaded)}{at}{form}", record=record)


def load_exported(run: str, *, step: int | None, last: int, mesh: run_config.Mesh, width: float = 0.0) -> Loaded:
    """Return the parameters that `export_run` writes for the same arguments.

    Raises:
        BadInput: see `train.weights.load.load_model`, or both `step` and `last`.
    """
    require(step is None or not last, "last", last, "this averages the newest checkpoints; leave out --step")
    devices = device_mesh.make_mesh(mesh)
    if width:
        return load_width(run, devices, width)
    return load_average(run, devices, last) if last else load_model(run, devices, step)


def export_adapter(run: str, target: str, *, step: int | None, mesh: run_config.Mesh, describe: Describe) -> Written:
    """Write the adapters of a run, and its head if it is fine-tuned, as the two files of an adapter of peft.

    Raises:
        BadInput: see `train.weights.load.load_model`; `target` exists; or the model has no published form.
    """
    config = read_config(run)
    spec = adapter_params.adapters_of(config)
    assert spec is not None, "a run without adapters is refused before"
    fix = f"{run} has a projection of tokens too, which peft's files do not have; leave it out to merge the adapters"
    require(not isinstance(config.options, LateInteractionOptions), "adapter", True, fix)
    with safetensors_dir.new_folder(Path(target)) as new_folder:
        params, number, _ = restore_trained(Path(run), config, device_mesh.make_mesh(mesh), step)
        peft_files.save_adapter(new_folder, config.model, spec, jax.device_get(params), base=config.init)
        summary = adapter_params.adapter_summary(models.model(config.model), spec)
        describe(new_folder, Exported(source=Path(run), config=config.model, run=config, step=number, adapter=summary))
    record = {"folder": target, "files": sorted(os.listdir(target)), "form": "adapter", "adapter": summary, "step": number}
    return Written(text=f"{target}: {summary}, step {number:,}", record=record)


def write_folder(target: Path, loaded: Loaded) -> Path:
    """Write a loaded model as a new published folder, atomically, and return its path.

    Raises:
        BadInput: `target` exists, or the model has no published form.
    """
    with safetensors_dir.new_folder(target) as folder:
        _write(folder, loaded)
    return target


def write_text_files(folder: Path, loaded: Loaded) -> None:
    """Write the files of a model's tokenizer, and its settings of generation, into a folder."""
    ids = _ids(loaded.tokenizer, has_score=loaded.model.task == "sequence")
    hf_files.write_tokenizer(folder, loaded.tokenizer, longest=getattr(loaded.model.config, "context", None))
    write_generation(folder, _generation_values(loaded, ids))


def _write(folder: Path, loaded: Loaded, largest: int = 5_000_000_000) -> str:
    """Write the files of a published folder and return the type of its tensors."""
    cfg, has_score = loaded.model.config, loaded.model.task == "sequence"
    ids, longest = _ids(loaded.tokenizer, has_score=has_score), getattr(cfg, "context", None)
    entries: dict[str, Any] = {}
    modules = None
    if is_cross_encoder(loaded):
        activation, longest = cross_encoder_settings(loaded)
        entries = {} if activation is None else activation_entries(activation)
    else:
        modules = loaded_modules(loaded)
    params = {name: part for name, part in loaded.params.items() if name != PROJECTION}
    dtype = published_weights.save_published(folder, cfg, params, extra={**ids, **entries}, largest=largest)
    if loaded.tokenizer.kind == "gpt" and has_score and "pad_token_id" not in ids:
        print(f"! {NO_PADDING}", file=sys.stderr)
    hf_files.write_tokenizer(folder, loaded.tokenizer, longest=longest)
    write_generation(folder, _generation_values(loaded, ids))
    if modules is not None:
        write_modules(folder, modules, cfg.width)
    if loaded.reward_scale != RewardScale():
        write_scale(folder, dataclasses.replace(loaded.reward_scale, step=None))
    return dtype


def _generation_values(loaded: Loaded, ids: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of generation_config.json: the special tokens, and the settings that came with the weights."""
    if not loaded.model.generates:
        return {}
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    own = {} if loaded.generation is None else dict(loaded.generation.values)
    values = {name: ids[name] for name in names if name in ids} | own
    if loaded.run is not None and "eos_token_id" in own and "eos_token_id" in ids:
        # Training may have taught another end of a text than that of the weights it began with.
        ends = list(dict.fromkeys([*np.ravel(own["eos_token_id"]).tolist(), *np.ravel(ids["eos_token_id"]).tolist()]))
        values["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    return values


NO_PADDING = (
    "config.json has no pad_token_id, because the tokenizer has no padding token but those that end a text; transformers scores "
    "one text at a time without it"
)
"""Note on a decoder with a score: the classes of `transformers` compare ids with the padding to find the last token of a text."""


def _ids(tokenizer: Tokenizer, *, has_score: bool = False) -> dict[str, Any]:
    """Return the special tokens that a config.json names.

    The padding of a decoder with a score is left out if a text may end with it: `transformers` would read the score before it.
    RoBERTa's padding token is not among them: its positions depend on it, so it is in the model's configuration.
    """
    marks, text, end = tokenizer.special_tokens, tokenizer.text_special_tokens, tokenizer.end_of_text
    if text is not None:
        return {"pad_token_id": text.pad, "eos_token_id": end, "decoder_start_token_id": text.pad}
    if marks is None:
        ids = _decoder_ids(tokenizer)
        if has_score and ids.get("pad_token_id") in np.ravel(ids["eos_token_id"]):
            del ids["pad_token_id"]
        return ids
    if marks.bos is not None and marks.eos is not None:
        return {"pad_token_id": marks.pad, "bos_token_id": marks.bos, "eos_token_id": marks.eos}
    bounds = {"bos_token_id": marks.cls, "eos_token_id": end}
    if tokenizer.kind == "modernbert":
        return {"pad_token_id": marks.pad, "cls_token_id": marks.cls, "sep_token_id": marks.sep, **bounds}
    return bounds if marks.between == 2 else {"pad_token_id": marks.pad}


def _decoder_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the special tokens of a decoder: those that its settings name, and the end of a document.

    A model that answers in conversations ends an answer with another token than a document; generation ends at both.
    """
    names, entries = hf_files.special_token_names(tokenizer), tokenizer.ids()
    by_role = {role: entries[name] for role, name in names.items() if name in entries}
    ends = [*dict.fromkeys((by_role.get("eos_token", tokenizer.end_of_text), tokenizer.end_of_text))]
    ids = {
        "bos_token_id": by_role.get("bos_token", tokenizer.begin_of_text),
        "eos_token_id": ends if len(ends) > 1 else ends[0],
    }
    return ids | ({"pad_token_id": by_role["pad_token"]} if "pad_token" in by_role else {})


def _summary(loaded: Loaded) -> str:
    cfg = loaded.model.config
    name = configs.published_name(cfg) or f"a {loaded.model.family} of no published size"
    return f"{name}, {models.parameter_count(cfg):,} parameters, a vocabulary of {loaded.tokenizer.vocab_size:,}"


def _explain(cfg: Any) -> Written:
    names, tensors = ("published", "shape", "zoo", "axes"), list(published_weights.explain_import(cfg))
    rows = [names, *tensors]
    cells = [
        (name, "x".join(map(str, shape)) if isinstance(shape, tuple) else shape, leaf, axes) for name, shape, leaf, axes in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return Written(text="\n".join(lines), record={"tensors": [dict(zip(names, tensor, strict=True)) for tensor in tensors]})
