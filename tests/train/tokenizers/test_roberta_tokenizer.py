"""RoBERTa's byte-level BPE: GPT-2's rules with marks around them, and its published files."""

import json
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.hard_texts import HARD
from train import tokenizer_files
from train.tokenizer import END_OF_TEXT, Tokenizer
from zoo.errors import BadInput

TEXTS = ["The white whale, the whale's ship.\n\nThe white sea! " * 5, HARD]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(TEXTS, 320, "roberta")


@pytest.fixture
def published(trained: Tokenizer, tmp_path: Path) -> Path:
    """A vocab.json and merges.txt as RoBERTa's were released: GPT-2's end of text is any entry, the mask the last."""
    tokenizer_files.write(tmp_path, trained, longest=512)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    assert [*vocab][:4] == ["<s>", "<pad>", "</s>", "<unk>"] and vocab.pop("<mask>") == 319
    extra = [END_OF_TEXT, "madeupword0000", "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({**vocab, **{name: 319 + at for at, name in enumerate(extra)}}))
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    return tmp_path


def test_the_published_files_give_what_transformers_gives(trained: Tokenizer, published: Path):
    ours, theirs = tokenizer_files.read(published), transformers.AutoTokenizer.from_pretrained(published)
    assert ours.kind == "roberta"
    assert (ours.marks.mask, ours.vocab_size, ours.end_of_text) == (321, 322, 2)
    assert theirs(HARD)["input_ids"] == ours.marks.single(ours.encode(HARD))[0].tolist()
    assert ours.encode(HARD).tolist() == trained.encode(HARD).tolist()
    assert not {319, 320, 321} & {*ours.encode(f"{END_OF_TEXT} madeupword0000 <mask>").tolist()}


def test_the_space_before_a_text_is_put_where_the_files_say_so(published: Path):
    (published / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    ours, theirs = tokenizer_files.read(published), transformers.AutoTokenizer.from_pretrained(published)
    assert ours.encode("whale ship").tolist() == ours.encode(" whale ship").tolist()
    assert theirs("whale ship", add_special_tokens=False)["input_ids"] == ours.encode("whale ship").tolist()
    assert ours.encode_words(["whale", "ship"])[0].tolist() == ours.encode("whale ship").tolist()
    # Which a piece of a text must not get.
    assert len(list(ours.pieces([("a b " * (1 << 16), True)]))) == 1
    out = published / "out"
    out.mkdir()
    tokenizer_files.write(out, ours, longest=512)
    again = transformers.AutoTokenizer.from_pretrained(out)
    assert again("whale ship", add_special_tokens=False)["input_ids"] == ours.encode("whale ship").tolist()


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(trained: Tokenizer, text: str):
    assert trained.decode(trained.encode(text)) == text
    assert trained.token_bytes()[trained.encode(text)].sum() == len(text.encode())


def test_merges_are_those_of_gpt():
    """The marks aside, the same text gives the same entries in the same order."""
    gpt, roberta = Tokenizer.train(TEXTS, 1 + 256 + 50), Tokenizer.train(TEXTS, 4 + 256 + 50 + 1, "roberta")
    assert [roberta.decode([number]) for number in range(4, 310)] == [gpt.decode([number]) for number in range(1, 307)]
    assert gpt.marks is None and gpt.kind == "gpt"
    assert roberta.decode([310]) == "<mask>"


def test_a_gpt_tokenizer_may_have_an_encoders_names_too(tmp_path: Path):
    """Its end of text says what it is."""
    Tokenizer.train(TEXTS, 300).save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    entry = {**content["added_tokens"][0], "id": 300, "content": "<pad>"}
    both = Tokenizer({**content, "added_tokens": [*content["added_tokens"], entry]})
    assert (both.marks, both.end_of_text, both.vocab_size) == (None, 0, 301)


def test_starts_of_words_are_told_by_the_first_character(trained: Tokenizer):
    starts, ((ids, spans),) = trained.word_starts(), trained.encode_spans(["\nwhale \u00e9\u6f22\U0001f433"])
    # A line end begins one, and the letters after it do not; nor do the bytes of one character.
    assert starts[ids[0]]
    assert not starts[trained.encode("whale")[0]] and starts[trained.encode(" whale")[0]]
    whale = ids[spans[:, 0] == 9]
    assert len(whale) > 1 and not starts[whale].any()


def test_an_empty_affix_is_none(trained: Tokenizer, tmp_path: Path):
    """RoBERTa's released tokenizer.json spells it so; it is RoBERTa's all the same."""
    trained.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    affixes = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    tokenizer_files.write(tmp_path, Tokenizer({**content, "model": {**content["model"], **affixes}}), longest=512)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "RobertaTokenizer"


BAD = {
    "no mask": ('{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}', "#version: 0.2\n", "vocab.json: it has no <mask>, and an"),
    "a gap": ('{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 9}', "", "vocab.json: its 5 entries do not have the ids"),
    "no number": ('{"<s>": "0"}', "", "vocab.json: no vocabulary that fits merges.txt"),
    "no such piece": (
        '{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}',
        "a b\n",
        "vocab.json: no vocabulary that fits",
    ),
    "no pair": ('{"<s>": 0}', "a b c\n", "vocab.json: merges.txt:1: not two pieces"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.planted
def test_bad_files_are_refused(tmp_path: Path, name: str):
    vocabulary, merges, told = BAD[name]
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(BadInput) as refusal:
        tokenizer_files.read(tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path}/{told}")
    assert "\n" not in str(refusal.value)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(BadInput, match=r"vocab.json: merges.txt: cannot be read"):
        tokenizer_files.read(tmp_path)
