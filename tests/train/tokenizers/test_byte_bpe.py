"""Byte-level BPE, GPT-2's, RoBERTa's and ModernBERT's: saving and loading, texts in pieces, published files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support.hard_texts import HARD
from tests.support.processes import ROOT, run_python
from tests.train.tokenizers.kinds import TEXTS, auto, content, name_family, refused, trained, written
from train.data import chunking
from train.tokenizers import hf_files, text_borders, tokenizer
from train.tokenizers.hf_settings import AddedToken
from train.tokenizers.special_tokens import END_OF_TEXT
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput

WORDS = {"type": "Split", "pattern": {"Regex": r"\S+\s*"}, "behavior": "Isolated", "invert": False}


def test_roberta_has_the_entries_of_gpt_between_its_special_tokens() -> None:
    gpt, roberta = trained("gpt"), trained("roberta")
    assert [roberta.decode([number]) for number in range(4, 899)] == [gpt.decode([number]) for number in range(1, 896)]


def test_a_text_that_no_place_to_cut_makes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "LONGEST_CHUNK", 100)
    monkeypatch.setattr(text_borders, "LONGEST_CHUNK", 100)
    monkeypatch.setattr(chunking, "CHUNK", 10)
    assert len(trained("gpt").encode("word " * 100))
    with pytest.raises(BadInput, match="100 characters without the end of a word"):
        trained("gpt").encode("x" * 101)
    other = Tokenizer({**content("gpt"), "pre_tokenizer": WORDS})
    assert list(other.chunks([("some ", False), ("text", True), ("more", True)])) == [("some text", True), ("more", True)]
    with pytest.raises(BadInput, match="more than 100 characters: this tokenizer's rules need each text whole"):
        list(other.chunks([("word " * 15, False), ("word " * 15, True)]))


def test_encode_many_reads_no_further_ahead_than_a_group() -> None:
    taken = []
    stream = trained("gpt").encode_many(taken.append(i) or "x" * chunking.CHUNK for i in range(3 * chunking.GROUP))
    next(stream)
    assert len(taken) == chunking.GROUP


def test_a_forked_child_encodes_silently() -> None:
    child = (
        "import os, warnings; warnings.simplefilter('ignore', DeprecationWarning)\n"
        "from train.tokenizers.tokenizer import Tokenizer\n"
        "t = Tokenizer.train(['some text here'] * 99, 300); list(t.encode_many(['some text'] * 99))\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(0 if len(list(t.encode_many(['some text'] * 99))) == 99 else 1)\n"
        "raise SystemExit(os.waitpid(pid, 0)[1])"
    )
    done = run_python("-c", child, cwd=ROOT)
    assert (done.code, done.stderr) == (0, "")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        trained("gpt").save(tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()
    assert Tokenizer(dict(reversed(content("gpt").items()))).fingerprint == trained("gpt").fingerprint
    monkeypatch.setattr(tokenizer.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(BadInput, match="No space"):
        Tokenizer.train(["other"], 300).save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]
    assert (tmp_path / "tokenizer.json").read_bytes() == before


@pytest.mark.planted(7)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    rules = content("gpt")
    model, added = rules["model"], rules["added_tokens"]
    renamed = {("<end>" if token == END_OF_TEXT else token): number for token, number in model["vocab"].items()}
    gap = {**model["vocab"], "gap": 90_000}
    damaged = {
        "{": "not JSON",
        b"\xff\xfe": "not JSON",
        "[]": "not a tokenizer",
        "{}": "not a tokenizer",
        json.dumps({**rules, "added_tokens": [{**token, "special": False} for token in added]}): "<|endoftext|> is not marked",
        json.dumps({**rules, "added_tokens": [], "model": {**model, "vocab": renamed}}): "it has no entry <|endoftext|>",
        json.dumps({**rules, "model": {**model, "vocab": gap}}): "its 901 entries do not have the ids",
    }
    for text, message in damaged.items():
        (tmp_path / "tokenizer.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        assert refused(tmp_path, Tokenizer.load).startswith(f"{tmp_path}/tokenizer.json: {message}")
    shutil.rmtree(tmp_path)
    with pytest.raises(BadInput, match=r"cannot be read .*name a folder that holds a tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_ids_outside_the_vocabulary_are_not_decoded() -> None:
    for ids in ([5, 900], np.array([-1])):
        with pytest.raises(ValueError, match="vocabulary of 900"):
            trained("gpt").decode(ids)


def test_a_gpt_tokenizer_may_have_an_encoders_names_too() -> None:
    rules = content("gpt")
    entry = {**rules["added_tokens"][0], "id": 900, "content": "<pad>"}
    both = Tokenizer({**rules, "added_tokens": [*rules["added_tokens"], entry]})
    assert (both.special_tokens, both.end_of_text, both.vocab_size) == (None, 0, 901)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A vocab.json and merges.txt as RoBERTa's were released: GPT-2's end of text is any entry, the mask the last."""
    vocab = json.loads((written("roberta") / "vocab.json").read_text())
    assert [*vocab][:4] == ["<s>", "<pad>", "</s>", "<unk>"] and vocab.pop("<mask>") == 899
    extra = [END_OF_TEXT, "madeupword0000", "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({**vocab, **{name: 899 + at for at, name in enumerate(extra)}}))
    shutil.copy(written("roberta") / "merges.txt", tmp_path)
    name_family(tmp_path, "roberta")
    return tmp_path


def test_the_published_files_give_what_transformers_gives(published: Path) -> None:
    ours = hf_files.read_tokenizer(published)
    assert ours.kind == "roberta"
    assert (ours.special_tokens.mask, ours.vocab_size, ours.end_of_text) == (901, 902, 2)
    assert auto(published)(HARD)["input_ids"] == ours.special_tokens.single(ours.encode(HARD))[0].tolist()
    assert ours.encode(HARD).tolist() == trained("roberta").encode(HARD).tolist()
    assert not {899, 900, 901} & {*ours.encode(f"{END_OF_TEXT} madeupword0000 <mask>").tolist()}


def test_a_text_begins_with_a_space_if_the_files_say_so(published: Path) -> None:
    (published / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    ours, out = hf_files.read_tokenizer(published), published / "out"
    ids = ours.encode("whale ship").tolist()
    assert ids == ours.encode(" whale ship").tolist() == ours.encode_words(["whale", "ship"])[0].tolist()
    # A piece of a text must not get one.
    assert len(list(ours.chunks([("a b " * (1 << 16), True)]))) == 1
    out.mkdir()
    hf_files.write_tokenizer(out, ours, longest=512)
    for folder in (published, out):
        assert auto(folder)("whale ship", add_special_tokens=False)["input_ids"] == ids


def test_letters_after_a_line_end_begin_no_word() -> None:
    """The line end does, and the bytes of one character do not."""
    ours = trained("roberta")
    starts, ((ids, spans),) = ours.word_starts(), ours.encode_spans(["\nwhale \u00e9\u6f22\U0001f433"])
    assert starts[ids[0]] and not starts[ids[1]]
    assert not starts[ours.encode("whale")[0]] and starts[ours.encode(" whale")[0]]
    emoji = ids[spans[:, 0] == 9]
    assert len(emoji) > 1 and not starts[emoji].any()


def test_an_empty_affix_is_none(tmp_path: Path) -> None:
    """RoBERTa's released tokenizer.json spells it so; it is RoBERTa's all the same."""
    rules = content("roberta")
    affixes = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    hf_files.write_tokenizer(tmp_path, Tokenizer({**rules, "model": {**rules["model"], **affixes}}), longest=512)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "RobertaTokenizer"


def released(folder: Path) -> Path:
    """Write a tokenizer with ModernBERT's rules and added tokens, in its order: runs of spaces, markers, BERT's names, unused."""
    model = content("gpt")["model"]
    entries = ["|||IP_ADDRESS|||", "<|padding|>", *sorted(model["vocab"], key=model["vocab"].get)[1:]]
    added = [(entry, number == 1) for number, entry in enumerate(entries[:2])]
    added += [(" " * count, False) for count in range(24, 1, -1)] + [("|||EMAIL_ADDRESS|||", False)]
    added += [(name, True) for name in (END_OF_TEXT, "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")]
    added += [(f"[unused{number}]", False) for number in range(3)]
    names = [*entries, *(name for name, _ in added[2:])]
    tokens = [
        {**AddedToken(name, special, not special, lstrip=name == "[MASK]").__dict__, "id": names.index(name)}
        for name, special in added
    ]
    rules = content("modernbert")
    for token in rules["post_processor"]["special_tokens"].values():
        token["ids"] = [names.index(token["id"])]
    vocab = {name: number for number, name in enumerate(entries)}
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps({**rules, "model": {**model, "vocab": vocab}, "added_tokens": tokens}))
    roles = {role: f"[{role[:-6].upper()}]" for role in ("unk_token", "cls_token", "sep_token", "pad_token", "mask_token")}
    decoder = {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in tokens}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192, "added_tokens_decoder": decoder, **roles}
    settings |= {"model_input_names": ["input_ids", "attention_mask"], "clean_up_tokenization_spaces": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text('{"model_type": "modernbert"}')
    return folder


SPACED = [
    "a  b   c" + " " * 24 + "d" + " " * 25 + "e",
    "  [unused1] |||EMAIL_ADDRESS||| cafe\u0301 \u212b",
    "[CLS] [MASK]",
    "x [SEP]",
    "",
]


def assert_reads_alike(folder: Path) -> Tokenizer:
    """Assert that texts, and the templates of one text and of two, are what `transformers` makes of a folder."""
    ours, reference = hf_files.read_tokenizer(folder), auto(folder)
    special = ours.special_tokens
    assert ours.kind == "modernbert" and special is not None
    for text in [*TEXTS, *SPACED]:
        assert ours.encode(text).tolist() == reference(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], (
            text
        )
    first, second = ours.encode("The whale"), ours.encode("swims")
    assert special.single(first)[0].tolist() == reference("The whale")["input_ids"]
    assert special.pair(first, second)[0].tolist() == reference("The whale", "swims")["input_ids"]
    masked = np.concatenate([ours.encode("The white"), [special.mask], ours.encode(" swims")])
    assert special.single(masked)[0].tolist() == reference("The white [MASK] swims")["input_ids"]
    return ours


@pytest.mark.planted(3)
def test_the_released_form_of_modernbert_is_read_and_written(tmp_path: Path) -> None:
    """GPT-2's end of text is among its added tokens. Other templates, rules and missing names are not taken for it."""
    ours = assert_reads_alike(released(tmp_path / "in"))
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    special = ours.special_tokens
    assert special is not None and not special.typed
    ids = [special.unk, special.cls, special.sep, special.pad, special.mask]
    assert ours.entries(ids) == names and ids == list(range(ids[0], ids[0] + 5)) and ours.end_of_text == special.sep
    (tmp_path / "out").mkdir()
    hf_files.write_tokenizer(tmp_path / "out", ours, longest=8192)
    (tmp_path / "out" / "config.json").write_text('{"model_type": "modernbert"}')
    assert assert_reads_alike(tmp_path / "out").fingerprint == ours.fingerprint
    # Ettin's decoders begin a text with [CLS]; a folder of theirs may name no class of the tokenizer.
    assert ours.begin_of_text == special.cls
    (tmp_path / "out" / "config.json").write_text('{"model_type": "modernbert-decoder"}')
    (tmp_path / "out" / "tokenizer_config.json").write_text("{}")
    assert hf_files.read_tokenizer(tmp_path / "out").fingerprint == ours.fingerprint
    rules = json.loads((tmp_path / "in" / "tokenizer.json").read_text())
    plain = Tokenizer({**rules, "normalizer": None})
    assert plain.encode(SPACED[1]).tolist() != ours.encode(SPACED[1]).tolist()
    twice = [*rules["post_processor"]["single"], rules["post_processor"]["single"][-1]]
    (tmp_path / "in" / "tokenizer.json").write_text(
        json.dumps({**rules, "post_processor": {**rules["post_processor"], "single": twice}})
    )
    assert "post_processor of tokenizer.json makes [CLS]" in refused(tmp_path / "in")
    # Without one of its names it is GPT-2's, which has others beside its end of text, and no encoder takes it.
    assert Tokenizer(json.loads(json.dumps(rules).replace("[CLS]", "[OTHER]"))).special_tokens is None


NAMES = '{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3'
BAD = {
    "no mask": (f"{NAMES}}}", "#version: 0.2\n", "it has no <mask>, and an encoder needs"),
    "a gap": (f'{NAMES}, "<mask>": 9}}', "", "its 5 entries do not have the ids"),
    "no number": ('{"<s>": "0"}', "", "not a vocabulary that matches merges.txt"),
    "no such piece": (f'{NAMES}, "<mask>": 4}}', "a b\n", "not a vocabulary that matches"),
    "no pair": ('{"<s>": 0}', "a b c\n", "merges.txt:1: not two pieces"),
    "no merges": ('{"<s>": 0}', None, "merges.txt: cannot be read"),
}


@pytest.mark.planted
@pytest.mark.parametrize(("vocabulary", "merges", "message"), BAD.values(), ids=BAD)
def test_damaged_vocabularies_are_refused(vocabulary: str, merges: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(vocabulary)
    if merges is not None:
        (tmp_path / "merges.txt").write_text(merges)
    assert refused(tmp_path).startswith(f"{tmp_path}/vocab.json: {message}")
