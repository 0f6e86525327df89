"""What a fitted model is worth on labelled examples: against the same told example by example, on any batch size and mesh."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval import labelled, measures, spans
from eval.labelled import WORST, Score
from tests.support import finetuned
from tests.support.finetuned import IOB, LABELS, entropy, examples, run
from tests.support.small import random_params
from train import config
from train import mesh as meshes
from train.config import Run
from train.examples import Choice, Question, Tagged, Text
from train.labelled import Rows
from zoo.batch import IGNORED
from zoo.sharding import shardings

SETTINGS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "three classes": ("classification", "bert", LABELS),
    "two classes": ("classification", "roberta", ("no", "yes")),
    "numbers": ("classification", "distilbert", ("score",)),
    "entities": ("tagging", "bert", IOB),
    "answers": ("span", "roberta", ()),
    "options": ("choice", "bert", ()),
}
MESHES = {"three classes": (8, 1, 1), "entities": (1, 2, 2), "answers": (8, 1, 1), "options": (1, 2, 2)}
"""data x fsdp x tensor devices on which a setting is scored as well."""
COUNT = 27


@functools.cache
def setting(name: str) -> tuple[Run, Rows]:
    goal, family, labels = SETTINGS[name]
    cfg = run(goal, family=family, labels=labels, regression=labels == ("score",))
    known = labels or LABELS
    return cfg, finetuned.rows(cfg, examples(goal, COUNT, known, name == "three classes"))


def score(cfg: Run, rows: Rows, *, batch: int, shape: tuple[int, int, int] = (1, 1, 1)) -> Score:
    net, (data, fsdp, tensor) = finetuned.net(cfg), shape
    mesh = meshes.make(config.Mesh(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])
    params = jax.device_put(random_params(net), shardings(mesh, random_params(net), net.module.SHARDING))
    build = finetuned.build(cfg)
    return labelled.of_run(cfg, net, mesh, None, rows, build, batch=batch, dtype=jnp.float32)(params)


@functools.cache
def scored(name: str) -> Score:
    """All rows in one batch, which is no larger than they are many."""
    return score(*setting(name), batch=512)


# --- Example by example ---------------------------------------------------------------------------------------------------------


def told(cfg: Run, rows: Rows, logits: np.ndarray | None = None) -> list[dict[str, Any]]:
    """Of each example its loss, how many losses that is the mean of, what is true and what is found."""
    batch = finetuned.batch(cfg, rows)
    found, real = finetuned.logits(cfg, batch) if logits is None else logits, np.asarray(batch.segments) > 0
    names, result = cfg.model.labels, []
    for number, example in enumerate(rows.examples):
        mine = [place for place, row in enumerate(rows.rows) if row.example == number]
        (first, *_), one = mine, found[mine[0]]
        match example:
            case Text() if cfg.labelled.regression:
                loss, truth, answer = float(one[0] - np.float32(example.label)) ** 2, float(example.label), float(one[0])
                result.append(dict(loss=loss, of=1, truth=truth, found=answer))
            case Text():
                loss = entropy(one, names.index(str(example.label)), 0.0)
                result.append(dict(loss=loss, of=1, truth=example.label, found=names[int(one.argmax())]))
            case Tagged():
                places = np.flatnonzero(rows.rows[first].labels != IGNORED)
                true = example.tags[: len(places)]
                losses = [entropy(one[place], names.index(tag), 0.0) for place, tag in zip(places, true, strict=True)]
                tags = [names[int(one[place].argmax())] for place in places]
                result.append(dict(loss=np.mean(losses), of=len(places), truth=list(true), found=tags))
            case Choice():
                loss = entropy(one, example.answer, 0.0)
                result.append(dict(loss=loss, of=1, truth=example.answer, found=int(one.argmax())))
            case Question():
                ends = [entropy(found[at, real[at], end], rows.rows[at].labels[end], 0.0) for at in mine for end in (0, 1)]
                answer = best(example, rows, found, mine)
                result.append(dict(loss=np.mean(ends), of=len(mine), truth=[text for text, _ in example.answers], found=answer))
    return result


def best(question: Question, rows: Rows, found: np.ndarray, mine: list[int]) -> tuple[float, float, str]:
    """(score of no answer, score of the best one, its text) of all pairs of tokens in all windows."""
    pairs = []
    for at in mine:
        context = rows.rows[at].context
        assert context is not None
        for first in range(len(context.spans)):
            for last in range(first, min(len(context.spans), first + spans.LONGEST)):
                value = found[at, context.first + first, 0] + found[at, context.first + last, 1]
                pairs.append((value, question.context[context.spans[first, 0] : context.spans[last, 1]].strip()))
    null = min(found[at, 0].sum() for at in mine)
    return null, *max((pair for pair in pairs if pair[1]), key=lambda pair: pair[0])


def numbers(cfg: Run, rows: Rows, logits: np.ndarray | None = None) -> dict[str, float]:
    """The measures of a task, from what is told of each example."""
    each = told(cfg, rows, logits)
    shares = np.array([one["of"] for one in each])
    result: dict[str, Any] = {"loss": np.average([one["loss"] for one in each], weights=shares), "examples": len(each)}
    truth, found = [one["truth"] for one in each], [one["found"] for one in each]
    right = np.mean([a == b for a, b in zip(truth, found, strict=True)])
    match cfg.objective:
        case "classification" if cfg.labelled.regression:
            series = np.array(truth), np.array(found)
            result |= {name: measures.MEASURES[name](*series) for name in ("pearson", "spearman", "mean_squared_error")}
        case "classification":
            names = cfg.model.labels
            series = tuple(np.array([names.index(name) for name in some]) for some in (truth, found))
            f1 = {"f1": measures.f1(*series)} if len(names) == 2 else {"f1_macro": measures.f1_macro(*series)}
            result |= {"accuracy": right, "matthews": measures.matthews(*series), **f1}
        case "choice":
            result |= {"accuracy": right}
        case "tagging" if cfg.model.labels == IOB:
            names = ("entity_precision", "entity_recall", "entity_f1")
            result |= {"words": shares.sum(), **dict(zip(names, measures.entity_f1(truth, found), strict=True))}
        case "tagging":
            hits = [a == b for one, other in zip(truth, found, strict=True) for a, b in zip(one, other, strict=True)]
            result |= {"words": shares.sum(), "accuracy": np.mean(hits)}
        case "span":
            said = ["" if null - value > 0 else text for null, value, text in found]
            result |= {"exact": np.mean([spans.exact_match(a, b) for a, b in zip(said, truth, strict=True)])}
            result |= {"f1": np.mean([spans.token_f1(a, b) for a, b in zip(said, truth, strict=True)]), "questions": len(each)}
            result |= {"no_answer_exact": np.mean([text == "" for text, given in zip(said, truth, strict=True) if not given])}
    return result


@pytest.mark.parametrize("name", SETTINGS)
def test_a_score_is_what_is_told_of_each_example(name: str) -> None:
    cfg, rows = setting(name)
    found, expected = scored(name).record(), numbers(cfg, rows)
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    more = {"best_exact", "best_f1", "best_exact_threshold", "best_f1_threshold", "has_answer_exact", "has_answer_f1"}
    assert found.keys() - expected.keys() == (more if cfg.objective == "span" else set())
    assert all(type(value) in (int, float) for value in found.values())


@pytest.mark.parametrize("name", SETTINGS)
def test_the_worst_examples_are_shown_the_worst_first(name: str) -> None:
    cfg, rows = setting(name)
    each, worst = told(cfg, rows), scored(name).mistakes["worst"]
    order = sorted(range(len(each)), key=lambda number: -each[number]["loss"])[:WORST]
    assert [one["loss"] for one in worst] == pytest.approx([each[number]["loss"] for number in order], rel=1e-4)
    for one, number in zip(worst, order, strict=True):
        example, (truth, found) = rows.examples[number], (each[number][which] for which in ("truth", "found"))
        match example:
            case Text() if cfg.labelled.regression:
                assert (one["text"], one["pair"]) == (example.text, "")
                assert (float(one["truth"]), float(one["found"])) == pytest.approx((truth, found), rel=1e-4)
            case Text():
                assert (one["text"], one["pair"], one["truth"], one["found"]) == (example.text, example.pair or "", truth, found)
            case Tagged():
                wrong = [place for place in range(len(truth)) if truth[place] != found[place]]
                assert one["text"] == " ".join(example.words) and one["pair"] == ""
                assert one["truth"] == ", ".join(f"{place + 1} {truth[place]}" for place in wrong)
                assert one["found"] == ", ".join(f"{place + 1} {found[place]}" for place in wrong)
            case Choice():
                assert (one["text"], one["pair"]) == (example.question, example.article)
                assert (one["truth"], one["found"]) == (example.options[truth], example.options[found])
            case Question():
                null, value, text = found
                assert (one["text"], one["pair"]) == (example.question, example.context)
                assert one["truth"] == (truth[0] if truth else "(no answer)")
                assert one["found"] == ("(no answer)" if null > value else text)


@pytest.mark.parametrize("name", ["three classes", "two classes"])
def test_a_confusion_has_a_row_for_each_true_class(name: str) -> None:
    cfg, rows = setting(name)
    names = list(cfg.model.labels)
    expected = np.zeros((len(names), len(names)), int)
    for one in told(cfg, rows):
        expected[names.index(one["truth"]), names.index(one["found"])] += 1
    assert scored(name).mistakes["labels"] == names
    assert scored(name).mistakes["confusion"] == expected.tolist()
    assert (expected != expected.T).any()


@pytest.mark.parametrize("name", ["numbers", "entities", "answers", "options"])
def test_without_classes_there_is_no_confusion(name: str) -> None:
    assert scored(name).mistakes["confusion"] == scored(name).mistakes["labels"] == []


# --- What must not matter -------------------------------------------------------------------------------------------------------


def assert_same(one: Score, other: Score) -> None:
    assert one.record() == pytest.approx(other.record(), rel=1e-4)
    assert one.mistakes["confusion"] == other.mistakes["confusion"]
    shown = [[(each["text"], each["found"][:12]) for each in score.mistakes["worst"][:5]] for score in (one, other)]
    assert shown[0] == shown[1]


@pytest.mark.parametrize(("name", "shape"), MESHES.items())
def test_neither_batch_nor_mesh_matter(name: str, shape: tuple[int, int, int]) -> None:
    """27 examples: the last batch is filled up, and what fills it does not count."""
    cfg, rows = setting(name)
    assert_same(score(cfg, rows, batch=11, shape=shape), scored(name))


def test_where_every_question_has_an_answer_one_is_always_given() -> None:
    cfg, _ = setting("answers")
    answered = [each for each in examples("span", COUNT, LABELS) if each.answers]
    rows = finetuned.rows(cfg, answered)
    logits = np.random.default_rng(0).normal(size=(len(rows), rows.length, 2))
    # However sure the model is that there is none.
    logits[:, 0] = 100
    found = labelled._answers(rows, np.moveaxis(logits, 2, 1), ())
    texts = [one["found"][2] for one in told(cfg, rows, logits)]
    exact = [
        spans.exact_match(text, [answer.text for answer in each.answers]) for text, each in zip(texts, answered, strict=True)
    ]
    assert found.record().keys() == {"loss", "exact", "f1", "questions", "examples"}
    assert found.record()["exact"] == pytest.approx(np.mean(exact))
    assert "(no answer)" not in {one["found"] for one in found.mistakes["worst"]}


def drawn(cfg: Run, rows: Rows) -> np.ndarray:
    """Logits of tokens as they may be, float64 [N, T, O]."""
    return np.random.default_rng(0).normal(size=(len(rows), rows.length, len(cfg.model.labels)))


def test_words_that_are_cut_off_do_not_count() -> None:
    whole, cut = (run("tagging", labels=IOB, length=length, truncate=True) for length in (32, 12))
    counts = []
    for cfg in (whole, cut):
        rows = finetuned.rows(cfg, examples("tagging", COUNT, IOB))
        found, expected = labelled._tags(rows, drawn(cfg, rows), IOB).record(), numbers(cfg, rows, drawn(cfg, rows))
        assert found == pytest.approx(expected)
        counts.append(found["words"])
    assert counts[1] < counts[0] == sum(len(each.words) for each in examples("tagging", COUNT, IOB))


def test_tags_that_are_not_iob_are_counted_by_word() -> None:
    names = ("A", "N", "V")
    cfg = run("tagging", family="roberta", labels=names)
    rows = finetuned.rows(cfg, examples("tagging", COUNT, names))
    found, expected = labelled._tags(rows, drawn(cfg, rows), names).record(), numbers(cfg, rows, drawn(cfg, rows))
    assert found == pytest.approx(expected) and found.keys() == {"loss", "accuracy", "words", "examples"}
