"""Encoders: which rows of their tables are read, what their heads are asked and by whom, and how fresh parameters are drawn."""

from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small import ENCODERS, HEADS, PLACED, SAYS, random_params, row, shapes, small, with_head
from zoo import sharding
from zoo.batch import Batch
from zoo.configs import _encoder as encoder
from zoo.errors import BadInput

every_family = pytest.mark.parametrize(
    "family", [family if family == "roberta" else pytest.param(family, marks=pytest.mark.full) for family in PLACED]
)
OFFSETS = {"bert": 0, "distilbert": 0, "roberta": 2}
"""The row of the table of positions that the first token takes."""

SEGMENTS = jnp.array([[1] * 5 + [2] * 7 + [3] * 3 + [0]], jnp.int32)
POSITIONS = jnp.array([[*range(5), *range(7), *range(3), 9]], jnp.int32)
TYPES = jnp.array([[0] * 5 + [1] * 7 + [0] * 4], jnp.int32)


@pytest.mark.full
@every_family
def test_a_body_reads_only_the_table_rows_of_its_tokens(family: str) -> None:
    """By derivatives that are 0 or not: positions restart in each packed sequence, at the family's row; padding is not read."""
    net = small(family)
    params, probe = random_params(net), jnp.float32(np.random.default_rng(0).standard_normal((1, 16, 32)))

    @jax.jit
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


def test_the_longest_row() -> None:
    family = "roberta"
    net = small(family)
    table = shapes(net)["embed"]["positions"]["embedding"]
    assert table.shape == (32 + OFFSETS[family], 32)
    assert jax.eval_shape(lambda: net.apply(random_params(net), row(32)).hidden).shape == (1, 32, 32)
    with pytest.raises(ValueError, match="rows of 33 tokens in a model of 32 positions"):
        net.apply(random_params(net), row(33))


@pytest.mark.full
@pytest.mark.parametrize(("initializer", "deviation", "most"), [("truncated", 0.0176, 0.04), ("normal", 0.02, 0.2)])
def test_statistics_of_fresh_kernels_and_tables(initializer: Any, deviation: float, most: float) -> None:
    """The cut at two deviations leaves 0.88 of them; within 2%, which is 5 deviations of the estimate for the smallest table."""
    net = small("bert", initializer=initializer, width=128, heads=4, context=256)
    params = jax.jit(net.init)(jax.random.key(0))
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path, drawn = sharding.path_of(keys), np.asarray(leaf)
        if path.endswith(("kernel", "embedding")):
            drawn = drawn[:300] if "tokens" in path else drawn
            assert np.abs(drawn).max() <= most
            assert drawn.size < 10_000 or drawn.std() == pytest.approx(deviation, rel=0.02)
            assert drawn.size < 10_000 or (np.abs(drawn).max() > 0.04) == (initializer == "normal")
        else:
            assert (drawn == path.endswith("scale")).all()


@pytest.mark.full
def test_a_head_that_a_family_lacks_is_refused() -> None:
    missing = [(family, task) for family in ENCODERS for task in get_args(encoder.Task) if (family, task) not in HEADS]
    assert missing
    for family, task in missing:
        with pytest.raises(BadInput, match=f"^model.task {task}: this family has no such head; choose one of body, ") as refusal:
            with_head(family, task).init(jax.random.key(0))
        assert "\n" not in str(refusal.value)


def test_calling_a_head_that_the_model_lacks_is_refused() -> None:
    """The classifier's kernel does not know whether rows or tokens are classified; its callers do."""
    for family, task in [head for head in HEADS if head[0] in ENCODERS]:
        net = with_head(family, task)
        params, hidden = shapes(net), jnp.zeros((1, 4, 32))
        calls = {"words": net.unembed, "sequences": net.sequence_logits, "tokens": net.token_logits}
        for name in calls.keys() - {*SAYS[task]}:
            if name == "words" or "classifier" not in params:
                with pytest.raises(ValueError, match=f"a model for the task {task} has no (masked|unembed|pooler|classifier)"):
                    jax.eval_shape(calls[name], params, hidden)


def test_a_classifier_needs_labels() -> None:
    for task in encoder.LABELLED:
        net = small("bert", task=task, labels=())
        with pytest.raises(ValueError, match=f"a {task} head without labels: they come from the training data"):
            net.init(jax.random.key(0))


@every_family
def test_the_masked_head_has_the_activation_of_the_layers(family: str) -> None:
    """But in RoBERTa, which has its own."""
    gelu, relu = (with_head(family, "masked", activation=name) for name in ("gelu", "relu"))
    params, hidden = random_params(gelu), jnp.float32(np.random.default_rng(0).standard_normal((1, 4, 32)))
    same = np.allclose(gelu.unembed(params, hidden), relu.unembed(params, hidden))
    assert same == (family == "roberta")
