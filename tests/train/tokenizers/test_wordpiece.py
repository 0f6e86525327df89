"""BERT's WordPiece: published vocabularies, their settings, and what a vocabulary is trained to hold."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.support.hard_texts import HARD, random_characters
from train import tokenizer_files, wordpiece
from train.marks import Marks
from train.tokenizer import Tokenizer
from zoo.errors import BadInput

WORDS = "the white whale swim ##s ##ming caf ##e ##\u00e9 caf\u00e9 cafe The Whale ' s ! \u6f22 \u5b57 \u6f22\u5b57 \x85 \u2028"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A vocab.txt as Google released BERT's, with its unused entries, and nothing else."""
    unused = [f"[unused{number}]" for number in range(994)]
    entries = ["[PAD]", *unused[:99], "[UNK]", "[CLS]", "[SEP]", "[MASK]", *unused[99:], *WORDS.split(" ")]
    (tmp_path / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "distilbert"}')
    return tmp_path


SETTINGS: list[dict[str, Any]] = [
    {},
    {"do_lower_case": False},
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"tokenize_chinese_chars": False, "strip_accents": None},
]


@pytest.mark.parametrize("given", SETTINGS, ids=str)
def test_a_published_vocabulary_keeps_its_ids_and_settings(published: Path, given: dict[str, Any]):
    (published / "tokenizer_config.json").write_text(json.dumps(given))
    ours, theirs = tokenizer_files.read(published), transformers.BertTokenizer.from_pretrained(published)
    assert ours.marks == Marks(pad=0, unk=100, cls=101, sep=102, mask=103)
    assert ours.vocab_size == 999 + len(WORDS.split(" "))
    for text in (
        HARD,
        random_characters(2000),
        "The white Whale's swimming!",
        "caf\u00e9 Caf\u00e9",
        "\u6f22\u5b57",
        "the\u2028whale",
    ):
        assert ours.encode(text).tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    # And so does what is written of it.
    out = published / "out"
    out.mkdir()
    tokenizer_files.write(out, ours, longest=512)
    assert (out / "vocab.txt").read_bytes() == (published / "vocab.txt").read_bytes()
    assert json.loads((out / "tokenizer_config.json").read_text())["tokenizer_class"] == "BertTokenizer"
    again = transformers.AutoTokenizer.from_pretrained(out)
    assert again("caf\u00e9 Caf\u00e9 \u6f22\u5b57")["input_ids"] == theirs("caf\u00e9 Caf\u00e9 \u6f22\u5b57")["input_ids"]


def test_the_settings_make_a_difference(published: Path):
    seen = set()
    for given in SETTINGS:
        (published / "tokenizer_config.json").write_text(json.dumps(given))
        ours = tokenizer_files.read(published)
        seen.add(ours.decode(ours.encode("caf\u00e9 The \u6f22\u5b57")))
    assert seen == {
        "cafe the \u6f22 \u5b57",
        "caf\u00e9 The \u6f22 \u5b57",
        "caf\u00e9 the \u6f22 \u5b57",
        "cafe The \u6f22 \u5b57",
        "cafe the \u6f22\u5b57",
    }


VOCABULARIES = {
    "twice": (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\na\n", 'vocab.txt: line 8 is the same entry as line 6, "a"; fetch it'),
    "no UTF-8": (b"[PAD]\n[UNK]\n\xff\n", "vocab.txt: not UTF-8 (byte 12)"),
    "empty": (b"", "vocab.txt: it has none of [PAD], [UNK], [CLS], [SEP], [MASK]; fetch a vocabulary of BERT's"),
    "no marks": (b"a\nb\n", "vocab.txt: it has none of [PAD]"),
    "missing": (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n", "vocab.txt: it has no [MASK], and an encoder needs [PAD], [UNK], [CLS]"),
    "several": (b"[PAD]\n[UNK]\n[CLS]\n", "vocab.txt: it has no [SEP] and no [MASK], and an encoder"),
    "RoBERTa's": (b"<s>\n<pad>\n</s>\n<unk>\n<mask>\na\n", "vocab.txt: its marks are those of byte-level BPE, and its model"),
}


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.planted
def test_a_vocabulary_that_is_none_is_refused(tmp_path: Path, name: str):
    raw, told = VOCABULARIES[name]
    (tmp_path / "vocab.txt").write_bytes(raw)
    assert refused(tmp_path).startswith(f"{tmp_path}/{told}")


def refused(folder: Path) -> str:
    with pytest.raises(BadInput) as refusal:
        tokenizer_files.read(folder)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.planted
def test_other_bad_files_are_refused(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (published / "tokenizer_config.json").write_text('{"do_lower_case": "no"}')
    assert refused(published) == f'{published}/tokenizer_config.json: do_lower_case is "no"; it must be true or false'
    (published / "tokenizer_config.json").unlink()
    tokenizer_files.read(published)

    unknown = wordpiece.content({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}, lowercase=True)
    unknown["model"]["unk_token"] = "<unk>"
    with pytest.raises(BadInput, match=r"WordPiece, with \[UNK\] for the unknown, and its model is another"):
        Tokenizer(unknown)

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_files, "LARGEST_FILE", 1000)
        assert refused(published).startswith(f"{published}/vocab.txt: larger than 0 MiB")
    (published / "vocab.txt").unlink()
    assert refused(published).startswith(f"{published}: holds no tokenizer.json and no vocab.json, vocab.txt or spiece.model")


def test_an_entry_that_a_line_cannot_hold_is_not_written(tmp_path: Path):
    entries = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a\nb": 5}
    with pytest.raises(BadInput, match=r'vocab.txt: the entry "a\\nb" is not one line'):
        tokenizer_files.write(tmp_path, Tokenizer(wordpiece.content(entries, lowercase=True)), longest=512)


def test_a_file_without_a_decoder_is_decoded_to_words():
    content = wordpiece.content({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5, "##b": 6}, lowercase=True)
    ours = Tokenizer({**content, "decoder": None})
    assert ours.decode(ours.encode("ab a")) == "ab a"


# --- training -------------------------------------------------------------------------------------------------------------------


def entries(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode([number]) for number in range(tokenizer.vocab_size)]


def test_pairs_are_merged_by_how_often_they_occur():
    """Marks, characters, characters within a word, then merges: "ab" is in 3 + 2 words, "abc" in 3, "d!" in no word."""
    tokenizer = Tokenizer.train(["abc abc abc ab ab d!"], 21, "wordpiece")
    characters = ["!", "a", "b", "c", "d"]
    merged = ["ab", "abc"]
    continuing = ["##a", "##b", "##c", "##d"]
    assert entries(tokenizer) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *continuing, *merged]


def test_what_is_dropped_from_a_text_does_not_divide_its_words():
    """A separator that Python takes for a space; a line end is one."""
    trained = entries(Tokenizer.train(["ab\x1ccd ef\tgh\r\nij\nkl " * 9], 100, "wordpiece"))
    assert {"abcd", "ef", "gh", "ij", "kl"} < {*trained}
    assert not {"efgh", "ghij", "ijkl"} & {*trained}


def test_every_character_of_the_text_can_go_on_in_a_word():
    tokenizer = Tokenizer.train(["x 7 \u00e9, \u6f22"], 100, "wordpiece")
    assert tokenizer.marks.unk not in tokenizer.encode("7x7e, x\u6f227")
    assert "##," not in entries(tokenizer) and "##\u6f22" not in entries(tokenizer)


def test_the_rarest_characters_are_unknown_where_there_is_no_room():
    text = "".join(chr(code) * (200 - code) + " " for code in range(97, 123))
    small = Tokenizer.train([text], 25, "wordpiece", lowercase=False)
    assert small.vocab_size == 25
    assert [entry for entry in entries(small)[5:] if not entry.startswith("##")] == [chr(code) for code in range(97, 107)]
    assert small.encode("z").tolist() == [small.marks.unk]


def test_a_trained_vocabulary_has_at_most_a_thousand_characters(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wordpiece, "CHARACTERS", 3)
    tokenizer = Tokenizer.train(["a a b b c c d"], 100, "wordpiece")
    assert entries(tokenizer)[5:] == ["a", "b", "c", "##a", "##b", "##c"]


def test_words_too_long_to_be_known_teach_nothing():
    assert entries(Tokenizer.train(["ab " + "cd" * 51], 100, "wordpiece"))[-1] == "ab"
    assert "cdcd" in "".join(entries(Tokenizer.train(["ab " + "cd" * 50], 100, "wordpiece")))


def test_words_are_counted_alike_however_much_text_is_held(monkeypatch: pytest.MonkeyPatch):
    """Also a word that occurs more often than one line of the text handed to the library repeats it."""
    texts = ["the white whale, the ship " * 700, "the\x1cse na\u00efve \u6f22\u5b57\u3002whale" * 3, "sea zoo " * 1000]
    whole = Tokenizer.train(texts, 60, "wordpiece").fingerprint
    monkeypatch.setattr(wordpiece, "AT_ONCE", 10)
    monkeypatch.setattr(wordpiece, "REPEATED", 7)
    assert Tokenizer.train(texts, 60, "wordpiece").fingerprint == whole


def test_training_passes_on_what_the_texts_raise():
    def texts():
        yield "some text"
        raise BadInput("line 2")

    with pytest.raises(BadInput, match="line 2"):
        Tokenizer.train(texts(), 300, "wordpiece")
