"""Tokens on disk and the plan of the rows: every token counted once, damage found, races harmless."""

import json
import logging
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train import rows as module
from train.config import Data
from train.corpus import Document
from train.objectives import causal, objective, objectives
from train.rows import Tokens, packed, prepare, training_rows, windows
from train.tokenizer import Tokenizer
from zoo.errors import BadInput

DOCUMENTS = [Document("a", "Call me Ishmael."), Document("b", "né \U0001f433"), Document("c", "x" * 50)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([document.text for document in DOCUMENTS], 270)


def stream(lengths, end_of_text=0):
    """Tokens of documents of these lengths, end-of-text included; every other id occurs once."""
    ids = np.arange(1, sum(lengths) + 1, dtype=np.uint32)
    offsets = np.cumsum([0, *lengths])
    ids[offsets[1:] - 1] = end_of_text
    return Tokens(ids, offsets, np.array(lengths), end_of_text, "tokens")


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=30)


def counted(rows):
    """How often each target of the stream is counted, and checks that hold for every row."""
    times = np.zeros(len(rows.tokens.ids), int)
    for number in range(len(rows)):
        row = rows.row(number)
        seen = 0
        for piece in row.pieces:
            first = rows.tokens.offsets[piece.document] + piece.start
            assert 0 < len(piece.ids) <= rows.length
            assert first + len(piece.ids) <= rows.tokens.offsets[piece.document + 1]
            assert (piece.ids == rows.tokens.ids[first : first + len(piece.ids)]).all()
            assert piece.before == (rows.tokens.ids[first - 1] if piece.start else rows.tokens.end_of_text)
            times[first + max(row.context - seen, 0) : first + len(piece.ids)] += 1
            seen += len(piece.ids)
        assert row.context < seen <= rows.length
    return times


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 40), st.data())
def test_windows_count_every_target_once_at_any_stride(lengths, length, data):
    tokens = stream(lengths)
    stride = data.draw(st.integers(1, length))
    rows = windows(tokens, length, stride)
    assert (counted(rows) == 1).all()
    assert rows.targets == sum(lengths)
    for number in range(len(rows)):
        row = rows.row(number)
        targets = np.concatenate([piece.ids for piece in row.pieces])
        assert (targets == tokens.ids[number * stride :][: len(targets)]).all()
        assert len(targets) == length or number == len(rows) - 1
        assert row.context == (length - stride if number else 0)
        assert not row.isolated


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 40))
def test_packing_counts_every_target_once_first_fit(lengths, length):
    rows = packed(stream(lengths), length)
    assert (counted(rows) == 1).all()
    room = []
    for document, size in enumerate(lengths):
        for start in range(0, size, length):
            need = min(length, size - start)
            fits = [number for number, left in enumerate(room) if left >= need]
            number = fits[0] if fits else len(room)
            room[number:] = room[number:] or [length]
            room[number] -= need
            assert (document, start) in [(piece.document, piece.start) for piece in rows.row(number).pieces]
    assert len(rows) == len(room)
    assert rows.isolated


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(1, 40), st.booleans())
def test_a_sample_is_rows_of_the_plan_evenly_spread(lengths, length, count, isolated):
    rows = packed(stream(lengths), length) if isolated else windows(stream(lengths), length, (length + 1) // 2)
    sample = rows.spread(count)
    assert len(sample) == min(count, len(rows))
    every = [repr(rows.row(number)) for number in range(len(rows))]
    chosen = [every.index(repr(sample.row(number))) for number in range(len(sample))]
    assert chosen[0] == 0
    assert chosen[-1] == (len(rows) - 1 if len(sample) > 1 else 0)
    steps = np.diff(chosen)
    assert len(steps) == 0 or 0 < steps.max() <= steps.min() + 1
    assert sample.targets == counted(sample).sum()
    assert (sample.fingerprint == rows.fingerprint) == (count >= len(rows))


def test_the_fingerprint_follows_everything_a_row_depends_on():
    plans = [
        windows(stream([5, 9]), 4),
        windows(stream([5, 9]), 5),
        windows(stream([5, 9]), 5, 2),
        windows(stream([9, 5]), 5),
        packed(stream([5, 9]), 4),
        packed(stream([5, 9]), 5),
        windows(Tokens(*[getattr(stream([5, 9]), name) for name in ("ids", "offsets", "text_bytes")], 0, "others"), 4),
    ]
    assert len({rows.fingerprint for rows in plans}) == len(plans)
    assert windows(stream([5, 9]), 4).fingerprint == plans[0].fingerprint


def test_a_stride_longer_than_a_row_would_lose_targets():
    with pytest.raises(ValueError, match="stride 5"):
        windows(stream([20]), 4, 5)


def test_training_rows_drop_nothing_and_need_a_whole_row():
    tokens = stream([5, 9])
    assert len(training_rows(tokens, Data(length=4))) == 4
    assert training_rows(tokens, Data(length=14, rows="packed")).isolated
    with pytest.raises(BadInput, match=r"--data.length 15: the training text has 14 tokens.*at most 14"):
        training_rows(tokens, Data(length=15))


def test_causal_rows_of_a_window():
    rows = windows(stream([3, 4], end_of_text=99), 4, 2)
    rng = np.random.default_rng(0)
    first = causal.build(rng, rows.row(0), 4)
    assert first["tokens"].tolist() == [99, 1, 2, 99]
    assert first["targets"].tolist() == [1, 2, 99, 4]
    assert first["weights"].tolist() == [1, 1, 1, 1]
    assert set(first) == {"tokens", "targets", "weights"}
    last = causal.build(rng, rows.row(2), 4)
    assert last["tokens"].tolist() == [4, 5, 6, 0]
    assert last["targets"].tolist() == [5, 6, 99, 0]
    assert last["weights"].tolist() == [0, 0, 1, 0]
    assert {array.dtype.name for array in last.values()} == {"int32", "float32"}


def test_causal_rows_of_packed_documents():
    rows = packed(stream([2, 6, 1], end_of_text=99), 5)
    row = causal.build(np.random.default_rng(0), rows.row(0), 5)
    assert row["tokens"].tolist() == [99, 1, 7, 99, 0]
    assert row["targets"].tolist() == [1, 99, 99, 99, 0]
    assert row["segments"].tolist() == [1, 1, 2, 3, 0]
    assert row["positions"].tolist() == [0, 1, 0, 0, 0]
    assert row["weights"].tolist() == [1, 1, 1, 1, 0]
    assert causal.build(np.random.default_rng(0), rows.row(1), 5)["tokens"].tolist() == [99, 3, 4, 5, 6]


def test_objectives_are_the_files_of_the_folder():
    assert objectives() == ["causal"]
    assert objective("causal") is causal


def test_prepared_tokens_are_the_texts(tokenizer, tmp_path):
    tokens = prepare(DOCUMENTS, tokenizer, tmp_path / "cache")
    assert tokens.ids.dtype == np.uint16
    for number, document in enumerate(DOCUMENTS):
        ids = tokens.ids[tokens.offsets[number] : tokens.offsets[number + 1]]
        assert tokenizer.decode(ids) == document.text + "<|endoftext|>"
        assert tokens.text_bytes[number] == len(document.text.encode())
    assert tokens.offsets[-1] == len(tokens.ids)
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name == tokens.fingerprint


def test_a_large_vocabulary_takes_wider_ids(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "vocab_size", (1 << 16) + 1)
    assert prepare(DOCUMENTS, tokenizer, tmp_path).ids.dtype == np.uint32


def test_the_second_preparation_reads_the_first(tokenizer, tmp_path, monkeypatch):
    first = prepare(DOCUMENTS, tokenizer, tmp_path)
    monkeypatch.setattr(module, "_write", None)
    again = prepare(list(DOCUMENTS), tokenizer, tmp_path)
    assert (again.ids == first.ids).all()
    assert again.fingerprint == first.fingerprint


def test_other_texts_orders_boundaries_and_tokenizers_are_other_tokens(tokenizer, tmp_path):
    a, b, c = DOCUMENTS
    moved = [Document("a", a.text + b.text[0]), Document("b", b.text[1:]), c]
    same = [Document("renamed", a.text), b, c]
    other = Tokenizer.train(["something else entirely"], 260)
    made = [prepare(documents, tokenizer, tmp_path) for documents in (DOCUMENTS, [b, a, c], moved, [a, b], same)]
    made.append(prepare(DOCUMENTS, other, tmp_path))
    assert len({tokens.fingerprint for tokens in made}) == 5
    assert made[4].fingerprint == made[0].fingerprint


def _cut(file):
    file.write_bytes(file.read_bytes()[:-2])


def _flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", [module.HEADER, module.IDS, module.OFFSETS, module.TEXT_BYTES])
@pytest.mark.parametrize("damage", [_cut, _flip, os.unlink])
def test_damage_is_found_said_and_mended(tokenizer, tmp_path, caplog, name, damage):
    before = prepare(DOCUMENTS, tokenizer, tmp_path)
    ids = before.ids.copy()
    folder = tmp_path / before.fingerprint
    damage(folder / name)
    with caplog.at_level(logging.WARNING):
        after = prepare(DOCUMENTS, tokenizer, tmp_path)
    assert "tokenized again" in caplog.text
    assert (after.ids == ids).all()
    caplog.clear()
    prepare(DOCUMENTS, tokenizer, tmp_path)
    assert not caplog.text
    assert [file.name for file in tmp_path.iterdir()] == [before.fingerprint]


def test_a_folder_of_another_text_is_not_taken(tokenizer, tmp_path, caplog):
    other = prepare(DOCUMENTS[:1], tokenizer, tmp_path / "a")
    mine = prepare(DOCUMENTS, tokenizer, tmp_path / "b")
    (tmp_path / "a" / other.fingerprint).rename(tmp_path / "a" / mine.fingerprint)
    assert (prepare(DOCUMENTS, tokenizer, tmp_path / "a").ids == mine.ids).all()
    assert "another text" in caplog.text


def test_a_file_that_changes_while_it_is_read_is_refused(tokenizer, tmp_path):
    class Changing:
        reads = 0

        def __iter__(self):
            self.reads += 1
            return iter(DOCUMENTS[: self.reads])

    with pytest.raises(BadInput, match="changed while it was being read"):
        prepare(Changing(), tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_refused(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match="no folder to keep tokens in"):
        prepare(DOCUMENTS, tokenizer, tmp_path / "file" / "cache")
    # Written to a device that is always full.
    monkeypatch.setattr(module, "IDS", "/dev/full")
    with pytest.raises(BadInput, match="cannot be kept there"):
        prepare(DOCUMENTS * 1000, tokenizer, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


CHILD = """
import sys, time
from train import rows
from train.corpus import Document
from train.tokenizer import Tokenizer
texts = [Document("", "word %d " % i * 200) for i in range(200)]
tokenizer = Tokenizer.load(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
tokens = rows.prepare(texts, tokenizer, sys.argv[2])
print(tokens.fingerprint, int(tokens.ids.sum(dtype=int)), flush=True)
"""


def _start(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    argv = [sys.executable, "-c", CHILD, str(tmp_path), str(tmp_path / "cache")]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_that_race_agree(tokenizer, tmp_path):
    processes = [_start(tokenizer, tmp_path) for _ in range(3)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(said) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_killed_preparation_is_not_taken_for_whole(tokenizer, tmp_path):
    process = _start(tokenizer, tmp_path)
    process.stdin.write("\n")
    process.stdin.flush()
    cache = tmp_path / "cache"
    while not (cache.exists() and list(cache.iterdir())):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = [file.name for file in cache.iterdir()]
    assert [name for name in left if name.startswith(".preparing-")] == left
    again = _start(tokenizer, tmp_path)
    said, _ = again.communicate("\n", timeout=60)
    assert said.split()[0] in [file.name for file in cache.iterdir()]


def test_a_damaged_folder_published_meanwhile_is_replaced(tokenizer, tmp_path, monkeypatch):
    """Another process puts a folder in the way while we write; a whole one stays, a damaged one goes."""
    done = prepare(DOCUMENTS, tokenizer, tmp_path / "done")
    write, whole = module._write, tmp_path / "done" / done.fingerprint
    for cache, header in (("whole", (whole / module.HEADER).read_text()), ("damaged", "{}")):
        target = tmp_path / cache / done.fingerprint

        def intrude(*arguments, target=target, header=header):
            write(*arguments)
            target.mkdir(parents=True)
            for file in whole.iterdir():
                (target / file.name).write_bytes(file.read_bytes())
            (target / module.HEADER).write_text(header)

        monkeypatch.setattr(module, "_write", intrude)
        tokens = prepare(DOCUMENTS, tokenizer, tmp_path / cache)
        assert (tokens.ids == done.ids).all()
        assert json.loads((target / module.HEADER).read_text())["fingerprint"] == done.fingerprint
        assert len(list((tmp_path / cache).iterdir())) == 1
