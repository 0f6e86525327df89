"""Scores of fine-tuned models on labelled examples equal a loop over the examples, on any batch size and mesh."""

import collections
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.metrics import metric_functions, squad
from eval.prediction.span_decoding import LONGEST
from eval.tasks.held_out import labelled_scores
from eval.tasks.held_out.labelled_scores import WORST
from eval.tasks.held_out.scoring_inputs import Score, ScoringInputs
from tests.support import finetuned
from tests.support.finetuned import IOB, LABELS, entropy, examples
from tests.support.small import random_params
from train.config import run_config
from train.config.run_config import Run
from train.data.example_types import Choice, Question, Tagged, Text
from train.engine import device_mesh
from train.inputs.labelled_inputs import LabelledRows, outputs
from train.run.metric_definitions import METRICS, validation_metrics
from zoo.batch import IGNORED
from zoo.sharding import shardings

CASES: dict[str, tuple[str, str, tuple[str, ...], dict[str, Any]]] = {
    "three classes": ("classification", "bert", LABELS, {}),
    "two classes": ("classification", "roberta", ("no", "yes"), {}),
    "numbers": ("classification", "distilbert", ("score",), {"regression": True}),
    "several labels": ("classification", "bert", LABELS, {"multi_label": True}),
    "entities": ("tagging", "bert", IOB, {}),
    "entities cut off": ("tagging", "bert", IOB, {"length": 12, "truncate": True}),
    "tags of another scheme": ("tagging", "roberta", ("A", "N", "V"), {}),
    "answers": ("span", "roberta", (), {}),
    "options": ("choice", "bert", (), {}),
}
"""Name -> objective, family, labels and options of a run."""
COUNT = 27


@functools.cache
def setting(name: str) -> tuple[Run, LabelledRows]:
    objective, family, labels, options = CASES[name]
    run = finetuned.run(objective, family=family, labels=labels, **options)
    of_texts = dict(pairs=name == "three classes", several=name == "several labels")
    return run, finetuned.rows(run, examples(objective, COUNT, labels or LABELS, **of_texts))


def random_logits(run: Run, rows: LabelledRows) -> np.ndarray:
    """Return float64 [N, O] of examples or options, or [N, T, O] of tokens."""
    sizes = {"span": 2, "choice": 3}.get(run.objective) or len(run.model.labels)
    shape = (len(rows), rows.length, sizes) if run.objective in ("tagging", "span") else (len(rows), sizes)
    return np.random.default_rng(0).normal(size=shape)


def scored(run: Run, rows: LabelledRows, logits: np.ndarray) -> Score:
    if run.objective == "span":
        real = np.asarray(finetuned.batch(run, rows).segments)[:, None] > 0
        logits = np.where(real, np.moveaxis(logits, 2, 1), -1e30)
    return labelled_scores.metrics_of(run)(rows, logits, getattr(run.model, "labels", ()))


def by_example(run: Run, rows: LabelledRows, logits: np.ndarray) -> list[dict[str, Any]]:
    """Return for each example its loss, of how many losses that is the mean, the truth, the prediction and what is shown."""
    real = np.asarray(finetuned.batch(run, rows).segments) > 0
    names, result = getattr(run.model, "labels", ()), []
    for number, example in enumerate(rows.examples):
        places = [place for place, row in enumerate(rows.rows) if row.example == number]
        (first, *_), one, count = places, logits[places[0]], 1
        match example:
            case Text() if outputs(run)[0]:
                truth, predicted = float(example.label), float(one[0])
                loss = (predicted - np.float32(example.label)) ** 2
                display = example.text, example.pair or "", truth, predicted
            case Text() if outputs(run)[1]:
                truth = [label in example.label for label in names]  # pyright: ignore[reportOperatorIssue]
                chances = 1 / (1 + np.exp(-one))
                predicted = (chances >= 0.5).tolist()
                loss = -np.log(np.where(truth, chances, 1 - chances)).mean()
                listed = (", ".join(itertools.compress(names, which)) or "(none)" for which in (truth, predicted))
                display = example.text, "", *listed
            case Text():
                truth, predicted = str(example.label), names[int(one.argmax())]
                loss = entropy(one, names.index(truth), 0.0)
                display = example.text, example.pair or "", truth, predicted
            case Tagged():
                asked = np.flatnonzero(rows.rows[first].labels != IGNORED)
                truth, predicted = list(example.tags[: len(asked)]), [names[int(one[at].argmax())] for at in asked]
                loss = np.mean([entropy(one[at], names.index(tag), 0.0) for at, tag in zip(asked, truth, strict=True)])
                count = len(asked)
                wrong = [place for place in range(count) if truth[place] != predicted[place]]
                texts = (", ".join(f"{place + 1} {tags[place]}" for place in wrong) for tags in (truth, predicted))
                display = " ".join(example.words), "", *texts
            case Choice():
                truth, predicted, loss = example.answer, int(one.argmax()), entropy(one, example.answer, 0.0)
                display = example.question, example.article, example.options[truth], example.options[predicted]
            case Question():
                truth, predicted = [text for text, _ in example.answers], best(example, rows, logits, places)
                ends = [(at, end) for at in places for end in (0, 1)]
                loss = np.mean([entropy(logits[at, real[at], end], rows.rows[at].labels[end], 0.0) for at, end in ends])
                count = len(places)
                null, value, text = predicted
                answer = "(no answer)" if null > value else text
                display = example.question, example.context, truth[0] if truth else "(no answer)", answer
        result.append({"loss": float(loss), "of": count, "truth": truth, "predicted": predicted, "shown": display})
    return result


def best(question: Question, rows: LabelledRows, logits: np.ndarray, places: list[int]) -> tuple[float, float, str]:
    """Return the score of no answer, that of the best answer and its text, of all pairs of tokens in all windows."""
    pairs = []
    for at in places:
        context = rows.rows[at].context
        assert context is not None
        for first in range(len(context.spans)):
            for last in range(first, min(len(context.spans), first + LONGEST)):
                value = logits[at, context.first + first, 0] + logits[at, context.first + last, 1]
                pairs.append((value, question.context[context.spans[first, 0] : context.spans[last, 1]].strip()))
    null = min(logits[at, 0].sum() for at in places)
    return null, *max((pair for pair in pairs if pair[1]), key=lambda pair: pair[0])


def expected_numbers(run: Run, each: list[dict[str, Any]]) -> dict[str, float]:
    counts = np.array([one["of"] for one in each])
    result: dict[str, Any] = {"loss": np.average([one["loss"] for one in each], weights=counts), "examples": len(each)}
    truth, predicted = [one["truth"] for one in each], [one["predicted"] for one in each]
    names = getattr(run.model, "labels", ())
    if run.objective == "choice":
        return result | {"accuracy": np.mean([a == b for a, b in zip(truth, predicted, strict=True)]), **shares(truth, predicted)}
    if run.objective == "classification" and outputs(run)[0]:
        series, metrics = (np.array(truth), np.array(predicted)), ("pearson", "spearman", "mean_squared_error")
        return result | {name: metric_functions.MEASURES[name](*series) for name in metrics}
    if outputs(run)[1]:
        from sklearn.metrics import accuracy_score, f1_score

        f1 = {f"f1_{mean}": f1_score(truth, predicted, average=mean) for mean in ("micro", "macro")}
        return result | {**f1, "subset_accuracy": accuracy_score(truth, predicted)}
    if run.objective == "classification":
        series = tuple(np.array([names.index(name) for name in some]) for some in (truth, predicted))
        metrics = ("accuracy", "matthews", "f1" if len(names) == 2 else "f1_macro")
        return result | {name: metric_functions.MEASURES[name](*series) for name in metrics} | shares(truth, predicted)
    if run.objective == "tagging" and names == IOB:
        metrics = ("entity_precision", "entity_recall", "entity_f1")
        agreement = metric_functions.entity_f1(truth, predicted)
        return result | {"words": counts.sum(), **dict(zip(metrics, agreement, strict=True))}
    if run.objective == "tagging":
        hits = [a == b for one, other in zip(truth, predicted, strict=True) for a, b in zip(one, other, strict=True)]
        flat = ([tag for tags in each for tag in tags] for each in (truth, predicted))
        return result | {"words": counts.sum(), "accuracy": np.mean(hits), **shares(*flat)}
    answers = ["" if null > value else text for null, value, text in predicted]
    pairs = list(zip(answers, truth, strict=True))
    result |= {"exact": np.mean([squad.exact_match(a, b) for a, b in pairs]), "questions": len(each)}
    result |= {"f1": np.mean([squad.token_f1(a, b) for a, b in pairs])}
    return result | {"no_answer_exact": np.mean([text == "" for text, given in pairs if not given])}


def shares(truth: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float]:
    """Return the share of the most frequent class."""
    most = [max(collections.Counter(each).values()) / len(each) for each in (truth, predicted)]
    return dict(zip(("majority_share", "predicted_share"), most, strict=True))


def assert_matches(result: Score, run: Run, rows: LabelledRows, logits: np.ndarray) -> None:
    each, record = by_example(run, rows, logits), result.record()
    expected = expected_numbers(run, each)
    assert {key: record[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    more = {"best_exact", "best_f1", "best_exact_threshold", "best_f1_threshold", "has_answer_exact", "has_answer_f1"}
    assert record.keys() - expected.keys() == (more if run.objective == "span" else set())
    assert all(type(value) in (int, float) for value in record.values())
    order = sorted(range(len(each)), key=lambda number: -each[number]["loss"])[:WORST]
    worst = result.mistakes["worst"]
    assert [one["loss"] for one in worst] == pytest.approx([each[number]["loss"] for number in order], rel=1e-4)
    for one, number in zip(worst, order, strict=True):
        expected_text, shown = each[number]["shown"], tuple(one[key] for key in ("text", "pair", "truth", "found"))
        if outputs(run)[0]:
            shown, expected_text = (tuple(map(float, some[2:])) for some in (shown, expected_text))
            expected_text = pytest.approx(expected_text, rel=1e-4)
        assert shown == expected_text
    outcomes = result.outcomes
    assert outcomes.nats.tolist() == pytest.approx([one["loss"] for one in each], rel=1e-4)
    assert len(set(outcomes.id)) == len(each) == outcomes.count.sum()
    if outputs(run)[0]:
        assert np.isnan(outcomes.right).all()
    elif run.objective == "span":
        assert outcomes.right.mean() == pytest.approx(record["exact"])
    else:
        assert outcomes.right.tolist() == [float(one["truth"] == one["predicted"]) for one in each]
    names = list(getattr(run.model, "labels", ()))
    if run.objective != "classification" or any(outputs(run)):
        assert result.mistakes["confusion"] == result.mistakes["labels"] == []
        return
    confusion = np.zeros((len(names), len(names)), int)
    for one in each:
        confusion[names.index(one["truth"]), names.index(one["predicted"])] += 1
    assert (result.mistakes["labels"], result.mistakes["confusion"]) == (names, confusion.tolist())
    assert (confusion != confusion.T).any()


@pytest.mark.parametrize("name", CASES)
def test_score_of_logits_equals_a_loop_over_the_examples(name: str) -> None:
    run, rows = setting(name)
    logits = random_logits(run, rows)
    result = scored(run, rows, logits)
    assert_matches(result, run, rows, logits)
    measured = {key for key in result.record() if (metric := METRICS.get(key)) and metric.better}
    assert set(validation_metrics(run)) == measured
    if name == "entities cut off":
        assert sum(one["of"] for one in by_example(run, rows, logits)) < sum(len(each.words) for each in rows.examples)


ON_MESHES = ("answers", (1, 2, 2)), ("entities", (1, 2, 2)), ("options", (8, 1, 1)), ("several labels", (8, 1, 1))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("three classes", (8, 1, 1)), *(pytest.param(*case, marks=pytest.mark.full) for case in ON_MESHES)],
)
def test_score_of_a_model_on_a_mesh_equals_a_loop_over_the_examples(name: str, shape: tuple[int, int, int]) -> None:
    """Score 27 examples in batches of 11, or 16 on 8 devices: the last batch is filled up, and what fills it does not count."""
    run, rows = setting(name)
    net, (data, fsdp, tensor) = finetuned.net(run), shape
    mesh = device_mesh.make_mesh(run_config.Mesh(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])
    params = jax.device_put(random_params(net), shardings(mesh, random_params(net), net.definition.sharding))
    inputs = ScoringInputs(
        run=run, model=net, mesh=mesh, data=None, rows=rows, build=finetuned.build(run), batch=11, dtype=jnp.float32
    )
    result = labelled_scores.score_labelled(inputs)(params)
    assert_matches(result, run, rows, finetuned.logits(run, finetuned.batch(run, rows)))


def test_question_is_always_answered_where_every_question_has_an_answer() -> None:
    run, _ = setting("answers")
    answered = [each for each in examples("span", COUNT, LABELS) if each.answers]
    rows = finetuned.rows(run, answered)
    logits = random_logits(run, rows)
    logits[:, 0] = 100
    result = scored(run, rows, logits)
    texts = [one["predicted"][2] for one in by_example(run, rows, logits)]
    exact = [squad.exact_match(text, [each.text for each in one.answers]) for text, one in zip(texts, answered, strict=True)]
    assert result.record().keys() == {"loss", "exact", "f1", "questions", "examples"}
    assert result.record()["exact"] == pytest.approx(np.mean(exact))
    assert "(no answer)" not in {one["found"] for one in result.mistakes["worst"]}
