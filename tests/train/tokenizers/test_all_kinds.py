"""What all kinds of tokenizers share: on any text they give what `transformers` gives, by whatever files they come."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.hard_texts import HARD, random_characters
from tests.support.processes import ROOT, run_python
from tests.train.tokenizers import kinds
from tests.train.tokenizers.folders import END
from tests.train.tokenizers.kinds import (
    AWKWARD,
    BERT,
    ENCODERS,
    KINDS,
    MODERNBERT,
    PIECES,
    ROBERTA,
    TEXTS,
    TRAINED,
    UNIGRAMS,
    VOCAB,
    XLNET,
    theirs,
    trained,
)
from train.data import chunking
from train.tokenizers import hf_files
from train.tokenizers.special_tokens import TextSpecialTokens
from train.tokenizers.tokenizer import Kind, Tokenizer
from zoo.errors import BadInput

every_kind = pytest.mark.parametrize("kind", KINDS)
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.full
def test_training_is_the_same_in_every_process_and_from_pieces() -> None:
    """The library's own training gives another WordPiece vocabulary in each process."""
    program = "from tests.train.tokenizers import kinds; print(*kinds.trained_from_pieces())"
    done = run_python("-c", program, env={"PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}, cwd=ROOT)
    assert done.stdout.split() == [trained(kind).fingerprint for kind in TRAINED], done.stderr


def test_training_passes_on_what_the_texts_raise() -> None:
    def texts():
        yield "some text"
        raise BadInput("line 2")

    for kind in TRAINED:
        with pytest.raises(BadInput, match="line 2"):
            Tokenizer.train(texts(), 300, kind)


def test_special_tokens_have_their_published_ids() -> None:
    assert {trained(kind).vocab_size for kind in KINDS} == {VOCAB}
    assert {kind: trained(kind).kind for kind in KINDS} == {kind: kind for kind in KINDS}
    encoders = {"wordpiece": BERT, "roberta": ROBERTA, "modernbert": MODERNBERT, "xlnet": XLNET, "xlm-roberta": ROBERTA}
    assert {kind: trained(kind).special_tokens for kind in KINDS} == {"gpt": None, "sentencepiece": None, **encoders}
    ends = {kind: trained(kind).end_of_text for kind in KINDS}
    expected = {"gpt": 0, "wordpiece": BERT.sep, "roberta": ROBERTA.sep, "sentencepiece": 1, "xlnet": XLNET.eod}
    assert ends == {**expected, "modernbert": BERT.sep, "xlm-roberta": ROBERTA.sep}
    text_marks = trained("sentencepiece").text_special_tokens
    assert text_marks == TextSpecialTokens(pad=0, end=1, unk=2, sentinels=tuple(range(899, 799, -1)))
    assert text_marks.special == (0, 1, 2, *range(800, 900))
    assert trained("xlnet").special_tokens.special == tuple(range(9))
    assert not any(trained(kind).text_special_tokens for kind in KINDS if kind != "sentencepiece")
    assert trained("sentencepiece").decode([899, 898, 800, 1]) == "<extra_id_0><extra_id_1><extra_id_99></s>"
    assert trained("gpt").decode([0]) == "<|endoftext|>"
    words, xlnet = trained("wordpiece"), trained("xlnet")
    assert words.decode(np.array([BERT.cls, *words.encode(" whale"), BERT.sep])) == "[CLS] whale [SEP]"
    assert xlnet.decode(XLNET.single(xlnet.encode("whales"))[0]) == "whales<sep><cls>"


@every_kind
def test_ids_and_spans_are_those_of_transformers(kind: Kind) -> None:
    for text, (ids, spans) in zip(TEXTS, trained(kind).encode_spans(TEXTS), strict=True):
        expected = theirs(kind)(text, add_special_tokens=False, return_offsets_mapping=True)
        assert ids.tolist() == trained(kind).encode(text).tolist() == expected["input_ids"], text
        assert spans.tolist() == [list(span) for span in expected["offset_mapping"]], text
        assert spans.shape == (len(ids), 2)


@every_kind
def test_words_are_those_of_transformers(kind: Kind) -> None:
    ours, reference = trained(kind), kinds.auto(kinds.written(kind), add_prefix_space=True)
    words = ["The", "Whale's", "", "4,2", "4.2", "na\u00efve", "\u6f22\u5b57x", " led", "a b", "\x00", "\U0001f433", "``x''"]
    for some in ([*words, "x" * 120, "(Nantucket)"], ["", " "], [*random_characters(500)], [*HARD]):
        # The class that reads ModernBERT's has no such option.
        spaced = [word and f" {word.removeprefix(' ')}" for word in some] if kind == "modernbert" else list(some)
        expected = reference(spaced, is_split_into_words=True, add_special_tokens=False)
        ids, word = ours.encode_words(some)
        assert ids.tolist() == expected["input_ids"]
        assert word.tolist() == expected.word_ids()
    assert ours.encode_words([])[0].shape == ours.encode_words([])[1].shape == (0,)
    ids, word = ours.encode_words(["The", "harpooneers", "", "swim"])
    assert ids.tolist() == ours.encode(" The harpooneers swim").tolist()
    assert sorted({*word.tolist()}) == [0, 1, 3]


def assert_templates_agree(kind: Kind, reference: Any, template: Any = None) -> None:
    """Assert that texts, pairs and a mask within a text are what `transformers` makes of them, and where texts and CLS are."""
    ours, marks = trained(kind), template or trained(kind).special_tokens
    for texts in (["The White Whale."], ["The White Whale.", "Ahab's leg"], ["", "Ahab's leg"]):
        ids = [ours.encode(text) for text in texts]
        made, types = marks.single(*ids) if len(ids) == 1 else marks.pair(*ids)
        expected = reference(*texts, return_token_type_ids=True)
        assert (made.tolist(), types.tolist()) == (expected["input_ids"], expected["token_type_ids"])
        assert made.dtype == types.dtype == np.int32
        assert len(ids) == 1 or marks.types == types.max() + 1
        assert made[marks.summary(len(made))] == marks.cls
        for at, part in zip((marks.before, marks.before + len(ids[0]) + marks.between), ids, strict=False):
            assert made[at : at + len(part)].tolist() == part.tolist()
    # A mask stands for a word and the space before it.
    masked = np.concatenate([ours.encode("The white"), [marks.mask], ours.encode(" swims")])
    name = ours.entries([marks.mask])[0]
    assert marks.single(masked)[0].tolist() == reference(f"The white {name} swims")["input_ids"]


@pytest.mark.parametrize("kind", ENCODERS)
def test_templates_are_those_of_transformers(kind: Kind) -> None:
    """Of its class of the model, which makes its own, and of the class that takes them from tokenizer.json."""
    assert_templates_agree(kind, theirs(kind))
    assert_templates_agree(kind, kinds.as_it_is(kinds.written(kind)))


@pytest.mark.planted
def test_a_mutant_template_that_has_cls_first_is_caught() -> None:
    with pytest.raises(AssertionError):
        assert_templates_agree("xlnet", theirs("xlnet"), BERT)


CUTS = "aB'` \n\r\t\x1c\x85\u00a0\u3000\u2028!7,\u00e9\u0301\u3042\u3099\u4e00\u3002\uff0c\u2581\u0600\u00a8"
"""Characters around which texts may and may not be cut."""


@every_kind
@settings(deadline=None)
@given(st.lists(st.text(st.sampled_from(CUTS)) | UNICODE, max_size=8))
@example(["don''t  `` stop\n\n \n x", "", "\u3042\u3002\u3042\uff0cb \u0301c", "ab    cd", "ab!\x1c!"])
@example(["a \u0301 b\n\u0301", "\u3042\u3002\u3042\u3099\uff01", "\x00 \u200b \ufffd"])
def test_texts_encoded_in_chunks_have_the_ids_of_the_text(kind: Kind, texts: list[str]) -> None:
    ours = spaces() if kind == "gpt" else trained(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "CHUNK", 2)
        assert len(list(ours.chunks([("some words here", True)]))) == 3
        many = list(ours.encode_many(texts))
    assert [ids.tolist() for ids in many] == [ids.tolist() for ids, _ in ours.encode_spans(texts)]


@functools.cache
def spaces() -> Tokenizer:
    """Return a tokenizer with entries for runs of spaces and for characters that only Python takes for a space."""
    return Tokenizer.train(["a    b\n\n\n  c!\x1c\x1c!\x1c\t\t \u3000\u3000 " * 50], 300)


NAMES = ["<|endoftext|>", "<|", "|>", "endoftext", "[CLS]", "[SEP]", "[MASK]", "[PAD]", "<s>", "</s>", "<mask>", "<pad>", "<unk>"]
NAMES += ["<cls>", "<sep>", "<eod>", "<eop>", "<extra_id_0>", "<extra_id_3>", "<extra_id_99>", "extra", "id", "mask", "sep", "3"]


@settings(deadline=None)
@given(st.lists(st.sampled_from([*NAMES, *"[]<>/_ \u2581\na"])).map("".join))
@example(" ".join(NAMES) + "".join(NAMES))
def test_no_text_gives_a_special_token(text: str) -> None:
    for ours in map(trained, KINDS):
        own = ours.special_tokens or ours.text_special_tokens
        special = {*own.special} - {own.unk} if own else {ours.end_of_text}
        assert not special & {*ours.encode(text).tolist(), *ours.encode_words(text.split(" "))[0].tolist()}


token_bytes = functools.cache(Tokenizer.token_bytes)


@settings(deadline=None)
@given(UNICODE)
@example("".join(map(chr, range(0x300))))
@example("  leading, trailing \r\n\t \n\n  \U0001f469\u200d\U0001f467 e\u0301 \ufdfa \x00\x1f\x85\u2028\ufeff")
@example("<|endoftext|>")
def test_byte_level_bpe_gives_any_text_back(text: str) -> None:
    for ours in (trained("gpt"), trained("roberta")):
        ids = ours.encode(text)
        assert ids.dtype == np.int32
        assert ours.decode(ids) == text
        assert token_bytes(ours)[ids].sum() == len(text.encode())


@pytest.mark.parametrize("kind", ["gpt", *UNIGRAMS])
def test_a_continuation_keeps_the_space_before_its_first_word(kind: Kind) -> None:
    """Wherever a text is cut, both parts are the text; decoded by itself the second part may lack a space."""
    ours = trained(kind)
    ids = ours.encode("the old men see the white whale. it sleeps, and the ship goes on.").tolist()
    whole = ours.decode(ids)
    assert all(ours.decode(ids[:cut]) + ours.continuation(ids[cut:]) == whole for cut in range(1, len(ids)))
    lacking = [cut for cut in range(1, len(ids)) if ours.decode(ids[:cut]) + ours.decode(ids[cut:]) != whole]
    assert bool(lacking) == (kind != "gpt")
    assert ours.continuation([]) == ""


@pytest.mark.parametrize("kind", ["wordpiece", *UNIGRAMS])
def test_token_bytes_are_those_of_the_text(kind: Kind) -> None:
    """But for what WordPiece drops: spaces and accents. (Byte-level BPE is tested on any text.)"""
    ours, text = trained(kind), "The white whale swims"
    size = len(text.replace(" ", "")) if kind == "wordpiece" else len(f" {text}")
    assert ours.token_bytes()[ours.encode(text)].sum() == size
    assert not ours.token_bytes()[[*(ours.special_tokens or ours.text_special_tokens).special]].any()
    if kind != "wordpiece":
        assert "".join(ours.spell(number) for number in ours.encode(text).tolist()) == f" {text}"


@every_kind
def test_word_starts_are_where_the_rules_divide(kind: Kind) -> None:
    ours, text = trained(kind), " harpooneers, whalebone-ivory; the sea's \u2014 (unmistakably)!"
    # A table of entries of byte-level BPE does not know where letters after a hyphen begin; its rules do not divide ")!" or "'s".
    bpe = "harpooneers , whalebone -ivory ; the sea 's \u2014 (unmistakably ) !"
    words = "harpooneers , whalebone - ivory ; the sea ' s \u2014 ( unmistakably ) !"
    expected = {"gpt": bpe, "roberta": bpe, "modernbert": bpe, "wordpiece": words}.get(kind, text.strip())
    starts, ((ids, spans),) = ours.word_starts(), ours.encode_spans([text])
    groups, before = [""], 0
    for number, (first, end) in zip(ids, spans, strict=True):
        if starts[number]:
            groups.append("")
        # Entries that share a character have the same span.
        groups[-1] += text[max(first, before) : end]
        before = end
    assert [word for group in groups for word in group.split()] == expected.split()
    assert starts.dtype == bool and starts.shape == (VOCAB,)
    own = ours.special_tokens or ours.text_special_tokens
    assert starts[[*own.special] if own else [ours.end_of_text]].all()


BPE = ("vocab.json", "merges.txt")
ALONE = {kind: (PIECES[kind],) for kind in UNIGRAMS} | {"gpt": BPE, "roberta": BPE, "wordpiece": ("vocab.txt",)}
"""Files that determine a tokenizer without tokenizer.json."""


@pytest.mark.parametrize("kind", ALONE)
def test_a_vocabulary_without_tokenizer_json_gives_the_same(kind: Kind, tmp_path: Path) -> None:
    for file in ("config.json", "tokenizer_config.json", *ALONE[kind]):
        shutil.copy((kinds.published(kind) if file in PIECES.values() else kinds.written(kind)) / file, tmp_path)
    ours = trained(kind)
    for folder in (tmp_path, kinds.written(kind), *([kinds.published(kind)] if kind in UNIGRAMS else [])):
        assert hf_files.read_tokenizer(folder).fingerprint == ours.fingerprint
    # What `transformers` makes of XLNet's is another; see test_xlnet_unigram.py.
    if kind != "xlnet":
        alone = kinds.auto(tmp_path)
        for text in TEXTS:
            assert alone(text, add_special_tokens=False)["input_ids"] == ours.encode(text).tolist()
    if kind == "sentencepiece":
        pair = [*ours.encode(HARD), 1, *ours.encode("x"), 1]
        for reference in (alone, theirs(kind), kinds.as_it_is(kinds.written(kind)), kinds.auto(kinds.published(kind))):
            assert reference(HARD, "x")["input_ids"] == pair


@every_kind
def test_transformers_finds_the_special_tokens_and_what_it_writes_is_read(kind: Kind, tmp_path: Path) -> None:
    ours, reference = trained(kind), theirs(kind)
    classes = {"gpt": "GPT2", "wordpiece": "Bert", "roberta": "Roberta", "sentencepiece": "T5", "xlnet": "XLNet"}
    classes["xlm-roberta"] = "XLMRoberta"
    assert type(reference).__name__ == (f"{classes[kind]}Tokenizer" if kind in classes else "TokenizersBackend")
    assert len(reference) == VOCAB
    roles = {"gpt": [], "sentencepiece": ["pad", "unk"]}.get(kind, ["pad", "unk", "cls", "sep", "mask"])
    assert all(
        getattr(reference, f"{role}_token_id") == getattr(ours.special_tokens or ours.text_special_tokens, role) for role in roles
    )
    assert kind in ENCODERS or reference.eos_token_id == ours.end_of_text
    reference.save_pretrained(tmp_path)
    again = hf_files.read_tokenizer(tmp_path)
    assert (again.kind, again.special_tokens, again.text_special_tokens) == (kind, ours.special_tokens, ours.text_special_tokens)
    for text in [*AWKWARD, HARD, " ".join(NAMES)]:
        assert again.encode(text).tolist() == ours.encode(text).tolist()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_rules_that_no_class_of_transformers_makes_are_written_as_they_are(kind: Kind, tmp_path: Path) -> None:
    rules = kinds.content(kind)
    before = [rules["normalizer"]] if kind == "sentencepiece" else [{"type": "NFKC"}]
    other = Tokenizer({**rules, "normalizer": {"type": "Sequence", "normalizers": [*before, {"type": "Lowercase"}]}})
    assert other.encode("\uff37HALE").tolist() == other.encode("whale").tolist()
    hf_files.write_tokenizer(tmp_path, other, longest=512)
    kinds.name_family(tmp_path, kind)
    again = kinds.auto(tmp_path)
    assert again("\uff37HALE", add_special_tokens=False)["input_ids"] == other.encode("whale").tolist()
    assert again.model_max_length == 512
    # A text is whole where rules are unknown.
    assert len(list(other.chunks([("a b " * chunking.CHUNK, True)]))) == 1


@pytest.mark.planted(2)
@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_special_token_that_is_missing_or_that_texts_can_spell_is_refused(kind: Kind, tmp_path: Path) -> None:
    rules, end = kinds.content(kind), END[kind]
    without = json.loads(json.dumps({**rules, "post_processor": None}).replace(f'"{end}"', '"(other)"'))
    without["added_tokens"] = [token for token in without["added_tokens"] if token["content"] != "(other)"]
    unmarked = {**rules, "added_tokens": [{**token, "special": token["content"] != end} for token in rules["added_tokens"]]}
    for damaged, message in ((without, f"it has no {end}, and a"), (unmarked, f"{end} is not marked as special")):
        (tmp_path / "tokenizer.json").write_text(json.dumps({**damaged, "post_processor": None}))
        assert kinds.refused(tmp_path, Tokenizer.load).startswith(f"{tmp_path}/tokenizer.json: {message}")
