"""The run to plan: a recipe, or a published size trained like the recipe of its family that is nearest in shape."""

import dataclasses
import math

from train import recipes
from train.config.find_objective import with_objective
from train.config.provenance import PROVENANCE
from train.config.run_config import Mesh, Run
from zoo import configs
from zoo.configs import Compute
from zoo.errors import BadInput


def find_run(name: str, init: str = "") -> Run:
    """Return the run of a name, recipes first; imports no JAX.

    A size has the data, objective, dropout and optimizer of the recipe, its rows at most as long as the model's positions, and
    the default mesh: data parallel over all devices. A run that would need a teacher learns masked words instead.

    Args:
        init: initial weights of a recipe that starts from trained weights.

    Raises:
        BadInput: neither a recipe nor a size; names the nearest size.
    """
    if recipes.is_recipe(name):
        return recipes.recipe_run(name, init)
    return run_of_size(name)


def run_of_size(name: str) -> Run:
    """Return a run that trains a published size with the options of the most similar recipe of its family.

    Raises:
        BadInput: there is no such size (the message names the nearest), or no recipe of the zoo trains its family, as that of a
            plug-in.
    """
    family, size = configs.find_size(name)
    typical = {
        name: recipe for name, recipe in recipes.recipes().items() if name not in PROVENANCE or PROVENANCE[name].is_typical
    }
    runs = [run for recipe in typical.values() if configs.family_of((run := recipe()).model) == family]
    # A size is pretrained: a run of another objective, as of preferences or rollouts, starts from another model. A plug-in may
    # have no other.
    own = [run for run in runs if run.objective == size.objective] or runs
    if not own:
        raise BadInput(f"plan {name}: no recipe of the zoo trains a {family}; name a recipe of your own that does")
    near = min(own, key=lambda run: _distance(run.model, size.config))
    rates = {name: getattr(near.model, name) for name in vars(size.config) if name.endswith("dropout")}
    model = dataclasses.replace(size.config, **rates, compute=Compute(remat=near.model.compute.remat))
    if hasattr(model, "task"):
        model = dataclasses.replace(model, task=near.model.task)
    length = min(near.data.length, getattr(model, "context", near.data.length))
    near = with_objective(near, "masked") if near.teacher else near
    # A loss chunk that does not divide the shorter rows is dropped.
    options = (
        dataclasses.replace(near.options, loss_chunk="auto") if near.loss_chunk > 0 and length % near.loss_chunk else near.options
    )
    data = dataclasses.replace(near.data, length=length, ramp=())
    return dataclasses.replace(near, recipe=name, model=model, options=options, mesh=Mesh(), data=data)


def _distance(one: object, other: object) -> float:
    """Return how different two models of a family are, by width and depth."""
    return sum(abs(math.log(getattr(one, field) / getattr(other, field))) for field in ("width", "layers"))
