"""Values from the folders of results that lm-evaluation-harness and OLMES write, of one model with one seed each.

lm-eval (0.4): `results_DATE.json` with `model_name` and task -> "metric,filter" -> value, and with --log_samples, for each task,
`samples_TASK_DATE.jsonl` with `doc_id`, `filter` and the value of each metric. OLMES: `task-NUMBER-NAME-metrics.json` with
`task_name`, `model_config` and `metrics`, and `task-NUMBER-NAME-predictions.jsonl` with `doc_id` and `metrics`.

A metric is called TASK/METRIC; of lm-eval, with a comma and its filter, unless that is "none". Neither has the seed of a training
run: row and seed are parts of the name of the model, or of the folder of the results.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.experiments.item_sampling_error import ROUNDING
from eval.experiments.published_tables.measurements import Measurement
from zoo.errors import BadInput
from zoo.file_access import LARGEST_JSON, read_regular_text
from zoo.json_shapes import shape_problem

PATTERN = r"(?P<row>.+?)[-_.]seed[-_=]?(?P<seed>\w+)"
"""Regular expression of the name of a model, for example "pythia-160m-seed3"."""
LM_EVAL = re.compile(r"results_(?P<date>.+)\.json")
OLMES = re.compile(r"(?P<task>task-\d+-.+)-metrics\.json")
LM_EVAL_SHAPE = {"results": {str: {str: object}}}
OLMES_SHAPE = {"task_name": str, "metrics": {str: object}}


def read_results_folder(folder: Path, pattern: str) -> list[Measurement]:
    """Return the values in all result files in a folder and its subfolders.

    Args:
        pattern: regular expression with the groups row and seed, which the name of the model, or else its folder, matches.

    Raises:
        BadInput: there are none, one is damaged, or a name does not match; names the file.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise BadInput(f"--pattern {pattern!r}: is no regular expression ({error}); correct it") from None
    if not {"row", "seed"} <= compiled.groupindex.keys():
        raise BadInput(f"--pattern {pattern!r}: needs the groups row and seed; write for example {PATTERN!r}")
    measured: list[Measurement] = []
    for file in sorted(folder.rglob("*.json")):
        if match := LM_EVAL.fullmatch(file.name):
            measured += _lm_eval_values(file, match["date"], compiled)
        elif match := OLMES.fullmatch(file.name):
            measured += _olmes_values(file, match["task"], compiled)
    if not measured:
        raise BadInput(f"{folder}: has no results_*.json of lm-eval and no task-*-metrics.json of OLMES; name another folder")
    return measured


def _lm_eval_values(file: Path, date: str, pattern: re.Pattern[str]) -> Iterator[Measurement]:
    content = _read_json(file, LM_EVAL_SHAPE)
    row, seed = _row_and_seed(file, str(content.get("model_name") or ""), pattern)
    for task, scores in content["results"].items():
        samples = _read_samples(file.with_name(f"samples_{task}_{date}.jsonl"))
        for key, value in scores.items():
            metric, _, kind = key.partition(",")
            if _is_number(value) and not metric.endswith("_stderr") and kind:
                of_filter = [(name, line.get(metric)) for name, line in samples if line.get("filter", "none") == kind]
                name = f"{task}/{metric}" + ("" if kind == "none" else f",{kind}")
                yield from _values(str(file), row, seed, name, value, of_filter)


def _olmes_values(file: Path, task: str, pattern: re.Pattern[str]) -> Iterator[Measurement]:
    content = _read_json(file, OLMES_SHAPE)
    model = content.get("model_config")
    name = str(model.get("model") or "") if isinstance(model, dict) else ""
    row, seed = _row_and_seed(file, name, pattern)
    samples = _read_samples(file.with_name(f"{task}-predictions.jsonl"))
    for metric, value in content["metrics"].items():
        if _is_number(value):
            of_items = [(name, metrics.get(metric)) for name, line in samples if isinstance(metrics := line.get("metrics"), dict)]
            yield from _values(str(file), row, seed, f"{content['task_name']}/{metric}", value, of_items)


def _values(
    where: str, row: str, seed: str, metric: str, value: float, items: Sequence[tuple[str, Any]]
) -> Iterator[Measurement]:
    """Yield a value for each item if their mean is the reported value, else the reported value."""
    numbers = [float(item) for _, item in items if _is_number(item) or isinstance(item, bool)]
    if len(items) > 1 and len(numbers) == len(items):
        mean = math.fsum(numbers) / len(numbers)
        if abs(mean - value) <= ROUNDING * max(1.0, abs(value)):
            for (name, _), number in zip(items, numbers, strict=True):
                yield Measurement(where=where, row=row, seed=seed, metric=metric, value=number, item=name)
            return
    yield Measurement(where=where, row=row, seed=seed, metric=metric, value=float(value))


def _row_and_seed(file: Path, model: str, pattern: re.Pattern[str]) -> tuple[str, str]:
    for name in (model, Path(model).name, file.parent.name):
        if match := pattern.fullmatch(name):
            return match["row"], match["seed"]
    fix = "a single value of a row cannot be judged; write a regular expression of row and seed into --pattern"
    raise BadInput(f"{file}: the model {model or file.parent.name} has no seed in its name; {fix}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_json(file: Path, shape: Any) -> dict[str, Any]:
    try:
        content = json.loads(read_regular_text(file, LARGEST_JSON))
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}); move it away") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: is invalid JSON ({error}); evaluate the model again") from None
    # The shape of a score is not part of it: that of a diverged model is NaN.
    if problem := shape_problem(_without_scores(content), shape):
        raise BadInput(f"{file}: has unexpected content ({problem}); evaluate the model again")
    return content


def _without_scores(content: Any) -> Any:
    """Return an object with 0 in place of all numbers."""
    if isinstance(content, Mapping):
        return {name: _without_scores(value) for name, value in content.items()}
    return 0 if isinstance(content, int | float) else content


def _read_samples(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return (item, line) of a file with a line for each item; none if there is no such file."""
    try:
        text = read_regular_text(file, LARGEST_JSON)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}); move it away") from None
    except UnicodeDecodeError:
        raise BadInput(f"{file}: is not UTF-8; evaluate the model again") from None
    lines = []
    for number, line in enumerate(filter(str.strip, text.split("\n")), 1):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or "doc_id" not in content:
            raise BadInput(f"{file}:{number}: is no JSON object with doc_id; evaluate the model again")
        lines.append((str(content["doc_id"]), content))
    return lines
