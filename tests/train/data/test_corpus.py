"""Raw text: what is read, what is refused and how, and that the two halves are the whole."""

import gzip
import hashlib
import itertools
import json
import lzma
import os
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.processes import ROOT, run_python
from train.config.data_options import TextData
from train.data import corpus
from train.data.corpus import split_corpus
from train.data.sources import find_sources
from zoo.errors import BadInput

PARTS = st.lists(st.sampled_from(["a", "é", "\U0001f433", " ", "\n", "\n\n"]), min_size=30, max_size=300)


def texts(documents):
    return [document.text for document in documents]


def test_the_embedded_corpus_is_the_whole_book_split_between_chapters():
    train, valid = split_corpus(TextData())
    book = "".join(texts(train) + texts(valid)).encode()
    assert hashlib.sha256(book).hexdigest() == corpus.EMBEDDED_SHA256
    assert len(book) == 1_204_997 == train.text_bytes + valid.text_bytes
    assert (train.count, valid.count) == (len(list(train)), len(list(valid)))
    assert train.count + valid.count == 135
    assert 0.09 < valid.text_bytes / len(book) < 0.11
    names = [document.name for document in (*train, *valid)]
    assert (names[0], names[-1]) == ("CHAPTER 1. Loomings.", "CHAPTER 135. The Chase.—Third Day.")


@pytest.mark.planted
def test_a_damaged_embedded_corpus_is_refused(tmp_path, monkeypatch):
    broken = tmp_path / "moby_dick.txt.xz"
    book = lzma.decompress(corpus.EMBEDDED.read_bytes()).replace(b"Ishmael", b"Ishmeal", 1)
    broken.write_bytes(lzma.compress(book, preset=0))
    monkeypatch.setattr(corpus, "EMBEDDED", broken)
    with pytest.raises(BadInput, match="damaged"):
        split_corpus(TextData())


def test_files_become_documents(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffCafé\r\nthé\n".encode())
    lines = [{"text": "one"}, {"text": ""}, {"id": 7, "text": "two\nlines \U0001f433"}]
    (tmp_path / "b.jsonl").write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "c.TXT").write_text("held out")
    data = TextData(paths=(f"{tmp_path}/a.txt", f"{tmp_path}/b.jsonl"), valid_paths=(f"{tmp_path}/c.TXT",))
    train, valid = split_corpus(data)
    expected = [("a.txt", "Café\r\nthé\n"), ("b.jsonl:1", "one"), ("b.jsonl:5", "two\nlines \U0001f433")]
    assert [(document.name, document.text) for document in train] == expected
    assert texts(train) == texts(train) == [text for _, text in expected]
    assert train.text_bytes == sum(len(text.encode()) for _, text in expected)
    assert texts(valid) == ["held out"]


REFUSED = {
    "blank.jsonl": (b'\n\n{"text": ""}\n', "blank.jsonl: holds no text"),
    "latin.jsonl": ('{"text": "a"}\n{"text": "é"}\n'.encode("latin-1"), "latin.jsonl:2: not UTF-8 (byte 24)"),
    "deep.jsonl": (b"[" * 100_000, "deep.jsonl:1: unreadable JSON"),
    "long.jsonl": (b'{"text": ' + b"1" * 5000 + b"}", "long.jsonl:1: unreadable JSON"),
    "list.jsonl": (b'{"text": "a"}\n[1]\n', "list.jsonl:2: an array, not an object"),
    "lone.jsonl": (
        b'{"text": "a"}\n{"text": "b\\ud800"}\n',
        'lone.jsonl:2: field "text" has an unpaired surrogate, half of a character, at character 1',
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_files_are_refused_in_one_line(tmp_path, name):
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput) as refusal:
        split_corpus(TextData(paths=(str(tmp_path / name),)))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_missing_files_folders_and_text_in_both_halves_are_refused(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("some text\n" * 100)
    with pytest.raises(BadInput, match=r"also in --data\.paths"):
        split_corpus(TextData(paths=(str(file),), valid_paths=(f"{tmp_path}/../{tmp_path.name}/a.txt",)))
    with pytest.raises(BadInput, match=r"a\.txt: it is also in --data\.paths"):
        split_corpus(TextData(paths=(str(tmp_path),), valid_paths=(str(file),)))
    with pytest.raises(BadInput, match=r"a\.txt: a\.txt is read already, by a path before this one; name every file once$"):
        split_corpus(TextData(paths=(str(tmp_path), str(file))))
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(BadInput, match=r"pipe\.txt: not a regular file"):
        split_corpus(TextData(paths=(str(tmp_path / "pipe.txt"),)))
    (source,) = find_sources((str(file),), TextData())
    file.unlink()
    with pytest.raises(BadInput, match=r"a\.txt: cannot be read \(No such file or directory\)"):
        list(source.read())


@pytest.mark.parametrize("separator", ["\n\n", "\n", " ", ""])
def test_one_document_is_cut_at_the_best_boundary(tmp_path, separator):
    words = {" ": "grün", "": "Grünistalleswashierstehtundwächst"}.get(separator, "Grün ist alles was hier steht und wächst")
    text = separator.join([words] * 197)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    train, valid = split_corpus(TextData(paths=(str(tmp_path / "a.txt"),), valid_fraction=0.2))
    (before,), (after,) = texts(train), texts(valid)
    assert before + after == text
    assert before.endswith(separator)
    assert not after.startswith((" ", "\n"))
    assert 0.15 <= valid.text_bytes / len(text.encode()) <= 0.25


def test_the_last_of_many_documents_is_held_out_however_long(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in ["short"] * 24 + ["long " * 1000]))
    train, valid = split_corpus(TextData(paths=(str(file),)))
    assert (train.count, valid.count) == (24, 1)


@settings(deadline=None)
@given(st.lists(st.text(st.sampled_from("aé\U0001f433 \n"), min_size=1), min_size=1, max_size=40), st.floats(1e-20, 0.89))
def test_the_halves_are_the_whole(tmp_path_factory, documents, fraction):
    file = tmp_path_factory.mktemp("halves") / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in documents))
    data = TextData(paths=(str(file),), valid_fraction=fraction)
    try:
        train, valid = split_corpus(data)
    except BadInput as refusal:
        if len(documents) >= corpus.MANY_DOCUMENTS or "too few" not in str(refusal):
            raise
        return
    before, after = texts(train), texts(valid)
    assert "".join(before + after) == "".join(documents)
    assert all([before, after, *before, *after])
    for half in (train, valid):
        measured = corpus.digest_documents(half)
        assert (half.count, half.text_bytes, half.digest) == (measured.count, measured.text_bytes, measured.hexdigest())
    assert len(before) + len(after) - len(documents) in ({0} if len(documents) >= corpus.MANY_DOCUMENTS else {0, 1})


def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path):
    """In a process whose memory holds neither the file nor what another one unpacks to."""
    plain, packed = tmp_path / "endless.jsonl", tmp_path / "bomb.jsonl.gz"
    with plain.open("wb") as stream:
        stream.truncate(2 << 30)
    packed.write_bytes(gzip.compress(b"a" * (1 << 20)) * 400)
    child = (
        "import resource, sys; from train.config.data_options import TextData; from train.data.corpus import split_corpus\n"
        "from zoo.errors import BadInput\n"
        "resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))\n"
        "for path in sys.argv[1:]:\n"
        "    try: split_corpus(TextData(paths=(path,)))\n"
        "    except BadInput as error: print(error)\n"
        "assert 'jax' not in sys.modules"
    )
    done = run_python("-c", child, str(plain), str(packed), cwd=ROOT)
    first, second = done.stdout.splitlines()
    assert "endless.jsonl:1: longer than 64 MiB" in first and "bomb.jsonl.gz:1: longer than 64 MiB" in second, done.stderr
    assert done.code == 0


@settings(deadline=None)
@given(PARTS, st.floats(0.01, 0.8), st.data())
def test_a_document_in_pieces_is_cut_where_the_whole_is_cut(parts, fraction, data):
    text = "x" + "".join(parts) + "x"
    size, documents, at = len(text.encode()), [], 0
    while at < len(text):
        step = data.draw(st.integers(1, 40))
        documents.append(corpus.Document("a", text[at : at + step], at + step >= len(text)))
        at += step
    with tempfile.TemporaryFile() as index, pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "MAX_SLACK", 1)
        whole = corpus._index(documents, index)
        assert (whole.count, whole.text_bytes) == (1, size)
        cut = corpus._cut_inside(lambda: iter(documents), index, whole, fraction)
    wanted = len(text.encode()[: int((1 - fraction) * size)].decode(errors="ignore"))
    assert cut == (0, corpus._nearest_boundary(text, wanted, int(fraction * size / 4)))
    before, after = (
        list(corpus._training_half(lambda: iter(documents), *cut)),
        list(corpus._held_out_half(lambda: iter(documents), *cut)),
    )
    assert ("".join(texts(before)), "".join(texts(after))) == (text[: cut[1]], text[cut[1] :])
    assert [piece.last for piece in before] == [False] * (len(before) - 1) + [True]
    assert [piece.last for piece in after] == [False] * (len(after) - 1) + [True]


def sampled(whole, share, seed=0):
    measured = corpus.digest_documents(whole)
    documents = corpus.Documents(lambda: iter(whole), measured.count, measured.text_bytes, measured.hexdigest())
    part = corpus.sample_share(documents, share, seed)
    assert list(part) == list(part) and part.digest == corpus.digest_documents(part).hexdigest()
    return part


@pytest.mark.parametrize(("sizes", "share"), [([54] * 4_000, 0.25), ([200_000], 0.1), ([5_400, 60, 66_000], 0.7)])
def test_a_share_is_random_pieces_that_end_with_words(sizes, share):
    """Every word is numbered, so that the pieces show their places."""
    words = itertools.count()
    whole = []
    for size in sizes:
        text = "".join(f"wäl{next(words):06}\n" for _ in range(size // 10))
        # A long document comes in chunks, which end where they like.
        whole += [corpus.Document("a", text[:1_000], False), corpus.Document("a", text[1_000:], True)]
    part = sampled(whole, share)
    total = sum(len(text.encode()) for text in texts(whole))
    assert abs(part.text_bytes - share * total) <= 2 * corpus.PIECE
    documents = ["".join(document.text for document in group) for group in documents_of(part)]
    numbers = [[int(word[3:]) for word in text.split()] for text in documents]
    assert all(text.startswith("wäl") and text.endswith("\n") for text in documents)
    assert all(row == list(range(row[0], row[-1] + 1)) for row in numbers)
    flat = [number for row in numbers for number in row]
    assert flat == sorted(set(flat)), "no word is taken twice, and the order is that of the text"
    # The pieces are spread over the text: a prefix or a suffix would lie in one half.
    middle = next(words) / 2
    assert 0.3 < sum(number < middle for number in flat) / len(flat) < 0.7
    assert sampled(whole, share, seed=1).digest != part.digest == sampled(whole, share).digest
    assert {*flat} >= {int(word[3:]) for text in texts(sampled(whole, share / 2)) for word in text.split()}
    with pytest.raises(BadInput, match=r"--data\.take 1e-09: less than half of a piece"):
        sampled(whole, 1e-9)
    assert sampled(whole, 1.0).text_bytes == total


def test_a_share_of_text_without_white_space_is_cut_between_characters():
    whole = [corpus.Document("a", "\u9de8" * 40_000, True)]
    part = sampled(whole, 0.1)
    assert abs(part.text_bytes - 12_000) <= 2 * corpus.PIECE and {*"".join(texts(part))} == {"\u9de8"}


def documents_of(chunks):
    """Yield the chunks of each document."""
    group = []
    for chunk in chunks:
        group.append(chunk)
        if chunk.last:
            yield group
            group = []
    assert not group, "the last chunk of a sample ends a document"


def test_a_sample_is_everything_or_evenly_spread(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"{i:04}" * (1 + i % 5)}) for i in range(1000)))
    train, valid = split_corpus(TextData(paths=(str(file),)))
    everything = texts(train) + texts(valid)
    assert list(corpus.sample_chunks([train, valid])) == list(corpus.sample_chunks([train, valid], 12_000)) == everything
    some = list(corpus.sample_chunks([train, valid], 1200))
    assert 1200 <= sum(map(len, some)) < 1220
    numbers = [int(text[:4]) for text in some]
    assert numbers[0] == 0 and numbers[-1] > 980
    assert max(after - before for before, after in itertools.pairwise(numbers)) <= 20


def test_documents_of_valid_paths_have_names(tmp_path):
    (tmp_path / "a.txt").write_text("One text.")
    (tmp_path / "b.jsonl").write_text('{"text": "Two."}\n{"text": "Three."}\n')
    (tmp_path / "train.txt").write_text("Four words to train on.")
    paths = tuple(str(tmp_path / name) for name in ("a.txt", "b.jsonl"))
    training, held_out = split_corpus(TextData(paths=(str(tmp_path / "train.txt"),), valid_paths=paths))
    assert held_out.names == ("a.txt", "b.jsonl:1", "b.jsonl:2")
    assert training.names == ()
    assert split_corpus(TextData(paths=paths))[1].names == ()
