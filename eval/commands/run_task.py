"""`zoo eval RUN|DIR --task T`: scoring a task on local files, and writing the result as a table and to RUN/evaluations.json."""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from eval.report import report
from eval.task_data_files import digest_data_files
from eval.tasks import task_table
from eval.tasks.task import Result, Settings, Task
from train.config import run_config
from train.config.from_json import from_json
from train.engine import device_mesh
from train.run.item_outcomes import write_outcomes
from train.run.metric_definitions import score_notices
from train.run.progress_display import ProgressBar
from train.run.result_files import read_result
from train.run.run_dir import RunDir, is_run, write_json
from train.weights.load import Loaded, load_model
from train.weights.reward_scale import write_scale
from zoo import plugins
from zoo.errors import BadInput, printable, printable_lines, require
from zoo.json_text import print_json
from zoo.precision import DTYPES, resolve_dtype

NOT_ITEMS = ("argument", "batch", "dtype", "length", "stride", "words", "prefix", "orders")
"""Options that are not in a fingerprint; a task whose items depend on one of them puts it into `Result.items`."""
LEFT = ("left out", "too long")
"""Details of a result about examples that were skipped or cut."""


def run_task(
    where: str,
    *,
    task: str,
    files: Sequence[str],
    step: int | None,
    adapter: str = "",
    settings: Settings,
    precision: run_config.Precision,
    mesh: run_config.Mesh,
    as_json: bool,
) -> int:
    """Score a model on a task and print the result; a run stores it in its evaluations.json and shows it in its report.

    The options and files are checked before the model is read, and the model before anything is computed.

    Args:
        where: a run, a folder of published weights, or `hub:ID`.
        task: TASK or TASK:ARGUMENT.
        files: files, or folders of files, that the task reads.
        step: the checkpoint of a run; None = its best one, if it keeps one, else the newest intact one.
        adapter: folder of an adapter in peft's format, which is merged into the parameters; the result is then not stored.
        settings: `argument` and `dtype` are filled in here.
        precision: "auto" is the run's own; for published weights it is float32 on CPU, else bfloat16.
        as_json: print JSON instead of tables.

    Raises:
        BadInput: an unknown task, an option that it does not use, files it cannot read, nothing to load, or a run that cannot be
            written to.
    """
    task_to_score, argument = task_table.find_task(task)
    _check_options(task, settings, (*task_to_score.options, "argument", "batch", "dtype"))
    require(settings.batch >= 1, "batch", settings.batch, "choose 1 or more rows")
    require(settings.limit >= 0, "limit", settings.limit, "choose 0 (all examples), or the number of first examples to score")
    settings = dataclasses.replace(settings, argument=argument)
    task_table.require_files(task, files)
    stored = is_run(Path(where)) and not adapter
    if stored:
        previous_results(Path(where))  # refuses a damaged file before anything is computed
    examples = task_to_score.read(files, settings)
    quiet = as_json or jax.process_index() != 0
    with ProgressBar(f"loading {where}", quiet=quiet):
        subject = load_model(where, device_mesh.make_mesh(mesh), step, adapter)
    trained = "auto" if subject.run is None else subject.run.precision
    settings = dataclasses.replace(settings, dtype=resolve_dtype(precision, default=trained))
    with ProgressBar(f"scoring {task}", before="compiling", announce=True, quiet=quiet) as progress:
        result = task_to_score.score(subject, examples, settings, progress)
    if jax.process_index() == 0:
        entry = result_entry(task, task_to_score, subject, files, settings, result)
        if adapter:
            entry["details"]["adapter"] = adapter
        if result.reward_scale is not None:
            if adapter:
                raise BadInput(
                    f"--adapter {adapter}: a normalization is stored next to the model's weights; leave the adapter out"
                )
            if not Path(where).is_dir():
                raise BadInput(f"{where}: the normalization is stored next to the weights; `zoo import` them into a folder first")
            write_scale(Path(where), result.reward_scale)
        if stored:
            # A score of the first examples has its own name, since it must not replace the score of all examples.
            name = f"{task} (first {settings.limit:,})" if settings.limit else task
            with RunDir(where).lock_results():
                if result.outcomes is not None:
                    write_outcomes(RunDir(where), name, result.outcomes)
                # Read again: another evaluation of the run may have ended in the meantime.
                write_json(RunDir(where).evaluations, {**previous_results(Path(where)), name: entry})
                report.write_report(where)
        for line in [
            *(f"{name}: {result.details[name]}" for name in LEFT if name in result.details),
            *score_notices(result.metrics),
        ]:
            print(f"! {printable(line)}", file=sys.stderr)
        content = {"task": task, "model": subject.name, **entry}
        if as_json:
            print_json(content)
        else:
            print(printable_lines(task_result_text(result, settings.limit)), flush=True)
    return 0


def result_entry(
    task: str, scored: Task[Any], subject: Loaded, files: Sequence[str], settings: Settings, result: Result
) -> dict[str, Any]:
    """Return a result as evaluations.json has it."""
    return {
        "step": subject.step,
        "metrics": result.metrics,
        "examples": result.examples,
        "details": {**result.details, "files": list(files), **_plugin(task)},
        "fingerprint": task_fingerprint(files, settings, result),
        "settings": settings_record(settings),
        "tokenizer": subject.tokenizer.fingerprint,
        "per_token": list(scored.per_token),
        **({"limit": settings.limit} if settings.limit else {}),
    }


def task_fingerprint(files: Sequence[str], settings: Settings, result: Result) -> dict[str, Any]:
    """Return what determines the items that a task is scored on, as JSON: only scores with equal fingerprints are compared.

    It has the digest of the files, the options that differ from their defaults, and the `items` of the result. It omits options
    of the arithmetic, and those that only determine how much of a text a model sees; the task's name has its argument.
    """
    names = [field.name for field in dataclasses.fields(Settings) if field.name not in NOT_ITEMS]
    values, defaults = dataclasses.asdict(settings), dataclasses.asdict(Settings())
    # Which options were named does not matter, but their values.
    for options_of in (values, defaults):
        del options_of["labelled"]["named"]
    options = {name: values[name] for name in names if values[name] != defaults[name]}
    return {"files": digest_data_files(files), "settings": json.loads(json.dumps(options)), "items": result.items}


def settings_record(settings: Settings) -> dict[str, Any]:
    """Return the options of a task as JSON, by which an audit repeats it; `settings_of_record` is the inverse.

    The batch is not one of them, since no result depends on it.
    """
    values = dataclasses.asdict(settings) | {"dtype": jnp.dtype(settings.dtype).name}
    del values["batch"]
    return json.loads(json.dumps(values))


def settings_of_record(record: dict[str, Any]) -> Settings:
    """Return the options that `settings_record` has recorded.

    Raises:
        BadInput: an option is unknown or of another type.
    """
    fix = "evaluate the run again"
    dtype = from_json(Literal["float32", "bfloat16"], record.get("dtype"), "settings.dtype", fix=fix)
    others = {name: value for name, value in record.items() if name != "dtype"}
    return dataclasses.replace(from_json(Settings, others, "settings", fix=fix), dtype=DTYPES[dtype])


def task_result_text(result: Result, limit: int = 0) -> str:
    """Return a result as plain text: the tables of numbers among its details, its metrics, and the limit on examples."""
    tables = {name: rows for name, rows in result.details.items() if _is_table(rows) and not _is_text(rows)}
    blocks = [_lines(name, rows) for name, rows in tables.items()]
    metrics = [f"{name:20} {_number(value):>14}" for name, value in result.metrics.items()]
    count = f"{'examples':20} {result.examples:>14,}"
    if limit:
        count += f"  (at most the first {limit:,} of the task: not comparable with a score of all)"
    return "\n\n".join([*blocks, "\n".join([*metrics, count])])


def _check_options(task: str, settings: Settings, used: Sequence[str]) -> None:
    for field in dataclasses.fields(Settings):
        value, default = getattr(settings, field.name), field.default
        if field.name in used or value == default:
            continue
        name = field.name
        if dataclasses.is_dataclass(value):
            # The first option of a group that differs from its default.
            inner = next(
                option.name
                for option in dataclasses.fields(value)
                if getattr(value, option.name) != getattr(default, option.name)
            )
            name, value = f"{name}.{inner}", getattr(value, inner)
        require(False, name, value, f"has no effect on --task {task}; remove it")


def _plugin(task: str) -> dict[str, str]:
    """Return the distribution and version of a task that is a plug-in."""
    plugin = plugins.find_plugin("zoo.tasks", task.partition(":")[0], task_table.TASKS)
    return {} if plugin is None else {"plug-in": plugin.origin}


def previous_results(run: Path) -> dict[str, Any]:
    """Read the results that the run has so far."""
    path = RunDir(run).evaluations
    if not os.access(run, os.W_OK):
        raise BadInput(f"{run}: cannot be written, so the result cannot be stored there; make it writable")
    return read_result(path) or {}


def _is_table(rows: Any) -> bool:
    return isinstance(rows, dict) and bool(rows) and all(isinstance(row, dict) for row in rows.values())


def _is_text(rows: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether a table has texts, which are shown only in the report, because they are too long for a terminal."""
    return any(isinstance(value, str) for row in rows.values() for value in row.values())


def _lines(title: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    wide = max(map(len, (title, *rows)))
    widths = {column: max(12, len(column) + 2) for column in columns}
    head = f"{title:{wide}}" + "".join(f"{column:>{width}}" for column, width in widths.items())
    body = [
        f"{name:{wide}}" + "".join(f"{_number(row.get(column, '')):>{width}}" for column, width in widths.items())
        for name, row in rows.items()
    ]
    return "\n".join([head, *body])


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else str(value)
