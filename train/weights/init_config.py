"""What a run may begin from, in numbers: read without JAX, so that a command line can be understood at once."""

import dataclasses
from pathlib import Path
from typing import Any

from train.run.run_dir import is_run, read_config
from zoo import configs
from zoo.errors import BadInput
from zoo.hf import hub
from zoo.hf.config_json import Published


def numbers(init: str) -> Any:
    """The configuration of the model that `init` (run, folder of published weights or hub id) holds; its weights are not read.

    Of a published folder the head is left open: only the weights decide it.

    Raises:
        BadInput: nothing there, or numbers that no family here computes.
    """
    folder = hub.folder_of(init)
    if is_run(folder):
        return read_config(folder).model
    published = Published.load(Path(folder))
    known = {configs.family(name).MODEL_TYPE: name for name in configs.families()}
    return configs.family(published.choice("model_type", known, "none", why="the families here are")).from_published(published)


def writes_text(name: str) -> BadInput:
    """Return the refusal of a model that generates text where one that predicts labels is needed."""
    return BadInput(f"{name}: this model writes text; use `zoo generate {name} --prompt ...`")


def under(head: Any, init: str) -> Any:
    """The model of `init` with the head, the labels and the way of computing of another configuration.

    Raises:
        BadInput: see `numbers`; or a family without heads.
    """
    body = numbers(init)
    if not hasattr(body, "task"):
        able = ", ".join(name for name in configs.families() if hasattr(configs.family(name).Config, "task"))
        raise BadInput(f"--init {init}: a {configs.family_of(body)} has no such heads; begin from one of {able}")
    return dataclasses.replace(body, task=head.task, labels=head.labels, compute=head.compute)
