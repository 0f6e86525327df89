"""Folders of results: as lm-evaluation-harness itself writes them, and in the form that OLMES documents."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.experiments.published_tables.harness_results import PATTERN, read_results_folder
from tests.support.commands import assert_refused, call, in_folder
from tests.support.text_tasks import pair, write
from zoo.errors import BadInput


def write_with_lm_eval(folder: Path, models: list[str]) -> dict[str, float]:
    """Score models of random likelihoods on pairs of sentences, and return their accuracies as lm-eval reports them."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    data = write(folder / "pairs.jsonl", *(pair(f"good {i}", f"bad {i}") for i in range(12)))
    fields: dict[str, Any] = {"task": "pairs", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": data}}}
    fields |= {"test_split": "test", "output_type": "multiple_choice", "doc_to_text": "", "doc_to_target": 0}
    fields |= {"doc_to_choice": "{{[sentence_good, sentence_bad]}}", "target_delimiter": ""}
    fields |= {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}
    (folder / "pairs.yaml").write_text(json.dumps(fields))
    evaluate: Any = lm_eval.simple_evaluate
    accuracies = {}
    for name in models:
        tasks = TaskManager(include_path=str(folder), include_defaults=False)
        results: Any = evaluate(model="dummy", tasks=["pairs"], task_manager=tasks, log_samples=True, bootstrap_iters=0)
        tracker = EvaluationTracker(output_path=str(folder / "results"))
        tracker.general_config_tracker.log_experiment_args(
            model_source="hf",
            model_args=f"pretrained={name}",
            system_instruction="",
            chat_template="",
            fewshot_as_multiturn=False,
        )
        accuracies[name] = results["results"]["pairs"]["acc,none"]
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        tracker.save_results_samples(task_name="pairs", samples=samples["pairs"])
    return accuracies


@pytest.mark.full
def test_folders_that_lm_eval_wrote_are_read_item_by_item(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [f"org/{row}-seed{seed}" for row in ("small", "large") for seed in range(5)]
    accuracies = write_with_lm_eval(tmp_path, models)
    measured = read_results_folder(tmp_path / "results", PATTERN)
    assert {item.metric for item in measured} == {"pairs/acc"} and len(measured) == 10 * 12
    for name, accuracy in accuracies.items():
        row, _, seed = name.partition("-seed")
        values = [item.value for item in measured if (item.row, item.seed) == (row, seed)]
        assert {*values} <= {0.0, 1.0} and np.mean(values) == pytest.approx(accuracy)
    capsys.readouterr()
    with in_folder(tmp_path):
        ended = call(capsys, "judge", "results", "--claim", "org/large > org/small on pairs/acc", "--out", "out")
    (claim,) = json.loads((tmp_path / "out" / "experiment.json").read_text())["claims"]
    assert ended.code == 0 and claim["n"] == 5 and claim["items"]["items"] == 12


def write_lm_eval(folder: Path, name: str, value: float, items: list[Any] | None = None, **more: Any) -> None:
    """Write the files of lm-eval that are read, with the same keys."""
    (folder / name).mkdir(parents=True)
    scores = {"name": "t", "alias": " - t", "sample_len": 2, "acc,none": value, "acc_stderr,none": "N/A", "f1,strict": value}
    (folder / name / "results_2026-01-01.json").write_text(json.dumps({"results": {"t": scores}, "model_name": name, **more}))
    if items is not None:
        lines = [{"doc_id": i, "filter": "none", "metrics": ["acc"], "acc": item} for i, item in enumerate(items)]
        write(folder / name / "samples_t_2026-01-01.jsonl", *lines)


def write_olmes(folder: Path, name: str, value: float, items: list[Any]) -> None:
    folder.joinpath(name).mkdir(parents=True)
    metrics = {"task_name": "arc:rc::olmes", "model_config": {"model": name}, "metrics": {"acc_raw": value, "extra": {}}}
    (folder / name / "task-000-arc:rc::olmes-metrics.json").write_text(json.dumps(metrics))
    lines = [{"doc_id": i, "metrics": {"acc_raw": item}} for i, item in enumerate(items)]
    write(folder / name / "task-000-arc:rc::olmes-predictions.jsonl", *lines)


def test_items_are_used_if_their_mean_is_the_reported_value(tmp_path: Path) -> None:
    write_lm_eval(tmp_path / "a", "m-seed1", 0.5, [1, 0])
    write_lm_eval(tmp_path / "b", "m-seed2", 0.7, [1, 0])
    write_lm_eval(tmp_path / "c", "m-seed3", 0.5, [[1, 2], [3, 4]])
    write_lm_eval(tmp_path / "d", "m-seed4", float("nan"))
    measured = [(item.seed, item.item, item.value) for item in read_results_folder(tmp_path, PATTERN) if item.metric == "t/acc"]
    assert measured[:4] == [("1", "0", 1.0), ("1", "1", 0.0), ("2", "", 0.7), ("3", "", 0.5)]
    assert measured[4][:2] == ("4", "") and np.isnan(measured[4][2])
    assert {item.metric for item in read_results_folder(tmp_path, PATTERN)} == {"t/acc", "t/f1,strict"}


def test_olmes_folders_are_read_item_by_item(tmp_path: Path) -> None:
    write_olmes(tmp_path, "m-seed1", 0.5, [True, False])
    measured = [(item.row, item.seed, item.metric, item.item, item.value) for item in read_results_folder(tmp_path, PATTERN)]
    assert measured == [("m", "1", "arc:rc::olmes/acc_raw", "0", 1.0), ("m", "1", "arc:rc::olmes/acc_raw", "1", 0.0)]


@pytest.mark.planted(6)
def test_wrong_folders_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_folder(tmp_path):
        write_lm_eval(Path("plain"), "pythia-160m", 0.5)
        write_lm_eval(Path("again/x"), "m-seed1", 0.5)
        write_lm_eval(Path("again/y"), "m-seed1", 0.5)
        write_lm_eval(Path("shape"), "m-seed1", 0.5, results=[1])
        write_lm_eval(Path("lines"), "m-seed1", 0.5, [1, 0])
        write(Path("lines/m-seed1/samples_t_2026-01-01.jsonl"), "[]")
        claim = ("--claim", "m < k on t/acc")
        cases = {
            "no seed": (
                ("plain", *claim),
                r"plain/pythia-160m/results_2026-01-01\.json: the model pythia-160m has no seed in its name",
            ),
            "two results": (("again", *claim), "row m, seed 1, t/acc: two values, again/x/.* and again/y/"),
            "another shape": (("shape", *claim), r"shape/m-seed1/results_2026-01-01\.json: has unexpected content \("),
            "no object": (("lines", *claim), r"lines/m-seed1/samples_t_2026-01-01\.jsonl:1: is no JSON object with doc_id"),
            "no expression": (("plain", *claim, "--pattern", "("), r"--pattern '\(': is no regular expression"),
            "no groups": (("plain", *claim, "--pattern", "x"), "--pattern 'x': needs the groups row and seed"),
        }
        assert_refused(capsys, tmp_path, {name: (("judge", *argv), pattern) for name, (argv, pattern) in cases.items()})


def test_a_pattern_finds_row_and_seed_in_the_name_of_the_folder(tmp_path: Path) -> None:
    write_lm_eval(tmp_path, "m_3", 0.5)
    (item, _) = read_results_folder(tmp_path, r"(?P<row>\w+)_(?P<seed>\d)")
    assert (item.row, item.seed) == ("m", "3")
    with pytest.raises(BadInput, match="no seed in its name"):
        read_results_folder(tmp_path, PATTERN)
