"""BERT's WordPiece: published vocabularies, their settings, and what a vocabulary is trained to hold."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.hard_texts import HARD, random_characters
from tests.train.tokenizers.kinds import auto, refused
from train.tokenizers import hf_files, wordpiece
from train.tokenizers.special_tokens import SpecialTokens
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput

WORDS = "the white whale swim ##s ##ming caf ##e ##\u00e9 caf\u00e9 cafe The Whale ' s ! \u6f22 \u5b57 \u6f22\u5b57 \x85 \u2028"
SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A vocab.txt as Google released BERT's, with its unused entries, and nothing else."""
    unused = [f"[unused{number}]" for number in range(994)]
    entries = ["[PAD]", *unused[:99], "[UNK]", "[CLS]", "[SEP]", "[MASK]", *unused[99:], *WORDS.split(" ")]
    (tmp_path / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "distilbert"}')
    return tmp_path


ACCENTS = "caf\u00e9 The \u6f22\u5b57"
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    # What tokenizer_config.json says, and what ACCENTS is with it.
    "none": ({}, "cafe the \u6f22 \u5b57"),
    "cased": ({"do_lower_case": False}, ACCENTS.replace("\u6f22", "\u6f22 ")),
    "accents": ({"do_lower_case": True, "strip_accents": False}, "caf\u00e9 the \u6f22 \u5b57"),
    "cased without accents": ({"do_lower_case": False, "strip_accents": True}, "cafe The \u6f22 \u5b57"),
    "Chinese": ({"tokenize_chinese_chars": False, "strip_accents": None}, "cafe the \u6f22\u5b57"),
}


@pytest.mark.parametrize(("options", "decoded"), SETTINGS.values(), ids=SETTINGS)
def test_a_published_vocabulary_keeps_its_ids_and_settings(published: Path, options: dict[str, Any], decoded: str) -> None:
    import transformers

    (published / "tokenizer_config.json").write_text(json.dumps(options))
    ours, theirs = hf_files.read_tokenizer(published), transformers.BertTokenizer.from_pretrained(published)
    assert ours.special_tokens == SpecialTokens(pad=0, unk=100, cls=101, sep=102, mask=103)
    assert ours.vocab_size == 999 + len(WORDS.split(" "))
    assert ours.decode(ours.encode(ACCENTS)) == decoded
    for text in (HARD, random_characters(2000), "The white Whale's swimming!", f"Caf\u00e9 {ACCENTS}", "the\u2028whale"):
        assert ours.encode(text).tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    out = published / "out"
    out.mkdir()
    hf_files.write_tokenizer(out, ours, longest=512)
    assert (out / "vocab.txt").read_bytes() == (published / "vocab.txt").read_bytes()
    assert json.loads((out / "tokenizer_config.json").read_text())["tokenizer_class"] == "BertTokenizer"
    assert auto(out)(f"Caf\u00e9 {ACCENTS}")["input_ids"] == theirs(f"Caf\u00e9 {ACCENTS}")["input_ids"]


VOCABULARIES = {
    "twice": (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\na\n", 'line 8 is the same entry as line 6, "a"; download it'),
    "no UTF-8": (b"[PAD]\n[UNK]\n\xff\n", "not UTF-8 (byte 12)"),
    "empty": (b"", "it has none of [PAD], [UNK], [CLS], [SEP], [MASK]; download"),
    "no special tokens": (b"a\nb\n", "it has none of [PAD]"),
    "missing": (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n", "it has no [MASK], and an encoder needs [PAD], [UNK], [CLS]"),
    "several": (b"[PAD]\n[UNK]\n[CLS]\n", "it has no [SEP] and no [MASK], and an encoder"),
    "space": (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na \n", 'line 6 is "a ", which transformers reads without its last space'),
    "carriage return": (b"[PAD]\n[UNK]\r\n[CLS]\ra\n", "line 3 has a carriage return within it"),
    "RoBERTa's": (
        b"<s>\n<pad>\n</s>\n<unk>\n<mask>\na\n",
        "its special tokens are those of byte-level BPE or a unigram model, but",
    ),
}


@pytest.mark.planted
@pytest.mark.parametrize(("raw", "message"), VOCABULARIES.values(), ids=VOCABULARIES)
def test_a_damaged_vocabulary_is_refused(raw: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(raw)
    assert refused(tmp_path).startswith(f"{tmp_path}/vocab.txt: {message}")


@pytest.mark.planted
def test_other_bad_files_are_refused(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (published / "tokenizer_config.json").write_text('{"do_lower_case": "no"}')
    assert refused(published) == f'{published}/tokenizer_config.json: do_lower_case is "no"; it must be true or false'
    unknown = wordpiece.bert_tokenizer_json(SPECIAL, lowercase=True)
    unknown["model"]["unk_token"] = "<unk>"
    with pytest.raises(BadInput, match=r"WordPiece, with \[UNK\] for the unknown, but its model is of another kind"):
        Tokenizer(unknown)
    without = wordpiece.bert_tokenizer_json(SPECIAL, lowercase=True)
    without["model"]["vocab"]["[unk]"] = without["model"]["vocab"].pop("[UNK]")
    with pytest.raises(BadInput, match=r"its vocabulary has no entry \[UNK\], which stands for unknown words; add it"):
        Tokenizer(without)
    (published / "tokenizer_config.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(hf_files, "LARGEST_FILE", 1000)
        assert refused(published).startswith(f"{published}/vocab.txt: cannot be read (larger than 1,000 bytes)")
    (published / "vocab.txt").unlink()
    assert refused(published).startswith(f"{published}: holds no tokenizer.json and no vocab.json, vocab.txt, spiece.model or ")


def test_an_entry_that_is_not_one_line_is_not_written(tmp_path: Path) -> None:
    ours = Tokenizer(wordpiece.bert_tokenizer_json({**SPECIAL, "a\nb": 5}, lowercase=True))
    with pytest.raises(BadInput, match=r'vocab.txt: the entry "a\\nb" is not one line'):
        hf_files.write_tokenizer(tmp_path, ours, longest=512)


def test_a_file_without_a_decoder_is_decoded_to_words() -> None:
    rules = wordpiece.bert_tokenizer_json({**SPECIAL, "a": 5, "##b": 6}, lowercase=True)
    ours = Tokenizer({**rules, "decoder": None})
    assert ours.decode(ours.encode("ab a")) == "ab a"


def train(text: str, vocab: int = 100, **options: bool) -> tuple[Tokenizer, list[str]]:
    """Return a tokenizer and its entries behind the special tokens."""
    tokenizer = Tokenizer.train([text], vocab, "wordpiece", **options)
    assert tokenizer.entries(range(5)) == [*SPECIAL]
    return tokenizer, tokenizer.entries(range(5, tokenizer.vocab_size))


def test_pairs_are_merged_by_how_often_they_occur() -> None:
    """Characters, characters within a word, then merges: "ab" is in 3 + 2 words, "abc" in 3, "d!" in no word."""
    _, entries = train("abc abc abc ab ab d!", 21)
    assert entries == [*("!", "a", "b", "c", "d"), *("##a", "##b", "##c", "##d"), *("ab", "abc")]


def test_dropped_characters_do_not_divide_words() -> None:
    """A separator that Python takes for a space is dropped; a line end divides."""
    entries = {*train("ab\x1ccd ef\tgh\r\nij\nkl " * 9)[1]}
    assert {"abcd", "ef", "gh", "ij", "kl"} < entries
    assert not {"efgh", "ghij", "ijkl"} & entries


def test_every_character_of_the_text_can_continue_a_word() -> None:
    tokenizer, entries = train("x 7 \u00e9, \u6f22")
    assert tokenizer.special_tokens.unk not in tokenizer.encode("7x7e, x\u6f227")
    assert "##," not in entries and "##\u6f22" not in entries


def test_the_rarest_characters_are_unknown_in_a_small_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    small, entries = train("".join(chr(code) * (200 - code) + " " for code in range(97, 123)), 25, lowercase=False)
    assert small.vocab_size == 25
    assert [entry for entry in entries if not entry.startswith("##")] == [chr(code) for code in range(97, 107)]
    assert small.encode("z").tolist() == [small.special_tokens.unk]
    monkeypatch.setattr(wordpiece, "CHARACTERS", 3)
    assert train("a a b b c c d")[1] == ["a", "b", "c", "##a", "##b", "##c"]


def test_words_too_long_to_be_known_are_not_trained_on() -> None:
    assert train("ab " + "cd" * 51)[1][-1] == "ab"
    assert "cdcd" in "".join(train("ab " + "cd" * 50)[1])


def test_words_are_counted_alike_however_much_text_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a word that occurs more often than one line of the text handed to the library repeats it."""
    texts = ["the white whale, the ship " * 700, "the\x1cse na\u00efve \u6f22\u5b57\u3002whale" * 3, "sea zoo " * 1000]
    whole = Tokenizer.train(texts, 60, "wordpiece").fingerprint
    monkeypatch.setattr(wordpiece, "AT_ONCE", 10)
    monkeypatch.setattr(wordpiece, "REPEATED", 7)
    assert Tokenizer.train(texts, 60, "wordpiece").fingerprint == whole
