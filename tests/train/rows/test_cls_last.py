"""Rows of a tokenizer that puts CLS last, XLNet's: the arrays of every objective, and the positions that are read from a model.

The model is a BERT of three token types.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.commands import fill_mask
from eval.inference.encoder_likelihoods import pseudo_nats
from eval.inference.encoder_runner import Encoder
from eval.inference.text_vectors import embed_texts
from eval.tasks.held_out import labelled_scores
from tests.support import encoders, small, tiny
from tests.support.encoder_text import stream
from tests.support.unigram_text import xlnet
from train.config.data_options import LabelledData
from train.config.find_objective import find_options
from train.config.option_groups import Masking, Questions
from train.config.run_config import Mesh
from train.data.example_types import Answer, Choice, Example, Question, Tagged, Text
from train.engine import device_mesh
from train.inputs.labelled_inputs import LabelledRows, rows_of_labels
from train.objectives import choice, objective
from train.objectives.choice import MultipleChoice
from train.objectives.masked import Masked
from train.rows.batches import in_order
from train.rows.encoder_rows import PAIRED, Range, Sequence, plan_rows
from train.rows.example_rows import is_typed
from train.tokenizers.special_tokens import SpecialTokens
from train.weights.load import Loaded
from zoo.batch import IGNORED, Batch
from zoo.configs._encoder import LABELLED
from zoo.embedding_modules import EmbeddingModules
from zoo.errors import BadInput
from zoo.models import Model

WORDS = xlnet(["the", "whale", "men", "ship", "sees", "who"])
MARKS = WORDS.special_tokens
assert MARKS is not None
CLS, SEP, PAD, MASK, EOD = 3, 4, 5, 6, 7
LENGTH = 12
TASKS = {"classification": "sequence", "tagging": "tokens", "span": "span", "choice": "choice", "masked": "masked"}
SIZES = st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=6), min_size=2, max_size=5)
ROWS = st.sampled_from([*PAIRED, "full_sentences", "doc_sentences", "windows", "packed"])


def ids(text: str) -> list[int]:
    return WORDS.encode(text).tolist()


def model(task: str) -> Model:
    names = {"labels": ("no", "yes")} if task in LABELLED else {}
    return small.small("bert", task=task, vocab=WORDS.vocab_size, context=40, types=3, **names)


def run(goal: Any, *, task: str = "", masking: Masking | None = None, **data: Any) -> Any:
    lengths = find_options(goal).data(**{"length": LENGTH, "batch": 2, **data})
    options = {"labelled": Questions(stride=2)} if goal == "span" else {"masking": masking} if masking else {}
    return tiny.run(model=model(task or TASKS[goal]).config, objective=goal, data=lengths, **options)


CONTEXT = "the men sees the whale the ship"
QUESTION = Question(origin="1", id="1", question="who", context=CONTEXT, answers=(Answer("the whale", 13),))
EXAMPLES: dict[str, list[Example]] = {
    "classification": [
        Text(origin="1", text="the whale", pair=None, label="no"),
        Text(origin="2", text="men", pair="the ship", label="yes"),
    ],
    "tagging": [Tagged(origin="1", words=("the", "abc", "ship"), tags=("no", "yes", "no"))],
    "span": [QUESTION],
    "choice": [Choice(origin="1", article="the ship", question="who", options=("men", "the whale"), answer=1)],
}


def built(goal: str) -> tuple[LabelledRows, list[dict[str, np.ndarray]]]:
    cfg = run(goal)
    made = rows_of_labels(EXAMPLES[goal], cfg, WORDS)
    build = objective(cfg.objective).builder(cfg, WORDS, lambda: np.zeros(0, np.int64))
    return made, [build(np.random.default_rng(0), row, LENGTH) for row in made.rows]


def filled(row: list[int], filling: int = 0) -> list[int]:
    return row + [filling] * (LENGTH - len(row))


ALONE = dict(types=filled([0, 0, 0, 2]), segments=filled([1] * 4), positions=filled([*range(4)]), summary_at=[3])
PAIR = dict(tokens=filled([*ids("men"), SEP, *ids("the ship"), SEP, CLS], PAD), types=filled([0, 0, 1, 1, 1, 2]), summary_at=[5])
# The second word has four tokens.
TAGS = dict(labels=filled([0, 1, *[IGNORED] * 3, 0], IGNORED), weights=filled([1, 1, 0, 0, 0, 1]))
WINDOW = filled([*ids("who"), SEP, *ids(QUESTION.context), SEP, CLS], PAD)
OPTIONS = [filled([*ids("the ship"), SEP, *ids(f"who {option}"), SEP, CLS], PAD) for option in ("men", "the whale")]
EXPECTED: dict[str, list[dict[str, list[Any]]]] = {
    "classification": [{"tokens": filled([*ids("the whale"), SEP, CLS], PAD), **ALONE}, PAIR],
    "tagging": [{"tokens": filled([*ids("the abc ship"), SEP, CLS], PAD), **TAGS}],
    "span": [{"tokens": WINDOW, "labels": [5, 6], "summary_at": [10]}],
    "choice": [{"tokens": OPTIONS, "summary_at": [[6], [7]]}],
}


def check(goal: str) -> None:
    made, rows = built(goal)
    for row, expected in zip(rows, EXPECTED[goal], strict=True):
        assert {name: row[name].tolist() for name in expected} == expected
    if goal != "span":
        return
    # Windows without the answer point at their own CLS, wherever it is.
    assert made.rows[0].context is not None
    assert (made.rows[0].context.first, made.rows[0].context.summary) == (2, 10)
    context, narrow = ids(QUESTION.context), dataclasses.replace(run("span"), data=LabelledData(length=8, batch=2))
    several = rows_of_labels(EXAMPLES["span"], narrow, WORDS).rows
    windows = [[*ids("who"), SEP, *context[start : start + 4], SEP, CLS] for start in (0, 2, 4)]
    assert [row.inputs[0].ids.tolist() for row in several] == windows
    assert [row.labels.tolist() for row in several] == [[7, 7], [3, 4], [6, 6]]


@pytest.mark.parametrize("goal", EXPECTED)
def test_labelled_rows_end_with_cls_and_name_its_place(goal: str):
    check(goal)


FRAMED = SpecialTokens._framed
MUTANTS: dict[str, tuple[str, Any, list[str]]] = {
    "CLS is first": ("_framed", lambda self, parts: FRAMED(dataclasses.replace(self, cls_last=False), parts), [*EXPECTED]),
    "the first token is the summary": ("summary", lambda self, size: 0, ["classification", "span", "choice"]),
    "texts begin after a mark": ("before", property(lambda self: 1), ["tagging", "span"]),
}
"""What is planted, and the objectives whose rows it breaks."""


@pytest.mark.planted
@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_mutant_of_the_template_is_caught(mutant: str, monkeypatch: pytest.MonkeyPatch):
    name, broken, goals = MUTANTS[mutant]
    monkeypatch.setattr(SpecialTokens, name, broken)
    for goal in goals:
        with pytest.raises(AssertionError):
            check(goal)


def test_a_model_of_fewer_types_than_the_template_is_refused():
    """Its table would have no row for CLS."""
    assert MARKS is not None
    with pytest.raises(BadInput, match=r"--model\.types 2: .* 3 token types; choose"):
        is_typed(2, MARKS)
    assert [is_typed(types, MARKS) for types in (0, 1, 3, 4)] == [False, False, True, True]


@functools.cache
def loaded(task: str = "masked") -> Loaded:
    net = model(task)
    return Loaded("small", net, small.random_params(net), WORDS, device_mesh.make_mesh(Mesh()))


@functools.cache
def forward(task: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(hidden states, logits of every token of a masked model) of a batch."""
    net = loaded(task).model

    def run_model(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        hidden = net.apply(params, batch).hidden
        return hidden, net.unembed(params, hidden) if task == "masked" else net.sequence_logits(params, hidden)

    return jax.jit(run_model)


def outputs(tokens: list[int], types: list[int] | None = None, task: str = "masked") -> tuple[np.ndarray, np.ndarray]:
    """float32 [T, D] and [T, O]: hidden states and logits of a row alone, CLS with its type."""
    row = np.array([tokens], np.int32)
    batch = Batch(tokens=row, types=np.where(row == CLS, 2, 0).astype(np.int32) if types is None else np.array([types], np.int32))
    hidden, logits = forward(task)(loaded(task).params, batch)
    return np.asarray(hidden[0]), np.asarray(logits[0])


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.of(loaded(), batch=2, dtype=jnp.float32)


@pytest.mark.full
def test_a_text_is_embedded_by_the_state_of_its_cls(encoder: Encoder):
    texts = encoders.texts("the whale sees the men", "who")
    for vector, (_, text) in zip(embed_texts(encoder, texts, EmbeddingModules(pool="cls")), texts, strict=True):
        np.testing.assert_allclose(vector, outputs([*ids(text), SEP, CLS])[0][-1], rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_each_token_is_masked_in_its_own_place(encoder: Encoder):
    text, expected = ids("the whale sees the men"), 0.0
    for place, token in enumerate(text):
        logits = outputs([*text[:place], MASK, *text[place + 1 :], SEP, CLS])[1][place, : WORDS.vocab_size].astype(np.float64)
        expected -= float(logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
    assert pseudo_nats(encoder, [np.array(text, np.int32)]) == pytest.approx([expected], rel=1e-4)


@pytest.mark.full
def test_what_fills_a_mask_has_the_space_that_its_entry_has(encoder: Encoder):
    (filled_in,) = fill_mask.fill_masks(encoder, encoders.texts("the <mask> sees"), top=WORDS.vocab_size)
    texts = {each.token: each.text for each in filled_in.candidates}
    assert (texts[" whale"], texts["s"]) == ("the whale sees", "thes sees")
    (first,) = fill_mask.fill_masks(encoder, encoders.texts("<mask> sees"), top=1, targets=["who"])
    assert [each.text for each in first.candidates] == ["who sees"]


@pytest.mark.full
def test_options_are_judged_by_their_own_cls():
    cfg, (made, _) = run("choice"), built("choice")
    (batch,) = in_order(made, MultipleChoice.builder(cfg, WORDS, never), 1, np.arange(1))
    logits = jax.jit(functools.partial(choice.option_logits, loaded("choice").model))(loaded("choice").params, batch)[0]
    expected = [outputs(each.ids.tolist(), each.types.tolist(), "choice")[1][-1, 0] for each in made.rows[0].inputs]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_no_answer_is_the_prediction_where_cls_has_the_highest_logit():
    """A model that is surest of CLS predicts that there is no answer; one that is least sure of it gives an answer."""
    cfg = dataclasses.replace(run("span"), data=LabelledData(length=8, batch=2))
    made = rows_of_labels([dataclasses.replace(QUESTION, answers=())], cfg, WORDS)
    score = labelled_scores.METRICS["span"]
    for sure, exact in ((9, 1), (-9, 0)):
        logits = np.zeros((len(made), 2, 8))
        for number, row in enumerate(made.rows):
            logits[number, :, len(row.inputs[0].ids) - 1] = sure
        # The word of the first window that is no article, which would not count.
        logits[0, :, 3] = 1
        assert score(made, logits, ()).numbers["exact"] == exact


SHOWN = Masking(masked=0.0, random=0.0)
"""Every token is seen as it is, so the template can be read."""


def never() -> Any:
    raise AssertionError("counts are asked for")


def sequence(*parts: list[int], label: int | None = None) -> Sequence:
    return Sequence(tuple(Range(number, 0, np.array(part)) for number, part in enumerate(parts)), label is not None, label)


def masked_row(*sequences: Sequence, **options: Any) -> dict[str, list[int]]:
    cfg = run("masked", masking=SHOWN, **options)
    row = Masked.builder(cfg, WORDS, never)(np.random.default_rng(0), sequences, cfg.data.length)
    return {name: array.tolist() for name, array in row.items()}


def test_sequences_of_a_row_end_with_a_cls_each():
    row = masked_row(sequence([10, 11], [12], [13, 14]), rows="full_sentences")
    assert row["tokens"] == filled([10, 11, EOD, 12, EOD, 13, 14, SEP, CLS], PAD)
    assert row["types"] == filled([0] * 8 + [2])
    assert row["summary_at"] == [8] and "labels" not in row
    both = (sequence([10, 11], [12], label=1), sequence([13], [14, 15], label=0))
    row = masked_row(*both, task="pretraining", rows="segment_pairs", pack=True, length=16)
    assert row["tokens"] == [10, 11, SEP, 12, SEP, CLS, 13, SEP, 14, 15, SEP, CLS, *[PAD] * 4]
    assert row["types"] == [0, 0, 0, 1, 1, 2, 0, 0, 1, 1, 1, 2, 0, 0, 0, 0]
    assert row["segments"] == [1] * 6 + [2] * 6 + [0] * 4
    assert row["positions"] == [*range(6), *range(6), 0, 0, 0, 0]
    assert (row["summary_at"], row["labels"]) == ([5, 11, 0], [1, 0, IGNORED])


@settings(deadline=None, max_examples=25)
@given(SIZES, ROWS, st.booleans(), st.integers(10, 40), st.integers(0, 99))
def test_rows_of_a_plan_fit_and_predict_text_alone(sizes: Any, rows: Any, pack: bool, length: int, seed: int):
    documents = [" ".join("".join("ab"[n % 2] for n in range(size)) + "." for size in document) for document in sizes]
    cfg = run("masked", rows=rows, pack=pack, length=length)
    planned = plan_rows(stream(documents, WORDS), cfg.data, WORDS, seed, "held-out")
    build = Masked.builder(cfg, WORDS, never)
    bare = Masked.builder(tiny.with_options(cfg, masking=SHOWN), WORDS, never)
    for number in range(len(planned)):
        row = build(np.random.default_rng(seed), planned.row(number), length)
        whole = bare(np.random.default_rng(seed), planned.row(number), length)["tokens"]
        at = row["predict_at"][row["weights"] == 1]
        assert len(at) and (row["targets"][row["weights"] == 1] == whole[at]).all()
        assert not np.isin(whole[at], [CLS, SEP, PAD, EOD]).any()
        ends = [int(np.flatnonzero(row["segments"] == each)[-1]) for each in range(1, row["segments"].max() + 1)]
        assert row["summary_at"][: len(ends)].tolist() == ends
        assert (whole[ends] == CLS).all() and (whole == CLS).sum() == len(ends)
        assert (row["types"] == 2).sum() == len(ends) and (row["types"][ends] == 2).all()
