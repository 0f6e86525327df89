"""The reference of a KL divergence: what is refused."""

import types
from typing import Any

import jax
import pytest

from tests.support import tiny
from tests.support.small import random_params, small
from train.config import run_config
from train.config.policy_gradient_options import PolicyGradientLoss
from train.engine import device_mesh
from train.rollouts import kl_reference
from zoo.errors import BadInput
from zoo.models import Model

MESH = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])


def loaded(monkeypatch: pytest.MonkeyPatch, net: Model) -> Any:
    """Return the reference of a small GPT, where --init has the parameters of another model."""
    monkeypatch.setattr(kl_reference.warm_start, "check_init", lambda run: None)
    monkeypatch.setattr(kl_reference, "load_model", lambda name, mesh: types.SimpleNamespace(params=random_params(net)))
    model = small("gpt")
    run = tiny.run("policy_gradient", model=model.config, policy_gradient=PolicyGradientLoss(beta=0.1), init="runs/other")
    return kl_reference.load_reference(run, model, MESH)


def test_the_reference_has_the_parameters_of_init(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jax.tree.structure(loaded(monkeypatch, small("gpt"))) == jax.tree.structure(random_params(small("gpt")))


def test_another_head_vocabulary_or_family_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for net in (small("gpt", labels=("reward",)), small("gpt", vocab=600), small("t5")):
        with pytest.raises(BadInput) as refused:
            loaded(monkeypatch, net)
        assert str(refused.value).startswith("--init runs/other: its parameters are not those of the model in training, whose")
        assert str(refused.value).endswith("name the weights of a model that predicts words, or choose --policy-gradient.beta 0")
