"""Choices between texts by their likelihoods, from local files: cloze and multiple choice, EWoK, COMPS, entity tracking.

Formats, all .jsonl, by the name after the colon:
- `choices`: an object with `context` (a prompt, which may be empty), `choices` (two texts or more, which follow it as they are,
  so with a space at their beginning where one is needed), `label` (number of the right choice, from 0) and, where there are
  groups, `group`;
- `choices:ewok`: `Context1`, `Context2`, `Target1`, `Target2` and `Domain` (Ivanova et al. 2024, "Elements of World Knowledge").
  Each target must be likelier after its own context than after the other one: two comparisons, in the group of the domain;
- `choices:comps`: `prefix_acceptable`, `prefix_unacceptable` and `property_phrase` (Misra et al. 2023, "COMPS"): the property
  must be likelier after the acceptable prefix. The group is the file;
- `choices:entity_tracking`: `input_prefix`, `options`, of which the first is right, and `numops` (Kim and Schuster 2023, "Entity
  Tracking in Language Models", as a choice between the options). The group is the file and the number of operations.
The names of the last three are those of the data of the BabyLM challenges, written from memory of their published files.

Metrics: a question counts 1 if its right choice is the likeliest, and 1/n if n choices with it are; the mean over a group's
questions, then over the groups. OLMES (Gu et al. 2024) and lm-evaluation-harness divide or subtract before they compare:
- accuracy: log p of a choice as it is (`acc` there);
- accuracy_per_token: divided by the number of its tokens;
- accuracy_per_character: divided by the number of its characters, without white space before it (`acc_norm` there);
- accuracy_pmi, with --pmi: minus log p of the choice after --prefix, or after nothing (`acc_mutual_info` there);
- accuracy_stderr: standard error of accuracy; groups: their number; ties: questions whose likeliest choices are several.
Details: the same of each group; the method of the likelihoods. Outcomes: whether each question is right by `accuracy`, and -log p
of its right choice.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from eval import task_data_files
from eval.inference.batch_loop import Progress
from eval.inference.likelihood import Likelihood
from eval.inference.text_likelihoods import find_method, method_items, text_likelihoods
from eval.metrics.standard_error import mean_and_error
from eval.tasks.task import Result, Settings, Task
from train.data.text_files import parse_object
from train.run.item_outcomes import Outcomes
from train.weights.load import Loaded
from zoo.errors import BadInput

SHAPES = {
    "": '{"context": "...", "choices": ["...", "..."], "label": 0}',
    "ewok": '{"Domain": "...", "Context1": "...", "Context2": "...", "Target1": "...", "Target2": "..."}',
    "comps": '{"prefix_acceptable": "...", "prefix_unacceptable": "...", "property_phrase": "..."}',
    "entity_tracking": '{"input_prefix": "...", "options": ["...", "..."], "numops": 0}',
}
"""Format -> a line of it, for messages."""


class Question(NamedTuple):
    """Texts of which one should be the likeliest after its context."""

    where: str
    """file:line."""
    group: str
    candidates: tuple[tuple[str, str], ...]
    """(context, continuation) of each choice."""
    label: int
    """Number of the right one."""


def read_questions(names: Sequence[str], settings: Settings) -> list[Question]:
    """Read the questions of all files; with a limit, only the first ones of each group.

    Raises:
        BadInput: an unknown format, or a line that does not have it, by file and line; see also `eval.task_data_files`.
    """
    kind = settings.argument
    if kind not in SHAPES:
        raise BadInput(f"--task choices:{kind}: no such format; choose choices, or choices: and {', '.join([*SHAPES][1:])}")
    questions: list[Question] = []
    counts: collections.Counter[str] = collections.Counter()
    for file, where, line in task_data_files.lines(names, (".jsonl",)):
        for question in READERS[kind](where, file.stem, parse_object(line, where, SHAPES[kind])):
            counts[question.group] += 1
            if not settings.limit or counts[question.group] <= settings.limit:
                questions.append(question)
    return questions


def score_questions(subject: Loaded, questions: Sequence[Question], settings: Settings, progress: Progress) -> Result:
    """Compute the likelihoods of all choices and compare them.

    Raises:
        BadInput: a choice without tokens, or longer than the model's positions, by file and line; see also `find_method`.
    """
    method = find_method(subject, settings.likelihood)
    texts = [candidate for question in questions for candidate in question.candidates]
    owners = [question.where for question in questions for _ in question.candidates]
    options: dict[str, Any] = dict(method=method, orders=settings.orders, batch=settings.batch, dtype=settings.dtype)
    options |= {"too_long": "cut", "name": lambda number: owners[number], "progress": progress}
    results = text_likelihoods(subject, texts, **options)
    scores = {"accuracy": [-result.nats for result in results]}
    scores["accuracy_per_token"] = [-result.nats / result.tokens for result in results]
    scores["accuracy_per_character"] = [
        -result.nats / len(text.lstrip()) for result, (_, text) in zip(results, texts, strict=True)
    ]
    if settings.pmi:
        alone = text_likelihoods(subject, [(settings.prefix, continuation) for _, continuation in texts], **options)
        scores["accuracy_pmi"] = [base.nats - result.nats for base, result in zip(alone, results, strict=True)]
    right = {name: _credits(questions, values) for name, values in scores.items()}
    metrics, details = _summary(questions, right)
    metrics["ties"] = sum(0 < credit < 1 for credit in right["accuracy"])
    details |= {"likelihood": method, "cut": sum(result.cut > 0 for result in results)}
    outcomes = Outcomes.of(
        (question.where for question in questions), np.array(right["accuracy"]), np.array(_right_nats(questions, results))
    )
    items = method_items(method, settings.orders) | ({"prefix": settings.prefix} if settings.pmi else {})
    return Result(metrics, len(questions), details, items=items, outcomes=outcomes)


def question_credit(scores: Sequence[float], label: int) -> float:
    """Return 1 if the right choice has the highest score, 1/n if n choices have the highest one with it, and else 0."""
    best = max(scores)
    return 1 / sum(score == best for score in scores) if scores[label] == best else 0.0


def _credits(questions: Sequence[Question], scores: Sequence[float]) -> list[float]:
    values = iter(scores)
    return [question_credit([next(values) for _ in question.candidates], question.label) for question in questions]


def _right_nats(questions: Sequence[Question], results: Sequence[Likelihood]) -> list[float]:
    values = iter(results)
    return [[next(values).nats for _ in question.candidates][question.label] for question in questions]


def _summary(questions: Sequence[Question], right: dict[str, list[float]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the metrics, which are means over groups with equal weights, and the table of groups."""
    groups: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        groups.setdefault(question.group, []).append(number)
    table: dict[str, dict[str, Any]] = {}
    for group, numbers in sorted(groups.items()):
        table[group] = {name: mean_and_error([credits[n] for n in numbers])[0] for name, credits in right.items()}
        error = mean_and_error([right["accuracy"][n] for n in numbers])[1]
        table[group] |= {**({} if error is None else {"stderr": error}), "questions": len(numbers)}
    metrics = {name: sum(row[name] for row in table.values()) / len(table) for name in right}
    errors = [row["stderr"] for row in table.values() if "stderr" in row]
    if len(errors) == len(table):
        metrics["accuracy_stderr"] = sum(error**2 for error in errors) ** 0.5 / len(table)
    metrics["groups"] = len(table)
    return metrics, {"groups": table} if [*table] != [""] else {}


def _plain(where: str, file: str, line: dict[str, Any]) -> list[Question]:
    choices, label, context = line.get("choices"), line.get("label"), line.get("context")
    if not isinstance(context, str):
        raise BadInput(f'{where}: field "context" is no text; write a string, which may be empty')
    texts = _texts(choices, "choices", where)
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(texts):
        raise BadInput(f'{where}: field "label" must be the number of a choice, 0 to {len(texts) - 1}')
    group = line.get("group", "")
    if not isinstance(group, str):
        raise BadInput(f'{where}: field "group" is no text; write a string')
    return [Question(where, group, tuple((context, text) for text in texts), label)]


def _ewok(where: str, file: str, line: dict[str, Any]) -> list[Question]:
    names = ("Domain", "Context1", "Context2", "Target1", "Target2")
    domain, *contexts, target1, target2 = (_text(line, name, where) for name in names)
    pairs = [tuple((context, f" {target}") for context in contexts) for target in (target1, target2)]
    return [Question(where, domain, pair, label) for label, pair in enumerate(pairs)]


def _comps(where: str, file: str, line: dict[str, Any]) -> list[Question]:
    good, bad, phrase = (_text(line, name, where) for name in ("prefix_acceptable", "prefix_unacceptable", "property_phrase"))
    return [Question(where, file, ((good, f" {phrase}"), (bad, f" {phrase}")), 0)]


def _entities(where: str, file: str, line: dict[str, Any]) -> list[Question]:
    prefix, options, operations = _text(line, "input_prefix", where), line.get("options"), line.get("numops")
    if not isinstance(operations, int):
        raise BadInput(f'{where}: field "numops" is no number; write the number of operations')
    texts = _texts(options, "options", where)
    return [Question(where, f"{file}_{operations}_ops", tuple((prefix, text) for text in texts), 0)]


def _text(line: dict[str, Any], name: str, where: str) -> str:
    value = line.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f'{where}: field "{name}" has no text; write a string')
    return value


def _texts(values: Any, name: str, where: str) -> list[str]:
    texts = values if isinstance(values, list) else []
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise BadInput(f'{where}: field "{name}" is no list of two texts or more; write ["...", "..."]')
    return texts


READERS: dict[str, Callable[[str, str, dict[str, Any]], list[Question]]] = {
    "": _plain,
    "ewok": _ewok,
    "comps": _comps,
    "entity_tracking": _entities,
}

TASK = Task(
    read=read_questions,
    score=score_questions,
    metrics=("accuracy", "accuracy_per_token", "accuracy_per_character", "accuracy_pmi", "accuracy_stderr", "groups", "ties"),
    options=("limit", "likelihood", "orders", "pmi", "prefix"),
    argument="optional",
)
