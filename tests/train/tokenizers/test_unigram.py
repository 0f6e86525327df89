"""T5's unigram models: on any text what SentencePiece gives, and the spiece.model files that they come in."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.hard_texts import HARD, random_characters
from tests.train.tokenizers.kinds import VOCAB, chapters, library, published, raw, refused, trained
from train.data import chunking
from train.tokenizers import hf_files, sentencepiece_proto, unigram
from train.tokenizers.tokenizer import Tokenizer, TrainedKind
from zoo.errors import BadInput

TEXTS = [
    *(HARD, random_characters(), "", " ", "  two  spaces\u3000here \n", "The Whale's 42nd; cafe\u0301--don't!"),
    *("\u2581a \u2581\u2581b", "\u0416\u0416\u0416 whale", "</s> <pad> <unk> <extra_id_3> a<extra_id_0>b"),
]


def test_ids_are_those_of_sentencepiece() -> None:
    """Of special tokens spelled out, and of characters that no entry covers, too."""
    for text in TEXTS:
        assert trained("sentencepiece").encode(text).tolist() == library("sentencepiece").encode(text)
    assert trained("sentencepiece").text_special_tokens.unk in trained("sentencepiece").encode("\u0416")


def test_a_book_is_divided_as_sentencepiece_divides_it() -> None:
    """But where two ways are equally likely: the library adds float32 numbers, so that rounding decides which is larger."""
    reference = library("sentencepiece")
    scores = np.array([reference.get_score(number) for number in range(VOCAB - 100)])
    differ = 0
    for text in chapters():
        ours, expected = trained("sentencepiece").encode(text).tolist(), reference.encode(text)
        differ += ours != expected
        # Thousands of scores of about 10, each with an error of at most half of 2**-20.
        np.testing.assert_allclose(scores[ours].sum(), scores[expected].sum(), rtol=1e-6)
    assert differ <= 1


def test_the_files_of_settings_say_how_many_sentinels_there_are(tmp_path: Path) -> None:
    shutil.copy(published("sentencepiece") / "spiece.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 7}')
    assert hf_files.read_tokenizer(tmp_path).text_special_tokens.sentinels == tuple(range(806, 799, -1))
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": -1}')
    with pytest.raises(BadInput, match="extra_ids is -1; it must be 0 to"):
        hf_files.read_tokenizer(tmp_path)


def test_lines_to_train_on_are_the_same_from_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a script without spaces; and a text may be cut before spaces alone."""
    monkeypatch.setattr(chunking, "CHUNK", 2)
    japanese = ["\u3053\u308c\u3002\u305d\u308c\u3001\u3042\u308c " * 20]
    parts = [piece for piece, _ in chunking.cut_chunks(japanese)]
    assert len(parts) > 20
    assert [*unigram.training_lines(parts)] == [*unigram.training_lines(japanese)]
    cut = trained("sentencepiece").chunks([("\u3042\u3002\u3042 b", True)])
    assert [*cut] == [("\u3042\u3002\u3042", False), (" b", True)]


@pytest.mark.parametrize(("kind", "extra"), [("sentencepiece", 100), ("xlnet", 17)])
def test_a_small_text_gives_fewer_entries_and_a_small_vocabulary_is_refused(kind: TrainedKind, extra: int) -> None:
    assert extra < Tokenizer.train(["ab ab abc"], 5000, kind).vocab_size < extra + 23
    for texts, vocab in ((["some words"], extra - 5), (["some words"], extra + 1), ([], 300)):
        with pytest.raises(BadInput, match=rf"^--tokenizer.vocab {vocab}: .*; choose a"):
            Tokenizer.train(texts, vocab, kind)


@pytest.mark.full
def test_the_rarest_of_too_many_characters_are_unknown() -> None:
    many = Tokenizer.train(["".join(map(chr, range(0x4E00, 0x5400))) + " the whale" * 50_000], 400, "sentencepiece")
    assert many.text_special_tokens.unk not in many.encode("the whale")
    assert many.text_special_tokens.unk in many.encode("\u5300")


OPTIONS = (
    *("split_by_whitespace", "treat_whitespace_as_suffix", "byte_fallback"),
    *("add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"),
)


def test_a_file_is_read_as_by_the_librarys_own_reader() -> None:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(raw("sentencepiece"))
    ours = sentencepiece_proto.parse_spiece_model(raw("sentencepiece"))
    assert [tuple(entry) for entry in ours.entries] == [(piece.piece, piece.score, piece.type) for piece in model.pieces]
    assert ours.charsmap == model.normalizer_spec.precompiled_charsmap and len(ours.charsmap) > 100_000
    for part in (model.trainer_spec, model.normalizer_spec):
        for name in OPTIONS:
            if name in part.DESCRIPTOR.fields_by_name:
                setattr(part, name, not getattr(part, name))
    model.trainer_spec.model_type = 2  # BPE
    other = sentencepiece_proto.parse_spiece_model(model.SerializeToString())
    assert all(getattr(other, name) != getattr(ours, name) for name in OPTIONS)
    bare = sentencepiece_model_pb2.ModelProto(pieces=model.pieces)
    assert (ours.kind, other.kind, sentencepiece_proto.parse_spiece_model(bare.SerializeToString()).kind) == (1, 2, 1)


def test_models_of_other_rules_are_refused() -> None:
    model = sentencepiece_proto.parse_spiece_model(raw("sentencepiece"))
    changes: list[dict[str, Any]] = [{name: not getattr(model, name)} for name in OPTIONS]
    changes += [
        {"kind": 2},
        {"entries": (*model.entries, sentencepiece_proto.Entry("<x>", 0.0, sentencepiece_proto.USER_DEFINED))},
    ]
    for change in changes:
        with pytest.raises(
            BadInput,
            match=r"^a SentencePiece model that [a-z0-9<> ]*, which T5's tokenizers cannot do; train ",
        ):
            unigram.convert_unigram(model._replace(**change))
    renamed = [entry._replace(name="(other)") if entry.name == "<pad>" else entry for entry in model.entries]
    with pytest.raises(BadInput, match=r"^it has no <pad>, and T5 needs <pad>, </s>, <unk>; give one of T5's kind$"):
        unigram.convert_unigram(model._replace(entries=tuple(renamed)))


@pytest.mark.planted(3)
def test_damaged_files_are_refused(tmp_path: Path) -> None:
    damaged = {b"": "a SentencePiece model without entries", b"the whale\n": "not a SentencePiece model ("}
    damaged[raw("sentencepiece")[:-1000]] = "not a SentencePiece model ("
    for content, message in damaged.items():
        (tmp_path / "spiece.model").write_bytes(content)
        assert refused(tmp_path).startswith(f"{tmp_path}/spiece.model: {message}")


@pytest.mark.full
def test_files_with_flipped_bytes_are_refused_or_read() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        broken = bytearray(raw("sentencepiece"))
        for at in rng.integers(0, len(broken), 20):
            broken[at] = rng.integers(256)
        with contextlib.suppress(BadInput):
            sentencepiece_proto.parse_spiece_model(bytes(broken))


@pytest.mark.planted(2)
@pytest.mark.parametrize("damage", ["cut", "in the wrong place"])
def test_a_damaged_table_of_characters_is_refused_in_one_short_line(damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The library panics: it printed a trace to stderr. In its message it quotes the table, of 320,000 characters."""
    content = trained("sentencepiece").content()
    table = content["normalizer"]["precompiled_charsmap"]
    content["normalizer"] = (
        table if damage == "in the wrong place" else {**content["normalizer"], "precompiled_charsmap": table[:-7]}
    )
    with pytest.raises(BadInput) as refused:
        Tokenizer(content)
    assert str(refused.value).startswith("not a tokenizer (") and len(str(refused.value)) < 400
    assert capfd.readouterr().err == ""
