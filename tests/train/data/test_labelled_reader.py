"""Labelled files of every format as the examples they hold; and the two halves of a run."""

import json
import operator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import labelled_files as files
from tests.support.labelled_files import ARTICLE, ASKED, CONTEXT, RATED, ROWS, Content, halves, put, read, squad
from train.config.data_options import Data
from train.config.option_groups import Labelled
from train.data import labelled_reader
from train.data.example_types import Question
from zoo.errors import BadInput

QUESTION_FIELDS = ("id", "question", "answers", "document", "context")
CHOICE_FIELDS = ("question", "options", "answer", "document", "article")
# The examples of an objective in every format: their fields and values.
EXAMPLES: dict[str, tuple[tuple[str, ...], list[Any]]] = {
    "classification": (("text", "label", "pair"), [(*rated, None) for rated in RATED]),
    "tagging": (("words", "tags"), files.SENTENCES),
    "span": (QUESTION_FIELDS, [(name, question, tuple(answers), "Whales", CONTEXT) for name, question, answers in ASKED]),
    "choice": (CHOICE_FIELDS, [(*chosen, "Anna sails.", "Anna sails.") for chosen in files.CHOSEN]),
}
TSV = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in RATED)
BARE = "".join(f"{text}\t1\t{label}\r\n" for text, label in RATED)
NAMED = "id\tsaid\tso\n" + "\n".join(f"7\t{text}\t{label}" for text, label in RATED)
TURNED = "".join(f"{label}\t{text}\t-\n" for text, label in RATED)
CSV = 'label,text\nyes,it is good\nperhaps,"so ""so"" 4"\n\nno,\u00fcble Sache'
TREC = b'yes:of it is good\nperhaps:b:c so "so" 4\n\nno: \xfcble Sache\n'
TABS = "Anna\tB-PER\nsees\tO\nRome\tB-LOC\n\n\n4\tO\n#\tO\n\u00e9\tI-X"
SPACES = "-DOCSTART- -X- O O\n\nAnna NNP X B-PER\nsees  V X O\nRome NNP X B-LOC\n-DOCSTART- -X- O O\n"
COLUMNS = "B-PER\t1\tAnna\nO\t2\tsees\nB-LOC\t3\tRome\n\nO\t1\t4\nO\t2\t#\nI-X\t3\t\u00e9\n"
COARSE = {"encoding": "latin-1", "coarse": True}
FORMATS: list[tuple[str, str, Content, dict[str, Any]]] = [
    ("classification", "a.tsv", TSV, {}),
    ("classification", "a.TSV", "\ufeff" + TSV.replace("\n", "\n\n"), {}),
    ("classification", "a.tsv", BARE, {"header": False}),
    ("classification", "a.tsv", NAMED, {"text": "said", "label": "so"}),
    ("classification", "a.tsv", TURNED, {"header": False, "text": "2", "label": "1"}),
    ("classification", "a.csv", CSV, {}),
    ("classification", "a.csv", CSV.replace("\n", "\r\n").encode("latin-1"), {"encoding": "latin-1"}),
    ("classification", "a.txt", TREC, COARSE),
    ("tagging", "a.conll", TABS, {}),
    ("tagging", "a.conll", f"{SPACES}\n4 CD X O\n# SYM X O\n\u00e9 X X I-X\n\n", {}),
    ("tagging", "a.conll", COLUMNS, {"text": "3", "label": "1"}),
    ("tagging", "a.annotated", TABS, {}),
    ("tagging", "a.bio", TABS, {"format": "conll"}),
    ("classification", "rows", CSV, {"format": "csv"}),
    ("classification", "a.all", TREC.replace(b"yes:of ", b"yes:of\t"), {"format": "label_first", **COARSE}),
    ("span", "a.json", json.dumps(squad()), {}),
    ("span", "a.v2", json.dumps(squad()), {"format": "squad"}),
    ("choice", "a.json", json.dumps(ARTICLE), {}),
    ("choice", "a.txt", json.dumps(ARTICLE), {}),
]
SETS = {"classification": ROWS, "tagging": files.TAGGED, "span": files.flat_questions(), "choice": files.QUIZ}
FORMATS += [
    (objective, name, SETS[objective], {}) for objective in SETS for name in ("a.jsonl", "a.jsonl.gz", "a.parquet", "set")
]


@pytest.mark.parametrize(("objective", "name", "content", "options"), FORMATS)
def test_every_format_holds_the_same_examples(
    objective: str, name: str, content: Content, options: dict[str, Any], tmp_path: Path
) -> None:
    fields, expected = EXAMPLES[objective]
    examples = read(objective, put(tmp_path / name, content), **options)
    assert [operator.attrgetter(*fields)(example) for example in examples] == expected
    assert len({example.origin for example in examples}) == len(expected)


def test_an_example_names_its_file_and_line(tmp_path: Path) -> None:
    lines = put(tmp_path / "a.csv", 'text,label\n"two\nlines",1\nb,2\n')
    examples: list[Any] = read("classification", lines)
    assert [(each.origin, each.text) for each in examples] == [(f"{lines}:2", "two\nlines"), (f"{lines}:4", "b")]
    words = put(tmp_path / "a.conll", "a\tO\nb\tO\n\n\nc\tO\nd\tO\n")
    assert [each.origin for each in read("tagging", words)] == [f"{words}:1", f"{words}:5"]
    rows = put(tmp_path / "a.parquet", ROWS)
    assert [each.origin for each in read("classification", rows)] == [f"{rows}: row {number}" for number in (1, 2, 3)]


BAD_LINES: dict[str, tuple[str, str, list[int]]] = {
    "a.tsv": ("classification", "text\tlabel\na\tx\n\ty\nb\ny\tz\tx\nc\t \nd\ty\n", [3, 4, 5, 6]),
    "a.csv": ("classification", 'text,label\na,x\n"",y\n"b\nb",x,x\nd,y\n', [3, 4]),
    "a.jsonl": ("classification", '{"text": "a", "label": 1}\n{\n[]\n{"text": "b"}\n{"text": "d", "label": 2}\n', [2, 3, 4]),
    "a.txt": ("classification", "x a\nx\ny d\n", [2]),
    "a.conll": ("tagging", "a\tO\n\nb\tO\nb\nb\n\nc\t\n\nd\tO\n", [4, 7]),
}
"""Name -> objective, content whose good examples are a and d, and the lines of what is wrong."""


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_examples_are_left_out_by_option_and_otherwise_the_first_is_refused(name: str, tmp_path: Path) -> None:
    objective, content, lines = BAD_LINES[name]
    file, errors = put(tmp_path / name, content), list[str]()
    with pytest.raises(BadInput, match=f"^{file}:{lines[0]}: "):
        read(objective, file)
    examples: list[Any] = labelled_reader.read_labelled_examples(
        objective, (str(file),), Data(), Labelled(skip_bad=True), errors
    )[0]
    assert [getattr(each, "text", None) or each.words[0] for each in examples] == ["a", "d"]
    assert [error.split(": ")[0] for error in errors] == [f"{file}:{line}" for line in lines]


def test_a_format_is_one_that_the_objective_reads(tmp_path: Path) -> None:
    file = put(tmp_path / "a.tsv", TSV)
    with pytest.raises(BadInput, match=r"^--labelled\.format conll: classification does not read it; choose tsv, csv"):
        read("classification", file, format="conll")
    with pytest.raises(BadInput, match=r"^--labelled\.format csv: .*set is a data set, whose format is known; remove it"):
        read("classification", put(tmp_path / "set", ROWS), format="csv")


def test_pairs_numbers_and_truth_values_are_read(tmp_path: Path) -> None:
    rows = [{"a": "one", "b": "", "label": 1}, {"a": "two", "b": "zwei", "label": -1}, {"a": "", "b": "x", "label": True}]
    examples: list[Any] = read("classification", put(tmp_path / "a.jsonl", rows), text="a", pair="b")
    found = [(each.text, each.pair, each.label) for each in examples]
    assert found == [("one", "", "1"), ("two", "zwei", "-1"), ("", "x", "true")]
    numbers: list[Any] = read("classification", put(tmp_path / "a.tsv", "text\tlabel\na\t3.25\nb\t-1e2\n"), regression=True)
    assert [each.label for each in numbers] == [3.25, -100.0]


def test_classes_of_a_data_set_are_their_names(tmp_path: Path) -> None:
    import datasets

    def save(name: str, features: dict[str, Any], **columns: list[Any]) -> Path:
        datasets.Dataset.from_dict(columns, datasets.Features(features)).save_to_disk(tmp_path / name)
        return tmp_path / name

    datasets.disable_progress_bars()
    text, classes = datasets.Value("string"), datasets.ClassLabel(names=["bad", "good"])
    texts: list[Any] = read("classification", save("texts", {"text": text, "label": classes}, text=["a", "b"], label=[1, 0]))
    assert [each.label for each in texts] == ["good", "bad"]
    tagged = save("words", {"tokens": [text], "tags": [classes]}, tokens=[["in", "Rom"]], tags=[[0, 1]])
    words: list[Any] = read("tagging", tagged)
    assert [each.tags for each in words] == [("bad", "good")]
    with pytest.raises(BadInput, match=r'hidden: row 2: column "label" holds -1, which is not one of its 2 classes; remove'):
        read("classification", save("hidden", {"text": text, "label": classes}, text=["a", "b"], label=[1, -1]))


def test_squad_1_does_not_need_to_name_questions_without_an_answer(tmp_path: Path) -> None:
    answered = [each for each in ASKED if each[2]]
    questions: list[Any] = read("span", put(tmp_path / "a.json", json.dumps(squad(answered, version=1, title=None))))
    assert [each.id for each in questions] == ["q1", "q3"]
    assert {each.document for each in questions} == {f"{tmp_path / 'a.json'}: data[0]"}


def test_the_last_part_is_held_out(tmp_path: Path) -> None:
    file = put(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"t{n}\t{n % 2}\n" for n in range(40)))
    training, held_out = halves("classification", file, fraction=0.25)
    assert [each.text for each in training + held_out] == [f"t{n}" for n in range(40)]
    assert len(held_out) == 10


@given(st.lists(st.integers(1, 9), min_size=2, max_size=8), st.sampled_from([0.1, 0.5, 0.8]))
def test_the_questions_of_an_article_are_in_one_half_and_the_cut_is_the_nearest(sizes: list[int], fraction: float) -> None:
    """Questions about as many articles as there are sizes; those of an article are not next to each other."""
    names = sorted((k, f"t{n}") for n, size in enumerate(sizes) for k in range(size))
    shared: dict[str, Any] = dict(question="?", context="c", answers=())
    examples = [Question(origin=f"{name}-{k}", document=name, id=name, **shared) for k, name in names]
    training, held_out = labelled_reader.split_halves(examples, fraction)
    assert training and held_out
    assert sorted(each.origin for each in [*training, *held_out]) == sorted(each.origin for each in examples)
    assert not {each.document for each in training} & {each.document for each in held_out}
    order = list(dict.fromkeys(each.document for each in examples))
    counts = [sum(each.document == name for each in examples) for name in order]
    wanted = fraction * len(examples)
    best = min(abs(sum(counts[cut:]) - wanted) for cut in range(1, len(order)))
    assert abs(len(held_out) - wanted) == pytest.approx(best)


def test_data_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    single = put(tmp_path / "a.json", json.dumps(squad()))
    with pytest.raises(BadInput, match=r"--data\.paths: all 3 examples are of one document; name others in --data\.valid-paths"):
        halves("span", single)
    with pytest.raises(BadInput, match=r"--data\.paths: there is no embedded data for span; name files: \.json, \.jsonl"):
        halves("span")
    training, held_out = halves("span", single, valid=(put(tmp_path / "b.json", json.dumps(squad(ASKED[:1]))),))
    assert (len(training), len(held_out)) == (3, 1)


def test_one_file_is_never_in_both_halves(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    file = put(tmp_path / "in/a.jsonl", ROWS)
    (tmp_path / "link.jsonl").symlink_to(file)
    for paths, valid in (((file,), (file,)), ((tmp_path / "in",), (tmp_path / "link.jsonl",))):
        with pytest.raises(BadInput, match=r"--data\.valid-paths .*in/a\.jsonl: it is also in --data\.paths; hold out data"):
            halves("classification", *paths, valid=valid)
