"""Labelled files of every format as the examples they hold; and the two halves of a run."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.labelled_files import (
    ARTICLE,
    ASKED,
    CHOSEN,
    CONTEXT,
    QUIZ,
    RATED,
    ROWS,
    SENTENCES,
    TAGGED,
    Content,
    flat_questions,
    halves,
    put,
    read,
    squad,
)
from train import readers
from train.examples import Choice, Question, Tagged, Text
from zoo.errors import BadInput


@pytest.fixture(autouse=True)
def _silent() -> None:
    datasets.disable_progress_bars()


# --- Texts ----------------------------------------------------------------------------------------------------------------------

TEXTS: dict[str, tuple[str, Content, dict[str, Any]]] = {
    "tsv": ("a.tsv", "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in RATED), {}),
    "tsv without a header": ("a.tsv", "".join(f"{text}\t1\t{label}\r\n" for text, label in RATED), {"header": False}),
    "tsv of chosen columns": (
        *("a.tsv", "id\tsaid\tso\n" + "\n".join(f"7\t{text}\t{label}" for text, label in RATED)),
        {"text": "said", "label": "so"},
    ),
    "tsv of chosen numbers": (
        *("a.tsv", "".join(f"{label}\t{text}\t-\n" for text, label in RATED)),
        {"header": False, "text": "2", "label": "1"},
    ),
    "tsv with a byte order mark": ("a.TSV", "\ufefftext\tlabel\n" + "".join(f"{text}\t{label}\n\n" for text, label in RATED), {}),
    "csv": ("a.csv", 'label,text\nyes,it is good\nperhaps,"so ""so"" 4"\n\nno,\u00fcble Sache', {}),
    "csv without a header": ("a.csv", 'it is good,yes\n"so ""so"" 4",perhaps\n"\u00fcble Sache",no', {"header": False}),
    "csv in latin-1": (
        *("a.csv", b'text,label\r\nit is good,yes\r\n"so ""so"" 4",perhaps\r\n\xfcble Sache,no\r\n'),
        {"encoding": "latin-1"},
    ),
    "trec": (
        *("a.txt", b'yes:of it is good\nperhaps:b:c so "so" 4\n\nno: \xfcble Sache\n'),
        {"encoding": "latin-1", "coarse": True},
    ),
    "jsonl": ("a.jsonl", ROWS, {}),
    "jsonl.gz": ("a.jsonl.gz", ROWS, {}),
    "tsv.gz": ("a.tsv.gz", "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in RATED), {}),
    "parquet": ("a.parquet", ROWS, {}),
    "a data set": ("set", ROWS, {}),
}


@pytest.mark.parametrize(("name", "content", "options"), TEXTS.values(), ids=TEXTS.keys())
def test_every_format_holds_the_same_texts(name: str, content: Content, options: dict[str, Any], tmp_path: Path) -> None:
    found = read("classification", put(tmp_path / name, content), **options)
    assert [(each.text, each.label) for each in found if isinstance(each, Text)] == RATED
    assert {each.pair for each in found if isinstance(each, Text)} == {None}
    assert len({each.origin for each in found}) == 3


def test_an_example_says_its_file_and_line(tmp_path: Path) -> None:
    lines = put(tmp_path / "a.csv", 'text,label\n"two\nlines",1\nb,2\n')
    assert [(each.origin, each.text) for each in read("classification", lines) if isinstance(each, Text)] == [
        (f"{lines}:2", "two\nlines"),
        (f"{lines}:4", "b"),
    ]
    words = put(tmp_path / "a.conll", "a\tO\nb\tO\n\n\nc\tO\nd\tO\n")
    assert [each.origin for each in read("tagging", words)] == [f"{words}:1", f"{words}:5"]
    rows = put(tmp_path / "a.parquet", ROWS)
    assert [each.origin for each in read("classification", rows)] == [f"{rows}: row {number}" for number in (1, 2, 3)]


def test_pairs_numbers_and_truth_values_are_read(tmp_path: Path) -> None:
    rows = [{"a": "one", "b": "", "label": 1}, {"a": "two", "b": "zwei", "label": -1}, {"a": "", "b": "x", "label": True}]
    (first, second, third) = read("classification", put(tmp_path / "a.jsonl", rows), text="a", pair="b")
    assert [(each.text, each.pair, each.label) for each in (first, second, third) if isinstance(each, Text)] == [
        ("one", "", "1"),
        ("two", "zwei", "-1"),
        ("", "x", "true"),
    ]
    numbers = read("classification", put(tmp_path / "a.tsv", "text\tlabel\na\t3.25\nb\t-1e2\n"), regression=True)
    assert [each.label for each in numbers if isinstance(each, Text)] == [3.25, -100.0]


def test_classes_of_a_data_set_are_their_names(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["bad", "good"])
    kinds = datasets.Features({"text": datasets.Value("string"), "label": names})
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, kinds).save_to_disk(tmp_path / "set")
    assert [each.label for each in read("classification", tmp_path / "set") if isinstance(each, Text)] == ["good", "bad"]
    words = datasets.Features({"tokens": [datasets.Value("string")], "tags": [datasets.ClassLabel(names=["O", "B-LOC"])]})
    datasets.Dataset.from_dict({"tokens": [["in", "Rom"]], "tags": [[0, 1]]}, words).save_to_disk(tmp_path / "tagged")
    assert [each.tags for each in read("tagging", tmp_path / "tagged") if isinstance(each, Tagged)] == [("O", "B-LOC")]
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, kinds).save_to_disk(tmp_path / "asked")
    with pytest.raises(BadInput, match=r'asked: row 2: column "label" holds -1, which is none of its 2 classes; leave out'):
        read("classification", tmp_path / "asked")


# --- Words, questions, choices --------------------------------------------------------------------------------------------------

WORDS: dict[str, tuple[str, Content, dict[str, Any]]] = {
    "tabs": ("a.conll", "Anna\tB-PER\nsees\tO\nRome\tB-LOC\n\n\n4\tO\n#\tO\n\u00e9\tI-X", {}),
    "spaces and documents": (
        *("a.conll", "-DOCSTART- -X- O O\n\nAnna NNP X B-PER\nsees  V X O\nRome NNP X B-LOC\n-DOCSTART- -X- O O\n"),
        {"append": "\n4 CD X O\n# SYM X O\n\u00e9 X X I-X\n\n"},
    ),
    "chosen columns": (
        "a.conll",
        "B-PER\t1\tAnna\nO\t2\tsees\nB-LOC\t3\tRome\n\nO\t1\t4\nO\t2\t#\nI-X\t3\t\u00e9\n",
        {"text": "3", "label": "1"},
    ),
    "jsonl": ("a.jsonl", TAGGED, {}),
    "parquet": ("a.parquet", TAGGED, {}),
    "a data set": ("set", TAGGED, {}),
}


@pytest.mark.parametrize(("name", "content", "options"), WORDS.values(), ids=WORDS.keys())
def test_every_format_holds_the_same_words(name: str, content: Any, options: dict[str, Any], tmp_path: Path) -> None:
    more = options.get("append", "")
    chosen = {key: value for key, value in options.items() if key != "append"}
    found = read("tagging", put(tmp_path / name, content + more if more else content), **chosen)
    assert [(each.words, each.tags) for each in found if isinstance(each, Tagged)] == SENTENCES


QUESTIONS: dict[str, tuple[str, Content]] = {
    "2.0": ("a.json", json.dumps(squad())),
    "packed": ("a.json.gz", json.dumps(squad())),
    "jsonl": ("a.jsonl", flat_questions()),
    "parquet": ("a.parquet", flat_questions()),
    "a data set": ("set", flat_questions()),
}


@pytest.mark.parametrize(("name", "content"), QUESTIONS.values(), ids=QUESTIONS.keys())
def test_every_format_holds_the_same_questions(name: str, content: Content, tmp_path: Path) -> None:
    found = read("span", put(tmp_path / name, content))
    assert [(each.id, each.question, [*each.answers]) for each in found if isinstance(each, Question)] == ASKED
    assert {(each.document, each.context) for each in found if isinstance(each, Question)} == {("Whales", CONTEXT)}


def test_squad_1_needs_no_word_on_whether_there_is_an_answer(tmp_path: Path) -> None:
    answered = [each for each in ASKED if each[2]]
    found = read("span", put(tmp_path / "a.json", json.dumps(squad(answered, version=1, title=None))))
    assert [each.id for each in found if isinstance(each, Question)] == ["q1", "q3"]
    assert {each.document for each in found} == {f"{tmp_path / 'a.json'}: data[0]"}


CHOICES: dict[str, tuple[str, Content]] = {
    "json": ("a.json", json.dumps(ARTICLE)),
    "txt": ("a.txt", json.dumps(ARTICLE)),
    "jsonl": ("a.jsonl", QUIZ),
    "parquet": ("a.parquet", QUIZ),
    "a data set": ("set", QUIZ),
}


@pytest.mark.parametrize(("name", "content"), CHOICES.values(), ids=CHOICES.keys())
def test_every_format_holds_the_same_choices(name: str, content: Content, tmp_path: Path) -> None:
    found = read("choice", put(tmp_path / name, content))
    assert [(each.question, each.options, each.answer) for each in found if isinstance(each, Choice)] == CHOSEN
    assert {(each.document, each.article) for each in found if isinstance(each, Choice)} == {("Anna sails.", "Anna sails.")}


def test_a_folder_is_all_of_its_files_by_name(tmp_path: Path) -> None:
    for name in ("b/2.json", "a/9.json", "b/10.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        put(tmp_path / name, json.dumps(ARTICLE | {"article": name}))
    (tmp_path / ".hidden").write_text("?")
    found = read("choice", tmp_path)
    assert [each.article for each in found if isinstance(each, Choice)][::2] == ["a/9.json", "b/10.json", "b/2.json"]


# --- Halves ---------------------------------------------------------------------------------------------------------------------


def test_the_last_part_is_held_out_the_same_each_time(tmp_path: Path) -> None:
    file = put(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"t{n}\t{n % 2}\n" for n in range(40)))
    training, held_out = halves("classification", file)
    assert [each.text for each in training + held_out] == [f"t{n}" for n in range(40)]
    assert len(held_out) == 4
    assert halves("classification", file) == (training, held_out)
    assert len(halves("classification", file, fraction=0.5)[1]) == 20


def questions_of(sizes: list[int]) -> list[dict[str, Any]]:
    """Questions about as many articles as there are sizes; those of an article stand apart."""
    rows = [flat_questions()[0] | {"title": f"t{n}", "id": f"{n}-{k}"} for n, size in enumerate(sizes) for k in range(size)]
    return sorted(rows, key=lambda row: row["id"].split("-")[1])


@given(st.lists(st.integers(1, 9), min_size=2, max_size=8), st.sampled_from([0.1, 0.5, 0.8]))
def test_the_questions_of_an_article_are_in_one_half_and_the_cut_is_the_nearest(sizes: list[int], fraction: float) -> None:
    examples = [
        Question(origin=row["id"], document=row["title"], id=row["id"], question="?", context="c", answers=())
        for row in questions_of(sizes)
    ]
    training, held_out = readers.halves(examples, fraction)  # pyright: ignore
    assert training and held_out
    assert sorted(each.origin for each in [*training, *held_out]) == sorted(each.origin for each in examples)
    assert not {each.document for each in training} & {each.document for each in held_out}
    order = list(dict.fromkeys(each.document for each in examples))
    counts = [sum(each.document == name for each in examples) for name in order]
    wanted = fraction * len(examples)
    best = min(abs(sum(counts[cut:]) - wanted) for cut in range(1, len(order)))
    assert abs(len(held_out) - wanted) == pytest.approx(best)


def test_what_has_no_two_halves_is_refused(tmp_path: Path) -> None:
    single = put(tmp_path / "a.json", json.dumps(squad()))
    with pytest.raises(BadInput, match=r"--data\.paths: all 3 examples are of one document; name others in --data\.valid-paths"):
        halves("span", single)
    training, held_out = halves("span", single, valid=(put(tmp_path / "b.json", json.dumps(squad(ASKED[:1]))),))
    assert (len(training), len(held_out)) == (3, 1)


def test_one_file_is_never_in_both_halves(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    file = put(tmp_path / "in/a.jsonl", ROWS)
    (tmp_path / "link.jsonl").symlink_to(file)
    for paths, valid in (((file,), (file,)), ((tmp_path / "in",), (tmp_path / "link.jsonl",))):
        with pytest.raises(BadInput, match=r"--data\.valid-paths .*in/a\.jsonl: it is also in --data\.paths; hold out data"):
            halves("classification", *paths, valid=valid)
