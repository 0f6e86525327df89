"""Tokenizer folders of every kind with one thing changed, or several: rules, settings, files."""

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support.hard_texts import HARD, random_characters
from tests.train.tokenizers import kinds
from train.tokenizers.tokenizer import Kind

Content = dict[str, Any]
FAST = "PreTrainedTokenizerFast"
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
GPT4 = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
NO = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False}
STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}
SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
PADDING = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
STRINGS = [
    *kinds.AWKWARD,
    *("caf\u00e9 \u212b \ufb01", "cafe\u0301 A\u030a", "zero\u200bwidth\u200c\u200d\ufeffjoin", " leading", "trailing "),
    *("\t\n\r \x0b", "the whale", "Whale 12345 7.5e3", "it's WE'LL don't", "foobar foobars FOOBAR afoobarb foobar.", "x" * 130),
    *("\u0130I\u0131i\u1e9e", "<|endoftext|>", "a[MASK]b [CLS] [SEP]", "<s></s> <mask> <pad>", "<extra_id_0> <cls><sep>"),
    *(
        "<new> [NEW]",
        "\u202eabc\u202c",
        "\U0001f1e9\U0001f1ea\U0001f44d\U0001f3fd",
        "\u6f22\u5b57 \u3072\u3089 \uac00\u1100\u1161",
    ),
    *("\x7f\x80\x9f", HARD, random_characters(300)),
]
"""Composed and decomposed, zero width, spaces at either end, control characters, special tokens, emoji, CJK, nothing."""


def _rules(**parts: Any) -> Callable[[Content], None]:
    return lambda content: content.update(parts)


def _part(name: str, **values: Any) -> Callable[[Content], None]:
    return lambda content: content[name].update(values)


def _before(*steps: Mapping[str, Any]) -> Callable[[Content], None]:
    """Put steps before the rules that divide a text."""
    return lambda content: _divided(*steps, content["pre_tokenizer"])(content)


def _divided(*steps: Mapping[str, Any]) -> Callable[[Content], None]:
    """Divide a text by other rules."""
    return _rules(pre_tokenizer={"type": "Sequence", "pretokenizers": [*steps]})


def _spaces(scheme: str) -> Callable[[Content], None]:
    return _divided({"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": True})


def _normalized(*steps: Mapping[str, Any], last: bool = False) -> Callable[[Content], None]:
    """Put steps before those that normalize a text, or after them."""

    def change(content: Content) -> None:
        old = content["normalizer"] or {"type": "Sequence", "normalizers": []}
        content["normalizer"] = {"type": "Sequence", "normalizers": [old, *steps] if last else [*steps, old]}

    return change


def _token(name: str, **flags: bool) -> Callable[[Content], None]:
    """Add a token."""
    return lambda content: content["added_tokens"].append({"id": kinds.VOCAB, "content": name, **NO, **flags})


def _template(*ends: str) -> Callable[[Content], None]:
    """Put special tokens after every text."""

    def change(content: Content) -> None:
        vocab = content["model"]["vocab"]
        ids = vocab if isinstance(vocab, dict) else {entry: number for number, (entry, _) in enumerate(vocab)}
        text = [{"Sequence": {"id": "A", "type_id": 0}}]
        after = [{"SpecialToken": {"id": end, "type_id": 0}} for end in ends]
        pair = [*text, *after, {"Sequence": {"id": "B", "type_id": 0}}, *after]
        tokens = {end: {"id": end, "ids": [ids[end]], "tokens": [end]} for end in ends}
        template = {"type": "TemplateProcessing", "single": [*text, *after], "pair": pair, "special_tokens": tokens}
        content["post_processor"] = template

    return change


END = {"gpt": "<|endoftext|>", "wordpiece": "[SEP]", "roberta": "</s>", "sentencepiece": "</s>", "xlnet": "<eod>"}
END |= {"modernbert": "[SEP]", "xlm-roberta": "</s>"}
DIGITS = {"type": "Digits", "individual_digits": True}


def rules(kind: Kind) -> dict[str, Callable[[Content], None]]:
    """Return changes of a tokenizer.json."""
    common: dict[str, Callable[[Content], None]] = {
        "as trained": lambda content: None,
        "digits apart": _before(DIGITS),
        "NFC and lower case": _normalized({"type": "NFC"}, {"type": "Lowercase"}),
        "NFKC": _normalized({"type": "NFKC"}),
        "strip": _normalized(STRIP),
        "spaces joined": _normalized(SPACES, last=True),
        "another word": _token("foobar", normalized=True),
        "another word as it is": _token("foobar", single_word=True, lstrip=True),
        "another special token": _token("[NEW]", special=True),
        "end twice": _template(END[kind], END[kind]),
        "no end": _template(),
        "no template": _rules(post_processor=None),
        "no decoder": _rules(decoder=None),
        "truncation": _rules(truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}),
        "padding": _rules(padding={**PADDING, "pad_token": "x"}),
        "one end": _template(END[kind]),
    }
    if kind in ("gpt", "roberta", "modernbert"):
        return common | {
            "prefix space": _part("pre_tokenizer", add_prefix_space=True),
            "untrimmed": _part("pre_tokenizer", trim_offsets=False),
            "pattern of GPT-4": _divided({**SPLIT, "pattern": {"Regex": GPT4}}, BYTES),
            "white space": _divided({"type": "WhitespaceSplit"}, BYTES),
            "whole texts": _rules(pre_tokenizer=BYTES),
            "random merges": _part("model", dropout=0.5),
            "merges ignored": _part("model", ignore_merges=True),
            "bytes of the unknown": _part("model", byte_fallback=True),
            "unknown": _part("model", unk_token=END[kind], fuse_unk=True),
        }
    if kind == "wordpiece":
        return common | {
            "cased": _part("normalizer", lowercase=False),
            "accents kept": _part("normalizer", strip_accents=False),
            "accents dropped": _part("normalizer", strip_accents=True),
            "Chinese joined": _part("normalizer", handle_chinese_chars=False),
            "control characters kept": _part("normalizer", clean_text=False),
            "short words": _part("model", max_input_chars_per_word=5),
            "white space": _divided({"type": "WhitespaceSplit"}),
        }
    return common | {
        "not normalized": _rules(normalizer=None),
        "bytes of the unknown": _part("model", byte_fallback=True),
        "another unknown": _part("model", unk_id=5),
        "no space before": _spaces("never"),
        "spaces alone": _spaces("always"),
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "as written": {},
    "rules of the file": {"tokenizer_class": FAST},
    "GPT-2's": {"tokenizer_class": "GPT2TokenizerFast"},
    "BERT's": {"tokenizer_class": "BertTokenizer"},
    "RoBERTa's": {"tokenizer_class": "RobertaTokenizer"},
    "T5's": {"tokenizer_class": "T5TokenizerFast"},
    "XLNet's": {"tokenizer_class": "XLNetTokenizer"},
    "unknown class": {"tokenizer_class": "WhaleTokenizer"},
    "no class": {"tokenizer_class": None},
    "case dropped": {"do_lower_case": True},
    "cased": {"do_lower_case": False},
    "accents kept": {"strip_accents": False},
    "Chinese joined": {"tokenize_chinese_chars": False},
    "prefix space": {"add_prefix_space": True},
    "begin and end": {"add_bos_token": True, "add_eos_token": True},
    "another end": {"eos_token": "<new>"},
    "end of GPT-2": {"eos_token": "<|endoftext|>"},
    "another CLS": {"cls_token": "<new>"},
    "padding": {"pad_token": "[NEW]"},
    "mask": {"mask_token": {"__type": "AddedToken", "content": "the", **NO, "lstrip": True}},
    "one more": {"additional_special_tokens": ["<new>"]},
    "one more by name": {"image_token": "<new>"},
    "known one": {"extra_special_tokens": ["the"]},
    "few sentinels": {"extra_ids": 5},
    "added word": {"added_tokens_decoder": {"900": {"content": "foobar", **NO, "normalized": True}}},
    "added nothing": {"added_tokens_decoder": {}},
    "not divided": {"split_special_tokens": False, "clean_up_tokenization_spaces": True, "model_max_length": 7},
    "mistyped": {"do_lower_case": "no", "add_prefix_space": 1},
    "accents kept by XLNet": {"keep_accents": True, "remove_space": False},
}
"""Changes of a tokenizer_config.json."""
NO_RULES: dict[str, Any] = {"tokenizer.json": None}
NO_SETTINGS: dict[str, Any] = {"tokenizer_config.json": None}
PADS = {"special_tokens_map.json": {"pad_token": "[NEW]"}}
EXTRA = {"special_tokens_map.json": {"additional_special_tokens": ["[NEW]"]}}
FILES: dict[str, dict[str, Any]] = {
    "as written": {},
    "vocabulary alone": NO_RULES,
    "no settings": NO_SETTINGS,
    "no files but one": {**NO_SETTINGS, "vocab.json": None, "merges.txt": None, "vocab.txt": None},
    "vocabulary without settings": NO_RULES | NO_SETTINGS,
    "added to a vocabulary": {**NO_RULES, "added_tokens.json": {"foobar": 900}},
    "added to a vocabulary elsewhere": {**NO_RULES, "added_tokens.json": {"foobar": 950}},
    "added twice": {**NO_RULES, "added_tokens.json": {"foobar": 901, "[NEW]": 900}},
    "added special": {**NO_RULES, "added_tokens.json": {"[NEW]": 900}, **EXTRA},
    "added by name": {**NO_RULES, "added_tokens.json": {"[NEW]": 900}, **PADS},
    "another family": {**NO_SETTINGS, "config.json": {"model_type": "llama"}},
    "family's own class": {**NO_SETTINGS, "config.json": {"model_type": "bert", "tokenizer_class": FAST}},
    "added to tokenizer.json": {"added_tokens.json": {"foobar": 900}},
    "names": PADS,
    "no merges": {**NO_RULES, "merges.txt": None},
    "names of tokens": {"special_tokens_map.json": {"unk_token": {"content": "the", **NO}}},
}
"""Files that are replaced, or, with None, removed."""


def make(folder: Path, kind: Kind, rule: str, setting: str, files: str) -> None:
    """Write the tokenizer of a kind into a new folder with three changes."""
    shutil.copytree(kinds.written(kind), folder)
    if kind == "sentencepiece":
        shutil.copy(kinds.published(kind) / "spiece.model", folder)
    content, settings = kinds.content(kind), json.loads((folder / "tokenizer_config.json").read_text())
    rules(kind)[rule](content)
    settings = {key: value for key, value in {**settings, **SETTINGS[setting]}.items() if value is not None}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, value in FILES[files].items():
        (folder / name).unlink(missing_ok=True)
        if value is not None:
            (folder / name).write_text(json.dumps(value))


def single(kind: Kind) -> Iterator[tuple[str, str, str]]:
    """Yield the names of the changes of each folder in which one thing is changed; rules once with each of three classes."""
    for rule in rules(kind):
        for setting in ("as written", "rules of the file"):
            yield rule, setting, "as written"
        yield rule, "as written", "no files but one"
    yield from (("as trained", setting, "as written") for setting in SETTINGS)
    yield from (("as trained", "as written", files) for files in FILES)


def several(kind: Kind, number: int) -> Iterator[tuple[str, str, str]]:
    """Yield combinations of changes at random, the same in every process."""
    rng = random.Random(kind)
    for _ in range(number):
        yield rng.choice([*rules(kind)]), rng.choice([*SETTINGS]), rng.choice([*FILES])
