"""Tokenizers in the form of those released with Llama 3, Qwen, SmolLM2 and gpt-oss: read, written, equal to `transformers`."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import harmony
from tests.train.tokenizers.kinds import TEXTS, auto, chapters, content, refused
from train.data.text_files import Document
from train.rows import token_cache
from train.rows.lm_rows import packed_documents
from train.tokenizers import byte_bpe, hf_files
from train.tokenizers.chat_template import chat_template
from train.tokenizers.hf_settings import ROLES
from train.tokenizers.tokenizer import Tokenizer
from train.weights import import_export

LLAMA_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
PLAIN = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|eot_id|>")
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>")


GLUED = (
    "HTTPServer's iPhone'LL \u01c5on\u01c4 \u2160\u2171\u00b2x",
    "a/b//\n\n/c  \r\n d",
    "<|start|>user<|message|>e\u0301E\u0301",
)
"""Letters that GPT-4o's pattern divides by case, joins with marks and endings, and slashes after signs."""


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def rules(names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return a tokenizer.json without rules, GPT-2's entries and then `names`, and its added tokens by id."""
    model = content("gpt")["model"]
    entries = [entry for entry in sorted(model["vocab"], key=model["vocab"].get) if entry != "<|endoftext|>"]
    vocab = {entry: number for number, entry in enumerate(entries)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": len(vocab) + place, "content": name, "special": name.startswith("<|"), **flags} for place, name in enumerate(names)
    ]
    decoder = {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added}
    return {**content("gpt"), "model": {**model, "vocab": vocab}, "added_tokens": added}, decoder


def write(folder: Path, content: dict[str, Any], settings: dict[str, Any], model_type: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def llama(folder: Path, **changes: Any) -> Path:
    """Write a folder as Llama 3's: words of GPT-4's pattern, ignored merges, and a template with the begin mark."""
    file, decoder = rules(LLAMA)
    begin, number = LLAMA[0], len(file["model"]["vocab"])
    mark = {"SpecialToken": {"id": begin, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    template = {
        "type": "TemplateProcessing",
        "single": [mark, first],
        "pair": [mark, first, {"SpecialToken": {"id": begin, "type_id": 1}}, second],
        "special_tokens": {begin: {"id": begin, "ids": [number], "tokens": [begin]}},
    }
    file |= {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(LLAMA_PATTERN), BYTES]},
        "post_processor": {"type": "Sequence", "processors": [BYTES, template]},
        "model": {**file["model"], "ignore_merges": True},
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin,
        "eos_token": LLAMA[1],
        "added_tokens_decoder": decoder,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    return write(folder, file, settings | changes, "llama")


def qwen(folder: Path, model_type: str = "qwen3", **changes: Any) -> Path:
    """Write a folder as Qwen2.5's or Qwen3's: text in NFC, single digits, and names that are no special tokens."""
    file, decoder = rules(QWEN)
    file |= {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(byte_bpe.QWEN_PATTERN), PLAIN]},
        "post_processor": PLAIN,
    }
    settings = {
        **{"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None},
        **{"add_prefix_space": False, "bos_token": None, "added_tokens_decoder": decoder, "split_special_tokens": False},
    }
    return write(folder, file, settings | changes, model_type)


def smollm2(folder: Path, model_type: str) -> Path:
    """Write a folder as SmolLM2's: single digits, and the class of GPT-2, which does not set them apart."""
    file, decoder = rules(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    words = {**BYTES, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, words]}
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    settings = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": decoder, "add_prefix_space": False, **names}
    return write(folder, file, settings, model_type)


@functools.cache
def harmony_content() -> dict[str, Any]:
    return harmony.content([*chapters(), "the whale's " * 99], 900)


def gpt_oss(folder: Path, **changes: Any) -> Path:
    """Write a folder as gpt-oss's: words of GPT-4o's pattern, and no template around a text."""
    folder.mkdir(exist_ok=True)
    harmony.write(folder, harmony_content(), **changes)
    (folder / "config.json").write_text('{"model_type": "gpt_oss"}')
    return folder


def assert_reads_alike(folder: Path) -> Tokenizer:
    """Assert that texts, and the template of one text and of two, are what `transformers` makes of a folder."""
    own, reference = hf_files.read_tokenizer(folder), auto(folder)
    assert own.kind == "gpt"
    for text in [*TEXTS, "cafe\u0301 1851 12345 it's IT'S a\n\n b  c", "<tool_call> x", "<|im_end|>", *GLUED]:
        assert own.encode(text).tolist() == reference(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], (
            text
        )
    begin = [] if own.begin_of_text == own.end_of_text else [own.begin_of_text]
    first, second = own.encode("The whale").tolist(), own.encode("swims").tolist()
    assert [*begin, *first] == reference("The whale")["input_ids"]
    assert [*begin, *first, *begin, *second] == reference("The whale", "swims")["input_ids"]
    return own


FORMS = [(llama, LLAMA), (qwen, QWEN), (functools.partial(qwen, model_type="qwen2", tokenizer_class=None), QWEN)]
FORMS += [(gpt_oss, harmony.NAMES)]


@pytest.mark.parametrize(("form", "names"), FORMS)
def test_a_released_form_is_read_and_written(form: Any, names: tuple[str, ...], tmp_path: Path) -> None:
    own = assert_reads_alike(form(tmp_path / "in"))
    (tmp_path / "out").mkdir()
    hf_files.write_tokenizer(tmp_path / "out", own, longest=64)
    model_type = json.loads((tmp_path / "in" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(model_type))
    again = assert_reads_alike(tmp_path / "out")
    assert again.fingerprint == own.fingerprint and again.content() == own.content()
    first = len(own.ids()) - len(names)
    begin, end = {llama: names[:2], gpt_oss: (harmony.END,) * 2}.get(form, names[:1] * 2)
    assert own.entries([own.begin_of_text, own.end_of_text]) == [begin, end]
    assert set(own.special_names) == {name for name in names if name.startswith("<|")}
    assert first not in own.encode(names[0]) and own.encode_rendered([names[0]])[0].tolist() == [first]


WITHOUT: dict[str, tuple[str, ...] | None] = {
    "nothing": (),
    "two roles": ("unk_token", "bos_token"),
    "class and role": ("unk_token", "tokenizer_class"),
    "settings": None,
}
"""Settings that a folder of Qwen lacks; None = it has no tokenizer_config.json."""


@pytest.mark.parametrize("missing", WITHOUT)
def test_qwen_has_the_special_tokens_that_transformers_names_before_and_after_an_export(missing: str, tmp_path: Path) -> None:
    """Its class has defaults, other ones than GPT-2's; a null in the settings is none."""
    folder, keys = qwen(tmp_path / "in"), WITHOUT[missing]
    file = folder / "tokenizer_config.json"
    if keys is None:
        file.unlink()
    else:
        file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key not in keys}))
    own = hf_files.read_tokenizer(folder)
    (tmp_path / "out").mkdir()
    hf_files.write_tokenizer(tmp_path / "out", own, longest=64)
    (tmp_path / "out" / "config.json").write_text((folder / "config.json").read_text())
    before, after = ({role: getattr(auto(path), role) for role in ROLES} for path in (folder, tmp_path / "out"))
    assert before == after
    assert hf_files.special_token_names(own) == {role: name for role, name in before.items() if name is not None}
    assert (before["unk_token"] is None) == (missing == "nothing") and before["bos_token"] is None


@pytest.mark.parametrize(
    ("form", "begin", "ends", "pad"),
    [
        (llama, LLAMA[0], LLAMA[1:2], None),
        (qwen, QWEN[0], (QWEN[2], QWEN[0]), QWEN[0]),
        (gpt_oss, harmony.BEGIN, (harmony.RETURN, harmony.END), harmony.END),
    ],
)
def test_a_config_json_has_the_ids_that_the_settings_name(
    form: Any, begin: str, ends: tuple[str, ...], pad: str | None, tmp_path: Path
) -> None:
    """Generation ends at the end of an answer, and at that of a document."""
    own = hf_files.read_tokenizer(form(tmp_path / "in"))
    ids, numbers = import_export._ids(own), own.ids()
    expected = [numbers[name] for name in ends]
    assert ids["eos_token_id"] == (expected if len(expected) > 1 else expected[0])
    assert ids["bos_token_id"] == numbers[begin] and ids.get("pad_token_id") == (pad and numbers[pad])


def test_a_score_is_padded_with_a_token_that_ends_no_text(tmp_path: Path) -> None:
    """`transformers` would take the end of a text for its padding."""
    for form, changes, pad in ((gpt_oss, {}, None), (qwen, {}, None), (llama, {"pad_token": LLAMA[2]}, LLAMA[2])):
        own = hf_files.read_tokenizer(form(tmp_path / form.__name__, **changes))
        ids = import_export._ids(own, has_score=True)
        assert ids.get("pad_token_id") == (pad and own.ids()[pad])


@pytest.mark.parametrize(("form", "begin"), [(llama, LLAMA[0]), (gpt_oss, harmony.END)])
def test_documents_of_rows_begin_with_the_begin_of_the_template(form: Any, begin: str, tmp_path: Path) -> None:
    own = hf_files.read_tokenizer(form(tmp_path / "in"))
    tokens = token_cache.tokenize_documents([Document("", "The whale."), Document("", "It swims.")], own, tmp_path / "cache")
    row = packed_documents(tokens, 32).row(0)
    assert [own.entries([piece.before])[0] for piece in row.pieces] == [begin] * 2
    assert [piece.ids.tolist() for piece in row.pieces] == [
        [*own.encode(text).tolist(), own.end_of_text] for text in ("The whale.", "It swims.")
    ]


def test_the_chat_template_of_gpt_oss_is_rendered_and_parsed(tmp_path: Path) -> None:
    """The ids, special tokens included, are those of `transformers`."""
    folder = gpt_oss(tmp_path / "in")
    own, reference = hf_files.read_tokenizer(folder), auto(folder)
    messages = harmony.MESSAGES
    listed = [message._asdict() for message in messages]
    for prompt in (False, True):
        text = chat_template(own, "it").render(messages, "it", generation_prompt=prompt)
        ids = reference.apply_chat_template(listed, add_generation_prompt=prompt)["input_ids"]
        assert own.encode_rendered([text])[0].tolist() == ids
        assert own.ids()[harmony.RETURN] == ids[-1] or prompt


@pytest.mark.planted(2)
def test_another_pattern_and_another_end_are_noticed(tmp_path: Path) -> None:
    """Llama's pattern gives other ids; a token that ends neither documents nor answers is refused."""
    own, other = Tokenizer(harmony_content()), json.loads(json.dumps(harmony_content()))
    other["pre_tokenizer"]["pretokenizers"][0] = split(LLAMA_PATTERN)
    assert len(own.encode("the whale's")) < len(Tokenizer(other).encode("the whale's"))
    assert 'eos_token is "<|call|>"' in refused(gpt_oss(tmp_path / "role", eos_token="<|call|>"))


def test_without_settings_the_end_mark_is_that_of_the_vocabulary(tmp_path: Path) -> None:
    own = Tokenizer.load(llama(tmp_path / "in"))
    (tmp_path / "out").mkdir()
    hf_files.write_tokenizer(tmp_path / "out", Tokenizer(own.content()), longest=None)
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (settings["bos_token"], settings["eos_token"]) == LLAMA[:2]
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.planted(4)
def test_other_rules_roles_and_templates_are_refused(tmp_path: Path) -> None:
    assert "eos_token is" in refused(llama(tmp_path / "role", eos_token=LLAMA[2]))
    file = json.loads((llama(tmp_path / "twice") / "tokenizer.json").read_text())
    template = file["post_processor"]["processors"][1]
    template["single"] = [*template["single"], template["single"][0]]
    (tmp_path / "twice" / "tokenizer.json").write_text(json.dumps(file))
    assert "post_processor of tokenizer.json makes <|begin_of_text|>" in refused(tmp_path / "twice")
    file = json.loads((qwen(tmp_path / "pattern") / "tokenizer.json").read_text())
    file["pre_tokenizer"]["pretokenizers"][0] = split(LLAMA_PATTERN)
    (tmp_path / "pattern" / "tokenizer.json").write_text(json.dumps(file))
    assert "pre_tokenizer of tokenizer.json is not that of Qwen2Tokenizer" in refused(tmp_path / "pattern")
    folder = smollm2(tmp_path / "digits", "gpt2")
    assert "if tokenizer.json is right, write tokenizer_class PreTrainedTokenizerFast" in refused(folder)


def test_smollm2s_digits_are_apart_as_in_its_tokenizer_json(tmp_path: Path) -> None:
    """Its files name GPT-2's class, whose rules `transformers` 5 would use; an export names the class that reads the file."""
    own = hf_files.read_tokenizer(smollm2(tmp_path / "in", "llama"))
    assert len(own.encode("1851")) == 4
    (tmp_path / "out").mkdir()
    hf_files.write_tokenizer(tmp_path / "out", own, longest=64)
    (tmp_path / "out" / "config.json").write_text('{"model_type": "llama"}')
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert assert_reads_alike(tmp_path / "out").fingerprint == own.fingerprint


def test_gpt2s_end_of_text_begins_a_text(tmp_path: Path) -> None:
    own = Tokenizer(content("gpt"))
    assert own.begin_of_text == own.end_of_text
    np.testing.assert_array_equal(own.encode("a"), own.encode_with_template("a")[0])
