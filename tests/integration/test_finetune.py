"""Fine-tuning as a user does it: from a published folder and labelled files to a run that is scored, shown and exported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from tests.support import encoders, published
from tests.support.commands import call, snapshot
from tests.support.labelled_files import flat_questions, put
from tests.support.processes import Ended
from train import metrics
from train.load import load

WORDS = ("the", "is", "seen", "by", "old", "men", "of", "ship", "capital", "france")
FLAGS = ("--data.batch", "16", "--optim.lr", "1e-2", "--optim.warmup", "4", "--checkpoint.every", "20", "--log.every", "5")
STEPS = ("--steps", "40", "--log.validate-every", "20", "--model.dropout", "0.1", "--model.head-dropout", "0.1")
FILES = {"classification": "a.tsv", "tagging": "a.conll", "span": "a.jsonl", "choice": "b.jsonl"}
SPECIAL = {"span": ("--labelled.stride", "4"), "tagging": ("--labelled.class-weights", "balanced")}
"""What is more than length and files."""
LEADING = {"classification": "accuracy", "tagging": "entity_f1", "span": "f1", "choice": "accuracy"}


def sentences(count: int) -> list[tuple[list[str], int]]:
    """(words, place of the whale) of made-up sentences; without one the place is -1."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        words, place = rng.choice(WORDS, 6).tolist(), int(rng.integers(6)) if number % 2 else -1
        if place >= 0:
            words[place] = "whale"
        made.append((words, place))
    return made


def told(count: int) -> list[str]:
    """Texts of two kinds in turn, each of words of its own."""
    rng = np.random.default_rng(1)
    return [" ".join(rng.choice(WORDS[number % 2 :: 2], 6)) for number in range(count)]


def write(folder: Path, count: int = 96) -> None:
    """A file for each task, about where the whale is."""
    made = sentences(count)
    put(
        folder / "a.tsv",
        "text\tlabel\n" + "".join(f"{text}\t{'yes' if number % 2 else 'no'}\n" for number, text in enumerate(told(count))),
    )
    tagged = ("".join(f"{word}\t{'B-SEA' if word == 'whale' else 'O'}\n" for word in words) for words, _ in made)
    put(folder / "a.conll", "\n".join(tagged))
    questions = []
    for number, (words, place) in enumerate(made):
        given = {"text": ["whale"], "answer_start": [len(" ".join([*words[:place], ""]))]}
        answers = given if place >= 0 else {"text": [], "answer_start": []}
        names = dict(id=str(number), title=f"t{number}", question="whale")
        questions.append({**names, "context": " ".join(words), "answers": answers})
    put(folder / "a.jsonl", questions)
    texts = told(2 * count)
    put(
        folder / "b.jsonl",
        [
            {
                "article": f"ship {n}",
                "question": "is",
                "options": texts[2 * n : 2 * n + 2][:: 1 - 2 * (n % 2)],
                "answer": "AB"[n % 2],
            }
            for n in range(count)
        ],
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a published encoder and labelled files, in which runs are made."""
    folder = tmp_path_factory.mktemp("finetune")
    encoders.folder(folder / "tiny", "bert")
    write(folder)
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def argv(goal: str, name: str, *flags: str) -> list[str]:
    data = ("--init", "tiny", "--data.paths", FILES[goal], "--data.length", "16", *SPECIAL.get(goal, ()))
    return ["train", f"finetune-{goal}", *data, *FLAGS, "--name", name, *flags]


@pytest.fixture
def train(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Path]:
    """A run of a task, made once for all tests."""

    def run(goal: str, name: str, *flags: str) -> Path:
        if not (here / "runs" / name).exists():
            ended = call(capsys, *argv(goal, name, *flags))
            assert (ended.code, ended.stderr) == (0, ""), ended
            (here / f"{name}.out").write_text(ended.stdout)
        return here / "runs" / name

    return run


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in metrics.read(run / "metrics.jsonl") if row["kind"] == kind]


def scores(run: Path) -> dict[str, Any]:
    return json.loads((run / "scores.json").read_text())


# What is particular to each goal is tested without a run, too.
each_goal = pytest.mark.parametrize(
    "goal", [pytest.param(goal, marks=[] if goal in ("classification", "span") else pytest.mark.slow) for goal in FILES]
)


# --- A run ----------------------------------------------------------------------------------------------------------------------


@each_goal
def test_an_easy_task_is_learned_and_the_best_checkpoint_is_the_runs(goal: str, train: Callable[..., Path]) -> None:
    run = train(goal, goal, *STEPS)
    losses, valid = [row["loss"] for row in rows(run, "train")], rows(run, "valid")
    assert losses[-1] < 0.8 * losses[0]
    measure = LEADING[goal]
    best = max(valid, key=lambda row: row[measure])
    assert scores(run)["step"] == best["step"]
    # All that is held out is no more than a validation takes.
    assert scores(run)[measure] == pytest.approx(best[measure]) and scores(run)["loss"] == pytest.approx(best["loss"], rel=1e-5)
    assert load(run).step == best["step"]
    said = (run.parent.parent / f"{goal}.out").read_text()
    assert "drawn afresh" in said and "held out" in said


@each_goal
def test_a_run_scores_again_what_it_scored(goal: str, train: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = train(goal, goal, *STEPS)
    ended = call(capsys, "eval", str(run), "--batch", "7")
    assert (ended.code, ended.stderr) == (0, "")
    said = {name: float(value.replace(",", "")) for name, value in (line.split() for line in ended.stdout.splitlines())}
    assert said == pytest.approx({name: value for name, value in scores(run).items() if name not in ("stride", "step")}, abs=1e-5)


def test_the_report_shows_what_was_taken_for_what(train: Callable[..., Path]) -> None:
    run = train("classification", "classification", *STEPS)
    mistakes = json.loads((run / "predictions.json").read_text())
    assert mistakes["labels"] == ["no", "yes"]
    assert np.sum(mistakes["confusion"]) == scores(run)["examples"] == len(mistakes["worst"])
    page = (run / "report.html").read_text()
    assert "Confusion" in page and "Accuracy" in page
    assert mistakes["worst"][0]["text"] in page


def test_an_export_is_what_transformers_loads(train: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("classification", "classification", *STEPS)
    assert call(capsys, "export", str(run), "out").code == 0
    config = transformers.AutoConfig.from_pretrained(here / "out")
    assert config.architectures == ["BertForSequenceClassification"]
    assert (config.id2label, config.label2id) == ({0: "no", 1: "yes"}, {"no": 0, "yes": 1})
    assert config.problem_type == "single_label_classification"
    words = transformers.AutoTokenizer.from_pretrained(here / "out")
    assert (
        words("the whale")["input_ids"]
        == encoders.tokenizer("wordpiece").marks.single(load(run).tokenizer.encode("the whale"))[0].tolist()
    )
    # Back again it is the same model, head and labels included.
    ours, theirs = load(run), load(here / "out")
    assert theirs.net.config.labels == ("no", "yes")
    np.testing.assert_array_equal(ours.params["classifier"]["kernel"], theirs.params["classifier"]["kernel"])


def test_another_task_begins_with_the_body_of_a_run(train: Callable[..., Path], here: Path) -> None:
    run = train("classification", "classification", *STEPS)
    other = train("tagging", "onward", *STEPS, "--init", str(run))
    assert "drawn afresh, since it has none for this task: classifier\n" in (here / "onward.out").read_text()
    assert load(other).net.config.labels == ("B-SEA", "O")


@pytest.mark.slow
def test_numbers_are_learned(train: Callable[..., Path], here: Path) -> None:
    lines = (f"{text}\t{1.5 if number % 2 else -0.5}\n" for number, text in enumerate(told(96)))
    put(here / "numbers.tsv", "text\tlabel\n" + "".join(lines))
    run = train("classification", "numbers", "--data.paths", "numbers.tsv", "--labelled.regression", *STEPS)
    found = [row["loss"] for row in rows(run, "train")]
    assert found[-1] < 0.8 * found[0]
    assert scores(run).keys() >= {"pearson", "spearman", "mean_squared_error"}
    assert load(run).net.config.labels == ("score",)


def test_a_run_that_was_stopped_goes_on_where_it_was(
    train: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is lost: the last checkpoint, and what was written after it."""
    whole = train("classification", "classification", *STEPS)
    shutil.copytree(whole, here / "runs/stopped")
    stopped = here / "runs/stopped"
    shutil.rmtree(stopped / "checkpoints/00000040")
    (stopped / "scores.json").unlink()
    ended = call(capsys, *argv("classification", "stopped", *STEPS))
    assert (ended.code, ended.stderr) == (0, "")
    assert "resumed at step 20" in ended.stdout
    assert scores(stopped) == scores(whole)
    assert [row["loss"] for row in rows(stopped, "train")] == [row["loss"] for row in rows(whole, "train")]


# --- Meshes ---------------------------------------------------------------------------------------------------------------------

DROPS = (
    "--steps",
    "5",
    "--model.dropout",
    "0.1",
    "--model.head-dropout",
    "0.1",
    "--model.attention-dropout",
    "0.1",
    "--log.every",
    "1",
)
MESHES = {
    "fsdp": ("--mesh.fsdp", "4"),
    "tensor": ("--mesh.tensor", "2"),
    "accumulated": ("--accumulate", "2", "--mesh.fsdp", "2"),
}


def assert_same_losses(one: Path, other: Path, most: int = 5) -> None:
    ours, theirs = ([row["loss"] for row in rows(run, "train") if row["step"] <= most] for run in (one, other))
    assert len(ours) > 1
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_losses_are_the_same_on_another_mesh(train: Callable[..., Path]) -> None:
    """Afterwards Adam makes more of a rounding."""
    plain, split = (
        train("span", name, *STEPS, *flags)
        for name, flags in (("span", ()), ("mesh", ("--mesh.fsdp", "2", "--mesh.tensor", "2")))
    )
    assert_same_losses(plain, split, 10)
    assert scores(plain)["questions"] == scores(split)["questions"]


@pytest.mark.slow
@pytest.mark.parametrize("goal", FILES)
@pytest.mark.parametrize("shape", MESHES)
def test_losses_of_every_task_are_the_same_on_every_mesh(goal: str, shape: str, train: Callable[..., Path]) -> None:
    assert_same_losses(train(goal, f"{goal}-data", *DROPS), train(goal, f"{goal}-{shape}", *DROPS, *MESHES[shape]))


# --- What is wrong --------------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, tuple[str, ...], str]] = {
    "no data": (
        "classification",
        ("--init", "tiny"),
        "--data.paths: there is no embedded data for classification; name files: .tsv",
    ),
    "no such file": ("classification", ("--init", "tiny", "--data.paths", "gone.tsv"), "gone.tsv: no such file"),
    "another format": ("span", ("--init", "tiny", "--data.paths", "a.tsv"), "a.tsv: only .json, .jsonl, these also"),
    "no beginning": ("classification", ("--data.paths", "a.tsv"), "--init: name the run or the published weights to begin from"),
    "nothing there": ("classification", ("--init", "gone", "--data.paths", "a.tsv"), "gone: "),
    "another family": (
        *("tagging", ("--init", "gpt", "--data.paths", "a.conll")),
        "--init gpt: a gpt has no such heads; begin from one of bert, distilbert, roberta",
    ),
    "another column": (
        *("classification", ("--init", "tiny", "--data.paths", "a.tsv", "--labelled.text", "said")),
        'a.tsv:2: no column "said"; it has "text", "label": choose with --labelled.text',
    ),
    "too few labels": (
        *("classification", ("--init", "tiny", "--data.paths", "a.tsv", "--model.labels", "yes", "maybe")),
        "a.tsv:2: label no is none of the 2 that the model learns (yes, maybe); mend or leave it out",
    ),
    "another label": (
        *("classification", ("--init", "tiny", "--data.paths", "a.tsv", "--data.valid-paths", "other.tsv")),
        "other.tsv:2: label maybe is none of the 2 that the model learns (no, yes)",
    ),
    "one class": (
        *("classification", ("--init", "tiny", "--data.paths", "one.tsv")),
        "--data.paths: every example has the label yes; there is nothing to tell apart",
    ),
    "one file for both": (
        *("classification", ("--init", "tiny", "--data.paths", "a.tsv", "--data.valid-paths", "a.tsv")),
        "--data.valid-paths ",
    ),
    "one document": (
        *("span", ("--init", "tiny", "--data.paths", "one.jsonl")),
        "--data.paths: all 3 examples are of one document; name others in --data.valid-paths",
    ),
    "no numbers": (
        *("classification", ("--init", "tiny", "--data.paths", "a.tsv", "--labelled.regression")),
        'a.tsv:2: the label "no" is no finite number; mend it, or leave out --labelled.regression',
    ),
    "weights of numbers": (
        *(
            "classification",
            ("--init", "tiny", "--data.paths", "a.tsv", "--labelled.regression", "--labelled.class-weights", "balanced"),
        ),
        "--labelled.regression True: numbers have neither classes to weigh",
    ),
    "too long": (
        *("classification", ("--init", "tiny", "--data.paths", "a.tsv", "--data.length", "7")),
        "a.tsv:2: 8 tokens, and a row has 7; choose a longer --data.length, or cut it with --labelled.truncate",
    ),
    "longer than the model": (
        *("classification", ("--init", "tiny", "--data.paths", "a.tsv", "--data.length", "41")),
        "--data.length 41: the model has 40 positions",
    ),
    "too long a stride": (
        *("span", ("--init", "tiny", "--data.paths", "a.jsonl", "--data.length", "16", "--labelled.stride", "14")),
        "a.jsonl:1: a question of 1 tokens leaves too little of a row of 16 for a stride of 14; choose",
    ),
    "not UTF-8": ("classification", ("--init", "tiny", "--data.paths", "latin.tsv"), "latin.tsv:2: not UTF-8 (byte 11)"),
    "columns": ("tagging", ("--init", "tiny", "--data.paths", "ragged.conll"), "ragged.conll:2: 1 columns, not 2; write a word"),
}


@pytest.fixture(scope="module")
def wrong(place: Path) -> Path:
    put(place / "other.tsv", "text\tlabel\nthe whale\tmaybe\n")
    put(place / "one.tsv", "text\tlabel\n" + "the whale\tyes\n" * 9)
    put(place / "one.jsonl", [each | {"title": "t"} for each in flat_questions()])
    put(place / "latin.tsv", b"text\tlabel\n\xfc\tyes\n")
    put(place / "ragged.conll", "the\tO\nwhale\n")
    published.write(place / "gpt", published.config("gpt", "causal"))
    return place


@pytest.mark.parametrize(("goal", "flags", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    goal: str, flags: tuple[str, ...], said: str, wrong: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(here)
    ended: Ended = call(capsys, "train", f"finetune-{goal}", *flags, "--name", "never")
    assert ended.code == 2 and ended.stdout == ""
    assert ended.stderr.startswith(f"zoo: {said}") and ended.stderr.count("\n") == 1
    assert snapshot(here) == before
