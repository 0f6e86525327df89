"""The base model of `--width-transfer`: the model of a run at another width or depth. Nothing here imports JAX."""

import dataclasses
from typing import Any

from train.config.optim_options import Optim
from zoo import configs
from zoo.errors import BadInput, require

WIDTHS = ("width", "heads", "kv_heads", "ffn")
"""Fields that a base given by its width has in proportion to it."""
TAKEN = (*WIDTHS, "head", "head_dim", "layers", "decoder_layers")
"""Fields that a base given by name has of its size; the others are those of the run's model."""
POST_NORM = ("bert", "roberta", "distilbert", "xlnet", "transformer")
"""Families that normalize after each sub-layer, for which CompleteP has no rule of depth."""
LONGEST = 6
"""Digits of the largest base width that is read as a number."""
OPTIMIZERS = ("adamw", "stable_adamw", "lion", "muon", "soap")
"""Optimizers whose updates do not depend on the size of the parameters and, but for eps, not on that of the gradients."""


def base_config(model: Any, base: str) -> Any:
    """Return the configuration of the base model: that of `model` with the widths and the depth of a size, or with a width.

    Args:
        base: the name of a size of the same family, or a width, for heads of the same size.

    Raises:
        BadInput: there is no such base, or no rule from it to the model.
    """
    family, names = configs.family_of(model), {field.name for field in dataclasses.fields(model)}
    fix = f"the rules are for the families of the zoo, and {family} is not one of them; leave it out"
    require(family in configs.families(), "width_transfer", base, fix)
    if base.isascii() and base.isdecimal() and len(base) <= LONGEST:
        return dataclasses.replace(model, **_in_proportion(model, int(base)))
    owner, size = configs.find_size(base)
    require(owner == family, "width_transfer", base, f"it is a {owner}; choose a size of {family}, or a width")
    config = dataclasses.replace(model, **{name: getattr(size.config, name) for name in TAKEN if name in names})
    for name in ("head", "key_size"):
        own, other = getattr(model, name, 0), getattr(config, name, 0)
        fix = f"its heads have {name} {other} and those of the model {own}; choose a base with heads of the same size"
        require(own == other, "width_transfer", base, fix)
    same_depth = all(getattr(model, name, 0) == getattr(config, name, 0) for name in ("layers", "decoder_layers"))
    fix = f"it has {config.layers} layers, and there is no rule of depth for norms after sub-layers; choose a width"
    require(same_depth or family not in POST_NORM, "width_transfer", base, fix)
    return config


def check_width_transfer(run: Any) -> None:
    """Refuse options that width transfer has no rule for.

    Args:
        run: a `train.config.run_config.Run` with `width_transfer`.

    Raises:
        BadInput: names the option.
    """
    base_config(run.model, run.width_transfer)
    optim: Optim = run.optim
    fix = f"--width-transfer has no rule for its updates; choose one of {', '.join(OPTIMIZERS)}"
    require(optim.name in OPTIMIZERS, "optim.name", optim.name, fix)
    fix = "--width-transfer changes the initial parameters, which a run with --init does not have; leave one of them out"
    require(not run.init or run.fork > 0, "init", run.init, fix)
    if run.has_frozen:
        fix = "all parameters are trained by its rules; leave it out, or --optim.freeze-layers, --optim.freeze-embeddings"
        raise BadInput(f"--width-transfer {run.width_transfer}: {fix} and --lora")
    distillation = getattr(run.options, "distillation", None)
    fix = "the student starts from its teacher's parameters; add --distillation.fresh, or leave it out"
    require(not (distillation and distillation.starts_from_teacher), "width_transfer", run.width_transfer, fix)


def _in_proportion(model: Any, width: int) -> dict[str, int]:
    """Return the widths of a model at another width, with heads of the same size.

    Raises:
        BadInput: one of them is not a whole number.
    """
    require(width > 0, "width_transfer", width, "choose a width of 1 or more")
    values = {}
    for name in WIDTHS:
        if not (own := getattr(model, name, 0)):
            continue
        values[name], rest = divmod(own * width, model.width)
        fix = f"{name} {own} of width {model.width} would not be a whole number in proportion; choose another width"
        require(not rest, "width_transfer", width, fix)
    return values
