"""ByT5's tokens: bytes with the ids that `transformers` gives them, and the files that say so."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.hard_texts import HARD, random_characters
from tests.train.tokenizers import kinds
from tests.train.tokenizers.kinds import AWKWARD
from train.data import chunking
from train.tokenizers import byte_tokens, hf_files, sentencepiece_proto, unigram
from train.tokenizers.special_tokens import TextSpecialTokens
from train.tokenizers.tokenizer import Tokenizer

SETTINGS = {"tokenizer_class": "ByT5Tokenizer"}
TEXTS = [*AWKWARD, HARD, random_characters(300), "</s><pad><unk><extra_id_0> <extra_id_124>"]


def folder(path: Path, settings: dict[str, Any] = SETTINGS) -> Path:
    """Write a folder as ByT5 was released, without a vocabulary."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def test_ids_are_bytes_plus_3_as_in_transformers(tmp_path: Path) -> None:
    """Of what `transformers` reads, of what is written here, and of what it writes itself."""
    ours = hf_files.read_tokenizer(folder(tmp_path / "released"))
    assert (ours.kind, ours.vocab_size, ours.end_of_text) == ("bytes", 384, 1)
    assert ours.text_special_tokens == TextSpecialTokens(pad=0, end=1, unk=2, sentinels=tuple(range(259, 384)))
    (tmp_path / "written").mkdir()
    hf_files.write_tokenizer(tmp_path / "written", ours, longest=None)
    references = [kinds.auto(tmp_path / name) for name in ("released", "written")]
    references[0].save_pretrained(tmp_path / "saved")
    assert {type(reference).__name__ for reference in references} == {"ByT5Tokenizer"}
    for name in ("written", "saved"):
        assert hf_files.read_tokenizer(tmp_path / name).fingerprint == ours.fingerprint
    for text in TEXTS:
        ids = ours.encode(text).tolist()
        assert ids == [byte + 3 for byte in text.encode()]
        assert ours.decode(ids) == text and ours.token_bytes()[ids].sum() == len(ids)
        for reference in references:
            assert reference(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ids
    assert references[0]("a", "b")["input_ids"] == ours.encode_with_template("a", "b")[0] == [100, 1, 101, 1]
    assert [len(reference) for reference in references] == [384, 384]
    assert references[0].convert_tokens_to_ids("<extra_id_124>") == ours.ids()["<extra_id_124>"] == 383


def test_a_text_may_be_cut_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "CHUNK", 2)
    ours = Tokenizer(byte_tokens.byt5_tokenizer_json())
    assert len(list(ours.chunks([("some words here", True)]))) == 3
    assert [ids.tolist() for ids in ours.encode_many(TEXTS)] == [[byte + 3 for byte in text.encode()] for text in TEXTS]


@pytest.mark.planted(3)
def test_a_folder_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    names = [f"<extra_id_{number}>" for number in (1, 0)]
    odd = folder(tmp_path / "odd", SETTINGS | {"additional_special_tokens": names})
    assert "its special tokens are not <extra_id_0>, <extra_id_1>, ... in this order" in kinds.refused(odd)
    other = folder(tmp_path / "other")
    (other / "tokenizer.json").write_text((kinds.written("gpt") / "tokenizer.json").read_text())
    assert "tokenizer.json has other tokens than the class ByT5Tokenizer, which does not read it" in kinds.refused(other)
    few = folder(tmp_path / "few", SETTINGS | {"extra_ids": 4})
    assert hf_files.read_tokenizer(few).vocab_size == 263
    few = folder(tmp_path / "few", SETTINGS | {"extra_ids": 4, "added_tokens_decoder": {"300": {"content": "<new>"}}})
    assert "<new>" in kinds.refused(few)


def bytes_model(**options: Any) -> bytes:
    """Train a model of mT5's rules: unknown characters are bytes, and the sentinels are entries with a space."""
    text = [*unigram.training_lines(kinds.chapters()), *"0123456789ABCDEFx<>"]
    names: dict[str, Any] = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>")
    symbols = [f"{unigram.SPACE}<extra_id_{number}>" for number in reversed(range(5))]
    return unigram.train_spiece_model(text, 700, byte_fallback=True, **(dict(user_defined_symbols=symbols) | options), **names)


def test_mt5_spells_unknown_characters_as_bytes(tmp_path: Path) -> None:
    """As SentencePiece does; the class of `transformers` does not, so an export names one that takes the rules as they are."""
    import sentencepiece

    raw = bytes_model()
    (tmp_path / "spiece.model").write_bytes(raw)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mt5"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 0}))
    ours, model = hf_files.read_tokenizer(tmp_path), sentencepiece.SentencePieceProcessor(model_proto=raw)
    assert ours.text_special_tokens == TextSpecialTokens(pad=0, end=1, unk=2, sentinels=(7, 6, 5, 4, 3))
    (tmp_path / "out").mkdir()
    hf_files.write_tokenizer(tmp_path / "out", ours, longest=None)
    again, theirs = hf_files.read_tokenizer(tmp_path / "out"), kinds.auto(tmp_path / "out")
    texts = ["the whale", "\u6f22\u5b57 \U0001f433 \u0416\u0416 whale", "<0x41> a<0x42>", *(line for line in HARD.split("\n"))]
    for text in texts:
        ids = model.encode(text)
        assert ours.encode(text).tolist() == again.encode(text).tolist() == ids
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids or "<" in text
        assert 2 not in ids
    ids = ours.encode("whale \u6f22 swims")
    assert ours.decode(ids) == theirs.decode(ids) == "whale \u6f22 swims"
    assert ours.token_bytes()[ids].sum() == len(" whale \u6f22 swims".encode())
    # A text cannot spell a sentinel.
    assert not {3, 4, 5, 6, 7}.intersection(ours.encode("a <extra_id_0>").tolist())


@pytest.mark.planted(2)
def test_a_model_that_cannot_spell_every_byte_is_refused() -> None:
    proto = sentencepiece_proto.parse_spiece_model(bytes_model())
    lacking = proto._replace(entries=tuple(entry for entry in proto.entries if entry.name != "<0x7F>"))
    apart = proto._replace(entries=(*proto.entries, sentencepiece_proto.Entry("x", 0.0, sentencepiece_proto.USER_DEFINED)))
    for model, message in ((lacking, "without the entry <0x7F>"), (apart, "has the separate entry x,")):
        with pytest.raises(hf_files.BadInput, match=message):
            unigram.convert_unigram(model, 0)
