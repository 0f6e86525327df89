"""Labelled examples of a run: its labels, its rows and their weights, its tokenizer, and what it remembers of them."""

import collections
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import finetuned
from tests.support.encoders import folder as published
from tests.support.encoders import tokenizer
from tests.support.finetuned import IOB, LABELS, TASKS, examples, rows, run
from tests.support.labelled_files import put
from train import config, labelled
from train.config import Data, Run
from train.examples import Choice, Question, Tagged, Text
from train.folder import Folder
from train.labelled import Labelled, labels_of
from zoo.batch import IGNORED
from zoo.errors import BadInput

HELD = "text\tlabel\nthe whale\tno\n"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer of the small models."""
    made = tmp_path_factory.mktemp("words")
    tokenizer("wordpiece").save(made)
    return made


def on(files: Path | tuple[Path, ...], valid: tuple[Path, ...] = (), **changes: Any) -> Run:
    """A classification on some files."""
    paths = files if isinstance(files, tuple) else (files,)
    data = Data(paths=tuple(map(str, paths)), valid_paths=tuple(map(str, valid)), length=24, batch=8)
    return run("classification", **{"labels": (), "data": data, **changes})


def read(cfg: Run, words: Path, folder: Path) -> Labelled:
    cfg = dataclasses.replace(cfg, tokenizer=config.Tokenizer(path=str(words)))
    return labelled.read(labelled.settled(cfg, Folder(folder)), Folder(folder), folder)


def table(folder: Path, *labels: str, name: str = "a.tsv") -> Path:
    return put(folder / name, "text\tlabel\n" + "".join(f"the whale {n}\t{label}\n" for n, label in enumerate(labels)))


# --- Labels ---------------------------------------------------------------------------------------------------------------------


def text(label: str | float) -> Text:
    return Text(origin="a:1", text="a", label=label)


def test_labels_are_in_the_order_of_their_names_and_numbers_in_theirs() -> None:
    assert labels_of(map(text, ["b", "a", "B", "a"])) == ("B", "a", "b")
    assert labels_of(map(text, ["10", "9", "-2", "01", "1"])) == ("-2", "01", "1", "9", "10")
    assert labels_of(map(text, ["10", "9", "x"])) == ("10", "9", "x")
    assert labels_of(map(text, ["--3", "2", "9" * 5000])) == ("--3", "2", "9" * 5000)
    assert labels_of(
        [Tagged(origin="a", words=("a", "b"), tags=("O", "B-X")), Tagged(origin="b", words=("a",), tags=("I-X",))]
    ) == (
        "B-X",
        "I-X",
        "O",
    )


def test_a_run_has_the_labels_of_its_training_half_unless_it_names_its_own(tmp_path: Path) -> None:
    file = table(tmp_path, *"210" * 10, "9")
    cfg = on(file)
    settled = labelled.settled(cfg, Folder(tmp_path))
    assert settled.model.labels == ("0", "1", "2")
    assert dataclasses.replace(settled, model=cfg.model) == cfg
    named = labelled.settled(on(file, labels=("x", "y")), Folder(tmp_path))
    assert named.model.labels == ("x", "y")
    # A resumed run names those in its config.json.
    assert labelled.settled(settled, Folder(tmp_path)) == settled


def test_a_regression_has_one_output(tmp_path: Path) -> None:
    file = table(tmp_path, *("0.5", "2", "-1") * 5)
    assert labelled.settled(on(file, regression=True), Folder(tmp_path)).model.labels == ("score",)
    assert labelled.settled(on(file, regression=True, labels=("stars",)), Folder(tmp_path)).model.labels == ("stars",)
    with pytest.raises(
        BadInput, match=r"^--model\.labels a b: a regression has one output; name one, or leave out --labelled\.reg"
    ):
        labelled.settled(on(file, regression=True, labels=("a", "b")), Folder(tmp_path))


@pytest.mark.parametrize("goal", ["span", "choice"])
def test_a_head_without_labels_needs_none(goal: str, tmp_path: Path) -> None:
    cfg = run(goal)
    assert labelled.settled(cfg, Folder(tmp_path)) is cfg


def test_labels_that_cannot_be_learned_are_refused(tmp_path: Path, words: Path) -> None:
    with pytest.raises(BadInput, match=r"^--data\.paths: every example has the label yes; there is nothing to tell apart$"):
        labelled.settled(on(table(tmp_path, *["yes"] * 9)), Folder(tmp_path))
    with pytest.raises(
        BadInput, match=r"a\.tsv:4: label c is none of the 2 that the model learns \(a, b\); mend or leave it out$"
    ):
        read(on(table(tmp_path, *"abcab"), labels=("a", "b")), words, tmp_path)
    # A class that the training half has not.
    with pytest.raises(BadInput, match=r"a\.tsv:11: label z is none of the 2 that the model learns \(a, b\)"):
        read(on(table(tmp_path, *"abababab", "a", "z")), words, tmp_path)


def test_files_are_read_anew_by_each_run(tmp_path: Path, words: Path) -> None:
    for labels in ("ab", "cd"):
        assert read(on(table(tmp_path, *labels * 9)), words, tmp_path).facts(on(tmp_path))["data"]
        settled = labelled.settled(on(table(tmp_path, *labels * 9)), Folder(tmp_path))
        assert settled.model.labels == tuple(labels)


# --- Rows -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goal", TASKS)
def test_a_spread_takes_whole_examples_from_end_to_end(goal: str) -> None:
    made = rows(run(goal), examples(goal))
    some = made.spread(4)
    assert sorted({row.example for row in some.rows}) == [0, 3, 7, 10]
    assert some.rows == tuple(row for row in made.rows if row.example in (0, 3, 7, 10))
    assert (len(some) > 4) == (goal == "span")
    assert some.examples is made.examples and some.asked == made.asked
    assert made.spread(99).rows == made.rows
    assert {row.example for row in made.spread(1).rows} == {0}
    assert made.row(1) is made.rows[1]


@pytest.mark.parametrize("goal", TASKS)
def test_the_size_of_the_text_is_what_is_not_padding(goal: str) -> None:
    cfg = run(goal)
    made = rows(cfg, examples(goal))
    assert made.text_size == made.targets == int(np.sum(np.asarray(finetuned.batch(cfg, made).segments) > 0))


def test_the_fingerprint_of_rows_changes_with_all_that_makes_them() -> None:
    cfg, some = run("classification"), list(examples("classification"))
    first = some[0]
    assert isinstance(first, Text)
    turned = " ".join(first.text.split()[::-1])
    longer = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, length=33))
    relabelled = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, labels=("no", "yes", "perhaps")))
    prints = {
        "as it is": rows(cfg, some).fingerprint,
        "another text": rows(cfg, [dataclasses.replace(first, text="whale"), *some[1:]]).fingerprint,
        "words in another order": rows(cfg, [dataclasses.replace(first, text=turned), *some[1:]]).fingerprint,
        "a second text": rows(cfg, [dataclasses.replace(first, pair="whale"), *some[1:]]).fingerprint,
        "another label": rows(
            cfg, [dataclasses.replace(first, label={"no": "yes"}.get(str(first.label), "no")), *some[1:]]
        ).fingerprint,
        "another order": rows(cfg, some[::-1]).fingerprint,
        "one less": rows(cfg, some[1:]).fingerprint,
        "other names": rows(relabelled, some).fingerprint,
        "another length": rows(longer, some).fingerprint,
        "another tokenizer": rows(run("classification", family="roberta"), some).fingerprint,
    }
    assert len(set(prints.values())) == len(prints)
    # What they are read from, and what their classes count, makes no other rows.
    moved = [dataclasses.replace(each, origin=f"elsewhere: {each.origin}") for each in some]
    assert rows(run("classification", class_weights="balanced", text="said"), moved).fingerprint == prints["as it is"]
    # Windows are other rows.
    strides = [rows(run("span", stride=stride), examples("span")).fingerprint for stride in (5, 6)]
    assert strides[0] != strides[1]


@pytest.mark.parametrize("goal", TASKS)
def test_what_is_asked_is_the_same_for_every_model(goal: str) -> None:
    some = examples(goal)
    asked = rows(run(goal), some).asked
    for cfg in (run(goal, family="roberta"), run(goal, length=34), run(goal, stride=7)):
        assert rows(cfg, some).asked == asked
    moved = [dataclasses.replace(each, origin="elsewhere", document="another") for each in some]
    assert rows(run(goal), moved).asked == asked
    others = []
    for each in some[:1]:
        match each:
            case Text():
                others = [
                    dataclasses.replace(each, text="?"),
                    dataclasses.replace(each, pair="?"),
                    dataclasses.replace(each, label="yes"),
                ]
                others = [other for other in others if other != each]
            case Tagged():
                others = [
                    dataclasses.replace(each, words=("a",), tags=("no",)),
                    dataclasses.replace(each, words=each.words[::-1]),
                ]
            case Choice():
                others = [dataclasses.replace(each, article="?"), dataclasses.replace(each, answer=each.answer - 1)]
            case Question():
                others = [dataclasses.replace(each, question="?"), dataclasses.replace(each, context=each.context + "?")]
    several = [rows(run(goal), [other, *some[1:]]).asked for other in others if other != some[0]]
    assert several and len({asked, *several}) == 1 + len(several)
    if goal == "classification":
        assert rows(run(goal, labels=("no", "yes", "perhaps")), some).asked != asked


# --- Weights --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("goal", "names"), [("classification", LABELS), ("tagging", IOB)])
def test_balanced_classes_weigh_the_same_and_all_together_as_much_as_before(goal: str, names: tuple[str, ...]) -> None:
    cfg = run(goal, labels=names, class_weights="balanced")
    made = rows(cfg, examples(goal, 30, names))
    weighed = labelled._weighed(made, cfg)
    sums: collections.Counter[int] = collections.Counter()
    count = 0
    for row in weighed.rows:
        for label, weight in zip(row.labels.tolist(), row.weights.tolist(), strict=True):
            assert (weight > 0) == (label != IGNORED)
            sums[label] += weight
            count += label != IGNORED
    del sums[IGNORED]
    assert len(sums) == len(names)
    np.testing.assert_allclose(list(sums.values()), count / len(names), rtol=1e-5)
    plain = run(goal, labels=names)
    assert labelled._weighed(made, plain) is made


def test_only_training_rows_are_weighed(tmp_path: Path, words: Path) -> None:
    cfg = on(table(tmp_path, *"aaab" * 10), class_weights="balanced")
    made = read(cfg, words, tmp_path)
    training = [made.rows.row(number).weights.tolist() for number in range(len(made.rows))]
    assert sorted({weight for (weight,) in training}) == pytest.approx([36 / 2 / 27, 36 / 2 / 9])
    assert {tuple(row.weights.tolist()) for row in made.held_out.rows} == {(1.0,)}


# --- A run's data ---------------------------------------------------------------------------------------------------------------


def test_counts_are_those_of_the_training_rows(tmp_path: Path, words: Path) -> None:
    made = read(on(table(tmp_path, *"ab" * 10)), words, tmp_path)
    marks, expected = made.tokenizer.marks, collections.Counter[int]()
    assert marks is not None
    for number in range(18):
        expected.update([marks.cls, *made.tokenizer.encode(f"the whale {number}").tolist(), marks.sep])
    counts = made.counts()
    assert counts.shape == (made.tokenizer.vocab_size,)
    assert {id: count for id, count in enumerate(counts.tolist()) if count} == dict(expected)


def test_a_run_says_what_it_reads(tmp_path: Path, words: Path) -> None:
    file = table(tmp_path, *"abcdefghij" * 2)
    cfg = on(file, steps=9)
    facts = read(cfg, words, tmp_path).facts(labelled.settled(cfg, Folder(tmp_path)))
    assert facts["data"].startswith(f"{file}: 18 examples, ")
    assert facts["held out"] == "2 examples"
    assert facts["labels"] == "10: a, b, c, d, e, f, g, h, ..."
    assert facts["seen"] == "9 steps of 8, 4 epochs"


def test_what_a_checkpoint_remembers_tells_data_apart(tmp_path: Path, words: Path) -> None:
    file, valid = table(tmp_path, *"ab" * 10), put(tmp_path / "v.tsv", HELD.replace("no", "a"))
    base = read(on(file, (valid,)), words, tmp_path).fingerprints()
    (tmp_path / "copy").mkdir()
    copied = table(tmp_path / "copy", *"ab" * 10)
    assert read(on(copied, (valid,)), words, tmp_path).fingerprints() == base
    other_training = read(on(table(tmp_path, *"ba" * 10, name="b.tsv"), (valid,)), words, tmp_path).fingerprints()
    assert [name for name in base if base[name] != other_training[name]] == ["data"]
    held = put(tmp_path / "w.tsv", HELD.replace("no", "b"))
    other_held_out = read(on(file, (held,)), words, tmp_path).fingerprints()
    assert [name for name in base if base[name] != other_held_out[name]] == ["held_out"]


def test_a_tokenizer_is_the_one_named_or_the_runs_own_or_that_of_its_beginning(tmp_path: Path, words: Path) -> None:
    file = table(tmp_path, *"ab" * 10)
    cfg, own = labelled.settled(on(file), Folder(tmp_path)), Folder(tmp_path / "run")
    with pytest.raises(
        BadInput, match=r"^--init: name the run or the published weights to begin from, or give --tokenizer\.path"
    ):
        labelled.read(cfg, own, tmp_path)
    begun = dataclasses.replace(cfg, init=str(published(tmp_path / "published", "bert")))
    assert labelled.read(begun, own, tmp_path).tokenizer.fingerprint == tokenizer("wordpiece").fingerprint
    # A run that has a checkpoint goes on with its own, even if what it began from is gone.
    other = type(tokenizer("wordpiece")).train(["the whale 0123456789 ab"], 60, "wordpiece")
    own.tokenizer.mkdir(parents=True)
    other.save(own.tokenizer)
    assert labelled.read(begun, own, tmp_path).tokenizer.fingerprint == tokenizer("wordpiece").fingerprint
    (own.checkpoints / "00000001").mkdir(parents=True)
    (own.checkpoints / "00000001/COMMIT.json").write_text("{}")
    gone = dataclasses.replace(begun, init=str(tmp_path / "gone"))
    assert labelled.read(gone, own, tmp_path).tokenizer.fingerprint == other.fingerprint
    named = dataclasses.replace(gone, tokenizer=config.Tokenizer(path=str(words)))
    assert labelled.read(named, own, tmp_path).tokenizer.fingerprint == tokenizer("wordpiece").fingerprint


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(tmp_path: Path, words: Path) -> None:
    cfg = on(table(tmp_path, *"ab" * 10))
    small = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, vocab=50))
    with pytest.raises(
        BadInput, match=r"^--model\.vocab 50: the tokenizer has \d+ entries, so it gives ids beyond it; choose \d+ or"
    ):
        read(small, words, tmp_path)
