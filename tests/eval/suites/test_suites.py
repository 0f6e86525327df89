"""Suites: which files are absent, the mean only of all tasks, and an entry for each."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from eval.commands import run_suite
from eval.comparison.task_scores import read_task_scores
from eval.suites import glue_files, suite_table
from eval.suites.suite_scores import SuiteRow, suite_mean
from eval.tasks.task import Settings
from tests.support.generation import seq2seq_loaded
from tests.support.text_tasks import pair, stored_run, write
from train.config import run_config
from train.run.run_dir import RunDir
from train.weights.load import load_model
from zoo.errors import BadInput

PAIRS = [pair("The whale sleeps.", "The whale sleep."), pair("The men see.", "The men sees.")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored_run(tmp_path_factory.mktemp("runs") / "tiny")


def suite(where: Path, name: str, data: Path, *, partial: bool = False, as_json: bool = False, **options: Any) -> int:
    others: dict[str, Any] = dict(step=None, precision="auto", mesh=run_config.Mesh(), as_json=as_json)
    return run_suite.run_suite(str(where), suite=name, data=str(data), partial=partial, settings=Settings(**options), **others)


def blimp(folder: Path, names: Sequence[str]) -> Path:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        write(folder / f"{name}.jsonl", *({**item, "UID": name, "linguistics_term": f"term {number % 3}"} for item in PAIRS))
    return folder


def babylm(folder: Path) -> Path:
    """All files of the suite, of a few lines."""
    blimp(folder / "blimp_filtered", suite_table.BLIMP_PARADIGMS.split())
    blimp(folder / "supplement_filtered", suite_table.SUPPLEMENT)
    item = {"Domain": "d", "Context1": "The whale.", "Context2": "The men.", "Target1": "It sleeps.", "Target2": "They see."}
    comps = {"prefix_acceptable": "A whale", "prefix_unacceptable": "A ship", "property_phrase": "sleeps."}
    entity = {"input_prefix": "The ship has", "options": [" the whale.", " the men."], "numops": 1}
    forms = [{"sentences": ["The whale.", "The men."], "ratio": 0.25}, {"sentences": ["The ship.", "whale"], "ratio": 0.75}]
    for name, lines in (("ewok_filtered", [item]), ("comps", [comps]), ("entity_tracking", [entity]), ("wug", forms)):
        (folder / name).mkdir()
        write(folder / name / "items.jsonl", *lines)
    (folder / "reading").mkdir()
    words = ["the", "old", "whale", "and", "the", "men", "of", "the", "ship", "see", "the", "whale", "naive", "men"]
    rows = [f"1,{word},{len(word)},{number * 7 % 5},{200 + number * 13 % 40}" for number, word in enumerate(words)]
    write(folder / "reading/words.csv", "item,word,length,frequency,RTfirstfix", *rows)
    return folder


def test_a_suite_has_a_table_with_its_mean_and_an_entry_for_each_task(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = babylm(tmp_path / "data")
    with pytest.raises(BadInput, match="--limit 3: 3 words with RTfirstfix, and its regression needs 6; "):
        suite(tmp_path / "no model, which would be refused later", "babylm", data, limit=3)
    assert suite(run, "babylm", data, as_json=True) == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in table["rows"]] == ["blimp", "supplement", "ewok", "entity_tracking", "wug", "comps", "reading"]
    assert table["mean"] == pytest.approx(sum(row["value"] for row in table["rows"]) / 7) and table["limit"] == 0
    assert {(row["step"], row["likelihood"]) for row in table["rows"]} == {(load_model(run).step, "causal")}
    entries = read_task_scores(RunDir(run).evaluations)
    names = {row["name"]: f"{row['task']} (babylm {row['name']})" for row in table["rows"]}
    assert {*names.values()} == {*entries}
    for row in table["rows"]:
        scale = 1 if row["name"] == "reading" else 100
        assert row["value"] == pytest.approx(scale * entries[names[row["name"]]].metrics[row["metric"]])
    assert {*table["rows"][0]["groups"]} == {"term 0", "term 1", "term 2"}


@pytest.mark.planted
def test_an_absent_task_is_never_left_out_of_a_mean(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = babylm(tmp_path / "data")
    (data / "blimp_filtered/wh_island.jsonl").unlink()
    (data / "comps/items.jsonl").unlink()
    with pytest.raises(BadInput) as refused:
        suite(run, "babylm", data)
    message = str(refused.value)
    assert "\n" not in message and message.startswith(
        f"--suite babylm: {data} lacks files: blimp (wh_island.jsonl) [sentence_good,"
    )
    assert "comps (comps/*.jsonl) [prefix_acceptable, prefix_unacceptable, property_phrase] from BabyLM" in message
    assert message.endswith("put them there, or add --partial to score the others, without a mean") and "ewok" not in message
    assert suite(run, "babylm", data, partial=True, limit=12) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["mean"].split() == ["mean", "-"] and "absent; from BabyLM" in lines["comps"] and " - " in lines["comps"]
    assert "1 of 67 files absent: wh_island" in lines["blimp"]
    stored = json.loads(RunDir(run).evaluations.read_text())
    assert "blimp (babylm blimp, 66 of 67 files, first 12)" in stored and "choices:comps (babylm comps, first 12)" not in stored
    assert suite_mean([SuiteRow("a", "a", "accuracy", 50.0), SuiteRow("b", "b", "accuracy", None, 90.0)]) is None


def test_blimp_is_all_67_files_and_nothing_else(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = suite_table.BLIMP_PARADIGMS.split()
    assert len({*names}) == 67
    data = blimp(tmp_path / "blimp" / "data", names)
    write(data / "of_somebody_else.jsonl", *PAIRS)
    assert suite(run, "blimp", tmp_path / "blimp", as_json=True) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["examples"] == 2 * 67 and "blimp" in read_task_scores(RunDir(run).evaluations)
    # A part of the items has no mean, and says so.
    assert suite(run, "blimp", tmp_path / "blimp", limit=1, as_json=True) == 0
    table = json.loads(capsys.readouterr().out)
    (row,) = table["rows"]
    assert (table["limit"], table["mean"], row["examples"]) == (1, None, 67) and row["value"] is not None
    assert suite(run, "blimp", tmp_path / "blimp", limit=1) == 0
    *_, mean, notice = capsys.readouterr().out.splitlines()
    assert mean.split() == ["mean", "-"] and notice.startswith("! no mean: at most the first 1 examples of each group")
    for wrong, message in (
        (tmp_path / "none", "--suite-data .*none: no such folder"),
        (tmp_path, "lacks all of its files: blimp"),
    ):
        with pytest.raises(BadInput, match=message):
            suite(run, "blimp", wrong, partial=True)


GLUE = {
    "CoLA": ("dev.tsv", ["gj04\t1\t\tThe whale sleeps.", "gj04\t0\t*\tThe whale sleep."]),
    "SST-2": ("dev.tsv", ["sentence\tlabel", "it 's a whale\t1"]),
    "MRPC": ("dev.tsv", ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t7\t8\tThe men see.\tThe men saw."]),
    "QQP": ("dev.tsv", ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\tWhy?\tWhy so?\t1"]),
    "STS-B": ("dev.tsv", ["index\tsentence1\tsentence2\tscore", "0\tA whale.\tA ship.\t1.250"]),
    "MNLI": ("dev_matched.tsv", ["index\tsentence1\tsentence2\tgold_label", "0\tA whale.\tIt swims.\tneutral"]),
    "QNLI": ("dev.tsv", ["index\tquestion\tsentence\tlabel", "0\tWho?\tThe men.\tentailment"]),
    "RTE": ("dev.tsv", ["index\tsentence1\tsentence2\tlabel", "0\tA whale.\tIt is.\tnot_entailment"]),
    "WNLI": ("dev.tsv", ["index\tsentence1\tsentence2\tlabel", "0\tA whale.\tIt is.\t1"]),
}
TEXTS = {
    "cola": ("cola sentence: The whale sleeps.", "acceptable"),
    "sst2": ("sst2 sentence: it 's a whale", "positive"),
    "mrpc": ("mrpc sentence1: The men see. sentence2: The men saw.", "equivalent"),
    "qqp": ("qqp question1: Why? question2: Why so?", "duplicate"),
    "stsb": ("stsb sentence1: A whale. sentence2: A ship.", "1.2"),
    "mnli": ("mnli hypothesis: It swims. premise: A whale.", "neutral"),
    "mnli-mm": ("mnli hypothesis: It swims. premise: A whale.", "neutral"),
    "qnli": ("qnli question: Who? sentence: The men.", "entailment"),
    "rte": ("rte sentence1: A whale. sentence2: It is.", "not_entailment"),
    "wnli": ("wnli sentence1: A whale. sentence2: It is.", "entailment"),
}


def glue(folder: Path) -> Path:
    for name, (file, lines) in GLUE.items():
        (folder / name).mkdir(parents=True)
        write(folder / name / file, *lines)
    write(folder / "MNLI/dev_mismatched.tsv", *GLUE["MNLI"][1])
    return folder


def test_files_of_glue_are_read_as_published_and_as_texts(tmp_path: Path) -> None:
    runs, data = tmp_path / "runs", glue(tmp_path / "glue_data")
    for name in ("cola", "SST-2"):
        (runs / name).mkdir(parents=True)
        (runs / name / "config.json").write_text("{}")
    parts = glue_files.find_glue(str(runs), str(data))
    assert [part.glue.task for part in parts if part.run is not None] == ["cola", "sst2"]
    for part in parts:
        assert part.file is not None
        sources, labels = glue_files.text_examples(part.glue, part.file)
        assert (sources[0], labels[0]) == TEXTS[part.glue.name]
    (data / "RTE/dev.tsv").unlink()
    parts = glue_files.find_glue(str(runs), str(data))
    with pytest.raises(
        BadInput, match=r"lacks RTE/dev.tsv \[sentence1, label, sentence2\] from gluebenchmark.* named mrpc, qqp, .*--partial"
    ):
        glue_files.check_glue(parts, str(runs), str(data), partial=False)
    glue_files.check_glue(parts, str(runs), str(data), partial=True)


def test_words_of_labels_are_scored_by_the_metrics_of_glue() -> None:
    files = {file.name: file for file in glue_files.FILES}
    labels = ["acceptable", "acceptable", "unacceptable", "unacceptable"]
    assert run_suite.word_metrics(files["cola"], labels, labels) == {"matthews": 1.0, "unknown": 0}
    assert run_suite.word_metrics(files["cola"], labels, ["yes"] * 4) == {"matthews": 0.0, "unknown": 4}
    pairs = run_suite.word_metrics(files["mrpc"], ["equivalent", "not_equivalent"], [" equivalent", "equivalent"])
    assert pairs == {"accuracy": 0.5, "f1": pytest.approx(2 / 3), "unknown": 0}
    numbers = run_suite.word_metrics(files["stsb"], ["0.0", "2.0", "4.0"], ["0.2", "x", "5"])
    assert numbers["unknown"] == 1 and 0 < numbers["pearson"] < 1


def test_both_files_of_mnli_count_as_one_task() -> None:
    rows = [SuiteRow(name, f"labelled:{name}", "accuracy", 40.0) for name in ("cola", "sst2")]
    both = [SuiteRow(name, "labelled:mnli", "accuracy", value) for name, value in (("mnli", 80.0), ("mnli-mm", 60.0))]
    assert run_suite.glue_mean([*rows, *both]) == pytest.approx((40 + 40 + 70) / 3)
    assert run_suite.glue_mean([*rows, both[0], both[1]._replace(value=None)]) is None


@pytest.mark.full
def test_a_model_of_text_to_text_is_scored_on_its_words(tmp_path: Path) -> None:
    (glue_file,) = [file for file in glue_files.FILES if file.task == "cola"]
    task = run_suite._text_task(glue_file)
    settings = dataclasses.replace(Settings(), tokens=4)
    data = task.read([str(glue(tmp_path / "glue") / "CoLA/dev.tsv")], settings)
    result = task.score(seq2seq_loaded("t5"), data, settings, lambda *_: None)
    assert result.examples == 2 and result.metrics == {"matthews": 0.0, "unknown": 2}
