"""Late interaction: MaxSim against loops in float64, its gradients however a batch is divided, and its rows."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import preference_steps, tiny
from tests.support.encoders import KINDS, tokenizer
from tests.support.small import random_params, small
from train.config import run_config
from train.config.data_options import LabelledData
from train.config.embedding_options import RankedTexts
from train.config.late_interaction_options import LateInteraction
from train.data.example_types import Ranked
from train.engine import max_sim as max_sim_module
from train.engine.token_projection import PROJECTION, token_projection
from train.inputs.labelled_inputs import rows_of_labels
from train.objectives import late_interaction
from train.objectives.late_interaction import LateInteractionObjective
from train.rows.batches import in_order
from train.rows.late_interaction_rows import PUNCTUATION, side_ids, skipped_ids, token_rows
from zoo.batch import Batch
from zoo.errors import BadInput

NET = small("bert", task="body", layers=1, dropout=0.1, attention_dropout=0.1)
OPTIONS = LateInteraction(dimensions=6, temperature=0.7, negatives=1, query_length=5)
TEXTS, LENGTH = 3, 8


def batch_of(rows: int, options: LateInteraction = OPTIONS) -> Batch:
    """Queries of 2 or 3 tokens that masks follow, and documents of 3 to 8, some of whose tokens are not compared."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(3, 9, (rows, TEXTS, 1))
    sizes[:, 0] = options.query_length
    segments = (np.arange(LENGTH) < sizes).astype(np.int32)
    tokens = rng.integers(2, 300, segments.shape).astype(np.int32) * segments
    seen = segments.copy()
    seen[:, 0, 3:] = 0
    compared = segments * (rng.uniform(size=segments.shape) > 0.3)
    compared[..., 0] = 1
    compared[:, 0] = segments[:, 0]
    return Batch(
        tokens=tokens,
        segments=segments,
        key_segments=seen,
        labels=rng.integers(0, 20, (rows, TEXTS)).astype(np.int32),
        weights=np.ones((rows, 1), np.float32),
        index=np.arange(rows, dtype=np.uint32),
        extra={"compared": compared.astype(np.float32)},
    )


# --- The definition in float64 ---


def score(query: np.ndarray, document: np.ndarray) -> float:
    """Sum over the query's tokens of the largest cosine (Khattab and Zaharia 2020, equation 3); rows have length 1."""
    return sum(max(float(token @ other) for other in document) for token in query)


def defined(vectors: np.ndarray, batch: Batch, options: LateInteraction) -> float:
    """Mean over rows of the cross-entropy of the positive."""
    compared, texts, total = batch.extra["compared"] > 0, batch.labels, 0.0  # pyright: ignore[reportOptionalSubscript]
    first = options.query_length

    def document(row: int, text: int) -> np.ndarray:
        start = first + (text - 1) * LENGTH
        return vectors[row, start : start + LENGTH][compared[row, text]]

    rows = range(len(vectors))
    for row in rows:
        query = vectors[row, :first][compared[row, 0, :first]]
        positive = score(query, document(row, 1)) / options.temperature
        others = [
            score(query, document(i, j)) / options.temperature - positive
            for i in rows
            for j in range(1, TEXTS)
            if (i, j) != (row, 1) and not (options.mask_duplicates and texts[i, j] == texts[row, 1])  # pyright: ignore
        ]
        total += math.log(1 + sum(map(math.exp, others)))
    return total / len(vectors)


def check_against_definition(options: LateInteraction = OPTIONS) -> None:
    batch = batch_of(4)
    vectors = np.random.default_rng(0).normal(size=(4, options.query_length + 2 * LENGTH, 6))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    objective, scale = LateInteractionObjective(options), jnp.float32(-math.log(options.temperature))
    arrays = jax.tree.map(jnp.asarray, batch)
    value, gradient = jax.value_and_grad(lambda x: objective.row_losses(x, scale, arrays).mean())(jnp.float32(vectors))
    assert float(value) == pytest.approx(defined(vectors, batch, options), rel=1e-5)
    # A sum over random directions of the differences of the definition.
    for seed in range(6):
        change = np.random.default_rng(seed).normal(size=vectors.shape)
        slope = (defined(vectors + 1e-6 * change, batch, options) - defined(vectors - 1e-6 * change, batch, options)) / 2e-6
        assert float((np.float64(gradient) * change).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("mask_duplicates", [True, False])
def test_losses_and_gradients_are_those_of_the_definition(mask_duplicates: bool) -> None:
    check_against_definition(dataclasses.replace(OPTIONS, mask_duplicates=mask_duplicates))


exact = max_sim_module.max_sim


@pytest.mark.planted
@pytest.mark.parametrize(
    "wrong",
    [
        lambda q, d, in_query, in_document: exact(q, d, in_query, in_document | True),
        lambda q, d, in_query, in_document: exact(q, d, in_query.at[:, 3:].set(False), in_document),
        lambda q, d, in_query, in_document: exact(d[: len(q)], q, in_document[: len(q)], in_query),
        lambda q, d, in_query, in_document: exact(q, d, in_query, in_document) / in_query.sum(1, keepdims=True),
    ],
)
def test_wrong_scores_differ_from_the_definition(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_interaction, "max_sim", wrong)
    with pytest.raises((AssertionError, IndexError, ValueError, TypeError)):
        check_against_definition()


def test_blocks_of_documents_have_the_scores_of_all_and_less_memory() -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    queries, documents = (jax.random.normal(key, (count, 16, 8)) for key, count in zip(keys, (8, 60), strict=True))
    masks = jnp.ones((8, 16), bool), jnp.ones((60, 16), bool)

    def compiled(products: int) -> Any:
        def loss(queries: Any, documents: Any) -> Any:
            return jnp.square(exact(queries, documents, *masks, products=products)).sum()

        return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(queries, documents).compile()

    # 7 documents at a time, of which the last block has 4.
    parts, one = compiled(7 * 8 * 16 * 16), compiled(1 << 24)
    for a, b in zip(jax.tree.leaves(parts(queries, documents)), jax.tree.leaves(one(queries, documents)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())
    products = 4 * 8 * 60 * 16 * 16
    sizes = [program.memory_analysis().temp_size_in_bytes for program in (parts, one)]
    assert sizes[0] < products / 2 <= sizes[1]


# --- Steps ---

DIVISIONS: dict[str, dict[str, Any]] = {
    "4 micro-batches": {"mesh": run_config.Mesh(data=1), "accumulate": 4},
    "data=8, 2 micro-batches": {"mesh": run_config.Mesh(data=8), "accumulate": 2},
    "data=8": {"mesh": run_config.Mesh(data=8)},
    "data=2, fsdp=2, tensor=2, 2 micro-batches": {"mesh": run_config.Mesh(data=2, fsdp=2, tensor=2), "accumulate": 2},
}
FAST = ("4 micro-batches", "data=8, 2 micro-batches")
STEP_CASES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in DIVISIONS]


def first_steps(kind: type[LateInteractionObjective] = LateInteractionObjective, **changes: Any) -> Any:
    """Return the losses of three steps and the first gradient."""
    run = tiny.run(
        "late_interaction",
        model=NET.config,
        data=LabelledData(length=LENGTH, batch=16),
        late_interaction=OPTIONS,
        **changes,
    )
    return preference_steps.first_steps(run, kind(OPTIONS), batch_of(16))


@functools.cache
def alone() -> Any:
    return first_steps(mesh=run_config.Mesh(data=1))


def difference(kind: type[LateInteractionObjective], case: str) -> float:
    """Return the length of the difference of the first gradients relative to that of one device and one micro-batch."""
    losses, gradient = first_steps(kind, **DIVISIONS[case])
    np.testing.assert_allclose(losses, alone()[0], rtol=1e-5)
    differences = jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), gradient, alone()[1])
    lengths = [
        math.sqrt(sum(float(np.square(leaf).sum()) for leaf in jax.tree.leaves(tree))) for tree in (differences, alone()[1])
    ]
    return lengths[0] / lengths[1]


@pytest.mark.parametrize("case", STEP_CASES)
def test_losses_and_gradients_do_not_depend_on_the_division(case: str) -> None:
    assert difference(LateInteractionObjective, case) <= 1e-6
    losses, gradient = alone()
    assert losses[-1] < losses[0] and np.abs(gradient[PROJECTION]["kernel"]).max() > 1e-4


class OwnRows(LateInteractionObjective):
    """Each micro-batch compares its own rows only."""

    def complete_batch(self, model: Any, params: Any, batch: Any, frozen: Any, **options: Any) -> Any:
        return batch


@pytest.mark.planted
def test_wrong_micro_batches_are_noticed() -> None:
    with pytest.raises(AssertionError):
        assert difference(OwnRows, "4 micro-batches") <= 1e-6


# --- Rows ---

WORDPIECE = tokenizer(KINDS["bert"])
SPECIAL = WORDPIECE.special_tokens
EXAMPLES = [
    Ranked(origin="f:1", query="the whale", positive="old men, the ship.", negatives=("the ship",)),
    Ranked(origin="f:2", query="the ship", positive="old men", negatives=("the whale",)),
]


def rows_of(examples: list[Ranked] = EXAMPLES, length: int = 16, truncate: bool = False, **group: Any) -> list[Any]:
    options = RankedTexts(truncate=truncate)
    return list(token_rows(examples, WORDPIECE, options, length, group=LateInteraction(**{"query_length": 8, **group})))


def test_a_query_is_expanded_and_a_marker_is_one_token() -> None:
    assert SPECIAL is not None
    (row, _) = rows_of(query_prompt="whale ", document_prompt="[Q] ", negatives=1)
    ids = WORDPIECE.encode
    marker = WORDPIECE.ids()["whale"]
    expected = [SPECIAL.cls, marker, *ids(" the whale").tolist(), SPECIAL.sep]
    assert row.inputs[0].ids.tolist() == expected + [SPECIAL.mask] * (8 - len(expected))
    assert row.inputs[2].ids.tolist() == [SPECIAL.cls, *ids("[Q] the ship").tolist(), SPECIAL.sep]
    assert row.labels.tolist() == [0, 1, 2] and row.size == len(row.inputs[1].ids)
    (plain, _) = rows_of(query_expansion=False)
    assert plain.inputs[0].ids.tolist() == [SPECIAL.cls, *ids("the whale").tolist(), SPECIAL.sep]
    # The token of a special entry, which the text of a prompt never is.
    (special,) = side_ids(WORDPIECE, ["ship"], "[MASK] ", any_entry=False)
    assert special.tolist() == [SPECIAL.mask, *ids("ship").tolist()]
    (text,) = side_ids(WORDPIECE, ["ship"], "whale ", any_entry=False)
    assert text.tolist() == ids("whale ship").tolist()


def test_batches_say_which_tokens_are_compared_and_seen() -> None:
    options = LateInteraction(query_length=8, negatives=1)
    for attend in (False, True):
        group = dataclasses.replace(options, attend_to_expansion_tokens=attend)
        run = tiny.run("late_interaction", model=NET.config, data=LabelledData(length=16, batch=2), late_interaction=group)
        rows = rows_of_labels(EXAMPLES, run, WORDPIECE)
        build = LateInteractionObjective.builder(run, WORDPIECE, lambda: np.zeros(0, np.int64))
        (batch,) = in_order(rows, build, 2, np.arange(2))
        compared, tokens = batch.extra["compared"], batch.tokens  # pyright: ignore[reportOptionalSubscript]
        punctuation = [WORDPIECE.ids()[word] for word in (",", ".", ";")]
        assert skipped_ids(WORDPIECE, PUNCTUATION).tolist() == sorted(punctuation) == skipped_ids(WORDPIECE, True).tolist()
        size = len(rows.rows[0].inputs[1].ids)
        assert compared[0, 1, :size].tolist() == [float(token not in punctuation) for token in tokens[0, 1, :size].tolist()]
        assert compared[0, 0].tolist() == [1.0] * 8 + [0.0] * 8 and compared[0, 1, size:].sum() == 0
        real = int((tokens[0, 0, :8] != SPECIAL.mask).sum())  # pyright: ignore[reportOptionalMemberAccess]
        assert batch.key_segments is not None
        assert batch.key_segments[0, 0].tolist() == [1] * (8 if attend else real) + [0] * (8 if attend else 16 - real)


def test_tokens_see_the_expansion_only_if_they_are_to() -> None:
    """The states of a query's own tokens do not depend on masks that none sees, and those of the masks do on the tokens."""
    params = random_params(NET) | token_projection(32, 6).init(jax.random.key(1))
    tokens = np.array([[[5, 6, 7, 4, 4, 0, 0, 0]], [[5, 6, 7, 8, 8, 0, 0, 0]]], np.int32)
    segments = np.array([[[1, 1, 1, 1, 1, 0, 0, 0]]] * 2, np.int32)
    objective = LateInteractionObjective(OPTIONS)
    documents = np.ones((2, 1, LENGTH), np.int32)
    tokens, segments = (np.concatenate([part, documents], 1) for part in (tokens, segments))
    for attend in (False, True):
        seen = segments.copy()
        seen[:, 0, 3:] = seen[:, 0, 3:] * attend
        batch = Batch(tokens=tokens, segments=segments, key_segments=seen)
        vectors = np.asarray(objective.vectors(NET, params, jax.tree.map(jnp.asarray, batch)))
        unchanged = np.abs(vectors[0, :3] - vectors[1, :3]).max()
        assert unchanged < 1e-6 if not attend else unchanged > 1e-3
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        (EXAMPLES, {"query_length": 3}, "f:1: the query has 4 tokens, and --late-interaction.query-length is 3; choose a longer"),
        (EXAMPLES, {"negatives": 2}, "f:1: 1 negatives, and --late-interaction.negatives is 2; "),
        ([Ranked(origin="f:3", query="a")], {}, "f:3: the query has no positive; name its column with --labelled.positive$"),
        (EXAMPLES, {"length": 4, "query_length": 4}, "f:1: 8 tokens, and a row has 4; "),
    ],
)
def test_examples_that_do_not_fit_are_refused(examples: list[Ranked], options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        rows_of(examples, **options)
    if "query_length" in options:
        assert len(rows_of(examples, truncate=True, **options)[0].inputs[0].ids) == options["query_length"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"temperature": 0.0}, "temperature 0"),
        ({"dimensions": 0}, "dimensions 0"),
        ({"negatives": 65}, "negatives 65"),
        ({"query_length": 2}, "query-length 2"),
        ({"query_expansion": False, "attend_to_expansion_tokens": True}, "attend-to-expansion-tokens True"),
    ],
)
def test_options_without_a_meaning_are_refused(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(BadInput, match=f"--late-interaction.{name}"):
        LateInteraction(**changes)
