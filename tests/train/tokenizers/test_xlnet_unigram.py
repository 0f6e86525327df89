"""XLNet's unigram models: what XLNet's own program did, what `transformers` does, and the files that they come in."""

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.tokenizers import kinds
from tests.train.tokenizers.kinds import AWKWARD, TEXTS, XLNET, published, raw, trained
from train.data import chunking
from train.data.text_files import Document
from train.rows.sentences import find_sentences
from train.rows.token_cache import tokenize_documents
from train.tokenizers import hf_files, sentencepiece_proto, special_tokens, xlnet_unigram
from train.tokenizers.tokenizer import Tokenizer
from train.weights import import_export
from zoo.errors import BadInput

NAMES = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]


def own_program(text: str, model: Any) -> list[int]:
    """XLNet's own rules, step by step: quotes, accents, SentencePiece, and commas apart from the digits before them."""
    text = " ".join(text.strip().split()).replace("``", '"').replace("''", '"')
    text = "".join(character for character in unicodedata.normalize("NFKD", text) if not unicodedata.combining(character))
    entries: list[str] = []
    for piece in model.encode(text, out_type=str):
        if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit():
            parts = model.encode(piece[:-1].replace("\u2581", ""), out_type=str)
            if piece[0] != "\u2581" and parts[0][0] == "\u2581":
                parts = parts[1:] if len(parts[0]) == 1 else [parts[0][1:], *parts[1:]]
            entries += [*parts, ","]
        else:
            entries.append(piece)
    return [model.piece_to_id(piece) for piece in entries]


def test_a_book_is_divided_as_by_xlnets_own_program() -> None:
    texts = [line for text in kinds.chapters()[:-1] for line in text.split("\n\n")] + AWKWARD[:2] + AWKWARD[8:12]
    differ = [line for line in texts if trained("xlnet").encode(line).tolist() != own_program(line, kinds.library("xlnet"))]
    # Two ways may be equally likely but for rounding.
    assert len(texts) > 300 and len(differ) <= len(texts) // 200, differ[:3]


def with_commas() -> Tokenizer:
    """Return a small tokenizer of a model in which "9," would win, were it not kept from it."""
    entries = [(name, 0.0, sentencepiece_proto.UNKNOWN if name == "<unk>" else sentencepiece_proto.CONTROL) for name in NAMES]
    entries += [(name, -1.0, sentencepiece_proto.NORMAL) for name in ("\u2581", "9", ",", "9,", "\u25819,", "\u25819", "a,")]
    model = sentencepiece_proto.parse_spiece_model(raw("xlnet"))._replace(
        entries=tuple(sentencepiece_proto.Entry(*entry) for entry in entries), charsmap=b""
    )
    return Tokenizer(xlnet_unigram.convert_xlnet_unigram(model))


def test_a_comma_after_a_digit_is_an_entry_of_its_own() -> None:
    words = with_commas()
    assert words.entries(words.encode("9, 9,9 a,")) == ["\u25819", ",", "\u25819", ",", "9", "\u2581", "a,"]


@pytest.mark.planted
def test_a_mutant_that_lets_digits_and_commas_win_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xlnet_unigram, "LOST", 0.0)
    with pytest.raises(AssertionError):
        test_a_comma_after_a_digit_is_an_entry_of_its_own()


def test_spans_are_the_characters_that_the_entries_spell() -> None:
    """Each, once its characters are normalized alone, reads like its entry; outside of spans are white space and accents alone.

    But of two characters that are one quote, the span holds the second: as in `transformers`, and enough to locate an answer.
    """
    ours = trained("xlnet")
    normalize = ours._core.normalizer.normalize_str
    for text in ["\u201c``Caf\u00e9'' cafe\u0301  na\u00efve\u00bd,\t(3,14) \u00dcber-\ufb01sh", *AWKWARD[:6]]:
        ((ids, spans),) = ours.encode_spans([text])
        covered = np.zeros(len(text), bool)
        for number, (first, end) in zip(ids.tolist(), spans.tolist(), strict=True):
            covered[first:end] = True
            entry = ours.entries([number])[0].replace("\u2581", "")
            if number != XLNET.unk and entry:
                quote = text[first - 1 : end] in xlnet_unigram.QUOTES
                covered[first - 1] |= quote
                assert entry in ('"' if quote else normalize(text[first:end]).replace(" ", "")), (text, entry)
        outside = [character for character, inside in zip(text, covered, strict=True) if not inside]
        assert all(character.isspace() or unicodedata.combining(character) for character in outside), text


def test_sentences_end_where_a_reader_ends_them(tmp_path: Path) -> None:
    text = 'He left.| "Why?"| Mr. Starbuck saw 3.14 of them at example.com.| What?!| (It was late.)| \u0416 sank'
    tokens = tokenize_documents([Document("a", text.replace("|", ""))], trained("xlnet"), tmp_path)
    parts = find_sentences(tokens, trained("xlnet"), 1 << 20)
    ids = [tokens.ids[start : start + size].tolist() for start, size in zip(parts.start, parts.size, strict=True)]
    assert ids == [trained("xlnet").encode(sentence).tolist() for sentence in text.split("|")]


def test_an_end_of_paragraph_is_special_whatever_kind_its_file_gives_it() -> None:
    """XLNet's own models always divide a text there, as at "."; no text of ours spells it."""
    model = sentencepiece_proto.parse_spiece_model(raw("xlnet"))
    entries = [
        entry._replace(kind=sentencepiece_proto.USER_DEFINED) if entry.name == "<eop>" else entry for entry in model.entries
    ]
    assert xlnet_unigram.convert_xlnet_unigram(model._replace(entries=tuple(entries))) == xlnet_unigram.convert_xlnet_unigram(
        model
    )


def test_transformers_differs_on_a_spiece_model_alone_only_after_characters_apart() -> None:
    """It puts a space behind "." and the like, which neither XLNet's own program nor its published tokenizer.json does."""
    alone, ours = kinds.auto(published("xlnet")), trained("xlnet")
    same = [text for text in TEXTS if not {*xlnet_unigram.APART}.intersection(text)]
    assert len(same) > 100
    for text in same:
        assert alone(text, add_special_tokens=False)["input_ids"] == ours.encode(text).tolist()
    assert ours.entries(ours.encode("U.S")) == ["\u2581", "U", ".", "S"]


def test_all_files_name_the_special_tokens() -> None:
    assert xlnet_unigram.is_normalizer(kinds.content("xlnet")["normalizer"])
    assert import_export._ids(trained("xlnet")) == {"pad_token_id": 5, "bos_token_id": 1, "eos_token_id": 2}
    assert xlnet_unigram.has_xlnet_names(["<cls>", "a"])
    assert not xlnet_unigram.has_xlnet_names([*special_tokens.TEXT.values(), "<extra_id_0>", "\u2581the"])


def test_a_file_as_it_was_published_is_read_and_written_as_xlnets(tmp_path: Path) -> None:
    """Older converters wrote a step that joins spaces, the flag of the prefix, and a model that does not say its type."""
    rules = kinds.content("xlnet")
    rules["normalizer"]["normalizers"].append(xlnet_unigram.SPACES)
    space = {"type": "Metaspace", "replacement": "\u2581", "str_rep": "\u2581", "add_prefix_space": True}
    rules["pre_tokenizer"]["pretokenizers"][1] = rules["decoder"] = space
    rules["model"] = {"unk_id": 0, "vocab": rules["model"]["vocab"]}
    old = Tokenizer(rules)
    for text in AWKWARD:
        assert old.encode(text).tolist() == trained("xlnet").encode(text).tolist()
    assert len(list(old.chunks([("a b " * chunking.CHUNK, True)]))) > 1
    hf_files.write_tokenizer(tmp_path, old, longest=None)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "XLNetTokenizer"


@pytest.mark.parametrize("option", ["do_lower_case", "keep_accents"])
def test_settings_that_drop_case_or_keep_accents_are_read_and_written(option: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    shutil.copytree(published("xlnet"), source)
    (source / "tokenizer_config.json").write_text(json.dumps({option: True}))
    ours = hf_files.read_tokenizer(source)
    assert (ours.encode("WHALE").tolist() == ours.encode("whale").tolist()) == (option == "do_lower_case")
    assert (ours.encode("whal\u00e9").tolist() == ours.encode("whale").tolist()) == (option == "do_lower_case")
    target.mkdir()
    hf_files.write_tokenizer(target, ours, longest=512)
    kinds.name_family(target, "xlnet")
    assert hf_files.read_tokenizer(target).fingerprint == ours.fingerprint
    theirs = kinds.auto(target)
    for text in AWKWARD:
        assert theirs(text)["input_ids"] == XLNET.single(ours.encode(text))[0].tolist()
    assert (theirs.model_max_length, theirs.padding_side) == (512, "left")


@pytest.mark.planted
@pytest.mark.parametrize(
    "missing", [name for name in special_tokens.XLNET.values() if name not in special_tokens.ROBERTA.values()]
)
def test_an_xlnet_vocabulary_that_lacks_a_special_token_is_refused(missing: str) -> None:
    """It shares five names with RoBERTa's, and is not taken for one."""
    ids = {name: number for number, name in enumerate(special_tokens.XLNET.values()) if name != missing}
    with pytest.raises(BadInput, match=f"^it has no {missing}, and an encoder needs <unk>, <s>, "):
        special_tokens.encoder_special_tokens(ids)


@pytest.mark.planted(2)
def test_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(raw("xlnet").replace(b"<eod>", b"<xyz>"))
    assert kinds.refused(tmp_path).startswith(f"{tmp_path}/spiece.model: it has no <eod>, and XLNet needs {', '.join(NAMES)};")
    bpe = {"type": "BPE", "vocab": {name: number for number, name in enumerate(NAMES)}, "merges": []}
    with pytest.raises(BadInput, match=r"^its special tokens are those of a unigram model, but its model is of another kind"):
        Tokenizer({**kinds.content("xlnet"), "model": bpe, "added_tokens": [], "post_processor": None})
