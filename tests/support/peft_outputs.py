"""Adapters as peft makes them on torch, with tensors that anybody can compute again from their names."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.support import published
from tests.support import transformers_outputs as theirs
from zoo import models
from zoo.lora.peft_files import TASK_TYPES

MODELS = ("gpt-causal", "bert-sequence", "roberta-sequence", "distilbert-sequence", "t5-1.0", "marian", "xlnet-sequence")
MODELS += ("modernbert-sequence", "llama-causal", "gpt_oss-causal", "ettin_decoder-causal", "ettin_decoder-sequence")
FORMS: dict[str, dict[str, Any]] = {
    "gpt-causal": {"r": 4, "lora_alpha": 6, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
    "bert-sequence": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "distilbert-sequence": {"target_modules": ["q_lin", "v_lin"], "modules_to_save": ["pre_classifier", "classifier"]},
    "modernbert-sequence": {"target_modules": ["Wqkv", "Wi", "Wo"], "modules_to_save": ["head", "classifier"]},
    "ettin_decoder-causal": {"target_modules": ["q_proj", "v_proj", "Wo", "Wi"]},
    "ettin_decoder-sequence": {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["head", "classifier"]},
    "llama-causal": {"target_modules": ["q_proj", "v_proj", "o_proj", "gate_proj"]},
    "gpt_oss-causal": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "marian": {"target_modules": ["q_proj", "v_proj"]},
    "xlnet-sequence": {"target_modules": ["layer_1", "layer_2"], "modules_to_save": ["sequence_summary", "logits_proj"]},
}
"""What is not peft's default for the model; it has no targets for the last six."""


def load(folder: Path, model: str) -> Any:
    """The model of a published folder, as `transformers` has it."""
    family, task, _ = published.MODELS[model]
    return theirs.load(folder, models.family(family).names[task].architecture)


def adapted(folder: Path, model: str, **changes: Any) -> Any:
    """The model of a folder with an adapter of peft, whose tensors have the values that their names stand for.

    `changes` are options of its configuration.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    task = published.MODELS[model][1]
    config = LoraConfig(task_type=TASK_TYPES[task], **{"r": 3, "lora_alpha": 3, **FORMS.get(model, {}), **changes})
    net = get_peft_model(load(folder, model), config)
    shapes = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(net).items()}
    values = {name: torch.tensor(tensor) for name, tensor in published.weights(shapes).items()}
    assert not set_peft_model_state_dict(net, values).unexpected_keys
    return net.eval()


def outputs(net: Any, model: str, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    stated = theirs.outputs(net, published.MODELS[model][1], batch)
    return {name: tensor.detach().numpy() for name, tensor in stated.items()}
