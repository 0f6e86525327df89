"""`zoo predict`: the place of each record, blank, malformed and over-long lines, pipes, tables, and the options of a run."""

import contextlib
import csv
import dataclasses
import itertools
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.commands.predict import predict
from eval.prediction import predictor
from eval.tasks.labelled import run_for
from eval.tasks.task import Settings
from tests.support import encoders, finetuned
from tests.support.commands import call
from tests.support.finetuned import LABELS
from tests.support.labelled_files import put
from train.config.option_groups import Labelled
from train.data import text_files
from train.weights.load import Loaded
from zoo.cli.command_setup import named_fields
from zoo.errors import BadInput

SKIP = Labelled(skip_bad=True)
LONG = "whale " * 60


def loaded(goal: str = "classification", **options: Any) -> Loaded:
    """Return a small classifier; with `options` as the checkpoint of a run with these options of `labelled`."""
    subject = encoders.loaded("bert", finetuned.TASKS[goal])
    return dataclasses.replace(subject, run=finetuned.run(goal, **options)) if options else subject


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    for goal in ("classification", "tagging", "choice"):
        encoders.folder(folder / goal, "bert", finetuned.TASKS[goal])
    return folder


@contextlib.contextmanager
def piped(content: bytes) -> Iterator[str]:
    """Make standard input of this process a pipe with some content, and return the name of the pipe."""
    reader, writer = os.pipe()
    before = os.dup(0)
    thread = threading.Thread(target=lambda: (os.write(writer, content), os.close(writer)))
    try:
        os.dup2(reader, 0)
        thread.start()
        yield f"/dev/fd/{reader}"
    finally:
        thread.join()
        os.dup2(before, 0)
        os.close(before)
        os.close(reader)


# Line 1 of a table is its header. `expected` has (line, part of the error or None) for each record.
FILES: dict[str, tuple[bytes, list[tuple[int, str | None]], int]] = {
    "a.txt": (
        f"the whale\n\n\nold men\n{LONG}\n\t\n\xff\n a ship\n\n".encode("latin-1"),
        [(1, None), (4, None), (5, "62 tokens"), (7, "not UTF-8"), (8, None)],
        4,
    ),
    "a.jsonl": (
        f'{{"id": 7, "text": "the whale"}}\n\n{{"text": \n{{"text": "{LONG}"}}\n\n[]\n{{"txt": 1}}\n{{"text": "men"}}'.encode(),
        [(1, None), (3, "invalid JSON"), (4, "62 tokens"), (6, "not an object"), (7, "no column"), (8, None)],
        2,
    ),
    "a.tsv": (
        f"id\ttext\n7\tthe whale\n\n8\n9\t{LONG}\n10\told men\n".encode(),
        [(2, None), (4, "1 columns"), (5, "62 tokens"), (6, None)],
        1,
    ),
    "a.csv": (
        f'id,text\n7,"the\nwhale"\n\n8,{LONG}\n9\n10,old men\n'.encode(),
        [(2, None), (5, "62 tokens"), (6, "1 columns"), (7, None)],
        1,
    ),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("way", ["file", "-", "pipe"])
def test_each_record_has_the_number_of_its_line(name: str, way: str, tmp_path: Path) -> None:
    content, expected, blank = FILES[name]
    form: Any = Path(name).suffix[1:]
    reading = SKIP if form == "txt" or way == "file" else dataclasses.replace(SKIP, format=form)
    with piped(content) as pipe:
        file = {"file": str(put(tmp_path / name, content)), "-": "-", "pipe": pipe}[way]
        predictions = predict(loaded(), files=[file], labelled=reading)
        records = list(predictions)
    assert [record["index"] for record in records] == list(range(len(expected)))
    for record, (line, error) in zip(records, expected, strict=True):
        assert record["line"] == line and ("error" in record) == (error is not None) != ("label" in record), record
        assert error is None or (error in record["error"] and f":{line}: " in record["error"])
    assert records[0].get("id") == {"a.txt": None, "a.jsonl": 7}.get(name, "7")
    errors = [error for _, error in expected if error]
    assert (predictions.count, predictions.errors, predictions.read.blank) == (len(expected), len(errors), blank)
    bad, skipped = predictions.notices()
    assert bad.startswith(f'{len(errors)} of {len(expected)} examples have "error" in place of a prediction; the first: ')
    assert skipped.startswith(f"blank lines skipped: {blank}; ")


@pytest.mark.parametrize("name", FILES)
def test_without_skip_bad_the_first_bad_line_is_named(name: str, tmp_path: Path) -> None:
    content, expected, _ = FILES[name]
    lines = [line for line, error in expected if error]
    with pytest.raises(BadInput, match=f"{name}:({'|'.join(map(str, lines))}): "):
        list(predict(loaded(), files=[str(put(tmp_path / name, content))]))


def test_a_line_of_any_length_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is longer than a line may be is read in parts, which are not counted as lines."""
    monkeypatch.setattr(text_files, "LONGEST_LINE", 30)
    file = put(tmp_path / "a.txt", "the whale\n" + "x" * 100 + "\n" + "y" * 31 + "\nold men")
    records = list(predict(loaded(), files=[str(file)], labelled=SKIP))
    assert [(record["line"], "error" in record) for record in records] == [(1, False), (2, True), (3, True), (4, False)]


def test_lines_are_read_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that never ends is read no further than the chunk that is predicted, and the buffers of pipe and reader."""
    monkeypatch.setattr(predictor, "CHUNK", 4)
    reader, writer = os.pipe()
    written = []

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), open(writer, "wb", buffering=0) as stream:
            for number in itertools.count(1):
                stream.write(b"the whale" + b" " * 500 + b"\n")
                written.append(number)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        records = predict(loaded(), files=[f"/dev/fd/{reader}"], batch=4)
        assert [record["line"] for record in itertools.islice(records, 6)] == [1, 2, 3, 4, 5, 6]
        del records
    finally:
        os.close(reader)
        thread.join()
    # 64 KiB of the pipe, 128 KiB at most of the reader, and the lines of two chunks, all of 510 bytes. A reader of all lines
    # would not have come here.
    assert 8 <= len(written) < 500


def test_several_files_are_named_in_the_records(tmp_path: Path) -> None:
    first, second = put(tmp_path / "a.txt", "the whale\n\nold men\n"), put(tmp_path / "b.jsonl", [{"text": "a ship", "id": "x"}])
    records = list(predict(loaded(), files=[str(first), str(second)]))
    places = [tuple(record.get(name) for name in ("index", "file", "line", "id")) for record in records]
    assert places == [(0, str(first), 1, None), (1, str(first), 3, None), (2, str(second), 1, "x")]
    assert "file" not in next(iter(predict(loaded(), files=[str(first)])))
    assert next(iter(predict(loaded(), files=[str(tmp_path)])))["file"] == str(first)


@pytest.mark.parametrize("goal", ["classification", "tagging", "choice"])
@pytest.mark.parametrize("form", ["tsv", "csv"])
def test_a_table_has_what_the_lines_of_json_have(
    goal: str, form: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    rows: list[dict[str, Any]] = {
        "classification": [{"text": 'a "whale", and\nmen', "id": 3}, {"text": LONG}, {"text": "ship"}],
        "tagging": [{"tokens": ["the", "whale"]}, {"tokens": LONG.split()}],
        "choice": [{"article": "the", "question": "x", "options": ["a", "b"]}],
    }[goal]
    put(place / f"{goal}.jsonl", rows)
    options = ("predict", goal, "--files", f"{goal}.jsonl", "--with-text", "--labelled.skip-bad")
    lines = call(capsys, *options, "--json").stdout
    assert lines == call(capsys, *options, "--format", "jsonl").stdout
    printed = call(capsys, *options, "--format", form)
    out = place / f"out.{form}"
    assert call(capsys, *options, "--out", str(out)).stdout == f"{out}: {len(rows)} predictions\n"
    assert out.read_text() == printed.stdout
    if form == "csv":
        names, *table = csv.reader(printed.stdout.splitlines(keepends=True))
    else:
        names, *table = (line.split("\t") for line in printed.stdout.splitlines())
    assert len(table) == len(rows)
    for record, cells in zip(map(json.loads, lines.splitlines()), table, strict=True):
        flat = {}
        for name, value in record.items():
            flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        assert flat.keys() <= set(names), "a table has every key"
        for name, cell in zip(names, cells, strict=True):
            value = flat.get(name)
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else "" if value is None else str(value)
            assert cell == (text if form == "csv" else text.replace("\n", "\\n"))


MESSAGES = {
    "classification": "no input: write texts in quotes after the model, or --files FILE; --files - is standard input",
    "classification -": "the text -: write --files - to read standard input",
    "classification x --out a.csv --format tsv": "--out a.csv: --format tsv is another format; name one of the two",
    "classification x --format csv --json": "--json : --format csv is another format; name one of the two",
    "classification --files json.txt": "json.txt: its first line is a JSON object; choose --labelled.format jsonl",
    "classification --files - --processes 2": "--processes 2: only one process can read standard input",
    "choice --files a.txt": "a.txt",
}


def test_what_is_wrong_with_the_input_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    put(place / "json.txt", [{"text": "the whale"}])
    put(place / "a.txt", "the whale\n")
    for line, message in MESSAGES.items():
        ended = call(capsys, "predict", *line.split())
        assert (ended.code, ended.stdout) == (2, "") and ended.stderr.startswith(f"zoo: {message}"), (line, ended)
    fixed = call(capsys, "predict", "classification", "--files", "json.txt", "--labelled.format", "jsonl")
    assert fixed.code == 0 and json.loads(fixed.stdout)["line"] == 1


def test_the_options_of_a_run_are_used_unless_they_are_named(tmp_path: Path) -> None:
    """A run without headers stays one when --labelled.text is named; an option can be set back to its default."""
    run = loaded(header=False)
    bare, headed = put(tmp_path / "a.tsv", "7\tthe whale\n"), put(tmp_path / "b.tsv", "id\tsaid\n7\tthe whale\n")
    (expected,) = predict(loaded(), texts=["the whale"])
    (record,) = predict(run, files=[str(bare)], labelled=Labelled(text="2"))
    assert record["probabilities"] == pytest.approx(expected["probabilities"], rel=1e-5)
    # The advice of one message leads to a command that works.
    with pytest.raises(BadInput, match=r'no column "said"; it has "1", "2".*or add --labelled.header if the first line'):
        list(predict(run, files=[str(headed)], labelled=Labelled(text="said")))
    words = ["--labelled.text", "said", "--labelled.header"]
    (record,) = predict(run, files=[str(headed)], labelled=Labelled(text="said", named=named_fields(words, "labelled")))
    assert (record["line"], record["id"]) == (2, "7")
    with pytest.raises(BadInput, match=r"no examples after its first line.*add --labelled\.no-header"):
        list(predict(loaded(), files=[str(bare)], labelled=Labelled(text="2")))


def test_named_options_are_those_of_the_command_line() -> None:
    words = ["--labelled.no-header", "--labelled.skip_bad", "--labelled.text=--labelled.pair", "x", "--labelled.multi-label"]
    assert named_fields(words, "labelled") == ("header", "multi_label", "skip_bad", "text")
    run = loaded(header=False, text="1", encoding="latin-1", truncate=True)
    chosen = Labelled(named=("truncate", "encoding"))
    reading = run_for(run, "classification", Settings(labelled=chosen)).options.labelled
    assert (reading.header, reading.text, reading.encoding, reading.truncate) == (False, "1", "utf-8", False)
    assert run_for(run, "classification", Settings()).options.labelled.truncate
    assert tuple(LABELS) == run_for(run, "classification", Settings()).model.labels
