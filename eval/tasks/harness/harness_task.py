"""A task of lm-evaluation-harness, from a local YAML file: `--task harness:NAME --files FOLDER`. Needs the extra `eval`.

Format: the harness's own. NAME is the `task`, `group` or `tag` of a .yaml file in one of the folders (or their subfolders); its
`dataset_path` is `json`, `text`, `csv` or `parquet` with `data_files` on this machine (relative to the current folder). The tasks
that come with the harness are not read, and nothing is looked for on the network. Functions that a YAML file names (`!function`)
are run, so they need --trust TASKFILE, once for each version: read a task from another person before you confirm it.

Metrics: what the task's `metric_list` names, with the harness's own arithmetic and standard errors (`_stderr`; bootstrapped 1,000
times where there is no formula). A metric's name ends in a comma and the name of its filter, unless that is "none". If NAME is
several tasks, a metric that all of them have is averaged with equal weights; the names of other metrics, and of the harness's
aggregates for a group, begin with the name of their task or group.
A task of multiple choice whose `metadata` has `acc_per_token: true` also gets the accuracy by log p per token of a choice, which
the harness does not have; its `acc_norm` divides by characters, `acc_bytes` by bytes, and `acc_mutual_info` subtracts log p
without a context.
Details: the tasks, with their metrics, versions and numbers of shots.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2.exceptions import TemplateError

from eval import task_data_files
from eval.inference.batch_loop import Progress
from eval.inference.text_likelihoods import method_items
from eval.metrics.standard_error import with_error
from eval.tasks.harness import harness_files
from eval.tasks.task import Result, Settings, Task
from train.weights.load import Loaded
from zoo import trust
from zoo.errors import BadInput
from zoo.runtime import caches

BOOTSTRAP = 1000
PER_TOKEN = "acc_per_token"
"""Key of a task's `metadata`, which the harness passes over."""


def load_tasks(names: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Return the harness's tasks of the name, with their data.

    Raises:
        BadInput: the extra is missing, no file defines the name, or the harness cannot load it without the network; or the user
            has not confirmed a function in the files (`zoo.trust`), or a metric is not the harness's.
    """
    from eval.tasks.harness import lm_eval_adapter

    folders = sorted({file.parent for file in task_data_files.find_data_files(names, (".yaml",))})
    for name in names:
        references = harness_files.task_references(name)
        trust.admit_references(references, [harness_files.FUNCTION])
        if not references.names:
            harness_files.check_metrics(name, lm_eval_adapter.metric_names())
    lm_eval_adapter.use_sandbox()
    with _offline(), _names_task(settings.argument):
        from datasets.exceptions import DatasetsError
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=False)
        if settings.argument not in manager.all_tasks:
            names_here = ", ".join(manager.all_tasks) or "none"
            raise BadInput(
                f"--task harness:{settings.argument}: no readable .yaml file defines it; the files define: {names_here}"
            )
        try:
            return dict(manager.load([settings.argument]))
        except (OSError, ValueError, KeyError, TypeError, DatasetsError) as error:
            cause = " ".join(str(error).split())[:300]
            raise BadInput(f"--task harness:{settings.argument}: cannot be loaded without the network: {cause}") from None


def score_tasks(subject: Loaded, examples: Mapping[str, Any], settings: Settings, progress: Progress) -> Result:
    """Let the harness evaluate the model.

    Raises:
        BadInput: see `HarnessModel`; or a template is wrong, or does what Jinja's sandbox forbids.
    """
    from eval.tasks.harness.lm_eval_adapter import HarnessModel

    options = {"likelihood": settings.likelihood, "orders": settings.orders}
    model = HarnessModel(subject, batch=settings.batch, dtype=settings.dtype, progress=progress, **options)
    with _offline(), _names_task(settings.argument):
        from lm_eval.evaluator import simple_evaluate

        results = simple_evaluate(
            model,
            tasks=list(examples["tasks"].values()),
            bootstrap_iters=BOOTSTRAP,
            limit=settings.limit or None,
            log_samples=bool(per_token := _per_token_tasks(examples["tasks"])),
        )
    assert results is not None
    table: dict[str, Any] = dict(results)
    for name in per_token:
        outcomes = per_token_outcomes(table["samples"][name], model.token_counts)
        table["results"][name] |= {f"{key},none": value for key, value in with_error(PER_TOKEN, outcomes).items()}
    result = harness_summary(table)
    return dataclasses.replace(result, items=method_items(model.method, settings.orders))


def per_token_outcomes(samples: Sequence[Mapping[str, Any]], token_counts: Mapping[tuple[str, str], int]) -> list[float]:
    """Return, for each question, whether its right choice has the largest log p per token.

    Args:
        samples: what the harness logs of a task of `output_type: multiple_choice`.
        token_counts: number of tokens of the continuation of each (context, continuation).
    """
    outcomes = []
    for sample in samples:
        target = sample["target"]
        if not isinstance(target, int):
            raise BadInput(
                f"metadata {PER_TOKEN}: doc_to_target gives {str(target)[:40]!r}; let it give the number of the choice"
            )
        # For acc_mutual_info the same choices follow without a context.
        count = len(sample["arguments"]) // (2 if "acc_mutual_info" in sample["metrics"] else 1)
        texts: list[Any] = [tuple(text) for text in sample["arguments"][:count]]
        scores = [log_p / token_counts[text] for (log_p, _), text in zip(sample["filtered_resps"], texts, strict=False)]
        outcomes.append(float(int(np.argmax(scores)) == target))
    return outcomes


def _per_token_tasks(tasks: Mapping[str, Any]) -> list[str]:
    """Return the names of the tasks whose metadata ask for accuracy per token."""
    configs = {name: task.config for name, task in tasks.items()}
    return [name for name, config in configs.items() if (config.metadata or {}).get(PER_TOKEN)]


def harness_summary(results: Mapping[str, Any]) -> Result:
    """Return the harness's results as a `Result`."""
    values = {
        name: {metric.removesuffix(",none"): value for metric, value in row.items() if "," in metric and _is_number(value)}
        for name, row in results["results"].items()
    }
    sizes = {task: count["effective"] for task, count in results["n-samples"].items()}
    common = set.intersection(*(set(values[task]) for task in sizes))
    metrics = {}
    for name, row in values.items():
        for metric, value in row.items():
            if name in sizes and metric in common:
                metrics[metric] = _mean(metric, [values[task][metric] for task in sizes])
            else:
                metrics[f"{name} {metric}"] = value
    details = {
        task: {
            **values[task],
            "examples": size,
            "version": str(results["versions"].get(task)),
            "shots": results["n-shot"].get(task),
        }
        for task, size in sizes.items()
    }
    return Result(metrics, sum(sizes.values()), {"tasks": details})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _mean(metric: str, values: Sequence[float]) -> float:
    """Return the mean over tasks; the squared errors of independent samples add up."""
    error = metric.partition(",")[0].endswith("_stderr")
    return (math.hypot(*values) if error else math.fsum(values)) / len(values)


@contextlib.contextmanager
def _names_task(task: str) -> Iterator[None]:
    """Turn an error of a task's templates, which Jinja's sandbox raises too, into one line."""
    try:
        yield
    except TemplateError as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"--task harness:{task}: a template is refused ({reason}); correct it") from None


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Prevent the libraries from using the network, from starting processes, and from writing progress.

    JAX's threads do not survive a fork. Progress bars of `datasets` write control characters to files, too.

    Raises:
        BadInput: other users can write to the folders from which the libraries load data and import code.
    """
    variables = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1"}
    old_values = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    import datasets
    import datasets.config
    import huggingface_hub.constants

    # Both read the environment once, and may have been imported before.
    switches = [(huggingface_hub.constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE")]
    values = [getattr(module, name) for module, name in switches]
    try:
        for module, name in switches:
            setattr(module, name, True)
        for setting in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
            caches.private_folder(Path(getattr(datasets.config, setting)), setting)
        if shows_progress := not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
        yield
        if shows_progress:
            datasets.enable_progress_bars()
    finally:
        for (module, name), value in zip(switches, values, strict=True):
            setattr(module, name, value)
        for name, value in old_values.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


TASK = Task(read=load_tasks, score=score_tasks, options=("limit", "likelihood", "orders"), argument="required")
