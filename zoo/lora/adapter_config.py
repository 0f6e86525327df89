"""Rank, scale and targets of adapters, as read from the adapter_config.json of peft 0.21.2. This does not import JAX."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from zoo.errors import BadInput
from zoo.hf.config_json import LARGEST_FILE, read_json

CONFIG = "adapter_config.json"
READ = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "modules_to_save")
UNUSED = (
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type", "fan_in_fan_out"),
    *("init_lora_weights", "layers_pattern", "megatron_core", "qalora_group_size"),
)
"""Keys that do not change what an adapter computes; `init_lora_weights` does in the cases that are refused."""
OWN_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Values of `init_lora_weights` that change the base weights, so that they are not those of the model that the file names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapters:
    """Rank, scale and target modules of adapters."""

    rank: int
    alpha: float
    """Scale of the adapters times their rank: the adapted matrix is W + alpha / rank B A."""
    targets: tuple[str, ...]
    """Suffixes of published module names, made of whole dot-separated parts: "c_attn", "attention.output.dense"."""
    rslora: bool = False
    """The scale is alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv 2312.03732, section 4)."""
    dropout: float = 0.0
    """Rate of the dropout before A in training. It does not change what trained adapters compute."""

    @property
    def scale(self) -> float:
        """The factor of B A: alpha / r, or alpha / sqrt(r) with `rslora`."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def read_adapter_config(folder: Path) -> tuple[Adapters, tuple[str, ...]]:
    """Return the adapters of a folder's adapter_config.json, and the modules that are trained in full.

    Raises:
        BadInput: no such file; or a key requests what is not supported: DoRA, biases, ranks by pattern, ...
    """
    file = folder / CONFIG
    content = read_json(file, LARGEST_FILE)

    def refuse(key: str, reason: str) -> BadInput:
        return BadInput(f"{file}: {key} is {json.dumps(content.get(key))[:60]}; {reason}")

    if content.get("peft_type") != "LORA":
        raise refuse("peft_type", "only LORA adapters are read")
    for key, value in content.items():
        neutral = value is None or value is False or value in ({}, [], 0, "none")
        if key not in (*READ, *UNUSED) and not neutral:
            raise refuse(key, "this is not supported; train the adapter without it")
    start = content.get("init_lora_weights", True)
    if isinstance(start, str) and start.startswith(OWN_BASE):
        raise refuse("init_lora_weights", "it changes the base model; convert the adapter to an ordinary one with peft")
    rank, alpha, targets = content.get("r"), content.get("lora_alpha"), content.get("target_modules")
    if type(rank) is not int or rank < 1:
        raise refuse("r", "expected the rank, 1 or more")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise refuse("lora_alpha", "expected a number above 0")
    dropout = content.get("lora_dropout") or 0.0
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
        raise refuse("lora_dropout", "expected a number from 0 to 1")
    if not _names(targets) or not targets:
        raise refuse("target_modules", "expected a list of names; a pattern is not read")
    if type(rslora := content.get("use_rslora", False)) is not bool:
        raise refuse("use_rslora", "expected true or false")
    modules = content.get("modules_to_save") or []
    if not _names(modules):
        raise refuse("modules_to_save", "expected a list of names")
    numbers = {"rank": rank, "alpha": float(alpha), "rslora": rslora, "dropout": float(dropout)}
    return Adapters(targets=tuple(sorted(targets)), **numbers), tuple(modules)


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)
