"""`zoo data inspect` shows what is trained on, and no text can control the terminal."""

import io
import json
import re
import shutil
import types

import numpy as np
import pytest
from rich.console import Console

from tests.support import commands, tiny
from train.config.data_options import CausalData
from train.data.text_files import Document
from train.inputs import inspect_rows, run_inputs
from train.objectives import causal
from train.rows.batches import Batches
from train.rows.lm_rows import LmRow
from train.run.run_dir import RunDir
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.runtime import caches

WORDS = "the cat sat on the mat and saw a dog run far away from it "
NASTY = "\x1b[31mred\x07 e\u0301 \u202e\u200b 日本語 🐳 naïve\ttab\r" + "-" * 200 + "\n"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "one.txt").write_text((WORDS + "\n") * 8 + NASTY * 2)
    lines = [json.dumps({"text": f"document {i}: " + WORDS * (1 + i % 3)}) for i in range(40)]
    (tmp_path / "two.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "one.txt"), str(tmp_path / "two.jsonl")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def a_run(tmp_path, **data):
    return tiny.run(data=CausalData(length=32, batch=4, **data), out=str(tmp_path / "runs"))


def shown(capsys, run, count=3, first=0):
    inspect_rows.inspect(run, RunDir.of(run), count=count, first=first)
    return capsys.readouterr().out


def cells(text):
    """The tokens of all lines that begin with a position, as they are shown."""
    lines = [match[1] for line in text.splitlines() if (match := re.fullmatch(r" *\d+ │(.*)│", line))]
    return [cell for line in lines for cell in line.split("│")]


def masked(rng, row: LmRow, length):
    """As BERT does: some tokens are hidden, and only those are predicted; unused places have weight 0."""
    arrays = causal.build(rng, row, length)
    tokens, at = arrays["tokens"].copy(), np.zeros(8, np.int32)
    at[:4] = np.sort(rng.choice(int(arrays["weights"].sum()), 4, replace=False))
    targets, weights = tokens[at], np.float32([1, 1, 0.5, 1, 0, 0, 0, 0])
    tokens[at[:4]] = ord("#")
    return {**arrays, "tokens": tokens, "predict_at": at, "targets": targets, "weights": weights}


def trained_on(monkeypatch, build):
    """Let runs have an objective whose rows are made by `build`."""
    goal = types.SimpleNamespace(DATA="text", builder=lambda run, tokenizer, counts: build)
    monkeypatch.setattr(run_inputs, "objective", lambda name: goal)


@pytest.mark.parametrize("first", [0, 41])
def test_inspected_rows_are_those_of_training(tmp_path, files, capsys, monkeypatch, first):
    monkeypatch.setenv("COLUMNS", "300")
    run = a_run(tmp_path, paths=files, weights=(0.5, 0.5))
    out = shown(capsys, run, count=5, first=first)
    text = run_inputs.read_inputs(run, RunDir.of(run), caches.cache_dir() / "text")
    batches = Batches(text.rows, causal.build, run.seed, 4, np.arange(4))
    numbers = np.concatenate([batches.rows_of(step) for step in range(13)])
    titles = re.findall(r"^Example (\d+): step (\d+), place (\d+); row (\d+) of \d+\n  from (.*)$", out, re.MULTILINE)
    assert [tuple(map(int, title[:4])) for title in titles] == [(i, i // 4, i % 4, numbers[i]) for i in range(first, first + 5)]
    for title, example in zip(titles, out.split("\nExample ")[1:], strict=True):
        component, number = text.rows.locate(int(title[3]))
        assert title[4] == files[component]
        row = text.rows.components[component].rows.row(number)
        ids = causal.build(np.random.default_rng(), row, 32)
        last = sum(len(piece.ids) for piece in row.pieces)
        expected = [text.tokenizer.decode([number]) for number in ids["tokens"][:last].tolist()]
        found = cells(f" {example}")
        assert found[-1].endswith(f"→{text.tokenizer.decode([int(ids['targets'][last - 1])])}".replace("\n", "↵"))
        if all(part.isprintable() or part == "\n" for part in expected):
            # A token on the edge of a line may be cut; together they are the text.
            assert "".join(found).rpartition("→")[0] == "".join(expected).replace("\n", "↵")


def test_uncounted_tokens_are_marked_and_targets_are_shown(tmp_path, files, capsys, monkeypatch):
    trained_on(monkeypatch, masked)
    out = shown(capsys, a_run(tmp_path, paths=(files[1],), rows="packed"), count=9)
    assert "padding" in out
    # A long document comes in several pieces.
    pieces = [Document("a", "x", last=False), Document("a", "y"), Document("b", "z")]
    assert inspect_rows._names(pieces, {0, 1}) == {0: "a", 1: "b"}
    for example in out.split("\nExample ")[1:]:
        named = re.findall(r"^  segment (\d+): document (\d+), two.jsonl:(\d+): tokens", example, re.MULTILINE)
        assert [(int(segment), int(line)) for segment, _, line in named] == [
            (place, int(number) + 1) for place, (_, number, _) in enumerate(named, 1)
        ]
        assert named and len(re.findall(r"^ +0 │", example, re.MULTILINE)) == len(named)
        found = cells(f" {example}")
        depth, counted = 0, []
        for cell in found:
            depth += cell.count("«")
            counted += [cell] * (depth == 0)
            depth -= cell.count("»")
            assert depth in (0, 1)
        assert depth == 0 and len(counted) == 4
        assert all(re.fullmatch(r"\S→.+", cell) for cell in counted)
        assert [cell.endswith("*0.5") for cell in counted] == [False, False, True, False]
    assert "; 36 of them counted, " in out


@pytest.mark.full
def test_no_text_controls_the_terminal(tmp_path, files, capsys, monkeypatch):
    run = a_run(tmp_path, paths=(files[0],), valid_paths=(files[1],))
    for columns in ("20", "80"):
        monkeypatch.setenv("COLUMNS", columns)
        out = shown(capsys, run, count=15)
        assert {character for character in out if not character.isprintable()} == {"\n"}
    assert all(escape in out for escape in ("\\x1b", "\\x07", "\\t", "\\r"))
    # A combining character at the beginning of a token would be drawn over the bar before it.
    assert (
        inspect_rows._printable("\u202eé\u200be\u0301") == "\\u202eé\\u200be\u0301"
        and inspect_rows._printable("\u0301e") == "\\u0301e"
    )


@pytest.mark.parametrize(
    ("task", "labels", "shown"),
    [
        ("sequence", np.int32([1]), "labels: yes"),
        ("sequence", np.float32([0.5]), "labels: 0.5"),
        ("span", np.int32([3, 5]), "labels: 3 5"),
        ("tokens", np.int32([-100, 0, 1]), "b│c→no│d→yes│"),
    ],
)
def test_labels_are_shown_by_name(task, labels, shown):
    tokenizer = Tokenizer.train([WORDS * 20], 300)
    tokens = np.concatenate([tokenizer.encode(letter) for letter in "bcd"]).astype(np.int32)
    example = Batch(tokens=tokens, segments=np.ones_like(tokens), labels=labels)
    model = types.SimpleNamespace(task=task, labels=("no", "yes"), multi_label=False)
    stream = io.StringIO()
    console = Console(file=stream, width=80, highlight=False, markup=False, emoji=False)
    inspect_rows._show(console, tokenizer, example, LmRow((), 0, False), {}, model)
    assert shown in stream.getvalue() and "-100" not in stream.getvalue()


def test_several_labels_are_shown_by_name():
    model = types.SimpleNamespace(task="sequence", labels=("a", "b", "c"), multi_label=True)
    assert [inspect_rows._labels(np.int32(row), model) for row in ([1, 0, 1], [0, 0, 0])] == ["a, c", "none"]


def test_every_field_of_a_batch_is_shown():
    """An encoder side, types, ranks and labels, of objectives that do not come from this text."""
    tokenizer = Tokenizer.train([WORDS * 20], 300)
    source, target = (tokenizer.encode(text).astype(np.int32) for text in ("the cat sat", "a dog run"))
    example = Batch(
        tokens=target,
        types=np.repeat(np.int32([0, 1]), [2, len(target) - 2]),
        targets=target,
        order=np.arange(len(target), dtype=np.int32)[::-1].copy(),
        labels=np.int32(7),
        source=Batch(tokens=np.append(source, np.int32([0, 0, 0]))),
    )
    stream = io.StringIO()
    console = Console(file=stream, width=80, highlight=False, markup=False, emoji=False)
    inspect_rows._show(console, tokenizer, example, LmRow((), 0, False), {})
    parts = ["encoder side", "the│ cat│ sat", "padding: 3", "decoder side"]
    parts += ["type 0", f"#{len(target) - 1}→", "type 1", "labels: 7"]
    places = [stream.getvalue().find(part) for part in parts]
    assert -1 not in places and places == sorted(places) and "«" not in stream.getvalue()


@pytest.mark.planted(3)
def test_a_run_shows_a_file_that_its_config_names_only_if_it_was_trained_on_it(tmp_path, monkeypatch, capsys):
    commands.finished(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private.txt").write_text("a secret of the reader, " * 200)
    inspect = ("data", "inspect", "runs/done", "--rows", "1")
    assert "whale" in commands.call(capsys, *inspect).stdout.replace("│", "")
    config = tmp_path / "runs/done/config.json"
    config.write_text(config.read_text().replace('"book.txt"', '"private.txt"'))
    refused = commands.call(capsys, *inspect)
    assert refused.code == 2 and "secret" not in refused.stdout + refused.stderr
    (line,) = refused.stderr.splitlines()
    assert "runs/done: it was trained on other data, or in another way, than what its config.json names here; name" in line
    for part in ("checkpoints", "best"):
        shutil.rmtree(tmp_path / "runs/done" / part, ignore_errors=True)
    refused = commands.call(capsys, *inspect)
    assert refused.code == 2 and "it has no checkpoint that shows what its config.json names here" in refused.stderr
    assert "secret" not in refused.stdout + refused.stderr
    named = commands.call(capsys, *inspect, "--data.paths", "private.txt")
    assert named.code == 0 and "secret" in named.stdout.replace("│", "")
