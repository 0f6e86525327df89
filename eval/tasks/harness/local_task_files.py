"""Task files of lm-evaluation-harness for data on this machine: `python -m eval.tasks.harness.local_task_files --help`.

A task file names its data by absolute paths, so that `zoo eval RUN --task harness:NAME --files TASKS` reads them from any folder,
and nothing is looked for on the network. The files are YAML, of which JSON is a part, and can be edited.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.task_data_files import find_data_files
from zoo.errors import BadInput

ACCURACY = {"aggregation": "mean", "higher_is_better": True}


def write_minimal_pair_tasks(data: Path, folder: Path, group: str) -> list[str]:
    """Write a task for each .jsonl file of minimal pairs (`sentence_good`, `sentence_bad`), and the group of all of them.

    A sentence begins with no space, as in the task `blimp`; the harness's own files of BLiMP put one before it.

    Returns:
        Names of the tasks.

    Raises:
        BadInput: see `eval.task_data_files.find_data_files`.
    """
    files = find_data_files([str(data)], (".jsonl",))
    names = [f"{group}_{file.stem}" for file in files]
    for name, file in zip(names, files, strict=True):
        fields: dict[str, Any] = {"doc_to_text": "", "target_delimiter": "", "doc_to_target": 0}
        fields |= {"doc_to_choice": "{{[sentence_good, sentence_bad]}}", "metric_list": [{"metric": "acc", **ACCURACY}]}
        _write_task(folder, name, "json", file, fields)
    metrics = [{"metric": "acc", "aggregation": "mean", "weight_by_size": False}]
    (folder / f"{group}.yaml").write_text(json.dumps({"group": group, "task": names, "aggregate_metric_list": metrics}, indent=1))
    return names


def write_choice_task(data: Path, folder: Path, name: str, *, text: str, label: str, choices: Sequence[str]) -> None:
    """Write a task that continues a column of a .tsv, .csv or .jsonl file with each choice, of which the label is the number.

    Raises:
        BadInput: another kind of file, or no such file.
    """
    (file,) = find_data_files([str(data)], (".tsv", ".csv", ".jsonl"))
    kind = "json" if file.suffix.lower() == ".jsonl" else "csv"
    metrics = [{"metric": metric, **ACCURACY} for metric in ("acc", "acc_norm", "acc_bytes")]
    fields = {"doc_to_text": f"{{{{{text}}}}}", "doc_to_target": label, "doc_to_choice": list(choices), "metric_list": metrics}
    _write_task(folder, name, kind, file, fields, {"sep": "\t", "quoting": 3} if file.suffix.lower() == ".tsv" else {})


def _write_task(
    folder: Path, name: str, kind: str, data: Path, fields: dict[str, Any], reader: dict[str, Any] | None = None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kwargs = {"data_files": {"test": str(data.resolve())}, **(reader or {})}
    common = {
        "task": name,
        "dataset_path": kind,
        "dataset_kwargs": kwargs,
        "test_split": "test",
        "output_type": "multiple_choice",
    }
    (folder / f"{name}.yaml").write_text(json.dumps({**common, **fields, "metadata": {"version": 1.0}}, indent=1) + "\n")


def main() -> int:
    """Write task files as the options say."""
    parser = argparse.ArgumentParser(prog="python -m eval.tasks.harness.local_task_files", description=__doc__)
    parser.add_argument(
        "data", type=Path, help="folder of .jsonl files of minimal pairs, or a .tsv, .csv or .jsonl file of examples"
    )
    parser.add_argument("out", type=Path, help="folder for the task files")
    parser.add_argument("--name", required=True, help="name of the group, or of the task")
    parser.add_argument("--text", default="sentence", help="column of the text")
    parser.add_argument("--label", default="label", help="column of the number of the right choice, from 0")
    parser.add_argument("--choices", nargs="+", default=(), help="the choices, for a file of examples")
    options = parser.parse_args()
    try:
        if options.choices:
            columns = {"text": options.text, "label": options.label, "choices": options.choices}
            write_choice_task(options.data, options.out, options.name, **columns)
        else:
            write_minimal_pair_tasks(options.data, options.out, options.name)
    except BadInput as error:
        parser.error(str(error))
    print(f"zoo eval RUN --task harness:{options.name} --files {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
