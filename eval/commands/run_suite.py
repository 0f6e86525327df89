"""`zoo eval RUN --suite S --suite-data DIR`: scoring a suite of tasks, one entry of evaluations.json each, and one table."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh as DeviceMesh

from eval.commands import run_task
from eval.inference.batch_loop import Progress
from eval.metrics import metric_functions
from eval.report import report
from eval.suites import glue_files
from eval.suites.glue_files import GlueFile, LocalGlue
from eval.suites.suite_scores import SuiteRow, suite_mean, suite_record, suite_row, suite_text
from eval.suites.suite_table import LocalPart, check_complete, find_parts
from eval.tasks import labelled, task_table, text_to_text
from eval.tasks.task import Result, Settings, Task
from train.config import run_config
from train.engine import device_mesh
from train.run.item_outcomes import write_outcomes
from train.run.progress_display import ProgressBar
from train.run.run_dir import RunDir, is_run, write_json
from train.weights.load import Loaded, load_model
from zoo.errors import printable_lines, require
from zoo.json_text import print_json
from zoo.precision import resolve_dtype

GLUE_FILES = "glue-files"
ANSWER = 16
"""Most tokens of a label in words."""


def run_suite(
    where: str,
    *,
    suite: str,
    data: str,
    partial: bool,
    step: int | None,
    settings: Settings,
    precision: run_config.Precision,
    mesh: run_config.Mesh,
    as_json: bool,
) -> int:
    """Score a suite, print its table, and store an entry for each task in the run.

    Args:
        where: a run, or a folder of published weights; for glue-files the folder of the runs, which are named by their tasks.
        suite: babylm, blimp or glue-files.
        data: folder of the suite's files.
        partial: score the files that are there although others are absent; there is no mean then.
        step: the checkpoint of a run.
        settings: `argument` and `dtype` are filled in here; options that a task does not use are left out for it.
        precision: see `run_task.run_task`.
        as_json: print JSON instead of the table.

    Raises:
        BadInput: files or runs are absent, or as in `run_task.run_task`.
    """
    require(settings.batch >= 1, "batch", settings.batch, "choose 1 or more rows")
    require(settings.limit >= 0, "limit", settings.limit, "choose 0 (all examples), or the number of first examples to score")
    quiet = as_json or jax.process_index() != 0
    scoring = _Scoring(device_mesh.make_mesh(mesh), step, settings, precision, quiet)
    glue: list[LocalGlue] = []
    if suite == GLUE_FILES:
        glue = glue_files.find_glue(where, data)
        glue_files.check_glue(glue, where, data, partial=partial)
        rows = [_glue_row(part, scoring) for part in glue]
        mean = glue_mean(rows)
    else:
        parts = find_parts(suite, data)
        check_complete(suite, data, parts, partial=partial)
        examples = [_read(local, settings) for local in parts]
        subject = scoring.load(where)
        rows = [_part_row(suite, local, data, subject, scoring) for local, data in zip(parts, examples, strict=True)]
        mean = suite_mean(rows)
    if jax.process_index() == 0:
        scored = {where, *(str(part.run) for part in glue if part.run is not None)}
        for run in sorted(run for run in scored if is_run(Path(run))):
            report.write_report(run)
        table = (suite, Path(where).name or where, rows, None if settings.limit else mean, settings.limit)
        if as_json:
            print_json(suite_record(*table))
        else:
            print(printable_lines(suite_text(*table)), flush=True)
    return 0


def glue_mean(rows: list[SuiteRow]) -> float | None:
    """Return GLUE's score: the mean over tasks, where the two files of MNLI count as one; None where one is absent."""
    both = [row for row in rows if row.task.endswith(":mnli")]
    others = [row for row in rows if row not in both]
    mnli = suite_mean(both)
    return suite_mean([*others, both[0]._replace(value=mnli)])


@dataclasses.dataclass(frozen=True)
class _Scoring:
    """The options and devices with which all tasks of a suite are scored."""

    mesh: DeviceMesh
    step: int | None
    settings: Settings
    precision: run_config.Precision
    quiet: bool

    def load(self, where: str) -> Loaded:
        """Load a model, after checking that its results can be stored."""
        if is_run(Path(where)):
            run_task.previous_results(Path(where))
        with ProgressBar(f"loading {where}", quiet=self.quiet):
            return load_model(where, self.mesh, self.step)

    def score(self, subject: Loaded, name: str, task: Task[Any], data: Any, settings: Settings) -> tuple[Settings, Result]:
        """Score a model on what a task has read; also returns the settings with the dtype of the arithmetic."""
        trained = "auto" if subject.run is None else subject.run.precision
        settings = dataclasses.replace(settings, dtype=resolve_dtype(self.precision, default=trained))
        with ProgressBar(f"scoring {name}", before="compiling", announce=True, quiet=self.quiet) as progress:
            return settings, task.score(subject, data, settings, progress)


def _settings(task: Task[Any], argument: str, settings: Settings) -> Settings:
    """Return the settings that a task uses, the others with their defaults."""
    used = {name: getattr(settings, name) for name in (*task.options, "batch")}
    return Settings(argument=argument, **used)


def _read(local: LocalPart, settings: Settings) -> Any:
    if local.folder is None:
        return None
    task, argument = task_table.find_task(local.part.task)
    return task.read(local.names, _settings(task, argument, settings))


def _part_row(suite: str, local: LocalPart, data: Any, subject: Loaded, scoring: _Scoring) -> SuiteRow:
    """Score a task of a suite, and store its entry."""
    if local.folder is None:
        return suite_row(local, None)
    task, argument = task_table.find_task(local.part.task)
    settings, result = scoring.score(
        subject, f"{suite} {local.part.name}", task, data, _settings(task, argument, scoring.settings)
    )
    entry = run_task.result_entry(local.part.task, task, subject, local.names, settings, result)
    notes = [*([] if suite == local.part.name else [f"{suite} {local.part.name}"])]
    notes += [f"{len(local.names)} of {len(local.part.files)} files"] if local.absent else []
    _store(subject, local.part.task, notes, entry, result)
    return suite_row(local, entry)


def _glue_row(part: LocalGlue, scoring: _Scoring) -> SuiteRow:
    """Score the run of a GLUE task on its file, and store its entry."""
    glue, metrics = part.glue, metric_functions.glue(part.glue.task)
    row = SuiteRow(glue.name, f"labelled:{glue.task}", " and ".join(metrics), None)
    if part.file is None or part.run is None:
        absent = (
            f"file absent; {glue.folder}/{glue.file} from {glue_files.SOURCE}" if part.file is None else "no run of this name"
        )
        return row._replace(note=absent)
    subject = scoring.load(str(part.run))
    settings = dataclasses.replace(Settings(), batch=scoring.settings.batch, limit=scoring.settings.limit)
    name = f"{glue.task} ({glue.file})" if glue.row else glue.task
    if subject.model.is_encoder_decoder or subject.model.task == "causal":
        task, task_name = _text_task(glue), f"text_to_text:{glue.task}"
        settings = dataclasses.replace(settings, search=scoring.settings.search, tokens=scoring.settings.tokens or ANSWER)
    else:
        task, task_name = labelled.TASK, f"labelled:{glue.task}"
        settings = dataclasses.replace(settings, argument=glue.task, labelled=glue_files.labelled_options(glue))
    data = task.read([str(part.file)], settings)
    settings, result = scoring.score(subject, name, task, data, settings)
    entry = run_task.result_entry(task_name, task, subject, [str(part.file)], settings, result)
    _store(subject, task_name, [glue.file] if glue.row else [], entry, result)
    value = 100 * float(np.mean([result.metrics[metric] for metric in metrics]))
    note = ", ".join(f"{metric} {100 * result.metrics[metric]:.2f}" for metric in metrics) if len(metrics) > 1 else ""
    return row._replace(value=value, examples=result.examples, note=note, step=entry["step"])


def _text_task(glue: GlueFile) -> Task[Any]:
    """Return a task that reads a file of GLUE in its text form."""
    return Task(
        read=lambda names, settings: glue_files.text_examples(glue, Path(names[0]), settings.limit),
        score=functools.partial(_word_scores, glue),
    )


def _word_scores(glue: GlueFile, subject: Loaded, data: Any, settings: Settings, progress: Progress) -> Result:
    """Generate the word of each label, and compute the task's metrics."""
    sources, labels = data
    written = text_to_text.generate_texts(subject, [(source, False) for source in sources], settings, progress)
    return Result(word_metrics(glue, labels, written), len(labels), {"tokens": settings.tokens})


def word_metrics(glue: GlueFile, labels: Sequence[str], written: Sequence[str]) -> dict[str, float]:
    """Return the metrics of labels in words, and how many of the written texts are none.

    Such a text is wrong, as a class of its own; where the labels are numbers it counts as 0.
    """
    names = metric_functions.glue(glue.task)
    texts = [text.strip() for text in written]
    if glue.task == "stsb":
        unknown = sum(not glue_files.is_number(text) for text in texts)
        truth = np.array([float(label) for label in labels])
        predicted = np.array([float(text) if glue_files.is_number(text) else 0.0 for text in texts])
    else:
        words = [*glue.words.values()] if glue.words else sorted({*labels})
        numbers = {word: number for number, word in enumerate(words)}
        truth = np.array([numbers[label] for label in labels])
        predicted = np.array([numbers.get(text, -1) for text in texts])
        unknown = int((predicted < 0).sum())
    return {**metric_functions.score_predictions(names, truth, predicted), "unknown": unknown}


def _store(subject: Loaded, task: str, notes: list[str], entry: Mapping[str, Any], result: Result) -> None:
    """Store an entry in the run, under the name of its task and what is special about its files."""
    if jax.process_index() or not is_run(Path(subject.where)):
        return
    notes = [*notes, *([f"first {entry['limit']:,}"] if "limit" in entry else [])]
    name, folder = f"{task} ({', '.join(notes)})" if notes else task, RunDir(subject.where)
    with folder.lock_results():
        if result.outcomes is not None:
            write_outcomes(folder, name, result.outcomes)
        write_json(folder.evaluations, {**run_task.previous_results(Path(subject.where)), name: dict(entry)})
