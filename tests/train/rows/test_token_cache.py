"""Token ids of texts on disk: damage is noticed, and kills and races change nothing."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.processes import ROOT
from train.config.data_options import TextData
from train.data import chunking
from train.data.corpus import split_corpus
from train.data.text_files import Document
from train.rows import token_cache
from train.rows.token_cache import tokenize_documents
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput

DOCUMENTS = [Document("a", "Call me Ishmael."), Document("b", "né \U0001f433"), Document("c", "x" * 50)]
MANY = [Document("", f"word {i} " * 200) for i in range(200)]
RECORDED = ["204b16c2e5a21743", "6e59c9648e4ea6d3", "18bec866996fb344"]


@contextlib.contextmanager
def small(size=40):
    """Pieces so small that short texts have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "CHUNK", size)
        yield


def same(one, other):
    names = ("ids", "offsets", "text_bytes")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([document.text for document in DOCUMENTS], 270)


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    """The tokens of MANY, made without an interruption."""
    return tokenize_documents(MANY, tokenizer, tmp_path_factory.mktemp("whole"))


def test_tokens_are_those_of_the_texts_and_are_read_from_the_cache(tokenizer, tmp_path, monkeypatch):
    tokens = tokenize_documents(DOCUMENTS, tokenizer, tmp_path / "cache")
    assert tokens.ids.dtype == np.uint16
    for number, document in enumerate(DOCUMENTS):
        ids = tokens.ids[tokens.offsets[number] : tokens.offsets[number + 1]]
        assert tokenizer.decode(ids) == document.text + "<|endoftext|>"
        assert tokens.text_bytes[number] == len(document.text.encode())
    assert tokens.offsets[-1] == len(tokens.ids)
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name == tokens.fingerprint
    monkeypatch.setattr(token_cache, "_write", None)
    again = tokenize_documents(list(DOCUMENTS), tokenizer, tmp_path / "cache")
    assert same(again, tokens) and again.fingerprint == tokens.fingerprint


def test_a_large_vocabulary_takes_wider_ids(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "vocab_size", (1 << 16) + 1)
    assert tokenize_documents(DOCUMENTS, tokenizer, tmp_path).ids.dtype == np.uint32


def test_other_texts_orders_boundaries_and_tokenizers_are_other_tokens(tokenizer, tmp_path):
    a, b, c = DOCUMENTS
    moved = [Document("a", a.text + b.text[0]), Document("b", b.text[1:]), c]
    same = [Document("renamed", a.text), b, c]
    other = Tokenizer.train(["something else entirely"], 260)
    made = [tokenize_documents(documents, tokenizer, tmp_path) for documents in (DOCUMENTS, [b, a, c], moved, [a, b], same)]
    made.append(tokenize_documents(DOCUMENTS, other, tmp_path))
    assert len({tokens.fingerprint for tokens in made}) == 5
    assert made[4].fingerprint == made[0].fingerprint


def _cut(file):
    file.write_bytes(file.read_bytes()[:-2])


def _flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.planted
@pytest.mark.parametrize("name", [token_cache.HEADER, token_cache.IDS, token_cache.OFFSETS, token_cache.TEXT_BYTES])
@pytest.mark.parametrize("damage", [_cut, _flip, os.unlink])
def test_damage_is_noticed_reported_and_repaired(tokenizer, tmp_path, caplog, name, damage):
    before = tokenize_documents(DOCUMENTS, tokenizer, tmp_path)
    ids = before.ids.copy()
    damage(tmp_path / before.fingerprint / name)
    with caplog.at_level(logging.WARNING):
        after = tokenize_documents(DOCUMENTS, tokenizer, tmp_path)
    assert "tokenized again" in caplog.text and (after.ids == ids).all()
    caplog.clear()
    tokenize_documents(DOCUMENTS, tokenizer, tmp_path)
    assert not caplog.text and [file.name for file in tmp_path.iterdir()] == [before.fingerprint]


@pytest.mark.planted
@pytest.mark.parametrize(("key", "value"), [("end_of_text", None), ("end_of_text", 1), ("dtype", "int16"), ("files", [])])
def test_a_header_that_is_wrong_is_noticed(tokenizer, tmp_path, caplog, key, value):
    before = tokenize_documents(DOCUMENTS, tokenizer, tmp_path)
    ids, header = before.ids.copy(), tmp_path / before.fingerprint / token_cache.HEADER
    content = json.loads(header.read_text())
    header.write_text(
        json.dumps({name: x for name, x in content.items() if name != key} if value is None else content | {key: value})
    )
    after = tokenize_documents(DOCUMENTS, tokenizer, tmp_path)
    assert "tokenized again" in caplog.text and (after.ids == ids).all() and after.end_of_text == before.end_of_text


@pytest.mark.planted
def test_a_folder_of_another_text_is_not_used(tokenizer, tmp_path, caplog):
    other = tokenize_documents(DOCUMENTS[:1], tokenizer, tmp_path / "a")
    right = tokenize_documents(DOCUMENTS, tokenizer, tmp_path / "b")
    (tmp_path / "a" / other.fingerprint).rename(tmp_path / "a" / right.fingerprint)
    assert (tokenize_documents(DOCUMENTS, tokenizer, tmp_path / "a").ids == right.ids).all()
    assert "another text" in caplog.text


@pytest.mark.planted
def test_a_file_that_changes_while_it_is_read_is_refused(tokenizer, tmp_path):
    class Changing:
        reads = 0

        def __iter__(self):
            self.reads += 1
            return iter(DOCUMENTS[: self.reads])

    with pytest.raises(BadInput, match="changed while it was being read"):
        tokenize_documents(Changing(), tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_refused(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match=r"cache: tokens cannot be cached there \(Not a directory\)"):
        tokenize_documents(DOCUMENTS, tokenizer, tmp_path / "file" / "cache")

    # Written to a device that is always full.
    def open_full(path):
        return open("/dev/full" if path.name == token_cache.IDS else path, "ab")

    monkeypatch.setattr(token_cache, "open_to_append", open_full)
    with pytest.raises(BadInput, match=r"cannot be cached there \(No space left on device\)"):
        tokenize_documents(DOCUMENTS * 1000, tokenizer, tmp_path)


def test_a_cache_of_another_user_is_not_used(tokenizer, tmp_path, monkeypatch, caplog):
    def hold(folder):
        if folder.is_relative_to(tmp_path):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    real = token_cache._locked_folder
    monkeypatch.setattr(token_cache, "_locked_folder", hold)
    assert same(
        tokenize_documents(DOCUMENTS, tokenizer, tmp_path), tokenize_documents(DOCUMENTS, tokenizer, token_cache._temporary())
    )
    assert "tokens cannot be cached there (Permission denied)" in caplog.text
    assert not list(tmp_path.iterdir())


CHILD = """
import sys
from train.data import chunking
from train.rows.token_cache import tokenize_documents
from train.data.text_files import Document
from train.tokenizers.tokenizer import Tokenizer
chunking.CHUNK = 40
tokenize_documents([Document("", f"word {i} " * 200) for i in range(200)], Tokenizer.load(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.full
def test_processes_that_race_agree(tokenizer, tmp_path, whole):
    cache = tmp_path / "cache"
    tokenizer.save(tmp_path)
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(cache)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait(600) for process in processes] == [0, 0, 0]
    assert [file.name for file in cache.iterdir()] == [whole.fingerprint]


def test_a_killed_preparation_continues_where_it_stopped(tokenizer, tmp_path, whole):
    cache = tmp_path / "cache"
    tokenizer.save(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), str(cache)], cwd=ROOT)
    folder = cache / f".preparing-{whole.fingerprint}"
    while not (folder / token_cache.JOURNAL).exists() or (folder / token_cache.JOURNAL).read_bytes().count(b"\n") < 3:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [file.name for file in cache.iterdir()] == [folder.name]
    seen = []
    with small():
        tokens = tokenize_documents(MANY, tokenizer, cache, lambda *done: seen.append(done))
    assert seen[0][0] > 2 * chunking.GROUP * 40 and seen[-1] == (sum(whole.text_bytes), sum(whole.text_bytes))
    assert same(tokens, whole)
    assert sorted(file.name for file in (cache / whole.fingerprint).iterdir()) == sorted([*token_cache.FILES, token_cache.HEADER])


def interrupted(tokenizer, cache, parts=12):
    """A preparation of MANY stopped after some parts; its folder."""

    def stop(done, total):
        if next(left, None) is None:
            raise KeyboardInterrupt

    left = iter(range(parts))
    with small(), pytest.raises(KeyboardInterrupt):
        tokenize_documents(MANY, tokenizer, cache, stop)
    (folder,) = cache.iterdir()
    assert folder.name.startswith(".preparing-")
    return folder


def _half_a_line(file):
    with file.open("ab") as stream:
        stream.write(b'{"ends": [')


@pytest.mark.parametrize(
    ("name", "damage", "reported"),
    [
        *(pytest.param(name, damage, True, marks=pytest.mark.planted) for name in token_cache.FILES for damage in (_cut, _flip)),
        pytest.param(token_cache.JOURNAL, _flip, True, marks=pytest.mark.planted),
        pytest.param(token_cache.JOURNAL, _cut, False, marks=pytest.mark.planted),
        (token_cache.JOURNAL, _half_a_line, False),
        (token_cache.IDS, _half_a_line, False),
        pytest.param(token_cache.OFFSETS, os.unlink, False, marks=pytest.mark.planted),
    ],
)
def test_parts_that_are_damaged_are_made_again(tokenizer, tmp_path, whole, caplog, name, damage, reported):
    folder, seen = interrupted(tokenizer, tmp_path / "cache"), []
    damage(folder / name)
    with small(), caplog.at_level(logging.WARNING):
        tokens = tokenize_documents(MANY, tokenizer, tmp_path / "cache", lambda *done: seen.append(done))
    assert same(tokens, whole)
    assert ("damaged; the text is tokenized again from there" in caplog.text) == reported
    assert (seen[0][0] > 11 * chunking.GROUP * 40) == (damage is _half_a_line)


@pytest.mark.planted
def test_parts_of_a_text_that_changed_meanwhile_are_made_again(tokenizer, tmp_path, whole, caplog):
    """A file changed after its fingerprint was taken, a kill came before that was seen, and then it was changed back."""
    folder = interrupted(tokenizer, tmp_path / "cache")
    journal = (folder / token_cache.JOURNAL).read_text().replace('"text": "', '"text": "0', 1)
    (folder / token_cache.JOURNAL).write_text(journal)
    with small():
        assert same(tokenize_documents(MANY, tokenizer, tmp_path / "cache"), whole)
    assert "part 0 is of another text" in caplog.text


@pytest.mark.parametrize("finished", [True, False])
def test_another_process_that_prepares_the_same_is_waited_for(tokenizer, tmp_path, finished):
    """Whether it finishes or dies, what it has made is used, and the rest is made."""
    whole, made, seen = tokenize_documents(MANY, tokenizer, tmp_path / "whole"), [], []
    folder = interrupted(tokenizer, tmp_path / "cache")

    def wait():
        made.append(tokenize_documents(MANY, tokenizer, tmp_path / "cache", lambda *done: seen.append(done)))

    with small():
        with token_cache._locked_folder(folder):
            waiting = threading.Thread(target=wait)
            waiting.start()
            waiting.join(0.3)
            assert waiting.is_alive() and not seen
            if finished:
                shutil.copytree(tmp_path / "whole" / whole.fingerprint, tmp_path / "cache" / whole.fingerprint)
        waiting.join(600)
    assert same(made[0], whole)
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [whole.fingerprint]
    assert (not seen) if finished else (seen[0][0] > 11 * chunking.GROUP * 40)


def test_progress_counts_every_byte_once(tokenizer, tmp_path):
    seen = []
    with small():
        tokenize_documents(MANY, tokenizer, tmp_path, lambda *done: seen.append(done))
    total = sum(len(document.text.encode()) for document in MANY)
    assert seen[0] == (0, total) and seen[-1] == (total, total)
    assert sorted(seen) == seen and len(set(seen)) == len(seen) > 50


@settings(deadline=None, max_examples=15)
@given(st.lists(st.text(st.sampled_from("ab né\n.\u3042\u3002\U0001f433"), max_size=60), min_size=1, max_size=6))
def test_documents_in_pieces_give_the_tokens_of_the_whole(tokenizer, tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("pieces")
    whole = tokenize_documents([Document("", text) for text in texts], tokenizer, folder / "a")
    with small(5):
        cut = [Document("", piece, last) for text in texts for piece, last in chunking.cut_chunks(iter(text))]
        assert same(tokenize_documents(cut, tokenizer, folder / "b"), whole)
    assert whole.fingerprint == tokenize_documents(cut, tokenizer, folder / "b").fingerprint


@pytest.mark.full
def test_tokens_of_the_embedded_corpus_are_those_recorded(tmp_path):
    """Ids, bounds and sizes recorded before texts came in pieces."""
    train, valid = split_corpus(TextData())
    tokenizer = Tokenizer.train((document.text for document in train), 2048)
    digests = []
    for documents in (train, valid):
        tokens = tokenize_documents(documents, tokenizer, tmp_path)
        digest = hashlib.sha256(tokens.ids.tobytes())
        digest.update(tokens.offsets.tobytes() + tokens.text_bytes.tobytes())
        digests.append(digest.hexdigest()[:16])
    assert [tokenizer.fingerprint[:16], *digests] == RECORDED


@pytest.mark.planted
def test_a_damaged_folder_published_meanwhile_is_replaced(tokenizer, tmp_path, monkeypatch):
    """Another process publishes a folder while we write; a good one stays, a damaged one is replaced."""
    done = tokenize_documents(DOCUMENTS, tokenizer, tmp_path / "done")
    write, good = token_cache._write, tmp_path / "done" / done.fingerprint
    for cache, header in (("good", (good / token_cache.HEADER).read_text()), ("damaged", "{}")):
        target = tmp_path / cache / done.fingerprint

        def publish(*arguments, target=target, header=header):
            write(*arguments)
            shutil.copytree(good, target)
            (target / token_cache.HEADER).write_text(header)

        monkeypatch.setattr(token_cache, "_write", publish)
        assert (tokenize_documents(DOCUMENTS, tokenizer, tmp_path / cache).ids == done.ids).all()
        assert json.loads((target / token_cache.HEADER).read_text())["fingerprint"] == done.fingerprint
        assert len(list((tmp_path / cache).iterdir())) == 1
