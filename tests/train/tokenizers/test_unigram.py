"""T5's unigram models: on any text what SentencePiece and `transformers` give for the same file, by whatever files they come."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from tests.support.hard_texts import HARD, random_characters
from tests.support.processes import ROOT, run_python
from train import pieces, spiece, tokenizer_files, unigram
from train.config import Data
from train.corpus import split
from train.marks import TextMarks
from train.prepare import prepare
from train.texts import Document
from train.tokenizer import Tokenizer
from zoo.errors import BadInput

VOCAB = 900
TEXTS = [
    *(HARD, random_characters(), "", " ", "  two  spaces\u3000here \n"),
    *("The Whale's 42nd; cafe\u0301--don't!", "\u2581a \u2581\u2581b"),
]
SPELLED = "</s> <pad> <unk> <extra_id_3> a<extra_id_0>b"


@pytest.fixture(scope="module")
def chapters() -> list[str]:
    return [*(document.text for document in split(Data())[1]), HARD]


@pytest.fixture(scope="module")
def raw(chapters: list[str]) -> bytes:
    return unigram.model(chapters, VOCAB - 100)


@pytest.fixture(scope="module")
def ours(chapters: list[str]) -> Tokenizer:
    return Tokenizer.train(chapters, VOCAB, "sentencepiece")


@pytest.fixture(scope="module")
def library(raw: bytes) -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=raw)


@pytest.fixture(scope="module")
def published(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as T5's were released first: a spiece.model alone."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "spiece.model").write_bytes(raw)
    (folder / "config.json").write_text('{"model_type": "t5"}')
    return folder


@pytest.fixture(scope="module")
def theirs(published: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(published)


def test_training_gives_the_same_in_every_process(ours: Tokenizer):
    program = (
        "from tests.support.hard_texts import HARD\nfrom train.config import Data\nfrom train.corpus import split\n"
        "from train.tokenizer import Tokenizer\ntexts = [*(document.text for document in split(Data())[1]), HARD]\n"
        f"print(Tokenizer.train(texts, {VOCAB}, 'sentencepiece').fingerprint)"
    )
    root = ROOT
    assert run_python("-c", program, env={"PYTHONPATH": str(root)}, cwd=root).stdout.strip() == ours.fingerprint


def test_the_marks_are_where_t5_has_them(ours: Tokenizer):
    assert ours.vocab_size == VOCAB
    assert ours.text_marks == TextMarks(pad=0, end=1, unk=2, sentinels=tuple(range(899, 799, -1)))
    assert ours.text_marks.special == (0, 1, 2, *range(800, 900))
    assert (ours.kind, ours.marks, ours.end_of_text) == ("sentencepiece", None, 1)
    assert ours.decode([899, 898, 800, 1]) == "<extra_id_0><extra_id_1><extra_id_99></s>"


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_ids_are_those_of_sentencepiece_and_of_transformers(ours: Tokenizer, library: Any, theirs: Any, text: str):
    expected = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
    assert ours.encode(text).tolist() == library.encode(text) == expected["input_ids"]
    ((ids, spans),) = ours.encode_spans([text])
    assert ids.tolist() == expected["input_ids"]
    assert spans.tolist() == [list(span) for span in expected["offset_mapping"]]


def test_a_book_is_divided_as_sentencepiece_divides_it(ours: Tokenizer, library: Any, chapters: list[str]):
    """But where two ways are equally likely: the library adds float32 numbers, so that which is larger is rounding."""
    scores = np.array([library.get_score(number) for number in range(VOCAB - 100)])
    differ = 0
    for text in chapters:
        mine, theirs = ours.encode(text).tolist(), library.encode(text)
        differ += mine != theirs
        # Thousands of scores of about 10, each with an error of at most half of 2**-20.
        np.testing.assert_allclose(scores[mine].sum(), scores[theirs].sum(), rtol=1e-6)
    assert differ <= 1


def test_what_no_entry_of_a_vocabulary_covers_is_unknown(ours: Tokenizer, library: Any):
    assert ours.encode("\u0416\u0416\u0416 whale").tolist() == library.encode("\u0416\u0416\u0416 whale")
    assert ours.text_marks.unk in ours.encode("\u0416")


@settings(deadline=None)
@given(st.lists(st.sampled_from([*SPELLED.split(), "<extra_id_99>", *"<>/_ \u2581", "extra", "id", "3"])).map("".join))
@example(SPELLED)
def test_no_text_gives_a_mark(ours: Tokenizer, text: str):
    """A sentinel in a text is the characters that it is written with."""
    special = {*ours.text_marks.special} - {ours.text_marks.unk}
    assert not special & {*ours.encode(text).tolist(), *ours.encode_words(text.split(" "))[0].tolist()}


def test_a_spelled_mark_is_what_sentencepiece_makes_of_it(ours: Tokenizer, library: Any):
    assert ours.encode(SPELLED).tolist() == library.encode(SPELLED)


def test_all_files_of_a_tokenizer_give_the_same(ours: Tokenizer, published: Path, theirs: Any, tmp_path: Path):
    assert tokenizer_files.read(published).fingerprint == ours.fingerprint
    tokenizer_files.write(tmp_path, ours, longest=None)
    shutil.copy(published / "config.json", tmp_path)
    assert tokenizer_files.read(tmp_path).fingerprint == ours.fingerprint
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is type(theirs) is transformers.T5Tokenizer
    for text in TEXTS:
        assert again(text)["input_ids"] == theirs(text)["input_ids"] == [*ours.encode(text), 1]
    for tokenizer in (again, theirs):
        named = [tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token, "<extra_id_0>", "<extra_id_99>"]
        assert tokenizer.convert_tokens_to_ids(named) == [0, 1, 2, 899, 800]
        assert len(tokenizer) == VOCAB
    as_it_is = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert as_it_is(HARD, "x")["input_ids"] == theirs(HARD, "x")["input_ids"]


def test_what_transformers_writes_of_it_is_read(ours: Tokenizer, theirs: Any, tmp_path: Path):
    theirs.save_pretrained(tmp_path)
    read = tokenizer_files.read(tmp_path)
    assert read.text_marks == ours.text_marks
    for text in [*TEXTS, SPELLED]:
        assert read.encode(text).tolist() == ours.encode(text).tolist()


def test_other_rules_are_written_as_they_are(ours: Tokenizer, tmp_path: Path):
    ours.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    lower = {"type": "Sequence", "normalizers": [content["normalizer"], {"type": "Lowercase"}]}
    other = Tokenizer({**content, "normalizer": lower})
    tokenizer_files.write(tmp_path, other, longest=512)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again("WHALE")["input_ids"] == [*other.encode("whale"), 1] == [*other.encode("WHALE"), 1]
    assert again.model_max_length == 512
    # A text is whole where rules are unknown.
    assert len(list(other.pieces([("a b " * pieces.PIECE, True)]))) == 1


def test_the_files_of_settings_say_how_many_sentinels_there_are(published: Path, tmp_path: Path):
    shutil.copy(published / "spiece.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 7}')
    assert tokenizer_files.read(tmp_path).text_marks.sentinels == tuple(range(806, 799, -1))
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": -1}')
    with pytest.raises(BadInput, match="extra_ids is -1; it must be 0 to"):
        tokenizer_files.read(tmp_path)


def test_pieces_train_the_tokenizer_of_the_whole(chapters: list[str], ours: Tokenizer):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", 100)
        cut = [piece for text in chapters for piece, _ in pieces.cut([text])]
        japanese = ["\u3053\u308c\u3002\u305d\u308c\u3001\u3042\u308c " * 20]
        assert [*unigram.lines(cut)] == [*unigram.lines(chapters)]
        patch.setattr(pieces, "PIECE", 2)
        assert [*unigram.lines(piece for piece, _ in pieces.cut(japanese))] == [*unigram.lines(japanese)]
    assert len(cut) > 50 * len(chapters)


@settings(deadline=None)
@given(
    st.lists(
        st.text(st.sampled_from("aB' \n\r\t\x1c\x85\u00a0\u3000\u2028!7\u00e9\u0301\u3042\u4e00\u3002\uff0c\u2581\u0600"))
        | st.text(st.characters(exclude_categories=["Cs"]))
    )
)
@example(["don't  stop\n\n \n x", "", "\u3042\u3002\u3042\uff0cb \u0301c"])
def test_long_texts_are_encoded_in_pieces_without_a_trace(ours: Tokenizer, texts: list[str]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", 2)
        assert len(list(ours.pieces([("some words here", True)]))) == 3
        assert [*ours.pieces([("\u3042\u3002\u3042 b", True)])] == [("\u3042\u3002\u3042", False), (" b", True)]
        many = list(ours.encode_many(texts))
    assert [ids.tolist() for ids in many] == [ids.tolist() for ids, _ in ours.encode_spans(texts)]


def test_a_document_ends_with_the_end(ours: Tokenizer, tmp_path: Path):
    tokens = prepare([Document("a", "The whale."), Document("b", "A ship")], ours, tmp_path)
    assert tokens.ids.tolist() == [*ours.encode("The whale."), 1, *ours.encode("A ship"), 1]


def test_decoding_gives_the_text(ours: Tokenizer, chapters: list[str]):
    text = " ".join(chapters[0].split())
    assert ours.decode(ours.encode(text)) == ours._core.normalizer.normalize_str(text)
    assert ours.token_bytes()[ours.encode("The white whale sw\u00efms")].sum() == len(" The white whale sw\u00efms".encode())
    assert not ours.token_bytes()[[*ours.text_marks.special]].any()
    starts = ours.word_starts()
    assert starts[ours.encode("harpooneers of whales")].sum() == 3
    assert starts[[*ours.text_marks.special]].all() and not starts[ours.encode("whale, ship")[1]]


def test_words_are_encoded_as_in_the_text(ours: Tokenizer):
    ids, word = ours.encode_words(["The", "harpooneers", "", "swim"])
    assert ids.tolist() == ours.encode("The harpooneers swim").tolist()
    assert sorted({*word.tolist()}) == [0, 1, 3]


def test_a_small_text_gives_fewer_entries_and_a_small_vocabulary_fewer_characters():
    small = Tokenizer.train(["ab ab abc"], 5000, "sentencepiece")
    assert 103 < small.vocab_size < 120
    many = Tokenizer.train(["".join(map(chr, range(0x4E00, 0x5400))) + " the whale" * 50_000], 400, "sentencepiece")
    assert many.text_marks.unk not in many.encode("the whale")
    assert many.text_marks.unk in many.encode("\u5300")
    for vocab in (90, 104):
        with pytest.raises(BadInput, match=rf"--tokenizer.vocab {vocab}: .*; choose a"):
            Tokenizer.train(["some words"], vocab, "sentencepiece")
    with pytest.raises(BadInput, match=r"--tokenizer.vocab 300: no unigram model of this text"):
        Tokenizer.train([], 300, "sentencepiece")


# --- Files ---


def test_a_file_says_what_the_librarys_own_reader_says(raw: bytes):
    ours, theirs = spiece.parse(raw), sentencepiece_model_pb2.ModelProto.FromString(raw)
    assert [tuple(entry) for entry in ours.entries] == [(piece.piece, piece.score, piece.type) for piece in theirs.pieces]
    rules = theirs.normalizer_spec
    assert ours.charsmap == rules.precompiled_charsmap and len(ours.charsmap) > 100_000
    changed = sentencepiece_model_pb2.ModelProto()
    changed.CopyFrom(theirs)
    for part in (changed.trainer_spec, changed.normalizer_spec):
        for name in OPTIONS:
            if name in part.DESCRIPTOR.fields_by_name:
                setattr(part, name, not getattr(part, name))
    other = spiece.parse(changed.SerializeToString())
    assert all(getattr(other, name) != getattr(ours, name) for name in OPTIONS)
    assert (ours.kind, spiece.parse(sentencepiece_model_pb2.ModelProto(pieces=theirs.pieces).SerializeToString()).kind) == (1, 1)


OPTIONS = (
    *("split_by_whitespace", "treat_whitespace_as_suffix", "byte_fallback"),
    *("add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"),
)


def _trained(**options: Any) -> bytes:
    made, text = io.BytesIO(), ["the white whale and the white sea and the ship"] * 10
    given = dict(vocab_size=40, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=made, **{**given, **options})
    return made.getvalue()


BAD: dict[str, tuple[Any, str]] = {
    "another kind": (
        dict(model_type="bpe", vocab_size=30),
        "it is another kind of model than unigram, which T5's rules have no place for; give",
    ),
    "bytes": (dict(byte_fallback=True, vocab_size=300), "it spells unknown characters as bytes"),
    "suffix": (dict(treat_whitespace_as_suffix=True), "it has spaces after words"),
    "across": (dict(split_by_whitespace=False), "it has entries across spaces"),
    "no prefix": (dict(add_dummy_prefix=False), "it puts no space before a text"),
    "spaces": (dict(remove_extra_whitespaces=False), "it keeps repeated spaces"),
    "symbols": (dict(user_defined_symbols="<x>"), "it has entries of other kinds"),
    "no pad": (dict(pad_id=-1, eos_id=0, unk_id=1), "it has no <pad>, and T5 needs <pad>, </s>, <unk>"),
    "nothing": (b"", "a SentencePiece model without entries"),
    "text": (b"the whale\n", "no SentencePiece model ("),
    "cut off": (None, "no SentencePiece model ("),
}


DAMAGED = ("nothing", "text", "cut off")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.planted) if name in DAMAGED else name for name in BAD])
def test_bad_files_are_refused(raw: bytes, tmp_path: Path, name: str):
    given, told = BAD[name]
    content = _trained(**given) if isinstance(given, dict) else raw[:-1000] if given is None else given
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(BadInput) as refusal:
        tokenizer_files.read(tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path}/spiece.model: {told}")
    assert "\n" not in str(refusal.value)


def test_damaged_files_are_refused_or_read(raw: bytes):
    """And nothing else."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        broken = bytearray(raw)
        for at in rng.integers(0, len(raw), 20):
            broken[at] = rng.integers(256)
        with contextlib.suppress(BadInput):
            spiece.parse(bytes(broken))


@pytest.mark.parametrize("kind", ["sentencepiece", "xlnet", "gpt"])
def test_a_continuation_keeps_the_space_before_its_first_word(kind: Any) -> None:
    """Wherever a text is cut, both parts are the text; decoded by itself the second one may lack a space."""
    said = "the old men see the white whale. it sleeps, and the ship goes on. "
    made = Tokenizer.train([said * 9], 300, kind)
    ids = made.encode(said.strip()).tolist()
    whole = made.decode(ids)
    assert all(made.decode(ids[:cut]) + made.continuation(ids[cut:]) == whole for cut in range(1, len(ids)))
    lacking = [cut for cut in range(1, len(ids)) if made.decode(ids[:cut]) + made.decode(ids[cut:]) != whole]
    assert bool(lacking) == (kind != "gpt")
    assert made.continuation([]) == ""
