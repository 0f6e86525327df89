"""--json: one JSON document on standard output and nothing else there, with what the text says; `zoo train` writes its rows."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.commands import TINY, assert_refused, call, finished, in_folder, write_gpt2
from train.run.console import Console
from train.run.metrics_file import train_row
from zoo.attention import attention
from zoo.json_text import json_value, print_json


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("place")
    finished(folder)
    write_gpt2(folder)
    with in_folder(folder):
        yield folder


def strict(text: str) -> Any:
    """Parse JSON by RFC 8259; Python's parser also takes NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def document(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    ended = call(capsys, *argv, "--json")
    assert ended.code == 0, ended
    assert all(line.startswith("! ") for line in ended.stderr.splitlines()), ended.stderr
    return strict(ended.stdout)


def numbers_in(folder: Path) -> int:
    """Return the number of parameters in the safetensors files of a folder."""
    return sum(array.size for file in folder.glob("*.safetensors") for array in load_file(file).values())


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    facts = document(capsys, "doctor")
    assert facts["problems"] == [] and facts["platform"] == "cpu" and facts["auto"] == attention.describe_auto()
    assert {row["implementation"]: row["usable"] for row in facts["attention"]} == {
        name: "cpu" in row.platforms for name, row in attention.IMPLEMENTATIONS.items()
    }
    assert facts["cpus"] == os.cpu_count() and facts["versions"]["numpy"] == np.__version__
    assert all(isinstance(facts[name], int) for name in ("slices", "host_memory", "cache_size"))


def test_data_inspect_prints_the_arrays_of_training(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = (
        "data",
        "inspect",
        "gpt-nano",
        *TINY[: TINY.index("--steps")],
        "--data.paths",
        "book.txt",
        "--rows",
        "2",
        "--first",
        "3",
    )
    found = document(capsys, *argv)
    assert [example["example"] for example in found["examples"]] == [3, 4]
    for example in found["examples"]:
        assert len(example["text"]) == len(example["tokens"]) and example["documents"][0]["name"] == "book.txt"
        kept = np.array(example["weights"][:-1]) > 0
        assert kept.any() and np.array_equal(np.array(example["targets"])[:-1][kept], np.array(example["tokens"])[1:][kept])
    text = call(capsys, *argv).stdout
    assert all(f"Example {example['example']}: step {example['step']}, " in text for example in found["examples"])
    assert f"{found['tokens']} tokens" in text and f"; {found['predictions']} of them counted" in text


def test_import_and_export(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = document(capsys, "import", "gpt2", "--explain")["tensors"]
    stored = {name: list(array.shape) for name, array in load_file(place / "gpt2" / "model.safetensors").items()}
    shapes = {row["published"]: row["shape"] for row in tensors}
    assert len(shapes) > 10 and all(
        stored.get(name, stored.get(f"transformer.{name}")) == shape for name, shape in shapes.items()
    )
    imported = document(capsys, "import", "gpt2", "--name", "small")
    assert imported["folder"] == "models/small" and sorted(os.listdir("models/small")) == imported["files"]
    assert imported["parameters"] == numbers_in(Path("models/small")) and imported["family"] == "gpt"
    written = document(capsys, "export", "runs/done", "out")
    assert (written["folder"], written["form"], written["step"], written["address"]) == ("out", "transformers", 2, None)
    assert sorted(os.listdir("out")) == written["files"] and written["parameters"] == numbers_in(Path("out"))


def test_export_of_another_form(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf")
    gguf = document(capsys, "export", "runs/done", "gguf", "--gguf")
    assert (gguf["form"], gguf["files"], gguf["step"]) == ("gguf", sorted(os.listdir("gguf")), 2)


def test_compare(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = json.loads(Path("runs/done/scores.json").read_text())
    (row,) = document(capsys, "compare", "runs/done")["rows"]
    assert row["runs"] == ["runs/done"] and row["scores"]["loss"]["values"] == [scores["loss"]]


def test_train_writes_its_rows_and_nothing_else(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows are the lines of metrics.jsonl, in its order; a run that is over has no more of them."""
    argv = ("train", "gpt-nano", *TINY, "--name", "rows", "--log.every", "1", "--json")
    ended = call(capsys, *argv)
    assert ended.code == 0 and ended.stdout == Path("runs/rows/metrics.jsonl").read_text()
    rows = [strict(line) for line in ended.stdout.splitlines()]
    assert [(row["kind"], row["step"]) for row in rows if row["kind"] == "train"] == [("train", 1), ("train", 2)]
    assert re.search("^  model +gpt", ended.stderr, re.MULTILINE) and "runs/rows" in ended.stderr
    again = call(capsys, *argv)
    assert (again.code, again.stdout) == (0, "") and "runs/rows" in again.stderr


@pytest.mark.planted
def test_errors_stay_one_line_with_code_2(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "doctor": (("doctor", "--json", "--devices", "-1"), "--devices -1: choose 0"),
        "inspect": (("data", "inspect", "gpt-nano", "--json", "--rows", "0"), "--rows 0: choose 1 or more rows"),
        "import": (("import", "gpt2", "--json", "--name", "done", "--out", "runs"), ".*runs/done"),
        "export": (("export", "runs/done", "runs", "--json"), ".*runs"),
        "compare": (("compare", "runs/none", "--json"), "runs/none"),
        "train": (("train", "gpt-nano", *TINY, "--json", "--check"), "--json: --check trains nothing, so there are no rows"),
        "lr": (("train", "gpt-nano", *TINY, "--json", "--optim.lr", "-1"), "--optim.lr"),
    }
    assert_refused(capsys, place, cases)


def test_numbers_that_json_lacks_become_strings(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(
        {"a": [float("nan"), np.float32("inf"), -np.inf, 1.5], "b": np.arange(4).reshape(2, 2), "c": Path("x/y"), "d": None}
    )
    parsed = strict(capsys.readouterr().out)
    assert parsed == {"a": ["NaN", "Infinity", "-Infinity", 1.5], "b": [[0, 1], [2, 3]], "c": "x/y", "d": None}
    assert json_value((np.int32(3), True)) == [3, True]


def test_a_lost_output_ends_the_rows_and_not_the_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of the rows has closed the pipe: one line on stderr says so, once, and the progress goes on there."""
    read, write = os.pipe()
    os.close(read)
    row = train_row(step=1, loss=1.0, grad_norm=1.0, lr=0.1, tokens=8, skipped=0, seconds=1.0, tokens_per_s=8.0, mfu=None)
    with open(write, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        with Console(steps=2, as_json=True) as console:
            console.row(row)
            console.row({**row, "step": 2})
    said = capsys.readouterr().err
    assert said.count("standard output is lost (Broken pipe); the run continues without it") == 1
    assert "1/2" in said and "2/2" in said
