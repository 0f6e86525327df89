"""Scores of a fine-tuned encoder on labelled files, in any of the formats it could be fine-tuned on.

Format: what the head is trained on (see `train.data.labelled_reader`): classes or numbers of texts or of pairs (.tsv, .csv,
.jsonl, .txt of TREC), tags of words (.conll, .jsonl), answers in texts (.json of SQuAD, .jsonl), or choices (.json and .txt of
RACE, .jsonl), all of them also as .parquet and as folders of `datasets`. Labels are the head's, spelled as its config.json spells
them.

The options of training (`--labelled.text`, `--labelled.truncate`, ...) define how files are read and cut; a run uses its own
where the command line names none. Rows are as long as the run's; those of published weights as long as the model's positions.

Metrics:
  - the loss, in nats, and the metrics of the head: accuracy, F1 (of the second of two classes; of more the mean over classes)
  and Matthews' correlation of classes; micro and macro F1 and the share of texts with all labels right where a text may have
  several; Pearson's and Spearman's correlation and squared error of numbers; entity F1 of IOB tags, accuracy of others; exact
  match and F1 of answers; accuracy of choices;
- with the name of a task of GLUE after the colon, what that task is judged by alone (Wang et al. 2019, table 1);
- accuracy_stderr: the standard error of an accuracy over independent examples;
- with an accuracy also majority_share, the accuracy of always predicting the most frequent class, and predicted_share, the share
  of the most frequent prediction: a model that always predicts one class has learned nothing.
Details: length; the confusion matrix, with a row for each true class; and how many examples were left out or cut.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.inference.batch_loop import Progress
from eval.metrics import metric_functions
from eval.report.error_analysis import CLASSES
from eval.tasks.held_out import labelled_scores
from eval.tasks.held_out.scoring_inputs import ScoringInputs
from eval.tasks.task import Result, Settings, Task, first
from train.config.data_options import Data, LabelledData
from train.config.find_objective import with_labelled
from train.config.objectives import ClassificationOptions
from train.config.run_config import Run
from train.data import labelled_reader
from train.inputs.labelled_inputs import LabelledRows, rows_of_labels
from train.objectives import objective
from train.rows.example_rows import Advice
from train.weights.load import Loaded
from zoo.configs import Objective
from zoo.errors import BadInput, no_such_file, require
from zoo.hf import hub

OBJECTIVE_OF_TASK: dict[str, Objective] = {"sequence": "classification", "tokens": "tagging", "span": "span", "choice": "choice"}
"""Task of a head -> the objective that trains it."""
USUAL = 512
"""Number of tokens of a row, for published weights without learned positions."""
STEP = 32
"""Rows for published weights are as long as the longest row, rounded up to a multiple of this: few shapes are compiled."""


def check_names(names: Sequence[str], settings: Settings) -> tuple[str, ...]:
    """Return the names, since how the files are read depends on the model.

    Raises:
        BadInput: no file of a name, no such task of GLUE, or an option that has no effect here.
    """
    for name in names:
        if not name.startswith(hub.PREFIX) and not Path(name).exists():
            raise no_such_file(name, "--files ")
    if settings.argument:
        metric_functions.glue(settings.argument)
    weights = settings.labelled.class_weights
    require(weights == "none", "labelled.class_weights", weights, "they apply to the training loss only; leave the option out")
    return tuple(names)


def score_labelled_files(subject: Loaded, names: tuple[str, ...], settings: Settings, progress: Progress) -> Result:
    """Score every example of the files.

    Raises:
        BadInput: a model without such a head, metrics of another kind of head, a label that the model does not have, or files
            that cannot be read; see `train.data.labelled_reader` and `train.rows.example_rows`.
    """
    cfg, objective_name = subject.model.config, OBJECTIVE_OF_TASK.get(subject.model.task)
    if objective_name is None:
        what = f"the task of {subject.where} is {subject.model.task}, without labels"
        raise BadInput(f"--task labelled: {what}; fine-tune it first")
    labels = getattr(cfg, "labels", ())
    chosen = _glue_metrics(settings.argument, objective_name, labels, multi_label=cfg.multi_label)
    run = run_for(subject, objective_name, settings)
    malformed: list[str] = []
    examples, _ = labelled_reader.read_labelled_examples(objective_name, names, Data(), run.options.labelled, malformed)
    rows = rows_of_labels(first(examples, settings.limit), run, subject.tokenizer, Advice("choose a longer --length"))
    if subject.run is None and not settings.length:
        rows = _shortened(rows)
    build = objective(objective_name).builder(run, subject.tokenizer, _unread)
    options: dict[str, Any] = {"batch": settings.batch, "dtype": settings.dtype, "progress": progress}
    inputs = ScoringInputs(run=run, model=subject.model, mesh=subject.mesh, data=None, rows=rows, build=build, **options)
    measured = labelled_scores.score_labelled(inputs)(subject.params)
    numbers = dict(measured.record())
    count = int(numbers.pop("examples"))
    shares = ("majority_share", "predicted_share") if "accuracy" in chosen else ()
    metrics = {name: value for name, value in numbers.items() if not chosen or name in (*chosen, *shares)}
    if "accuracy" in metrics and objective_name != "tagging" and count > 1:
        metrics["accuracy_stderr"] = math.sqrt(metrics["accuracy"] * (1 - metrics["accuracy"]) / (count - 1))
    details: dict[str, Any] = {"length": rows.length}
    if malformed:
        details["left out"] = f"{_examples(len(malformed), 'bad ')}; the first: {malformed[0]}"
    if rows.too_long:
        done = "cut" if run.options.labelled.truncate else "left out"
        details["too long"] = f"{_examples(rows.too_long)}, {done}; the longest has {rows.longest[1]:,} tokens, {rows.longest[0]}"
    confusion = measured.mistakes["confusion"]
    if 0 < len(confusion) <= CLASSES:
        details["confusion"] = {name: dict(zip(labels, row, strict=True)) for name, row in zip(labels, confusion, strict=True)}
    return Result(metrics, count, details, items={"labels": list(labels)}, outcomes=measured.outcomes)


def _examples(count: int, kind: str = "") -> str:
    return f"{count:,} {kind}example{'s' * (count != 1)}"


def _glue_metrics(argument: str, objective_name: Objective, labels: Sequence[str], *, multi_label: bool) -> tuple[str, ...]:
    """Return the metrics of a GLUE task, if one is named and the head fits it."""
    if not argument:
        return ()
    metrics = metric_functions.glue(argument)
    if objective_name != "classification" or multi_label or not set(metrics) <= set(labelled_scores.class_metrics(labels)):
        output = f"{len(labels)} classes" if len(labels) > 1 else "numbers"
        output = "several labels per text" if multi_label else output
        kind = output if objective_name == "classification" else f"{objective_name}, not classes of texts"
        raise BadInput(f"--task labelled:{argument}: it is judged by {' and '.join(metrics)}, and the model is of {kind}")
    return metrics


def run_for(subject: Loaded, objective_name: Objective, settings: Settings) -> Run:
    """Return a run configuration that makes rows for the model.

    Raises:
        BadInput: --labelled.regression or --labelled.multi-label of classes, an option that the objective does not use, or a
            length that the model does not have.
    """
    cfg, own = subject.model.config, subject.run
    numbers = objective_name == "classification" and len(cfg.labels) == 1 and not cfg.multi_label
    require(numbers or not settings.labelled.regression, "labelled.regression", True, "the model gives no number; leave it out")
    several = cfg.multi_label or not settings.labelled.multi_label
    require(several, "labelled.multi_label", True, "the model gives each text one label; leave it out")
    options = with_labelled(None if own is None else own.options, objective_name, settings.labelled)
    if isinstance(options, ClassificationOptions):
        labelled = dataclasses.replace(options.labelled, regression=numbers, multi_label=cfg.multi_label)
        options = dataclasses.replace(options, labelled=labelled)
    context = getattr(cfg, "context", None)
    length = settings.length or (own.data.length if own else context or USUAL)
    limit = context or length
    require(
        1 <= length <= limit, "length", length, f"choose 1 to the model's {limit} positions" if context else "choose 1 or more"
    )
    return Run(recipe="", model=cfg, options=options, data=LabelledData(length=length, batch=settings.batch))


def _shortened(rows: LabelledRows) -> LabelledRows:
    """Return the same rows, without padding that none of them needs."""
    longest = max(len(inputs.ids) for row in rows.rows for inputs in row.inputs)
    return dataclasses.replace(rows, length=min(rows.length, -(-longest // STEP) * STEP))


def _unread() -> Any:
    raise AssertionError("no labelled objective uses the frequencies of ids")


TASK = Task(read=check_names, score=score_labelled_files, options=("length", "limit", "labelled"), argument="optional")
