"""Fine-tuning as a user does it: from a published folder and labelled files to a run that is scored, shown and exported."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import commands, encoders, published
from tests.support.commands import assert_evaluates_alike, assert_refused, call, in_folder, losses, trained, words
from tests.support.labelled_files import put
from train.run import metric_definitions, metrics_file
from train.weights.load import load_model

WORDS = ("the", "is", "seen", "by", "old", "men", "of", "ship", "capital", "france")
FLAGS = "--init tiny --data.length 16 --data.batch 16 --optim.lr 1e-2 --optim.warmup 4 --checkpoint.every 20 --log.every 5"
FLAGS += " --data.validation-share 0"
STEPS = "--steps 40 --log.validate-every 20 --model.dropout 0.1 --model.head-dropout 0.1 --model.attention-dropout 0.1"
FILES = {"classification": "a.tsv", "tagging": "a.conll", "span": "a.jsonl", "choice": "b.jsonl"}
OWN = {"span": "--labelled.stride 4", "tagging": "--labelled.class-weights balanced"}
LEADING = {"classification": "accuracy", "tagging": "entity_f1", "span": "f1", "choice": "accuracy"}
COUNT = 96


def two_kinds(count: int) -> list[str]:
    rng = np.random.default_rng(1)
    return [" ".join(rng.choice(WORDS[number % 2 :: 2], 6)) for number in range(count)]


def write_files(folder: Path) -> None:
    """Write a file for each task: of two kinds of texts, or about the place of the whale in every second sentence."""
    rng = np.random.default_rng(0)
    labels = (f"{text}\t{['no', 'yes'][number % 2]}\n" for number, text in enumerate(two_kinds(COUNT)))
    put(folder / "a.tsv", "text\tlabel\n" + "".join(labels))
    tagged, questions = [], []
    for number in range(COUNT):
        sentence, place = rng.choice(WORDS, 6).tolist(), int(rng.integers(6))
        answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
        if number % 2:
            sentence[place] = "whale"
            answers = {"text": ["whale"], "answer_start": [len(" ".join([*sentence[:place], ""]))]}
        tagged.append("".join(f"{word}\t{'B-SEA' if word == 'whale' else 'O'}\n" for word in sentence))
        names = dict(id=str(number), title=f"t{number}", question="whale")
        questions.append({**names, "context": " ".join(sentence), "answers": answers})
    put(folder / "a.conll", "\n".join(tagged))
    put(folder / "a.jsonl", questions)
    texts, rows = two_kinds(2 * COUNT), []
    for number in range(COUNT):
        options = texts[2 * number : 2 * number + 2][:: 1 - 2 * (number % 2)]
        rows.append({"article": f"ship {number}", "question": "is", "options": options, "answer": "AB"[number % 2]})
    put(folder / "b.jsonl", rows)


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("finetune")
    encoders.folder(folder / "tiny", "bert")
    write_files(folder)
    with in_folder(folder):
        yield folder


def arguments(task: str, flags: str) -> tuple[str, ...]:
    return words(f"finetune-{task} {FLAGS} --data.paths {FILES[task]} {OWN.get(task, '')} {flags}")


def run(task: str) -> Path:
    return trained(task, arguments(task, STEPS))


# What is particular to each task is tested without a run, too.
MARKS = {"classification": [], "span": [pytest.mark.full], "tagging": [pytest.mark.slow], "choice": [pytest.mark.slow]}


@pytest.mark.parametrize("task", [pytest.param(task, marks=marks) for task, marks in MARKS.items()])
def test_an_easy_task_is_learned_and_scored_with_its_best_checkpoint(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    learned, measure = losses(run(task)), LEADING[task]
    assert learned[-1] < 0.8 * learned[0]
    best = max(
        (row for row in metrics_file.read_rows(run(task) / "metrics.jsonl") if row["kind"] == "valid"),
        key=lambda row: row[measure],
    )
    final = assert_evaluates_alike(capsys, run(task), 1e-5)
    assert final["step"] == best["step"] == load_model(run(task)).step
    assert final[measure] == pytest.approx(best[measure]) and final["loss"] == pytest.approx(best["loss"], rel=1e-5)


def test_the_checkpoint_is_selected_on_other_examples_than_the_score_is_of() -> None:
    """By default: of the 86 examples that are not held out, nine in places 4, 14, ... have the classes 4 and 5 times."""
    flags = FLAGS.replace(" --data.validation-share 0", "")
    short = trained("selected", words(f"finetune-classification {flags} --data.paths a.tsv --steps 4 --log.validate-every 2"))
    valid = [row for row in metrics_file.read_rows(short / "metrics.jsonl") if row["kind"] == "valid"]
    scores = json.loads((short / "scores.json").read_text())
    assert [row["majority_share"] for row in valid] == [pytest.approx(5 / 9)] * 2
    assert (scores["examples"], scores["majority_share"]) == (10, 0.5)
    best = max(valid, key=lambda row: row["accuracy"])
    assert scores["step"] == best["step"]


def test_the_report_shows_which_class_was_taken_for_which() -> None:
    mistakes = json.loads((run("classification") / "predictions.json").read_text())
    assert mistakes["labels"] == ["no", "yes"]
    examples = json.loads((run("classification") / "scores.json").read_text())["examples"]
    assert np.sum(mistakes["confusion"]) == examples == len(mistakes["worst"])
    assert mistakes["worst"][0]["text"] in (run("classification") / "report.html").read_text()


@pytest.mark.planted
def test_a_run_whose_model_learned_nothing_does_not_end_as_a_success(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Score a finished run again, as if every share of its predictions were all of them."""
    (run("classification") / "scores.json").unlink()
    monkeypatch.setattr(metric_definitions, "ONE_CLASS", 0.0)
    ended = call(capsys, "train", *arguments("classification", STEPS), "--name", "classification")
    *_, notice, last = ended.stdout.splitlines()
    assert ended.code == 0 and notice.startswith("! one class is predicted for ")
    assert re.match(r"held-out accuracy \d\.\d{4} \(majority class 0\.\d{4}\), F1 ", last)


def test_a_metric_of_another_task_is_refused_before_anything_is_trained(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("train", *arguments("classification", f"{STEPS} --name never --selection.metric entity_f1"))
    message = "--selection.metric entity_f1: not measured here; the nearest is .* \\(all: loss, accuracy, f1, matthews\\)"
    assert_refused(capsys, place, {"metric": (command, message)})


@pytest.mark.full
def test_an_export_is_what_transformers_loads(capsys: pytest.CaptureFixture[str]) -> None:
    import transformers

    assert call(capsys, "export", str(run("classification")), "out").code == 0
    config = transformers.AutoConfig.from_pretrained("./out")
    assert config.architectures == ["BertForSequenceClassification"]
    assert (config.id2label, config.label2id) == ({0: "no", 1: "yes"}, {"no": 0, "yes": 1})
    assert config.problem_type == "single_label_classification"
    ours, back = load_model(run("classification")), load_model("out")
    row = encoders.tokenizer("wordpiece").special_tokens.single(ours.tokenizer.encode("the whale"))[0].tolist()
    assert transformers.AutoTokenizer.from_pretrained("./out")("the whale")["input_ids"] == row
    assert back.model.config.labels == ("no", "yes")
    np.testing.assert_array_equal(ours.params["classifier"]["kernel"], back.params["classifier"]["kernel"])


@pytest.mark.full
def test_lists_of_labels_are_learned_scored_shown_predicted_and_exported(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import transformers

    lists = ([name for name, every in (("even", 2), ("third", 3)) if number % every == 0] for number in range(COUNT))
    rows = [{"text": text, "labels": names} for text, names in zip(two_kinds(COUNT), lists, strict=True)]
    put(place / "c.jsonl", rows)
    flags = f"{FLAGS} --steps 20 --log.validate-every 10 --selection.metric subset_accuracy"
    argv = words(f"finetune-classification {flags} --labelled.multi-label --data.paths c.jsonl")
    scores = assert_evaluates_alike(capsys, trained("several", argv), 1e-5)
    again = call(capsys, "train", *argv, "--name", "several")
    assert scores["f1_micro"] > 0.5 and again.code == 0
    # The metric that selects the checkpoint is the first one everywhere.
    assert f"held-out subset accuracy {scores['subset_accuracy']:.4f}, micro F1" in again.stdout
    report = Path("runs/several/report.html").read_text()
    assert f"reaches subset accuracy {scores['subset_accuracy']:.4f}, micro F1" in report
    assert call(capsys, "eval", "runs/several").stdout.startswith("subset_accuracy ")
    assert next(iter(json.loads(call(capsys, "compare", "--json", "runs/several").stdout)["metrics"])) == "subset_accuracy"
    assert call(capsys, "export", "runs/several", "several").code == 0
    config = transformers.AutoConfig.from_pretrained("./several")
    assert (config.problem_type, config.id2label) == ("multi_label_classification", {0: "even", 1: "third"})
    # In rows of one length both are one program; an export has the rows of the model's context.
    predict = ("--length", "16", "ship by is")
    own, exported = (json.loads(call(capsys, "predict", name, *predict).stdout) for name in ("runs/several", "several"))
    assert own == exported and own["labels"] == [name for name, chance in own["probabilities"].items() if chance >= 0.5]


@pytest.mark.slow
@pytest.mark.parametrize("task", [*MARKS][1:])
def test_losses_are_the_same_on_a_mesh(task: str) -> None:
    """The losses of steps 5 and 10 are compared."""
    commands.assert_same_losses(trained(f"{task}-mesh", arguments(task, f"{STEPS} --mesh.fsdp 2 --mesh.tensor 2")), run(task), 2)


BEGUN = "classification --init tiny --data.paths a.tsv"
WRONG = {
    "span --init tiny --data.paths a.tsv": "a.tsv: only .json, .jsonl, these also",
    "classification --data.paths a.tsv": "--init: name the run or the weights to start from",
    "tagging --init gpt --data.paths a.conll": "--init gpt: a gpt has no such heads; use one of bert, distilbert, modernbert",
    f"{BEGUN} --labelled.regression --labelled.class-weights balanced": "--labelled.regression True: numbers have no classes",
    f"{BEGUN} --labelled.multi-label --labelled.coarse": "--labelled.multi-label True: leave out --labelled.regression",
}


@pytest.mark.full
def test_wrong_input_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published.write(place / "gpt", published.config("gpt", "causal"))
    cases = {line: (("train", *words(f"finetune-{line} --name never")), message) for line, message in WRONG.items()}
    assert_refused(capsys, place, cases)
