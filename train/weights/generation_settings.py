"""The settings of generation that come with a model: generation_config.json, which `transformers` reads and writes.

Old folders have the settings in config.json, which `transformers` reads if there is no other file. A run that began with
published weights keeps their settings. Training by sampling does not use them: see `train.rollouts.sampler`.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.run.run_dir import RunDir, is_run
from train.weights.resolve_model_name import resolve_model_name
from zoo.hf.config_json import FILE, LARGEST_FILE, read_json
from zoo.hf.config_keys import GENERATION_KEYS

GENERATION_FILE = "generation_config.json"


@dataclasses.dataclass(frozen=True)
class PublishedGeneration:
    """The settings of generation in a file of a model's folder, as they are written there."""

    file: Path
    values: Mapping[str, Any]
    """Those that are not null."""


def read_generation(folder: Path) -> PublishedGeneration | None:
    """Return the settings in the folder of published weights or of a run; None for a run without any, or without a file.

    Raises:
        BadInput: the file is not a strict JSON object of at most 1 MiB.
    """
    file = RunDir(folder).generation
    if file.exists():
        content = read_json(file, LARGEST_FILE)
    elif is_run(folder) or not (file := folder / FILE).exists():
        return None
    else:
        content = {key: value for key, value in read_json(file, LARGEST_FILE).items() if key in GENERATION_KEYS}
        # BART's first files name the first token so.
        if content.get("force_bos_token_to_be_generated") and "bos_token_id" in content:
            content["forced_bos_token_id"] = content["bos_token_id"]
    return PublishedGeneration(file, {key: value for key, value in content.items() if value is not None})


def keep_generation(source: str, run: Path) -> None:
    """Write the settings of the model that a run begins with into the folder of the run.

    Raises:
        BadInput: see `train.weights.resolve_model_name.resolve_model_name` and `read_generation`.
    """
    if (settings := read_generation(resolve_model_name(source))) is not None:
        write_generation(run, settings.values)


def write_generation(folder: Path, values: Mapping[str, Any]) -> None:
    """Write generation_config.json into a folder, unless there is nothing to write."""
    if values:
        RunDir(folder).generation.write_text(json.dumps(dict(values), indent=2, sort_keys=True) + "\n")
