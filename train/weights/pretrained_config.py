"""The configuration of the model that a run starts from, read without JAX so that a command line is parsed quickly."""

import dataclasses
from pathlib import Path
from typing import Any

from train.config.run_config import Run
from train.run.run_dir import is_run, read_config
from train.weights.resolve_model_name import resolve_model_name
from zoo import configs
from zoo.configs._encoder import BodyConfig
from zoo.configs._score_head import REWARD
from zoo.errors import BadInput, require
from zoo.hf.config_json import PublishedConfig
from zoo.published_family import find_family

SCORE = "score"
"""The label of a new head of one score for a pair."""


def read_model_config(init: str) -> Any:
    """Return the configuration of the model in `init` (run, folder of published weights or hub id); its weights are not read.

    For a published folder it has no head, since only the weights determine that.

    Raises:
        BadInput: `init` does not exist, or no family here supports its configuration.
    """
    folder = resolve_model_name(init)
    if is_run(folder):
        return read_config(folder).model
    published = PublishedConfig.load(Path(folder))
    return configs.from_published(find_family(published), published)


def may_generate(model: Any) -> bool:
    """Return whether a model of this family may generate text; the weights of a published XLNet decide, when they are read."""
    return not isinstance(model, BodyConfig) or model.reads_both_ways


def read_generator_config(init: str) -> Any:
    """Return the configuration of the model in `init`, which must generate text.

    Raises:
        BadInput: it is an encoder; see also `read_model_config`.
    """
    model = read_model_config(init)
    if not may_generate(model):
        fix = "name a model that does, such as a GPT"
        raise BadInput(f"--init {init}: a {configs.family_of(model)} does not generate text; {fix}")
    return model


def check_family(init: str, model: Any) -> None:
    """Refuse a model of another family than that of a run which begins with its parameters.

    Args:
        model: the configuration of the run's model.

    Raises:
        BadInput: it has another family; see also `read_model_config`.
    """
    config = read_model_config(init)
    if type(config) is not type(model):
        kind, trained = configs.family_of(config), configs.family_of(model)
        raise BadInput(
            f"--init {init}: a {kind}, and the recipe trains a {trained}; choose a recipe of {kind}, or name a {trained}"
        )


def check_body(run: Run, cfg: Any) -> None:
    """Refuse a run of a model with another body than that of `run.init`, except for positions that `run.init_positions` changes.

    Args:
        cfg: the configuration of the model of `run.init`, of the same family.

    Raises:
        BadInput: every value that differs is named.
    """
    init_shape, run_shape = configs.body_fields(cfg), configs.body_fields(run.model)
    different = [name for name, value in run_shape.items() if init_shape[name] != value]
    (change, fields), chosen = configs.changeable_positions(run.model), run.init_positions
    possible = f"choose {' or '.join(dict.fromkeys(('same', change)))}"
    require(
        chosen in ("same", change), "init_positions", chosen, f"a {configs.family_of(run.model)} does not have them; {possible}"
    )
    refused = [name for name in different if chosen == "same" or name not in fields]
    if refused:
        fix = "choose the recipe of its size, or set --model.*"
        if change != "same" and set(refused) <= set(fields):
            fix += f", or choose --init-positions {change} for longer rows"
        values = ", ".join(f"{name} {init_shape[name]} there and {run_shape[name]} here" for name in refused)
        raise BadInput(f"--init {run.init}: another model: {values}; {fix}")
    require(chosen == "same" or bool(different), "init_positions", chosen, "the positions of --init are the same; leave it out")
    for name in fields if chosen == "interpolate" else ():
        fix = f"the model of --init has {init_shape[name]} positions, and interpolation adds some; choose more"
        require(run_shape[name] > init_shape[name], f"model.{name}", run_shape[name], fix)


def may_have_labels(init: str) -> bool:
    """Return whether the model in `init` may have a classification or reward head; every encoder may.

    A published decoder or encoder-decoder has one if config.json names such a class; the weights decide when they are read.

    Raises:
        BadInput: see `read_model_config`.
    """
    model, folder = read_model_config(init), resolve_model_name(init)
    if hasattr(model, "task") or getattr(model, "labels", ()):
        return True
    return not is_run(folder) and PublishedConfig.load(Path(folder)).architecture().endswith("ForSequenceClassification")


def with_score(init: str) -> Any:
    """Return the configuration of `init` with a reward head in place of its own; see `as_score`.

    Raises:
        BadInput: see `read_model_config`.
    """
    return as_score(read_model_config(init))


def as_score(model: Any) -> Any:
    """Return a configuration with a reward head, which has one output, and without dropout."""
    rates = {field.name: 0.0 for field in dataclasses.fields(model) if field.name.endswith("dropout")}
    head = {"task": "sequence", "multi_label": False} if isinstance(model, BodyConfig) else {}
    memory = {"memory": 0, "reuse": 0} if hasattr(model, "memory") else {}
    return dataclasses.replace(model, labels=(REWARD,), **head, **rates, **memory)


def score_label(init: str) -> str:
    """Return the label of the head of one score in `init`, whose weights a run with that label continues; else `SCORE`.

    Raises:
        BadInput: see `read_model_config`.
    """
    model, folder = read_model_config(init), resolve_model_name(init)
    labels = getattr(model, "labels", ())
    if not is_run(folder):
        published = PublishedConfig.load(Path(folder))
        labels = published.labels() if published.architecture().endswith("ForSequenceClassification") else ()
    return labels[0] if len(labels) == 1 else SCORE


def text_model_error(name: str) -> BadInput:
    """Return the error for a model that generates text where one that predicts labels is needed."""
    return BadInput(f"{name}: this model writes text; use it with `zoo generate {name} --prompt ...`")


def with_head(head: Any, init: str) -> Any:
    """Return the configuration of `init` with the task, the labels and the compute settings of another one.

    Raises:
        BadInput: see `read_model_config`; or a family without heads.
    """
    body = read_model_config(init)
    if not hasattr(body, "task"):
        families = ", ".join(name for name in configs.families() if hasattr(configs.family(name).Config, "task"))
        raise BadInput(f"--init {init}: a {configs.family_of(body)} has no such heads; use one of {families}")
    return dataclasses.replace(body, task=head.task, labels=head.labels, multi_label=head.multi_label, compute=head.compute)
