"""Encoders: which rows of their tables are read, what their heads are asked and by whom, and how fresh parameters are drawn."""

import math
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small import ENCODERS, HEADS, PLACED, SAYS, jit, outputs, random_params, row, said, small, with_head
from train import config
from train import mesh as meshes
from zoo import encoder_config, sharding
from zoo.batch import Batch
from zoo.errors import BadInput

every_family = pytest.mark.parametrize("family", PLACED)
OFFSETS = {"bert": 0, "distilbert": 0, "roberta": 2}
"""The row of the table of positions that the first token takes."""

SEGMENTS = jnp.array([[1] * 5 + [2] * 7 + [3] * 3 + [0]], jnp.int32)
POSITIONS = jnp.array([[*range(5), *range(7), *range(3), 9]], jnp.int32)
TYPES = jnp.array([[0] * 5 + [1] * 7 + [0] * 4], jnp.int32)


# --- the body -------------------------------------------------------------------------------------------------------------------


@every_family
def test_which_rows_of_its_tables_a_body_reads(family: str) -> None:
    """By derivatives that are 0 or not: positions restart in each packed sequence, at the family's row; padding is not read."""
    net = small(family)
    params, probe = random_params(net), jnp.float32(np.random.default_rng(0).standard_normal((1, 16, 32)))

    @jit
    def gradient(batch: Batch, counted: Any) -> Any:
        def score(embed: Any) -> Any:
            return (net.apply({**params, "embed": embed}, batch).hidden * probe * counted).sum()

        return jax.grad(score)(params["embed"])

    def read(batch: Batch, counted: Any = 1.0) -> dict[str, list[int]]:
        tables = gradient(batch, counted)
        return {
            name: np.flatnonzero((np.asarray(tables[name]["embedding"]) != 0).any(-1)).tolist()
            for name in tables
            if name != "norm"
        }

    packed = read(row(16, segments=SEGMENTS, positions=POSITIONS, types=TYPES), (SEGMENTS > 0)[..., None])
    bare = read(row(16))
    assert packed["tokens"] == list(range(1, 16)) and bare["tokens"] == list(range(1, 17))
    assert packed["positions"] == [OFFSETS[family] + at for at in range(7)]
    assert bare["positions"] == [OFFSETS[family] + at for at in range(16)]
    kinds = {"bert": ([0, 1], [0]), "distilbert": (None, None), "roberta": ([0], [0])}
    assert (packed.get("types"), bare.get("types")) == kinds[family]


@every_family
def test_the_longest_row(family: str) -> None:
    net = small(family)
    table = jax.eval_shape(lambda: net.init(jax.random.key(0)))["embed"]["positions"]["embedding"]
    assert table.shape == (32 + OFFSETS[family], 32)
    assert jax.eval_shape(lambda: net.apply(random_params(net), row(32)).hidden).shape == (1, 32, 32)
    with pytest.raises(ValueError, match="rows of 33 tokens in a model of 32 positions"):
        net.apply(random_params(net), row(33))


@pytest.mark.parametrize(("initializer", "deviation", "most"), [("truncated", 0.0176, 0.04), ("normal", 0.02, 0.2)])
def test_fresh_kernels_and_tables(initializer: Any, deviation: float, most: float) -> None:
    """The cut at two deviations leaves 0.88 of them; within 2%, which is 5 deviations of the estimate for the smallest table."""
    net = small("bert", initializer=initializer, width=128, heads=4, context=256)
    params = jit(net.init)(jax.random.key(0))
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path, drawn = sharding.path_of(keys), np.asarray(leaf)
        if path.endswith(("kernel", "embedding")):
            drawn = drawn[:300] if "tokens" in path else drawn
            assert np.abs(drawn).max() <= most
            assert drawn.size < 10_000 or drawn.std() == pytest.approx(deviation, rel=0.02)
            assert drawn.size < 10_000 or (np.abs(drawn).max() > 0.04) == (initializer == "normal")
        else:
            assert (drawn == path.endswith("scale")).all()


def test_on_a_mesh_a_model_says_the_same() -> None:
    """Rows over data and fsdp, heads and vocabulary over tensor."""
    net, mesh = small("bert"), meshes.make(config.Mesh(data=2, fsdp=2, tensor=2))
    assert net.task == "pretraining"
    params, batch = random_params(net), row(8, 4, segments=jnp.tile(jnp.array([1] * 6 + [0] * 2), (4, 1)))
    expected = jit(lambda params: outputs(net, params, batch))(params)
    placed = jax.device_put(params, sharding.shardings(mesh, params))
    with jax.set_mesh(mesh):
        found = jit(lambda params: outputs(net, params, batch))(placed)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-4)


# --- heads ----------------------------------------------------------------------------------------------------------------------


def test_heads_are_asked_at_positions() -> None:
    """What is predicted or summed up at given positions is what is said there of whole rows."""
    net, rng = small("bert"), np.random.default_rng(0)
    params, hidden = random_params(net), jnp.float32(rng.standard_normal((2, 8, 32)))
    at = jnp.array([[0, 3, 7], [5, 5, 1]])
    few = said(net, params, hidden, row(8, 2, predict_at=at, summary_at=at))
    rows = np.arange(2)[:, None]
    np.testing.assert_allclose(few["words"], net.unembed(params, hidden)[rows, at], atol=1e-5)
    np.testing.assert_allclose(few["sequences"], net.sequence_logits(params, hidden)[rows, at], atol=1e-5)
    whole = said(net, params, hidden, row(8, 2))
    np.testing.assert_allclose(whole["words"], net.unembed(params, hidden), atol=1e-5)
    np.testing.assert_allclose(whole["sequences"], net.sequence_logits(params, hidden[:, :1]), atol=1e-5)


@pytest.mark.parametrize(("family", "task"), [(family, task) for family in ENCODERS for task in get_args(encoder_config.Task)])
def test_a_head_that_is_not_there_is_missed(family: str, task: Any) -> None:
    """A task that the family lacks by whoever makes the parameters, a question to another head by its name."""
    if (family, task) not in HEADS:
        with pytest.raises(BadInput, match=f"^model.task {task}: this family has no such head; choose one of body, ") as refusal:
            with_head(family, task).init(jax.random.key(0))
        assert "\n" not in str(refusal.value)
        return
    net = with_head(family, task)
    params, hidden = random_params(net), jnp.zeros((1, 4, 32))
    says = {"words": net.unembed, "sequences": net.sequence_logits, "tokens": net.token_logits}
    for name in says.keys() - {*SAYS[task]}:
        # The classifier's kernel does not know whether rows or tokens are classified; its callers do.
        if name != "words" and "classifier" in params:
            continue
        with pytest.raises(ValueError, match=f"a model for the task {task} has no (masked|unembed|pooler|classifier)"):
            says[name](params, hidden)


@pytest.mark.parametrize("task", encoder_config.LABELLED)
def test_a_classifier_needs_labels(task: Any) -> None:
    net = small("bert", task=task, labels=())
    with pytest.raises(ValueError, match=f"a {task} head of no labels: they come from the training data"):
        net.init(jax.random.key(0))


@every_family
def test_the_masked_head_has_the_activation_of_the_layers(family: str) -> None:
    """But in RoBERTa, which has its own."""
    gelu, relu = (with_head(family, "masked", activation=name) for name in ("gelu", "relu"))
    params, hidden = random_params(gelu), jnp.float32(np.random.default_rng(0).standard_normal((1, 4, 32)))
    same = np.allclose(gelu.unembed(params, hidden), relu.unembed(params, hidden))
    assert same == (family == "roberta")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "heads": ({"heads": 5}, "--model.heads 5: it must divide --model.width 32"),
    "layers": ({"layers": 0}, "--model.layers 0: choose 1 to 512"),
    "vocab": ({"vocab": (1 << 21) + 1}, "--model.vocab 2097153: choose 1 to 2,097,152"),
    "types": ({"types": -1}, "--model.types -1: choose 0 (none) to 1,024"),
    "offset": ({"position_offset": 1025}, "--model.position-offset 1025: choose 0 to 1,024"),
    "dropout": ({"dropout": 1.0}, "--model.dropout 1.0: choose a share of at least 0 and less than 1"),
    "nan": ({"head_dropout": math.nan}, "--model.head-dropout nan: choose a share of at least 0 and less than 1"),
    "eps": ({"eps": 0.0}, "--model.eps 0.0: choose 0 < eps <= 1"),
    "labels": ({"labels": ("a",)}, "--model.labels a: a head for pretraining has none; only sequence and tokens do"),
    "a label twice": ({"task": "tokens", "labels": ("a", "a")}, "--model.labels a a: name each label once"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_numbers_are_refused(case: str) -> None:
    changes, told = BAD[case]
    with pytest.raises(BadInput) as refusal:
        small("bert", **changes)
    assert str(refusal.value) == told
