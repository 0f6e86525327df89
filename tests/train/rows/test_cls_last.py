"""Rows of a tokenizer that puts CLS last, XLNet's: what every objective makes of them, and what reads them off a model.

The model is a BERT of three token types: what matters here is which of its positions are asked.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import fill_mask, labelled, spans
from eval.embed import embed
from eval.encoding import Encoder
from eval.pseudo import pseudo_nats
from tests.support import encoders, small, tiny
from tests.support.encoder_text import stream
from tests.support.unigram_text import xlnet
from train import mesh as meshes
from train.batches import in_order
from train.config import Data, Masking, Mesh
from train.config_objectives import Labelled
from train.examples import Answer, Choice, Example, Question, Tagged, Text
from train.features import is_typed
from train.labelled import Rows, rows_of
from train.load import Loaded
from train.marks import Marks
from train.objectives import choice, masked, objective
from train.plans import PAIRED, Range, Sequence, plan
from zoo.batch import IGNORED, Batch
from zoo.errors import BadInput

WORDS = xlnet(["the", "whale", "men", "ship", "sees", "who"])
MARKS = WORDS.marks
assert MARKS is not None
CLS, SEP, PAD, MASK, EOD = 3, 4, 5, 6, 7
LENGTH = 12
TASKS = {"classification": "sequence", "tagging": "tokens", "span": "span", "choice": "choice", "masked": "masked"}


def ids(text: str) -> list[int]:
    return WORDS.encode(text).tolist()


def run(goal: Any, *, task: str = "", masking: Masking | None = None, **data: Any) -> Any:
    names = {"labels": ("no", "yes")} if goal in ("classification", "tagging") else {}
    made = small.small("bert", task=task or TASKS[goal], vocab=WORDS.vocab_size, context=40, types=3, **names)
    given_: dict[str, Any] = {"length": LENGTH, "batch": 2} | data
    options = Labelled(stride=2) if goal == "span" else Labelled()
    return tiny.run(model=made.config, objective=goal, data=Data(**given_), labelled=options, masking=masking or Masking())


QUESTION = Question(
    origin="1", id="1", question="who", context="the men sees the whale the ship", answers=(Answer("the whale", 13),)
)
EXAMPLES: dict[str, list[Example]] = {
    "classification": [
        Text(origin="1", text="the whale", pair=None, label="no"),
        Text(origin="2", text="men", pair="the ship", label="yes"),
    ],
    "tagging": [Tagged(origin="1", words=("the", "abc", "ship"), tags=("no", "yes", "no"))],
    "span": [QUESTION],
    "choice": [Choice(origin="1", article="the ship", question="who", options=("men", "the whale"), answer=1)],
}


def built(goal: str) -> tuple[Rows, list[dict[str, np.ndarray]]]:
    cfg = run(goal)
    made = rows_of(EXAMPLES[goal], cfg, WORDS)
    build = objective(cfg.objective).builder(cfg, WORDS, lambda: np.zeros(0, np.int64))
    return made, [build(np.random.default_rng(0), row, LENGTH) for row in made.rows]


def filled(row: list[int], filling: int = 0) -> list[int]:
    return row + [filling] * (LENGTH - len(row))


# --- Labelled rows --------------------------------------------------------------------------------------------------------------


def agree_on_texts() -> None:
    _, (alone, pair) = built("classification")
    assert alone["tokens"].tolist() == filled([*ids("the whale"), SEP, CLS], PAD)
    assert alone["types"].tolist() == filled([0, 0, 0, 2])
    assert alone["segments"].tolist() == filled([1] * 4)
    assert alone["positions"].tolist() == filled([*range(4)])
    assert (alone["summary_at"].tolist(), alone["summary_at"].dtype) == ([3], np.int32)
    assert pair["tokens"].tolist() == filled([*ids("men"), SEP, *ids("the ship"), SEP, CLS], PAD)
    assert pair["types"].tolist() == filled([0, 0, 1, 1, 1, 2])
    assert pair["summary_at"].tolist() == [5]


def agree_on_tags() -> None:
    _, (row,) = built("tagging")
    whole = [*ids("the abc ship"), SEP, CLS]
    assert len(ids("abc")) == 4
    assert row["tokens"].tolist() == filled(whole, PAD)
    assert row["labels"].tolist() == filled([0, 1, *[IGNORED] * 3, 0], IGNORED)
    assert row["weights"].tolist() == filled([1, 1, 0, 0, 0, 1])


def agree_on_spans() -> None:
    """Windows have room for 12 - 4 tokens; those without the answer point at their own CLS, wherever it is."""
    made, rows = built("span")
    context = ids(QUESTION.context)
    assert (len(context), len(rows)) == (7, 1)
    assert rows[0]["tokens"].tolist() == filled([*ids("who"), SEP, *context, SEP, CLS], PAD)
    assert (rows[0]["labels"].tolist(), rows[0]["summary_at"].tolist()) == ([5, 6], [10])
    assert made.rows[0].context is not None
    assert (made.rows[0].context.first, made.rows[0].context.summary) == (2, 10)
    narrow = dataclasses.replace(run("span"), data=Data(length=8, batch=2))
    several = rows_of(EXAMPLES["span"], narrow, WORDS).rows
    assert [row.inputs[0].ids.tolist() for row in several] == [
        [*ids("who"), SEP, *context[start : start + 4], SEP, CLS] for start in (0, 2, 4)
    ]
    assert [row.labels.tolist() for row in several] == [[7, 7], [3, 4], [6, 6]]


def agree_on_choices() -> None:
    _, (row,) = built("choice")
    assert row["tokens"].tolist() == [
        filled([*ids("the ship"), SEP, *ids(f"who {option}"), SEP, CLS], PAD) for option in ("men", "the whale")
    ]
    assert row["summary_at"].tolist() == [[6], [7]]


AGREE: dict[str, Callable[[], None]] = {
    "classification": agree_on_texts,
    "tagging": agree_on_tags,
    "span": agree_on_spans,
    "choice": agree_on_choices,
}


@pytest.mark.parametrize("goal", AGREE)
def test_labelled_rows_end_with_cls_and_say_where_it_is(goal: str):
    AGREE[goal]()


FRAMED = Marks._framed
MUTANTS: dict[str, tuple[str, Any, list[str]]] = {
    "CLS is first": ("_framed", lambda self, parts: FRAMED(dataclasses.replace(self, cls_last=False), parts), [*AGREE]),
    "the first token is the summary": ("summary", lambda self, size: 0, ["classification", "span", "choice"]),
    "texts begin after a mark": ("before", property(lambda self: 1), ["tagging", "span"]),
}
"""What is planted, and the objectives whose rows it breaks."""


@pytest.mark.planted
@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_mutant_of_the_template_is_caught(mutant: str, monkeypatch: pytest.MonkeyPatch):
    name, broken, goals = MUTANTS[mutant]
    monkeypatch.setattr(Marks, name, broken)
    for goal in goals:
        with pytest.raises(AssertionError):
            AGREE[goal]()


def test_a_model_of_fewer_types_than_the_template_is_refused():
    """Its table would have no row for CLS."""
    assert MARKS is not None
    with pytest.raises(BadInput, match=r"--model\.types 2: the tokenizer's pairs have 3 token types; choose as many, or 1"):
        is_typed(2, MARKS)
    assert [is_typed(types, MARKS) for types in (0, 1, 3, 4)] == [False, False, True, True]


def test_an_answer_is_weighed_against_the_cls_of_its_own_window():
    start = np.zeros((2, 6), np.float32)
    start[0, 5], start[1, 4] = 3, 1
    context, places = np.array([[1, 3], [1, 3]]), np.zeros((2, 6, 2), np.int64)
    places[:, 1], places[:, 2] = (0, 1), (2, 3)
    found = spans.decode(start, start, context=context, spans=places, text="a b", cls=np.array([5, 4]))
    assert found.null == 2
    assert spans.decode(start, start, context=context, spans=places, text="a b").null == 0


# --- Through a model ------------------------------------------------------------------------------------------------------------


def loaded(task: str = "masked", **names: Any) -> Loaded:
    net = small.small("bert", task=task, vocab=WORDS.vocab_size, context=20, types=3, **names)
    return Loaded("small", net, small.random_params(net), WORDS, meshes.make(Mesh()))


def states(made: Loaded, tokens: list[int]) -> np.ndarray:
    """float32 [T, D]: of a row alone, CLS with its type."""
    row = jnp.array([tokens], jnp.int32)
    types = jnp.where(row == CLS, 2, 0)
    return np.asarray(made.net.apply(made.params, Batch(tokens=row, types=types)).hidden[0], np.float32)


def encoder() -> Encoder:
    return Encoder.of(loaded(), batch=2, dtype=jnp.float32)


def test_a_text_is_embedded_by_the_state_of_its_cls():
    given_ = encoders.texts("the whale sees the men", "who")
    found = embed(encoder(), given_, pool="cls")
    for vector, (_, text) in zip(found, given_, strict=True):
        np.testing.assert_allclose(vector, states(loaded(), [*ids(text), SEP, CLS])[-1], rtol=1e-4, atol=1e-5)


def test_each_token_is_masked_in_its_own_place():
    made, text = loaded(), ids("the whale sees the men")
    (found,) = pseudo_nats(encoder(), [np.array(text, np.int32)])
    wanted = 0.0
    for place, token in enumerate(text):
        row = [*text[:place], MASK, *text[place + 1 :], SEP, CLS]
        hidden = jnp.asarray(states(made, row)[place])[None, None]
        logits = np.asarray(made.net.unembed(made.params, hidden), np.float64)[0, 0, : WORDS.vocab_size]
        wanted -= float(logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
    assert found == pytest.approx(wanted, rel=1e-4)


def test_what_fills_a_mask_has_the_space_that_its_entry_has():
    (found,) = fill_mask.fill(encoder(), encoders.texts("the <mask> sees"), top=WORDS.vocab_size)
    texts = {each.token: each.text for each in found.candidates}
    assert texts[" whale"] == "the whale sees"
    assert texts["s"] == "thes sees"
    (first,) = fill_mask.fill(encoder(), encoders.texts("<mask> sees"), top=1, targets=["who"])
    assert [each.text for each in first.candidates] == ["who sees"]


def test_options_are_judged_by_their_own_cls():
    cfg = run("choice")
    made, _ = built("choice")
    net = small.small("bert", task="choice", vocab=WORDS.vocab_size, context=40, types=3)
    params = small.random_params(net)
    build = choice.builder(cfg, WORDS, lambda: np.zeros(0, np.int64))
    (batch,) = in_order(made, build, 1, np.arange(1))
    found = np.asarray(choice.options(net, params, jax.tree.map(jnp.asarray, batch)))[0]
    for number, option in enumerate(made.rows[0].inputs):
        row = Batch(tokens=jnp.asarray(option.ids)[None], types=jnp.asarray(option.types)[None])
        hidden = net.apply(params, row).hidden[:, -1:]
        np.testing.assert_allclose(found[number], np.asarray(net.sequence_logits(params, hidden))[0, 0, 0], rtol=1e-4, atol=1e-5)


def test_answers_are_told_from_windows_that_end_with_cls():
    """A model that is surest of CLS says that there is none; one that is least sure of it gives an answer."""
    cfg = dataclasses.replace(run("span"), data=Data(length=8, batch=2))
    made = rows_of([dataclasses.replace(QUESTION, answers=())], cfg, WORDS)
    _, tell = labelled.TASKS["span"]
    for sure, exact in ((9, 1), (-9, 0)):
        logits = np.zeros((len(made), 2, 8))
        for number, row in enumerate(made.rows):
            logits[number, :, len(row.inputs[0].ids) - 1] = sure
        # The word of the first window that is no article, which would not count.
        logits[0, :, 3] = 1
        assert tell(made, logits, ()).numbers["exact"] == exact


# --- Rows of text ---------------------------------------------------------------------------------------------------------------

SHOWN = Masking(masked=0.0, random=0.0)
"""Every token is seen as it is: what is left is the template."""


def never() -> Any:
    raise AssertionError("counts are asked for")


def sequence(*parts: list[int], label: int | None = None) -> Sequence:
    return Sequence(tuple(Range(number, 0, np.array(part)) for number, part in enumerate(parts)), label is not None, label)


def masked_row(*sequences: Sequence, **asked: Any) -> dict[str, np.ndarray]:
    cfg = run("masked", masking=SHOWN, **asked)
    return masked.builder(cfg, WORDS, never)(np.random.default_rng(0), sequences, cfg.data.length)


def test_a_pair_ends_with_cls():
    row = masked_row(sequence([10, 11], [12, 13, 14], label=1), task="pretraining", rows="segment_pairs")
    assert row["tokens"].tolist() == filled([10, 11, SEP, 12, 13, 14, SEP, CLS], PAD)
    assert row["types"].tolist() == filled([0, 0, 0, 1, 1, 1, 1, 2])
    assert (row["summary_at"].tolist(), row["labels"].tolist()) == ([7], [1])


def test_documents_of_a_sequence_have_the_end_of_one_between():
    row = masked_row(sequence([10, 11], [12], [13, 14]), rows="full_sentences")
    assert row["tokens"].tolist() == filled([10, 11, EOD, 12, EOD, 13, 14, SEP, CLS], PAD)
    assert row["types"].tolist() == filled([0] * 8 + [2])
    assert row["summary_at"].tolist() == [8] and "labels" not in row


def test_packed_pairs_end_with_a_cls_each():
    both = (sequence([10, 11], [12], label=1), sequence([13], [14, 15], label=0))
    row = masked_row(*both, task="pretraining", rows="segment_pairs", pack=True, length=16)
    assert row["tokens"].tolist() == [10, 11, SEP, 12, SEP, CLS, 13, SEP, 14, 15, SEP, CLS, *[PAD] * 4]
    assert row["types"].tolist() == [0, 0, 0, 1, 1, 2, 0, 0, 1, 1, 1, 2, 0, 0, 0, 0]
    assert row["segments"].tolist() == [1] * 6 + [2] * 6 + [0] * 4
    assert row["positions"].tolist() == [*range(6), *range(6), 0, 0, 0, 0]
    assert (row["summary_at"].tolist(), row["labels"].tolist()) == ([5, 11, 0], [1, 0, IGNORED])


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=6), min_size=2, max_size=5),
    st.sampled_from([*PAIRED, "full_sentences", "doc_sentences", "windows", "packed"]),
    st.booleans(),
    st.integers(10, 40),
    st.integers(0, 99),
)
def test_rows_of_a_plan_fit_and_predict_text_alone(sizes: Any, rows: Any, pack: bool, length: int, seed: int):
    documents = [" ".join("".join("ab"[n % 2] for n in range(size)) + "." for size in document) for document in sizes]
    cfg = run("masked", rows=rows, pack=pack, length=length)
    planned = plan(stream(documents, WORDS), cfg.data, WORDS, seed, "held-out")
    build = masked.builder(cfg, WORDS, never)
    bare = masked.builder(dataclasses.replace(cfg, masking=SHOWN), WORDS, never)
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
