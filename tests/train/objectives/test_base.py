"""The base class of objectives: what every objective has, and the defaults of one that has only a `builder`."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.support import tiny
from tests.support.encoder_text import stream, uncased
from tests.support.processes import ROOT
from train.config import run_config
from train.config.data_options import TextData
from train.config.declaration import ObjectiveOptions
from train.config.objectives import OPTIONS
from train.engine import device_mesh
from train.objectives import check_run, objective, objectives
from train.objectives.base import Objective
from train.objectives.causal import build
from zoo import configs, models
from zoo.errors import BadInput
from zoo.models import model

MESH = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallestOptions(ObjectiveOptions):
    """Declaration of the objective below."""

    objective, data = "smallest", TextData


class Smallest(Objective):
    """An objective that states only what has no default."""

    OPTIONS = SmallestOptions

    @classmethod
    def builder(cls, run: Any, tokenizer: Any, counts: Any) -> Any:
        return build


def test_every_objective_is_a_subclass_under_its_own_name() -> None:
    assert "base" not in objectives()
    for name in objectives():
        assert issubclass(objective(name), Objective) and objective(name).OPTIONS is OPTIONS[name]


def test_importing_the_registry_imports_no_objective() -> None:
    for name in ("__init__", "base"):
        source = (ROOT / f"train/objectives/{name}.py").read_text()
        imported = re.findall(r"^(?:from|import) (train\.objectives\S*)", source, re.MULTILINE)
        assert set(imported) <= {"train.objectives.base"}


def test_defaults_are_those_of_next_token_prediction() -> None:
    run = tiny.run()
    net, bound = model(run.model), Smallest.bind(run, MESH)
    batch = jax.tree.map(jnp.asarray, tiny.batch(0))
    assert (Smallest.frozen_config(run), bound.frozen_inputs()) == (None, {})
    assert bound.initial_params(net, None) is None
    assert bound.flops(net, batch) == 3 * net.flops(batch)
    params, options = net.init(jax.random.key(0)), dict(seeds=None, carry={}, smoothing=0.0, chunk=0)
    (nats,), (expected,) = (kind.loss(net, params, batch, {}, **options)[0].values() for kind in (bound, objective("causal")()))
    assert nats == expected > 0 and bound.weights(batch) == {"smallest": batch.weights.sum()}
    with pytest.raises(NotImplementedError, match="smallest plans no rows of text"):
        Smallest.plan_rows(stream(["a b"], uncased()), run, uncased())


@pytest.mark.parametrize("family", configs.families())
def test_a_run_of_any_family_and_objective_is_checked_in_one_line(family: str) -> None:
    """An objective that the family does not support is refused before options that its models do not have are read."""
    supported = models.family(family).objectives
    cfg = next(iter(configs.family(family).SIZES.values())).config
    for name, kind in OPTIONS.items():
        run = run_config.Run(recipe="tiny", model=cfg, options=kind(), data=kind.data(length=8))
        refusal = ""
        try:
            check_run(run)
        except BadInput as error:
            refusal = str(error)
        assert refusal.startswith(f"--objective {name}: {family} is trained with") == (name not in supported)
