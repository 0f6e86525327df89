"""The encoders' tokenizers: on any text what `transformers` gives for the same files, by whatever files they come."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.hard_texts import HARD, random_characters
from tests.support.processes import ROOT, run_python
from train import pieces, tokenizer_files
from train.config import Data
from train.corpus import split
from train.marks import Marks
from train.prepare import prepare
from train.texts import Document
from train.tokenizer import Tokenizer
from zoo.errors import BadInput

KINDS: dict[str, dict[str, Any]] = {
    "uncased": dict(kind="wordpiece"),
    "cased": dict(kind="wordpiece", lowercase=False),
    "roberta": dict(kind="roberta"),
}
MARKS = {
    "wordpiece": Marks(pad=0, unk=1, cls=2, sep=3, mask=4),
    "roberta": Marks(cls=0, pad=1, sep=2, unk=3, mask=899, between=2),
}
FILES = {"wordpiece": ["vocab.txt"], "roberta": ["vocab.json", "merges.txt"]}
TEXTS = [HARD, random_characters(), "", " ", "  two  spaces\u3000here \n", "The Whale's 42nd; cafe\u0301--don't!"]
WORDS = [
    "The",
    "Whale's",
    "",
    "4.2",
    "na\u00efve",
    "\u6f22\u5b57x",
    " led",
    "a b",
    "\x00",
    "\U0001f433",
    "x" * 120,
    "(Nantucket)",
]
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def chapters() -> list[str]:
    return [document.text for document in split(Data())[1]]


@functools.cache
def trained(name: str) -> Tokenizer:
    return Tokenizer.train([*(document.text for document in split(Data())[1]), HARD], 900, **KINDS[name])


@pytest.fixture(scope="module", params=KINDS)
def ours(request: pytest.FixtureRequest) -> Tokenizer:
    return trained(request.param)


@pytest.fixture(scope="module")
def folder(ours: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files we write of it."""
    made = tmp_path_factory.mktemp(ours.kind)
    tokenizer_files.write(made, ours, longest=1 << 20)
    family = {"wordpiece": "bert", "roberta": "roberta"}[ours.kind]
    (made / "config.json").write_text(json.dumps({"model_type": family}))
    return made


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_training_gives_the_same_in_every_process(ours: Tokenizer):
    """The library's own training gives another WordPiece vocabulary in each."""
    program = f"from {__name__} import KINDS, trained\nprint(*(trained(name).fingerprint for name in KINDS))"
    prints = [_elsewhere(program, seed) for seed in ("1", "2")]
    assert prints[0] == prints[1]
    assert ours.fingerprint in prints[0].split()


@functools.cache
def _elsewhere(program: str, seed: str) -> str:
    root = ROOT
    path = f"{root}:{root / 'tests'}"
    return run_python("-c", program, env={"PYTHONHASHSEED": seed, "PYTHONPATH": path}, cwd=root).stdout


def test_the_marks_are_where_they_are_published(ours: Tokenizer):
    assert ours.vocab_size == 900
    assert ours.marks == MARKS[ours.kind]
    assert ours.end_of_text == ours.marks.sep
    assert Tokenizer.train(["ab"], 300).marks is None


def test_pieces_train_the_tokenizer_of_the_whole(chapters: list[str], ours: Tokenizer):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", 100)
        cut = [piece for text in [*chapters, HARD] for piece, _ in pieces.cut([text])]
    name = next(name for name in KINDS if trained(name) is ours)
    assert Tokenizer.train(iter(cut), 900, **KINDS[name]).fingerprint == ours.fingerprint


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_ids_and_spans_are_those_of_transformers(ours: Tokenizer, theirs: Any, text: str):
    expected = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
    assert ours.encode(text).tolist() == expected["input_ids"]
    ((ids, spans),) = ours.encode_spans([text])
    assert ids.tolist() == expected["input_ids"]
    assert spans.shape == (len(ids), 2)
    assert spans.tolist() == [list(span) for span in expected["offset_mapping"]]


def test_all_files_of_a_tokenizer_give_the_same(ours: Tokenizer, folder: Path, tmp_path: Path):
    for files in (["tokenizer.json"], FILES[ours.kind]):
        alone = tmp_path / files[0]
        alone.mkdir()
        for file in ["config.json", "tokenizer_config.json", *files]:
            shutil.copy(folder / file, alone)
        assert tokenizer_files.read(alone).fingerprint == ours.fingerprint
        theirs = transformers.AutoTokenizer.from_pretrained(alone)
        for text in TEXTS:
            assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text).tolist()
        assert theirs.convert_tokens_to_ids([theirs.pad_token, theirs.mask_token]) == [ours.marks.pad, ours.marks.mask]
        assert_a_mask_stands_for_a_word_and_its_space(ours, theirs)


def test_templates_are_those_of_transformers(ours: Tokenizer, theirs: Any, folder: Path):
    """Of its class of the model, which makes its own, and of the one that takes tokenizer.json's."""
    as_it_is = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    one, other = "The White Whale.", "Ahab's leg"
    for texts in ([one], [one, other], ["", other]):
        expected = theirs(*texts, return_token_type_ids=True)
        assert as_it_is(*texts, return_token_type_ids=True)["input_ids"] == expected["input_ids"]
        assert as_it_is(*texts, return_token_type_ids=True)["token_type_ids"] == expected["token_type_ids"]
        ids = [ours.encode(text) for text in texts]
        made, types = ours.marks.single(*ids) if len(ids) == 1 else ours.marks.pair(*ids)
        assert made.tolist() == expected["input_ids"]
        assert types.tolist() == expected["token_type_ids"]
        assert made.dtype == types.dtype == np.int32


def assert_a_mask_stands_for_a_word_and_its_space(ours: Tokenizer, theirs: Any):
    """What `transformers` makes of a mask in a text is the sum of its parts."""
    expected = theirs(f"The white {theirs.mask_token} swims")["input_ids"]
    made = np.concatenate([ours.encode("The white"), [ours.marks.mask], ours.encode(" swims")])
    assert ours.marks.single(made)[0].tolist() == expected


def test_words_are_those_of_transformers(ours: Tokenizer, folder: Path):
    theirs = transformers.AutoTokenizer.from_pretrained(folder, add_prefix_space=True)
    for words in (WORDS, ["", " "], [*random_characters(500)]):
        expected = theirs(words, is_split_into_words=True, add_special_tokens=False)
        ids, word = ours.encode_words(words)
        assert ids.tolist() == expected["input_ids"]
        assert word.tolist() == expected.word_ids()
    assert ours.encode_words([])[0].shape == ours.encode_words([])[1].shape == (0,)


@settings(deadline=None)
@given(st.lists(st.text(st.sampled_from("aB' \n\r\t\x1c\x85\u00a0\u3000\u2028!7\u00e9\u0301\u3042\u4e00\u3002\uff0c")) | UNICODE))
@example(["don't  stop\n\n \n x", ""])
@example(["a \u0301 b\n\u0301", "\u3042\u3002\u3042\u3099\uff01", "\x00 \u200b \ufffd"])
def test_long_texts_are_encoded_in_pieces_without_a_trace(ours: Tokenizer, texts: list[str]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", 2)
        assert len(list(ours.pieces([("some words here", True)]))) == 3
        many = list(ours.encode_many(texts))
    assert [ids.tolist() for ids in many] == [ids.tolist() for ids, _ in ours.encode_spans(texts)]


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*("[CLS]", "[SEP]", "[MASK]", "[PAD]", "<s>", "</s>", "<mask>", "<pad>", "<|endoftext|>"), *"[]<>/ ", "mask", "a"]
        )
    ).map("".join)
)
def test_no_text_gives_a_mark(ours: Tokenizer, text: str):
    ids = {*ours.encode(text).tolist(), *ours.encode_words(text.split(" "))[0].tolist()}
    assert not ids & ({*ours.marks.special} - {ours.marks.unk})


def test_a_document_ends_with_the_separator(ours: Tokenizer, tmp_path: Path):
    tokens = prepare([Document("a", "The whale."), Document("b", "A ship")], ours, tmp_path)
    assert tokens.ids.tolist() == [*ours.encode("The whale."), ours.marks.sep, *ours.encode("A ship"), ours.marks.sep]


def test_what_is_decoded_can_be_read(ours: Tokenizer):
    text, marks = "the harpooneer swims", ours.marks
    ids = ours.encode(text)
    assert len(ids) > 3
    assert ours.decode(ids) == text
    names = {"wordpiece": "[CLS] whale [SEP]", "roberta": "<s> whale</s>"}
    assert ours.decode(np.array([marks.cls, *ours.encode(" whale"), marks.sep])) == names[ours.kind]


def test_starts_of_words_are_where_the_rules_divide(ours: Tokenizer):
    starts, text = ours.word_starts(), " harpooneers, whalebone-ivory; the sea's \u2014 (unmistakably)!"
    ((ids, spans),) = ours.encode_spans([text])
    words = ["harpooneers", ",", "whalebone", "-", "ivory", ";", "the", "sea", "'", "s", "\u2014", "(", "unmistakably", ")", "!"]
    if ours.kind == "roberta":
        # Neither does a table of entries know where letters after a hyphen begin, nor do the rules divide ")!" or "'s".
        words = [*words[:3], "-ivory", ";", "the", "sea", "'s", "\u2014", "(unmistakably", *words[13:]]
    found = []
    for number, (first, end) in zip(ids, spans, strict=True):
        if starts[number]:
            found.append("")
        found[-1] += text[first:end]
    assert [word.strip() for word in "".join(f"{word}\n" for word in found).split("\n") if word] == words
    assert starts[list(ours.marks.special)].all()
    assert starts.dtype == bool and starts.shape == (900,)


def test_token_bytes_are_those_of_the_pieces(ours: Tokenizer):
    sizes, text = ours.token_bytes(), "The white whale sw\u00efms"
    whole = text.encode() if ours.kind == "roberta" else ours.decode(ours.encode(text)).replace(" ", "").encode()
    assert sizes[ours.encode(text)].sum() == len(whole)
    assert not sizes[list(ours.marks.special)].any()


UNMARKED = {"wordpiece": "[SEP]", "roberta": "</s>"}


@pytest.mark.planted(2)
def test_a_mark_that_is_missing_or_that_texts_can_spell_is_refused(ours: Tokenizer, folder: Path, tmp_path: Path):
    content = json.loads((folder / "tokenizer.json").read_text())
    sep = UNMARKED[ours.kind]
    vocab = {("(other)" if entry == sep else entry): number for entry, number in content["model"]["vocab"].items()}
    kept = [token for token in content["added_tokens"] if token["content"] != sep]
    spelled = [{**token, "special": token["content"] != sep} for token in content["added_tokens"]]
    for changes, told in (
        ({"model": {**content["model"], "vocab": vocab}, "added_tokens": kept}, f"it has no {sep}, and an encoder needs"),
        ({"added_tokens": spelled}, f"{sep} is not marked as special"),
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None, **changes}))
        with pytest.raises(BadInput) as refusal:
            Tokenizer.load(tmp_path)
        assert str(refusal.value).startswith(f"{tmp_path}/tokenizer.json: {told}")
        assert "\n" not in str(refusal.value)


def test_rules_that_no_class_of_transformers_makes_are_written_as_they_are(ours: Tokenizer, folder: Path, tmp_path: Path):
    content = json.loads((folder / "tokenizer.json").read_text())
    lower = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}
    other = Tokenizer({**content, "normalizer": lower})
    tokenizer_files.write(tmp_path, other, longest=512)
    assert other.encode("\uff37HALE").tolist() == other.encode("whale").tolist()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("\uff37HALE")["input_ids"] == other.marks.single(other.encode("whale"))[0].tolist()
    # A text is whole where rules are unknown.
    assert len(list(other.pieces([("a b " * pieces.PIECE, True)]))) == 1
