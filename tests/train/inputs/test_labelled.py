"""Labelled examples of a run: its labels, its rows and their weights, its tokenizer, and its fingerprints of them."""

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.encoders import folder as published
from tests.support.encoders import tokenizer
from tests.support.finetuned import IOB, LABELS, TASKS, examples, rows, run
from tests.support.labelled_files import put
from train.config import run_config
from train.config.data_options import LabelledData
from train.config.run_config import Run
from train.data import labelled_reader
from train.data.example_types import Tagged, Text
from train.inputs import labelled_inputs, run_inputs
from train.inputs.labelled_inputs import LabelledInputs, labels_of
from train.run.run_dir import RunDir
from zoo.batch import IGNORED
from zoo.errors import BadInput


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer of the small models."""
    made = tmp_path_factory.mktemp("words")
    tokenizer("wordpiece").save(made)
    return made


def on(files: Path | tuple[Path, ...], valid: tuple[Path, ...] = (), **changes: Any) -> Run:
    """A classification on some files."""
    paths = files if isinstance(files, tuple) else (files,)
    data = LabelledData(paths=tuple(map(str, paths)), valid_paths=tuple(map(str, valid)), length=24, batch=8)
    return run("classification", **{"labels": (), "data": data, **changes})


def read(cfg: Run, words: Path, folder: Path) -> LabelledInputs:
    cfg = dataclasses.replace(cfg, tokenizer=run_config.Tokenizer(path=str(words)))
    return run_inputs.read_inputs(run_inputs.resolve_config(cfg), RunDir(folder), folder)


def table(folder: Path, *labels: str, name: str = "a.tsv") -> Path:
    return put(folder / name, "text\tlabel\n" + "".join(f"the whale {n}\t{label}\n" for n, label in enumerate(labels)))


def text(label: str | float) -> Text:
    return Text(origin="a:1", text="a", label=label)


def test_labels_are_in_the_order_of_their_names_and_numbers_in_theirs() -> None:
    assert labels_of(map(text, ["b", "a", "B", "a"])) == ("B", "a", "b")
    assert labels_of(map(text, ["10", "9", "-2", "01", "1"])) == ("-2", "01", "1", "9", "10")
    assert labels_of(map(text, ["10", "9", "x"])) == ("10", "9", "x")
    assert labels_of(map(text, ["--3", "2", "9" * 5000])) == ("--3", "2", "9" * 5000)
    tagged = [Tagged(origin="a", words=("a", "b"), tags=("O", "B-X")), Tagged(origin="b", words=("a",), tags=("I-X",))]
    assert labels_of(tagged) == ("B-X", "I-X", "O")


def test_lists_of_labels_are_ones_and_zeros(tmp_path: Path, words: Path) -> None:
    file = put(tmp_path / "a.jsonl", [{"text": "the whale", "labels": names} for names in [["b"], ["a", "b"], [], ["a"]] * 5])
    inputs = read(on(file, multi_label=True), words, tmp_path)
    assert [inputs.rows.row(number).labels.tolist() for number in range(4)] == [[0, 1], [1, 1], [0, 0], [1, 0]]
    settled = run_inputs.resolve_config(on(file, multi_label=True))
    assert (settled.model.labels, settled.model.multi_label) == (("a", "b"), True)
    assert run_inputs.resolve_config(settled) == settled


TEXTS, NUMBERS = tuple(f"the whale {number}" for number in range(60)), ("0.5", "2", "-1") * 5
LISTS = [{"text": "the whale", "labels": []}] * 9
NAMED: list[tuple[Sequence[str], dict[str, Any], tuple[str, ...]]] = [
    # The last example is held out.
    ((*"210" * 10, "9"), {}, ("0", "1", "2")),
    ((*"210" * 10, "9"), {"labels": ("x", "y")}, ("x", "y")),
    (NUMBERS, {"regression": True}, ("score",)),
    (NUMBERS, {"regression": True, "labels": ("stars",)}, ("stars",)),
    (TEXTS, {"labels": TEXTS}, TEXTS),
    (TEXTS[:27] * 3, {}, tuple(sorted(TEXTS[:27]))),
]
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (NUMBERS, {"regression": True, "labels": ("a", "b")}, r"^--model\.labels a b: .*name one, or remove --labelled\.reg"),
    (["yes"] * 9, {}, r"^--data\.paths: every example has the label yes"),
    (["yes", "no"], {}, r"^--data\.paths: every training example has the label yes, and no is only among the held-out ones"),
    (
        ["yes"] * 2 + ["no"],
        {},
        r" ones \(.*a\.tsv:4\); add or reorder rows, or hold out other files with --data\.valid-paths$",
    ),
    (
        ["yes"] * 20 + ["no"] * 2,
        {},
        r"every training example has the label yes, .*rows, choose a smaller --data\.valid-fraction, or",
    ),
    # A class that the training half does not have.
    ([*"abababab", "a", "z"], {}, r"a\.tsv:11: label z is none of the 2 that the model learns \(a, b\)"),
    (TEXTS, {}, r"^--labelled\.label: 54 classes in 54 examples, such as .*; name the column"),
    (LISTS, {"multi_label": True}, r"^--data\.paths: no example has a label"),
    (LISTS, {"multi_label": True, "label_smoothing": 0.1}, r"^--label-smoothing 0\.1: neither regression nor multi-label"),
]


@pytest.mark.parametrize(("labels", "options", "expected"), NAMED)
def test_a_run_has_the_labels_of_its_training_half_unless_it_names_its_own(
    labels: Any, options: Any, expected: tuple[str, ...], tmp_path: Path
) -> None:
    cfg = on(table(tmp_path, *labels), **options)
    settled = run_inputs.resolve_config(cfg)
    assert settled.model.labels == expected and dataclasses.replace(settled, model=cfg.model) == cfg
    # A resumed run names those in its config.json.
    assert run_inputs.resolve_config(settled) == settled


@pytest.mark.parametrize(("labels", "options", "message"), REFUSED)
def test_labels_that_cannot_be_learned_are_refused(
    labels: Any, options: dict[str, Any], message: str, tmp_path: Path, words: Path
) -> None:
    cfg = on(put(tmp_path / "a.jsonl", labels) if labels is LISTS else table(tmp_path, *labels), **options)
    with pytest.raises(BadInput, match=message):
        read(cfg, words, tmp_path)


def test_a_label_that_is_only_among_the_validation_examples_is_named(tmp_path: Path, words: Path) -> None:
    file = table(tmp_path, "yes", "no", "yes")
    data = LabelledData(paths=(str(file),), length=24, batch=8, validation_share=0.1)
    with pytest.raises(
        BadInput, match=r"no is only among the validation ones \(.*:3\); .* or choose --data\.validation-share 0$"
    ):
        read(on(file, data=data), words, tmp_path)
    read(on(file, data=dataclasses.replace(data, validation_share=0.0)), words, tmp_path)


@pytest.mark.parametrize("goal", TASKS)
def test_too_long_examples_are_counted_and_the_longest_is_named(goal: str) -> None:
    several = examples(goal)
    sizes = {row.example: row.size for row in rows(run(goal, length=40), several).rows}
    length = sorted(sizes.values())[-3] - 1
    long = [number for number, size in sizes.items() if size > length]
    longest = max(long, key=sizes.__getitem__)
    assert 1 < len(long) < len(several)
    message = rf"^{several[longest].origin}: .*longest of {len(long)} that are too long, of 11.*skip-bad"
    with pytest.raises(BadInput, match=message):
        rows(run(goal, length=length), several)
    cut, short = rows(run(goal, length=length, truncate=True), several), rows(run(goal, length=length, skip_bad=True), several)
    for made in (cut, short):
        assert (made.too_long, made.longest) == (len(long), (several[longest].origin, sizes[longest]))
    assert cut.examples == several and max(len(inputs.ids) for row in cut.rows for inputs in row.inputs) == length
    fitting = [each for number, each in enumerate(several) if number not in long]
    same = rows(run(goal, length=length), fitting)
    assert (short.examples, short.fingerprint, short.content_digest) == (fitting, same.fingerprint, same.content_digest)
    assert [row.example for row in short.rows] == [row.example for row in same.rows]


def test_left_out_examples_are_reported_as_a_fact_of_the_run(tmp_path: Path, words: Path) -> None:
    file = put(tmp_path / "a.tsv", "text\tlabel\n" + "the whale\ta\nthe men\tb\n\tb\n" * 9 + "the men " * 20 + "\ta\n")
    for options, done in ({"skip_bad": True}, "left out"), ({"skip_bad": True, "truncate": True}, "cut"):
        cfg = on(file, **options)
        facts = read(cfg, words, tmp_path).describe(cfg)
        assert facts["left out"].startswith(f"9 bad examples; the first: {file}:4: the text is empty; ")
        expected = rf"0 training and 1 held-out examples, {done}: a row has 24 tokens; the longest has 42, {file}:29"
        assert facts["too long"] == expected


def test_a_share_of_the_training_examples_is_set_aside_for_validations(tmp_path: Path, words: Path) -> None:
    """It is spread over a file that is sorted by label; the held-out examples and the labels stay the same."""
    file = table(tmp_path, *"a" * 30, *"b" * 30, name="sorted.tsv")
    cfg = on(file, data=LabelledData(paths=(str(file),), valid_fraction=1 / 6, length=24, batch=8))
    plain = read(cfg, words, tmp_path)
    some = read(dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, validation_share=0.2)), words, tmp_path)
    assert some.selection is not None and plain.selection is None
    assert plain.validation_rows(cfg) is plain.held_out and some.validation_rows(cfg) is some.selection
    texts = [example.text for example in some.selection.examples]
    assert texts == [f"the whale {number}" for number in range(2, 50, 5)]
    trained = [example.text for example in some.rows.components[0].rows.examples]
    assert sorted([*trained, *texts]) == sorted(example.text for example in plain.rows.components[0].rows.examples)
    assert some.held_out.examples == plain.held_out.examples and some.describe(cfg)["selection"].startswith("10 other examples")
    assert some.fingerprints()["held_out"] == plain.fingerprints()["held_out"] and some.fingerprints() != plain.fingerprints()


def test_documents_are_not_divided() -> None:
    named = [Text(origin=f"a:{n}", document=f"d{n // 3}", text=f"{n}", label="x") for n in range(12)]
    others, chosen = labelled_reader.split_evenly_spaced(named, 0.5)
    assert [example.text for example in chosen] == ["3", "4", "5", "9", "10", "11"] and len(others) == 6
    with pytest.raises(BadInput, match=r"--data.validation-share 0\.5: all 3 training examples are of one document; choose 0"):
        labelled_reader.split_evenly_spaced(named[:3], 0.5)


def test_files_are_read_anew_by_each_run(tmp_path: Path, words: Path) -> None:
    for labels in ("ab", "cd"):
        assert read(on(table(tmp_path, *labels * 9)), words, tmp_path).describe(on(tmp_path))["data"]
        settled = run_inputs.resolve_config(on(table(tmp_path, *labels * 9)))
        assert settled.model.labels == tuple(labels)


def test_the_fingerprint_of_rows_changes_with_each_part_of_an_example() -> None:
    cfg, examples_of = run("classification"), list(examples("classification"))
    first = examples_of[0]
    assert isinstance(first, Text)
    label = "no" if first.label == "yes" else "yes"
    changes = [{"text": "whale"}, {"text": " ".join(first.text.split()[::-1])}, {"pair": "whale"}, {"label": label}]
    runs = [run("classification", labels=("no", "yes", "perhaps")), run("classification", family="roberta")]
    others = [[dataclasses.replace(first, **change), *examples_of[1:]] for change in changes]
    prints = [rows(cfg, each).fingerprint for each in (examples_of, examples_of[1:], *others)]
    prints += [rows(other, examples_of).fingerprint for other in runs]
    assert len(set(prints)) == len(prints)
    # The file that they are read from and the weights of classes make no other rows.
    moved = [dataclasses.replace(each, origin=f"elsewhere: {each.origin}") for each in examples_of]
    assert rows(run("classification", class_weights="balanced", text="said"), moved).fingerprint == prints[0]
    assert rows(run("span", stride=5), examples("span")).fingerprint != rows(run("span", stride=6), examples("span")).fingerprint


OTHER: dict[str, list[dict[str, Any]]] = {
    "classification": [{"text": "?"}, {"pair": "?"}, {"label": "no"}, {"label": "yes"}],
    "tagging": [{"words": ("a",), "tags": ("no",)}],
    "choice": [{"article": "?"}, {"answer": 7}],
    "span": [{"question": "?"}, {"context": "?"}],
}
"""Objective -> changes of an example that make it another."""


@pytest.mark.parametrize("goal", TASKS)
def test_the_fingerprint_of_examples_is_the_same_for_every_model(goal: str) -> None:
    first, *rest = examples(goal)
    asked = rows(run(goal), [first, *rest]).content_digest
    moved = [dataclasses.replace(each, origin="elsewhere", document="another") for each in (first, *rest)]
    for cfg in (run(goal), run(goal, family="roberta"), run(goal, length=34), run(goal, stride=7)):
        assert rows(cfg, moved).content_digest == asked
    others = [other for change in OTHER[goal] if (other := dataclasses.replace(first, **change)) != first]
    made = rows(run(goal), [first, *rest])
    prints = {dataclasses.replace(made, examples=[other, *rest]).content_digest for other in others}
    assert len(prints - {asked}) == len(others) > 0
    if goal == "classification":
        assert rows(run(goal, labels=("no", "yes", "perhaps")), [first, *rest]).content_digest != asked


@pytest.mark.parametrize(("goal", "names"), [("classification", LABELS), ("tagging", IOB)])
def test_balanced_classes_have_equal_weights_and_the_sum_does_not_change(goal: str, names: tuple[str, ...]) -> None:
    cfg = run(goal, labels=names, class_weights="balanced")
    made = rows(cfg, examples(goal, 30, names))
    sums: collections.Counter[int] = collections.Counter()
    for row in labelled_inputs._with_class_weights(made, cfg).rows:
        assert ((row.weights > 0) == (row.labels != IGNORED)).all()
        for label, weight in zip(row.labels.tolist(), row.weights.tolist(), strict=True):
            sums[label] += weight
    del sums[IGNORED]
    assert len(sums) == len(names)
    count = sum(int((row.labels != IGNORED).sum()) for row in made.rows)
    np.testing.assert_allclose(list(sums.values()), count / len(names), rtol=1e-5)
    assert labelled_inputs._with_class_weights(made, run(goal, labels=names)) is made


def test_only_training_rows_are_weighed(tmp_path: Path, words: Path) -> None:
    cfg = on(table(tmp_path, *"aaab" * 10), class_weights="balanced")
    made = read(cfg, words, tmp_path)
    training = [made.rows.row(number).weights.tolist() for number in range(len(made.rows))]
    assert sorted({weight for (weight,) in training}) == pytest.approx([36 / 2 / 27, 36 / 2 / 9])
    assert {tuple(row.weights.tolist()) for row in made.held_out.rows} == {(1.0,)}


def test_counts_are_those_of_the_training_rows(tmp_path: Path, words: Path) -> None:
    made = read(on(table(tmp_path, *"ab" * 10)), words, tmp_path)
    marks, expected = made.tokenizer.special_tokens, collections.Counter[int]()
    assert marks is not None
    for number in range(18):
        expected.update([marks.cls, *made.tokenizer.encode(f"the whale {number}").tolist(), marks.sep])
    counts = made.counts()
    assert counts.shape == (made.tokenizer.vocab_size,)
    assert {id: count for id, count in enumerate(counts.tolist()) if count} == dict(expected)


def test_fingerprints_of_a_checkpoint_tell_training_and_held_out_data_apart(tmp_path: Path, words: Path) -> None:
    def prints(labels: str, held_out: str, name: str = "a.tsv") -> dict[str, str]:
        valid = put(tmp_path / f"valid_{held_out}.tsv", f"text\tlabel\nthe whale\t{held_out}\n")
        return read(on(table(tmp_path, *labels, name=name), (valid,)), words, tmp_path).fingerprints()

    base = prints("ab" * 10, "a")
    assert prints("ab" * 10, "a", name="copy.tsv") == base
    for other, changed in (prints("ba" * 10, "a"), "data"), (prints("ab" * 10, "b"), "held_out"):
        assert [name for name in base if base[name] != other[name]] == [changed]


def test_a_tokenizer_is_the_one_named_or_the_runs_own_or_that_of_its_beginning(tmp_path: Path, words: Path) -> None:
    file = table(tmp_path, *"ab" * 10)
    cfg, own = run_inputs.resolve_config(on(file)), RunDir(tmp_path / "run")
    with pytest.raises(BadInput, match=r"^--init: .* --tokenizer\.path"):
        run_inputs.read_inputs(cfg, own, tmp_path)
    begun = dataclasses.replace(cfg, init=str(published(tmp_path / "published", "bert")))
    assert run_inputs.read_inputs(begun, own, tmp_path).tokenizer.fingerprint == tokenizer("wordpiece").fingerprint
    # A run that has a checkpoint goes on with its own, even if what it began from is gone.
    other = type(tokenizer("wordpiece")).train(["the whale 0123456789 ab"], 60, "wordpiece")
    own.tokenizer.mkdir(parents=True)
    other.save(own.tokenizer)
    assert run_inputs.read_inputs(begun, own, tmp_path).tokenizer.fingerprint == tokenizer("wordpiece").fingerprint
    (own.checkpoints / "00000001").mkdir(parents=True)
    (own.checkpoints / "00000001/COMMIT.json").write_text("{}")
    gone = dataclasses.replace(begun, init=str(tmp_path / "gone"))
    assert run_inputs.read_inputs(gone, own, tmp_path).tokenizer.fingerprint == other.fingerprint
    named = dataclasses.replace(gone, tokenizer=run_config.Tokenizer(path=str(words)))
    assert run_inputs.read_inputs(named, own, tmp_path).tokenizer.fingerprint == tokenizer("wordpiece").fingerprint
    small = dataclasses.replace(named, model=dataclasses.replace(named.model, vocab=50))
    with pytest.raises(BadInput, match=r"^--model\.vocab 50: the tokenizer has \d+ entries.* choose \d+ or"):
        run_inputs.read_inputs(small, own, tmp_path)
