"""Width transfer: its constants beside the rules of the papers, and the coordinate check."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
import pytest

from tests.support import coordinate_check, tiny
from tests.support.coordinate_check import changes_of, optimizer
from tests.support.small import shapes, small
from train.checkpoints.manifest import by_path
from train.config import run_config
from train.config.optim_options import Optim
from train.config.width_base import OPTIMIZERS, base_config
from train.engine import device_mesh, state_init
from train.engine.width_transfer import LAST_NORMS, LeafFactors, width_factors
from train.objectives.causal import Causal
from train.parametrization import parametrization_of
from train.step.assembly import assemble
from zoo import models
from zoo.errors import BadInput
from zoo.models import Model, model

R = 2.0
"""Width of the models over that of their bases."""
ATTENTION = r"layers/attention/(qkv|kv|q|k|v|r|out)/kernel"
MLP = r"layers/mlp/(up|gated|down)/kernel"
RULES: dict[str, list[tuple[str, str]]] = {
    "gpt": [(ATTENTION, "hidden"), (MLP, "hidden"), (r"norm/(scale|bias)", "before tied logits")],
    "bert": [
        *((ATTENTION, "hidden"), (MLP, "hidden"), (r"(masked/dense|pooler)/kernel", "hidden"), (r"next/kernel", "output")),
        (r"masked/norm/(scale|bias)", "before tied logits"),
    ],
    "t5": [
        (rf"(encoder|decoder)/({ATTENTION}|{MLP}|layers/cross/(q|kv|out)/kernel)", "hidden"),
        # The model divides its states by the root of the width.
        (r"decoder/norm/scale", "before scaled tied logits"),
    ],
    "xlnet": [(ATTENTION, "hidden"), (MLP, "hidden"), (r"layers/norm2/(scale|bias)", "last before tied logits")],
    "llama": [(ATTENTION, "hidden"), (MLP, "hidden"), (r"unembed/embedding", "output")],
    "gpt_oss": [
        *((ATTENTION, "hidden"), (r"layers/mlp/experts/(gated|down)/kernel", "hidden")),
        (r"layers/mlp/router/kernel|unembed/embedding", "output"),
    ],
}
"""Family -> paths and their kinds; all others are vectors: tables, norms, biases, position biases, sinks."""
TABLE_3 = {
    "hidden": (R**-0.5, 1 / R),
    "output": (1 / R, 1 / R),
    "vector": (1.0, 1.0),
    "before tied logits": (1 / R, 1 / R),
    "before scaled tied logits": (R**-0.5, R**-0.5),
}
"""Kind -> standard deviation (of a norm: value) and learning rate, both over those of the base (table 3 of the paper)."""


def wide_model(family: str) -> Model:
    """Return a model of width 128 with untied logits where the family has them."""
    own = {field.name for field in dataclasses.fields(small(family).config)}
    sizes = {"width": 128, "heads": 8, "head": 16, "kv_heads": 4, "ffn": 256, "tied": family == "t5"}
    return small(family, **{name: value for name, value in sizes.items() if name in own})


def spread(leaf: Any) -> float:
    """Return the root mean square of a leaf, whose padding is zero in models of every width."""
    return float(np.sqrt(np.mean(np.square(np.asarray(leaf, np.float64)))))


@pytest.mark.parametrize("family", RULES)
def test_constants_are_those_of_the_paper(family: str) -> None:
    """Deviations are measured, in parameters from another seed."""
    wide = wide_model(family)
    base = base_config(wide.config, "64")
    factors = width_factors(wide, base, Optim())
    own = by_path(jax.device_get(jax.jit(wide.init)(jax.random.key(1))))
    other = by_path(jax.device_get(jax.jit(model(base).init)(jax.random.key(2))))
    assert own.keys() == factors.keys()
    matched = set()
    for path, leaf in factors.items():
        kind = next((kind for pattern, kind in RULES[family] if re.fullmatch(pattern, path)), "vector")
        matched.add(kind)
        multiplier = np.ravel(leaf.multiplier)
        if kind == "last before tied logits":
            np.testing.assert_allclose(multiplier, [1.0] * (len(multiplier) - 1) + [1 / R])
            continue
        deviation, rate = TABLE_3[kind]
        np.testing.assert_allclose(multiplier, rate, rtol=1e-6, err_msg=path)
        if spread(own[path]):
            ratio = spread(own[path]) * leaf.initial * leaf.multiplier / spread(other[path])
            tolerance = 5 * (own[path].size ** -0.5 + other[path].size ** -0.5)
            np.testing.assert_allclose(ratio, deviation, rtol=tolerance, err_msg=path)
    assert matched == {kind for _, kind in RULES[family]} | {"vector"}


def test_every_family_has_a_norm_before_its_tied_logits() -> None:
    # The tables of these are never tied.
    assert LAST_NORMS.keys() == {*models.families()} - {"gpt_oss", "nanochat"}
    for family, prefix in LAST_NORMS.items():
        assert any(path.startswith(prefix) for path in by_path(shapes(small(family)))), family


def test_scores_are_outputs_and_leave_the_last_norm_alone() -> None:
    for family in ("gpt", "t5", "transformer"):
        wide = small(family, width=128, heads=8, labels=("reward",), **({} if family == "transformer" else {"head": 16}))
        factors = width_factors(wide, base_config(wide.config, "64"), Optim())
        [output] = [path for path in factors if re.fullmatch("(score|classifier)/kernel", path)]
        assert factors[output].multiplier == 1 / R
        assert all(np.all(np.equal(leaf.multiplier, 1)) for path, leaf in factors.items() if "norm" in path)


def test_a_norm_that_an_encoder_has_too_is_refused() -> None:
    shared = small("t5", architecture="shared")
    with pytest.raises(BadInput, match=r"the encoder has the norm before the tied logits too; choose --model\.no-tied"):
        width_factors(shared, base_config(shared.config, "16"), Optim())


def test_depth_scales_what_layers_add() -> None:
    """As in CompleteP (Dey et al. 2025, table 1, alpha = 1): 1/m on the branches, rates and deviations of all else unchanged."""
    deep = small("gpt", layers=8)
    factors = width_factors(deep, dataclasses.replace(deep.config, layers=2), Optim())
    for path, leaf in factors.items():
        branch = re.fullmatch(r"layers/(attention/out|mlp/down)/(kernel|bias)", path)
        assert leaf.multiplier == (0.25 if branch else 1.0), path
        # GPT-2's own initializer divides these kernels by the root of the number of layers.
        assert leaf.initial == pytest.approx(2.0 if branch and path.endswith("kernel") else 1.0), path
        assert leaf.gradient == (4.0 if "layers/" in path else 1.0), path


def test_a_base_is_a_size_or_a_width() -> None:
    gpt = small("gpt").config
    assert base_config(gpt, "16") == dataclasses.replace(gpt, width=16, heads=2, ffn=32)
    size = small("gpt", head=64, heads=16, width=1024, ffn=4096).config
    base = base_config(size, "gpt2")
    assert (base.width, base.heads, base.layers, base.vocab) == (768, 12, 12, size.vocab)
    for config, name, message in (
        (gpt, "12", "heads 4 of width 32 would not be a whole number in proportion"),
        (gpt, "0", "choose a width of 1 or more"),
        (gpt, "bert-base-uncased", "it is a bert; choose a size of gpt"),
        (gpt, "gpt2", "its heads have head 64 and those of the model 8"),
        (small("bert", width=768, heads=12).config, "bert-base-uncased", "no rule of depth for norms after sub-layers"),
    ):
        with pytest.raises(BadInput, match=f"^--width-transfer {name}: .*{message}"):
            base_config(config, name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": Optim(name="lamb")}, "--optim.name lamb: --width-transfer has no rule for its updates; choose one of adamw"),
        ({"init": "gpt2"}, "--init gpt2: .* leave one of them out"),
        ({"optim": Optim(freeze_layers=1)}, "--width-transfer 16: all parameters are trained by its rules"),
    ],
)
def test_options_without_a_rule_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        tiny.run(width_transfer="16", **changes)


def trained(width_transfer: str) -> tuple[list[float], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the losses of three steps, the trained parameters and those of the model."""
    run = tiny.run(mesh=run_config.Mesh(data=1), precision="float32", width_transfer=width_transfer)
    mesh = device_mesh.make_mesh(run.mesh, jax.devices()[:1])
    parameters = parametrization_of(run, Causal(), mesh)
    built = assemble(run, Causal(), mesh, parameters)
    state, losses = state_init.init_state(run, parameters.model, built.tx, mesh, None, parameters.trained), []
    for step in range(3):
        state, metrics = built.engine.step(state, built.engine.shard_batch(tiny.batch(step)), {}, {})
        losses.append(float(metrics["loss"]))
    return losses, by_path(jax.device_get(state.params)), by_path(jax.device_get(parameters.reader(mesh)(state.params)))


def test_a_base_of_the_same_width_changes_nothing() -> None:
    losses, plain, _ = trained("")
    same_losses, same, of_model = trained("32")
    assert losses == same_losses
    for path, leaf in plain.items():
        np.testing.assert_array_equal(leaf, same[path])
        np.testing.assert_array_equal(leaf, of_model[path])


TOLERANCE = 0.2
"""Largest relative difference from the base over widths 64 to 1,024; without the rules it is larger."""


def standard_rate(path: str, leaf: LeafFactors) -> LeafFactors:
    """Return factors with which kernels have the learning rate of the base, and their initial values remain."""
    if not path.endswith("kernel"):
        return leaf
    return dataclasses.replace(leaf, multiplier=1.0, initial=leaf.initial * leaf.multiplier)


def unscaled_logits(path: str, leaf: LeafFactors) -> LeafFactors:
    """Return factors without that of the last norm."""
    return dataclasses.replace(leaf, multiplier=1.0) if path.startswith("norm/") else leaf


@pytest.mark.planted(2)
def test_changes_of_a_gpt_do_not_depend_on_its_width() -> None:
    options = optimizer("gpt")
    base = changes_of("gpt", 64, 64, options)
    np.testing.assert_allclose(changes_of("gpt", 256, 64, options), base, rtol=TOLERANCE)
    # The control, in which no rate and no factor depends on the width.
    assert changes_of("gpt", 256, None, options)[1] / base[1] > 1.5
    for mistake in (standard_rate, unscaled_logits):
        assert not np.allclose(changes_of("gpt", 256, 64, options, change=mistake), base, rtol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rules_hold_with_each_optimizer(name: str) -> None:
    options = optimizer("gpt", name)
    base = np.array(changes_of("gpt", 64, 64, options))
    np.testing.assert_allclose(changes_of("gpt", 256, 64, options), base, rtol=TOLERANCE)
    assert max(changes_of("gpt", 256, None, options) / base) > 1.5


@pytest.mark.slow
@pytest.mark.parametrize("family", coordinate_check.FAMILIES)
def test_changes_do_not_depend_on_the_width(family: str) -> None:
    by_rules, standard = (
        np.array([changes_of(family, width, base, optimizer(family)) for width in coordinate_check.WIDTHS]) for base in (64, None)
    )
    np.testing.assert_allclose(by_rules, np.tile(by_rules[0], (len(by_rules), 1)), rtol=TOLERANCE)
    assert max(standard[-1] / standard[0]) > 1 + TOLERANCE
