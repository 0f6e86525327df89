"""Byte-level BPE: any text comes back, the same text gives the same tokenizer, and no text can end a document."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from train import pieces
from train import tokenizer as module
from train.config import Data
from train.corpus import split
from train.tokenizer import END_OF_TEXT, Tokenizer
from zoo.errors import BadInput

UNICODE = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def chapters():
    return [document.text for document in split(Data())[1]]


@pytest.fixture(scope="module")
def trained(chapters):
    return Tokenizer.train(chapters, 700)


@pytest.fixture(scope="module")
def spaces():
    """A tokenizer with entries for runs of spaces and for characters that only Python takes for a space."""
    return Tokenizer.train(["a    b\n\n\n  c!\x1c\x1c!\x1c\t\t \u3000\u3000 " * 50], 300)


@pytest.fixture(scope="module")
def content(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    trained.save(folder)
    return json.loads((folder / "tokenizer.json").read_text())


def test_training_is_deterministic_and_starts_with_end_of_text(chapters, trained):
    assert trained.vocab_size == 700
    assert trained.end_of_text == 0
    assert trained.decode([0]) == END_OF_TEXT
    assert Tokenizer.train(iter(chapters), 700)._json == trained._json
    assert Tokenizer.train(chapters[1:], 700).fingerprint != trained.fingerprint
    assert len(trained.encode(chapters[0])) < 0.55 * len(chapters[0].encode())


def test_training_passes_on_what_the_texts_raise():
    def texts():
        yield "some text"
        raise BadInput("line 2")

    with pytest.raises(BadInput, match="line 2"):
        Tokenizer.train(texts(), 300)


def test_a_small_text_gives_fewer_entries():
    assert 257 <= Tokenizer.train(["ab ab"], 5000).vocab_size < 270


@settings(deadline=None)
@given(UNICODE)
@example("".join(map(chr, range(0x300))))
@example("  leading, trailing \r\n\t \n\n  \U0001f469\u200d\U0001f467 e\u0301 ﷺ \x00\x1f\x85\u2028\ufeff")
def test_any_text_comes_back(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert ids.dtype == np.int32
    assert not (ids == trained.end_of_text).any()


@settings(deadline=None)
@given(st.lists(st.sampled_from([END_OF_TEXT, "<|", "|>", "endoftext", " ", "\n", "x"])).map("".join))
def test_spelling_out_end_of_text_does_not_end_a_text(trained, text):
    ids = trained.encode(text)
    assert trained.end_of_text not in ids
    assert trained.decode(ids) == text


@settings(deadline=None)
@given(
    st.lists(st.text(st.sampled_from("ab' \n\r\t\x1c\x85\u00a0\u3000\u2028!7é\u3042\u4e00\u3002\uff0c")) | UNICODE, max_size=8)
)
@example(["don't  stop\n\n \n x", ""])
@example(["ab    cd", "ab!\x1c!"])
def test_long_texts_are_encoded_in_pieces_without_a_trace(spaces, texts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", 2)
        many = list(spaces.encode_many(texts))
    assert len(many) == len(texts)
    for text, ids in zip(texts, many, strict=True):
        assert ids.tolist() == spaces._core.encode(text, add_special_tokens=False).ids


def test_pieces_train_the_tokenizer_of_the_whole(chapters, trained):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", 100)
        cut = [piece for text in chapters for piece, _ in pieces.cut([text])]
    assert len(cut) > 50 * len(chapters) and "".join(cut) == "".join(chapters)
    assert Tokenizer.train(cut, 700).fingerprint == trained.fingerprint


def test_a_text_that_no_place_to_cut_makes_too_long_is_refused(trained, content, monkeypatch):
    monkeypatch.setattr(pieces, "LONGEST_PIECE", 100)
    monkeypatch.setattr(module, "LONGEST_PIECE", 100)
    monkeypatch.setattr(pieces, "PIECE", 10)
    assert len(trained.encode("word " * 100))
    with pytest.raises(BadInput, match="100 characters without the end of a word"):
        trained.encode("x" * 101)
    rules = {"type": "Split", "pattern": {"Regex": r"\S+\s*"}, "behavior": "Isolated", "invert": False}
    other = Tokenizer({**content, "pre_tokenizer": rules})
    assert list(other.pieces([("some ", False), ("text", True), ("more", True)])) == [("some text", True), ("more", True)]
    with pytest.raises(BadInput, match="more than 100 characters: this tokenizer's rules need each text whole"):
        list(other.pieces([("word " * 15, False), ("word " * 15, True)]))


def test_encode_many_reads_no_further_ahead_than_a_group(trained):
    taken = []
    stream = trained.encode_many(taken.append(i) or "x" * pieces.PIECE for i in range(3 * pieces.GROUP))
    next(stream)
    assert len(taken) == pieces.GROUP


def test_save_and_load_keep_everything(trained, content, chapters, tmp_path):
    trained.save(tmp_path)
    trained.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.fingerprint, loaded.vocab_size, loaded.end_of_text) == (trained.fingerprint, 700, 0)
    assert Tokenizer(dict(reversed(content.items()))).fingerprint == trained.fingerprint
    assert loaded.encode(chapters[0] + END_OF_TEXT).tolist() == trained.encode(chapters[0] + END_OF_TEXT).tolist()


def test_a_failed_save_leaves_the_old_file(trained, tmp_path, monkeypatch):
    trained.save(tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()
    monkeypatch.setattr(module.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        Tokenizer.train(["other"], 300).save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]
    assert (tmp_path / "tokenizer.json").read_bytes() == before


def test_what_a_loaded_file_says_about_truncation_padding_and_decoration_is_not_applied(content, trained, chapters):
    length = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    pad = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    mark = {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, mark],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [0], "tokens": [END_OF_TEXT]}},
    }
    loaded = Tokenizer({**content, "truncation": length, "padding": pad, "post_processor": template})
    assert loaded.encode(chapters[0]).tolist() == trained.encode(chapters[0]).tolist()
    assert loaded.encode("a").tolist() == trained.encode("a").tolist()
    assert loaded.fingerprint != trained.fingerprint


def test_a_tokenizer_with_other_rules_is_never_given_pieces(content):
    rules = {"type": "Split", "pattern": {"Regex": r"\S+\s*"}, "behavior": "Isolated", "invert": False}
    other = Tokenizer({**content, "pre_tokenizer": rules})
    assert len(list(other.pieces([("a b " * pieces.PIECE, True)]))) == 1


def _changed(content, **changes):
    return json.loads(json.dumps(content)) | changes


@pytest.mark.planted(7)
def test_unusable_files_are_refused_in_one_line(content, tmp_path):
    vocab = content["model"]["vocab"]
    unmarked = [{**token, "special": False} for token in content["added_tokens"]]
    renamed = {("<end>" if token == END_OF_TEXT else token): i for token, i in vocab.items()}
    gap = {**vocab, "gap": 90_000}
    files = {
        "not json": ("{", "no JSON"),
        "no object": ("[]", "no tokenizer"),
        "nothing in it": ("{}", "no tokenizer"),
        "not marked": (json.dumps(_changed(content, added_tokens=unmarked)), "not marked as special"),
        "no mark": (
            json.dumps(_changed(content, added_tokens=[], model={**content["model"], "vocab": renamed})),
            "has no entry <|endoftext|>",
        ),
        "gap": (
            json.dumps(_changed(content, model={**content["model"], "vocab": gap})),
            "701 entries do not have the ids 0 to 700",
        ),
    }
    for text, message in files.values():
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(BadInput) as refusal:
            Tokenizer.load(tmp_path)
        assert str(refusal.value).startswith(f"{tmp_path}/tokenizer.json: ")
        assert message in str(refusal.value)
        assert "\n" not in str(refusal.value)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="no JSON"):
        Tokenizer.load(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(BadInput, match=r"cannot be read .*name a folder that holds a tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_ids_outside_the_vocabulary_are_not_decoded(trained):
    with pytest.raises(ValueError, match="vocabulary of 700"):
        trained.decode([5, 700])
    with pytest.raises(ValueError, match="vocabulary of 700"):
        trained.decode(np.array([-1]))


def test_a_forked_child_encodes_silently():
    child = (
        "import os, warnings; warnings.simplefilter('ignore', DeprecationWarning)\n"
        "from train.tokenizer import Tokenizer\n"
        "t = Tokenizer.train(['some text here'] * 99, 300); list(t.encode_many(['some text'] * 99))\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(0 if len(list(t.encode_many(['some text'] * 99))) == 99 else 1)\n"
        "raise SystemExit(os.waitpid(pid, 0)[1])"
    )
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
