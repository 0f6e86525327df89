"""Adapters as files of peft: adapter_config.json and adapter_model.safetensors, with exact names and shapes.

Format: peft 0.21.2. A tensor is called `base_model.model.`, the module's name in `transformers`, `.lora_A.weight` [r, in] or
`.lora_B.weight` [out, r], also for GPT-2's modules, whose weights are [in, out]; a head that was trained in full has its
published names after `base_model.model.`. Reading is exact, or fails with the name of the key or the tensor.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo import configs, models, published_weights
from zoo.errors import BadInput
from zoo.hf import safetensors_dir
from zoo.hf.safetensors_dir import Tensor
from zoo.lora import adapter_config, adapters
from zoo.lora.adapter_config import CONFIG, Adapters
from zoo.lora.adapters import adapted_matrices, head_paths, module_of
from zoo.published_weights import FLOATS, MAX_NAMED

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
TASK_TYPES = {
    **{"causal": "CAUSAL_LM", "text_to_text": "SEQ_2_SEQ_LM", "sequence": "SEQ_CLS", "tokens": "TOKEN_CLS"},
    **{"span": "QUESTION_ANS", "body": "FEATURE_EXTRACTION"},
}
"""Task -> its name in peft, which has no names for the other tasks."""
HEADS = ("classifier", "score", "qa_outputs")
"""Modules that peft always adds to `modules_to_save`, whether or not the model has them."""


def read_peft_adapter(folder: Path, cfg: Any) -> tuple[Adapters, dict[str, Any]]:
    """Return the adapters of a folder for a model, and their values: float32 arrays as from `zoo.lora.adapters.init_adapters`.

    The tree has the leaves of the head if the file contains the head; otherwise the base keeps its head.

    Raises:
        BadInput: see `zoo.lora.adapter_config.read_adapter_config`; a target that the model does not have; or tensors that are
            missing, unexpected, of another shape or type, not finite, or all zero (B of an adapter that was never trained or
            loaded).
    """
    file = folder / WEIGHTS
    spec, modules = adapter_config.read_adapter_config(folder)
    try:
        adapted_matrices(cfg, spec.targets)
    except BadInput as error:
        raise BadInput(f"{folder / CONFIG}: target_modules: {str(error).removeprefix(f'--{adapters.OPTION} ')}") from None
    tensors = safetensors_dir.read_header(file)
    _check_modules(folder, cfg, modules)
    slots = max(_tables(cfg, spec, modules), key=lambda table: len(table.keys() & tensors.keys()))
    if problems := [*_problems(slots, tensors)]:
        more = f"; and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        raise BadInput(f"{file}: not an adapter of this model: {'; '.join(problems[:MAX_NAMED])}{more}")
    leaves: dict[str, np.ndarray] = {}
    for name, slot in slots.items():
        array = leaves.setdefault(slot.path, np.zeros(slot.leaf_shape, np.float32))
        array[slot.index] = slot.arrange(tensors[name].view())
    return spec, adapters.unflatten_tree(leaves)


def save_adapter(folder: Path, cfg: Any, spec: Adapters, trained: Mapping[str, Any], *, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors into an existing folder.

    Args:
        trained: a tree as from `zoo.lora.adapters.init_adapters`, of arrays on the host; it may lack modules of the head.
        base: name or folder of the base model, as peft is to load it.

    Raises:
        BadInput: the model has no published form, so that peft has no model for the adapters.
        OSError: the folder cannot be written.
    """
    model = models.model(cfg)
    configs.family(model.family).to_published(cfg)
    if not model.names.architecture:
        raise BadInput(f"model.task {model.task}: no {model.family} with this head was published, so it cannot be exported")
    stored = adapters.flatten_tree(trained)
    modules = tuple(dict.fromkeys(_head_module(name) for name, leaf in _head_names(cfg).items() if leaf.path in stored))
    slots = dict(_slots(cfg, spec, modules, model.names.prefixes[0]))
    content = {
        "peft_type": "LORA",
        "task_type": TASK_TYPES.get(model.task),
        "base_model_name_or_path": base,
        "r": spec.rank,
        "lora_alpha": int(spec.alpha) if spec.alpha.is_integer() else spec.alpha,
        "target_modules": list(spec.targets),
        "use_rslora": spec.rslora,
        "modules_to_save": list(modules) or None,
        "fan_in_fan_out": model.names.input_first,
        "inference_mode": True,
        "init_lora_weights": True,
        **{"bias": "none", "lora_bias": False, "lora_dropout": spec.dropout, "use_dora": False},
    }

    def fetch(name: str) -> np.ndarray:
        slot = slots[name]
        return slot.publish(np.asarray(stored[slot.path], np.float32)[slot.index])

    shapes = {name: slot.shape for name, slot in slots.items()}
    safetensors_dir.write_tensors(folder, shapes, fetch, name=WEIGHTS.removesuffix(".safetensors"), largest=1 << 62)
    (folder / CONFIG).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Slot:
    """The place in a leaf that a tensor of a file belongs to."""

    path: str
    leaf_shape: tuple[int, ...]
    index: tuple[int, ...]
    """Index of the tensor into the leaf: layer and number of the published tensor, where the leaf has these axes."""
    shape: tuple[int, ...]
    head: published_weights.Leaf | None = None
    """The leaf of a head, whose axes may have another order; None for an adapter."""

    @property
    def is_b(self) -> bool:
        return self.head is None and self.path.endswith("/b")

    def arrange(self, view: np.ndarray) -> np.ndarray:
        return view if self.head is None else self.head.layout.arrange([view], self.head.shape)(())

    def publish(self, array: np.ndarray) -> np.ndarray:
        return array if self.head is None else self.head.layout.publish(array, 0)


def _slots(cfg: Any, spec: Adapters, modules: tuple[str, ...], prefix: str) -> Iterator[tuple[str, _Slot]]:
    """Yield (name, slot) of every tensor of a file."""
    for matrix in adapted_matrices(cfg, spec.targets, prefix):
        for path, shape in matrix.shapes(spec.rank).items():
            lead = int(matrix.leaf.stacked) + int(matrix.fused)
            for layer, names in enumerate(matrix.leaf.names):
                for number, part in enumerate(matrix.parts):
                    index = ((layer,) if matrix.leaf.stacked else ()) + ((number,) if matrix.fused else ())
                    kind = "lora_A" if path.endswith("/a") else "lora_B"
                    name = f"{PREFIX}{module_of(names[part])}.{kind}.weight"
                    yield name, _Slot(path=path, leaf_shape=shape, index=index, shape=shape[lead:])
    for name, leaf in _head_names(cfg).items():
        if any(f".{name}".find(f".{module}.") >= 0 for module in modules):
            yield PREFIX + name, _Slot(path=leaf.path, leaf_shape=leaf.shape, index=(), shape=leaf.published, head=leaf)


def _tables(cfg: Any, spec: Adapters, modules: tuple[str, ...]) -> Iterator[dict[str, _Slot]]:
    """Yield the slots of a file by the names of its tensors, for each prefix of published names that fits the targets."""
    for prefix in models.model(cfg).names.prefixes:
        try:
            yield dict(_slots(cfg, spec, modules, prefix))
        except BadInput:
            # A target with a prefix, as those of all-linear, names no module without it. The first prefix fits all targets.
            continue


def _head_names(cfg: Any) -> dict[str, published_weights.Leaf]:
    """Return the leaves of a head that is trained in full, by their published names."""
    leaves = published_weights.present_leaves(cfg, models.model(cfg).names.prefixes[0])
    return {leaf.names[0][0]: leaf for leaf in leaves if leaf.path in head_paths(cfg)}


def _head_module(name: str) -> str:
    """Return the name in `modules_to_save` of a tensor of a head: its first part, the attribute of the model."""
    return name.partition(".")[0]


def _check_modules(folder: Path, cfg: Any, modules: tuple[str, ...]) -> None:
    own = {_head_module(name) for name in _head_names(cfg)}
    for module in modules:
        if module not in (*own, *HEADS):
            fix = f"only the head can be trained as a whole ({', '.join(sorted(own)) or 'this model has none'})"
            raise BadInput(f"{folder / CONFIG}: modules_to_save has {json.dumps(module)[:60]}; {fix}")


def _problems(slots: Mapping[str, _Slot], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    for name in tensors:
        if name not in slots:
            if PREFIX + name in slots:
                yield f"{name} lacks {PREFIX} before its name"
            else:
                near = difflib.get_close_matches(name, slots.keys() - tensors.keys(), n=1, cutoff=0.8)
                yield f"{name} is unexpected" + (f" (the nearest is {near[0]})" if near else "")
    for name, slot in slots.items():
        if name not in tensors:
            yield f"{name} is missing"
            continue
        tensor = tensors[name]
        if tensor.shape != slot.shape:
            yield f"{name} has shape {list(tensor.shape)}, not {list(slot.shape)}"
        elif tensor.dtype not in FLOATS:
            yield f"{name} is {tensor.dtype}, not one of {', '.join(FLOATS)}"
        elif not np.isfinite(values := tensor.view()).all():
            yield f"{name} holds NaN or infinity"
        elif slot.is_b and not values.any():
            yield f"{name} is all zero, so that the adapter does nothing: it was not trained, or not loaded when it was saved"
