"""Files of tokenizers that attack the program which reads them, and ordinary ones that it must read."""

import struct
from typing import Any

from tests.support.hostile_tokenizer_parts import (
    BERT,
    BERT_TEMPLATE,
    BPE,
    BYTE_LEVEL,
    END,
    FILE,
    METASPACE,
    T5,
    T5_MODEL,
    added,
    case,
    charsmap,
    encoded,
    entry,
    field,
    nested,
    replace,
    sequence,
    spiece,
    split,
    template,
)
from tests.support.hostile_tokenizer_parts import HostileTokenizer as Folder

A, FAR = {"String": "a"}, b"\xff\xff\xff\x7f"
FIXED = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": END}
CODE = "payload.Tokenizer"
UNKNOWN = {"SpecialToken": {"id": "x", "type_id": 0}}


def precompiled(table: str | None) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": table}


def entries(*more: list[Any]) -> dict[str, Any]:
    """Return the model of T5 with more entries."""
    return {"vocab": [*T5["model"]["vocab"], *more]}


def words(more: dict[str, int]) -> dict[str, Any]:
    """Return the model of BERT with more entries."""
    return {"vocab": BERT["model"]["vocab"] | more}


def settings(name: str, what: str, content: bytes, refused: bool | None = True) -> Folder:
    return Folder(name, what, {FILE: encoded(BPE), "tokenizer_config.json": content}, refused)


def normalized(name: str, what: str, normalizer: dict[str, Any], base: dict[str, Any] = BPE) -> Folder:
    return case(name, what, base, normalizer=normalizer)


def divided(name: str, what: str, pre_tokenizer: dict[str, Any], refused: bool | None = True) -> Folder:
    return case(name, what, BPE, refused, pre_tokenizer=pre_tokenizer)


NORMALIZERS = [
    normalized("replace-empty", "replacement of an empty text, at which the library panics", replace({"String": ""}, "x")),
    normalized("replace-empty-regex", "replacement of an empty match", replace({"Regex": ""}, "x")),
    normalized("replace-star", "replacement of matches that may be empty", replace({"Regex": "a*"}, "x")),
    normalized("replace-lookahead", "replacement of a place before a letter", replace({"Regex": "(?=a)"}, "x")),
    normalized("replace-invalid", "an invalid regular expression", replace({"Regex": "("}, "x")),
    normalized("replace-doubling", "forty replacements that double a text", sequence(*[replace(A, "aa")] * 40)),
    normalized(
        "replace-rare",
        "forty replacements that double a rare character",
        sequence(*[replace({"String": "\u2603"}, "\u2603\u2603")] * 40),
    ),
    normalized("replace-long", "a replacement of a million characters", replace(A, "b" * 10**6)),
    normalized("replace-long-regex", "a replacement of any character by a million", replace({"Regex": "."}, "b" * 10**6)),
    normalized("prepend-long", "a million characters before each text", {"type": "Prepend", "prepend": "a" * 10**6}),
    normalized("prepend-many", "many texts before each text", sequence(*[{"type": "Prepend", "prepend": "a" * 60}] * 1000)),
    normalized("bytes-doubling", "fifty times the bytes of bytes", sequence(*[{"type": "ByteLevel"}] * 50)),
    normalized("nested", "sixty sequences in each other", nested(60, {"type": "NFC"})),
    normalized("nested-deep", "500 sequences in each other", nested(300, {"type": "NFC"})),
    normalized("many-steps", "100,000 normalizers", sequence(*[{"type": "NFC"}] * 100_000)),
    normalized("unknown-normalizer", "a type that does not exist", {"type": "Execute", "command": "id"}),
    normalized("untyped", "a step without a type", {"lowercase": True}),
    normalized("regex-slow-replace", "a replacement whose time is exponential", replace({"Regex": "(a+)+$"}, "x")),
    normalized("charsmap-empty", "an empty normalization table", precompiled(""), T5),
    normalized("charsmap-null", "a normalization table that is null", precompiled(None), T5),
    normalized("charsmap-text", "a normalization table that is not base64", precompiled("\u2603"), T5),
    normalized("charsmap-short", "a table of three bytes", precompiled("YWJj"), T5),
    normalized(
        "charsmap-size",
        "a table of 4 GB according to its first bytes, at which the library aborts",
        charsmap(b"\xff" * 64, b"", 0xFFFFFFFF),
        T5,
    ),
    normalized("charsmap-zero", "a table without units", charsmap(b"", b"abc\0"), T5),
    normalized("charsmap-far", "children beyond the end of the array", charsmap(FAR * 256, b"abc\0"), T5),
    normalized("charsmap-few", "an array of four units", charsmap(b"\x41\x02\0\0" * 4, b"abc\0"), T5),
    normalized("charsmap-leaf", "a text beyond the end of the texts", charsmap(b"\0\x05\0\0" * 256, b"abc\0"), T5),
    normalized("charsmap-texts", "texts that are not UTF-8", charsmap(b"\0\0\0\0" * 256, b"\xff\xfe\0"), T5),
    normalized(
        "charsmap-long",
        "a text of a million characters for one character",
        charsmap(b"\0\x01\0\0" + b"\0\0\0\x80" * 255, b"a" * 10**6 + b"\0"),
        T5,
    ),
]
PATTERNS = [
    divided("regex-plus", "repeated repetitions, whose time is exponential", split("(a+)+$")),
    divided("regex-alternatives", "alternatives that match the same text", split("(a|aa)+$")),
    divided("regex-any", "repeated repetitions of any character", split(r"(.+)+\x00"), None),
    divided("regex-own", "repeated repetitions of a rare character", split("(\u26c4+)+$")),
    divided("regex-cubic", "three repetitions of the same letters", split("a*a*a*$")),
    divided("regex-recursive", "an expression that calls itself", split("(?<x>a\\g<x>?b?)+c")),
    divided("regex-deep", "5,000 parentheses in a regular expression", split("(" * 5000 + "a" + ")" * 5000)),
    divided("regex-long", "a regular expression of a million characters", split("ab|" * 333_333)),
    divided("regex-counts", "repetitions of repetitions, a million million times", split("((a{10000}){10000}){10000}"), None),
    divided("regex-backreference", "a reference to a group", split("(a*)*\\1b"), None),
    divided("regex-invalid", "an invalid regular expression", split("[")),
    divided("split-empty", "a division at empty matches", split(""), None),
    divided("pattern-both", "a pattern that is a text and an expression", split("", pattern={"String": "a", "Regex": "b"})),
    divided("pattern-type", "a pattern that is a number", split("", pattern={"Regex": 1})),
    divided("bytes-words", "fifty times the bytes of bytes, as words", sequence(*[BYTE_LEVEL] * 50, key="pretokenizers")),
    divided("length-zero", "words of no characters", {"type": "FixedLength", "length": 0}),
    case("metaspace-empty", "a sign of a space without characters", T5, pre_tokenizer=METASPACE | {"replacement": ""}),
]
MODELS = [
    case(
        "unigram-long", "an entry of a million characters, whose tree overflows the stack", T5, model=entries(["a" * 10**6, -1.0])
    ),
    case("unigram-nan", "a probability that is not a number", T5, model=entries(["ab", float("nan")])),
    case("unigram-infinite", "an infinite probability", T5, model=entries(["ab", float("inf")])),
    case("unigram-large", "the largest probability", T5, None, model=entries(["ab", 1.7e308], ["abc", 1.7e308])),
    case("unigram-null", "a probability that is null", T5, model=entries(["ab", None])),
    case("unigram-unknown-outside", "an unknown token beyond the vocabulary", T5, model={"unk_id": 99}),
    case("unigram-unknown-none", "no unknown token", T5, None, model={"unk_id": None}),
    case("unigram-empty", "no entries", T5, model={"vocab": []}),
    case("unigram-empty-entry", "an entry without characters", T5, None, model=entries(["", -1.0])),
    case("unigram-repeated", "an entry twice", T5, model=entries(["a", -1.0])),
    case("unigram-bytes", "bytes for unknown characters without their entries", T5, None, model={"byte_fallback": True}),
    case("unigram-unk-special", "an unknown token that is an ordinary letter", T5, None, model={"unk_id": 5}),
    case(
        "wordpiece-long-words",
        "words of 10^18 characters, whose time grows with their square",
        BERT,
        model={"max_input_chars_per_word": 10**18},
    ),
    case("wordpiece-no-words", "words of no characters", BERT, None, model={"max_input_chars_per_word": 0}),
    case("wordpiece-no-unknown", "no unknown token", BERT, model={"unk_token": "nope"}),
    case("wordpiece-no-prefix", "an empty prefix of continuations", BERT, None, model={"continuing_subword_prefix": ""}),
    case("wordpiece-negative", "a negative id", BERT, model=words({"x": -1})),
    case("wordpiece-large-id", "the id 2^32 - 1", BERT, model=words({"x": 2**32 - 1})),
    case("wordpiece-overflow", "the id 2^32", BERT, model=words({"x": 2**32})),
    case("bpe-merge-missing", "a merge of an entry that does not exist", BPE, model={"merges": [["a", "zz"]]}),
    case("bpe-result-missing", "a merge whose result does not exist", BPE, model={"merges": [["a", "b"]]}),
    case("bpe-three", "a merge of three entries", BPE, model={"merges": ["a b c"]}),
    case(
        "bpe-prefix",
        "a prefix longer than the entries, at which the library panics",
        BPE,
        model={"continuing_subword_prefix": "##########"},
    ),
    case("bpe-prefix-bytes", "a prefix that ends within a character", BPE, model={"continuing_subword_prefix": "\xe9\xe9\xe9"}),
    case("bpe-unknown-missing", "an unknown token that does not exist", BPE, None, model={"unk_token": "nope"}),
    case("bpe-dropout", "merges left out at random", BPE, model={"dropout": 0.5}),
    case("bpe-dropout-negative", "a negative probability of leaving out", BPE, model={"dropout": -1.0}),
    case("bpe-empty", "no entries", BPE, None, model={"vocab": {}, "merges": []}),
    case(
        "bpe-large",
        "two million entries",
        BPE,
        model={"vocab": BPE["model"]["vocab"] | {f"x{number}": 258 + number for number in range(2_000_000)}},
    ),
    case("words", "a model of words", BPE, model={"type": "WordLevel", "vocab": {END: 0}, "unk_token": "nope"}),
    case("model-unknown", "a type that does not exist", BPE, model={"type": "Execute"}),
    Folder("model-list", "a model that is a list", {FILE: encoded(BPE | {"model": [1]})}),
    Folder("model-none", "no model", {FILE: encoded({key: value for key, value in BPE.items() if key != "model"})}),
]
ADDED = [
    case("added-empty", "an added token without characters", BPE, None, added_tokens=[added(END, 0), added("", 258)]),
    case("added-long", "an added token of a million characters", BPE, added_tokens=[added(END, 0), added("a" * 10**6, 258)]),
    case(
        "added-many",
        "200,000 added tokens",
        BPE,
        added_tokens=[added(END, 0), *(added(f"<{number}>", 258 + number) for number in range(200_000))],
    ),
    case("added-far", "an added token with the id 2^32 - 1", BPE, None, added_tokens=[added(END, 0), added("zz", 2**32 - 1)]),
    case("added-type", "an added token that is a number", BPE, added_tokens=[added(END, 0), 1]),
    case(
        "added-space",
        "an added token that is a space",
        BPE,
        None,
        added_tokens=[added(END, 0), added(" ", 258, special=False, lstrip=True, rstrip=True)],
    ),
    case("added-ordinary-end", "an end of text that is not special", BPE, None, added_tokens=[added(END, 0, special=False)]),
]
AROUND = [
    case(
        "padding-large",
        "texts padded to 10^12 tokens, at which the library aborts",
        BPE,
        None,
        padding=FIXED | {"strategy": {"Fixed": 10**12}},
    ),
    case(
        "padding-multiple",
        "texts padded to multiples of 10^12",
        BPE,
        None,
        padding=FIXED | {"strategy": "BatchLongest", "pad_to_multiple_of": 10**12},
    ),
    case(
        "truncation-stride",
        "a stride longer than the text, at which the library panics",
        BPE,
        None,
        truncation={"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5},
    ),
    case("template-long", "100,000 times the text", BPE, post_processor=template(single=template()["single"] * 100_000)),
    case(
        "template-sequence",
        "templates that double the text forty times",
        BPE,
        post_processor=sequence(*[template(single=template()["single"] * 2)] * 40, key="processors"),
    ),
    case(
        "template-second",
        "the second text of one, at which the library panics",
        BPE,
        post_processor=template(single=template()["pair"]),
    ),
    case(
        "template-twice",
        "two templates, of which the library panics at the second",
        BPE,
        post_processor=sequence(BERT_TEMPLATE, BERT_TEMPLATE, key="processors"),
    ),
    case(
        "template-tokens",
        "a special token that is a million ids",
        BPE,
        post_processor=template(
            single=[UNKNOWN, *template()["single"]],
            special_tokens={"x": {"id": "x", "ids": [2**32 - 1] * 10**6, "tokens": ["x"] * 10**6}},
        ),
    ),
    case("template-missing", "a special token that is not defined", BPE, post_processor=template(single=[UNKNOWN])),
    case(
        "decoder-doubling",
        "forty replacements that double a decoded text",
        BPE,
        decoder=sequence(*[replace(A, "aa")] * 40, key="decoders"),
    ),
    case(
        "decoder-strip",
        "the removal of 10^9 characters, at which the library panics",
        BPE,
        decoder={"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9},
    ),
    case("decoder-unknown", "a type that does not exist", BPE, decoder={"type": "Execute"}),
]
FILES = [
    Folder("json-deep", "100,000 objects in each other", {FILE: b'{"a":' * 100_000 + b"1" + b"}" * 100_000}),
    Folder("json-lists", "100,000 lists in each other", {FILE: b"[" * 100_000 + b"]" * 100_000}),
    Folder("json-cut", "half of a file", {FILE: encoded(BPE)[:2000]}),
    Folder("json-bytes", "bytes that are not UTF-8", {FILE: b"\xff\xfe" + encoded(BPE)}),
    Folder("json-surrogate", "half of a character", {FILE: encoded(BPE).replace(b'"th"', b'"\\ud800"')}),
    Folder("json-number", "a number of 10,000 digits", {FILE: encoded(BPE).replace(b'"th": 257', b'"th": ' + b"9" * 10_000)}),
    Folder("json-empty", "an empty file", {FILE: b""}),
    settings("settings-list", "settings that are a list", b"[1]"),
    settings("settings-deep", "settings of 100,000 lists in each other", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    settings(
        "settings-class",
        "a class that names code",
        encoded({"tokenizer_class": CODE, "auto_map": {"AutoTokenizer": [CODE, None]}}),
        None,
    ),
    Folder("special-list", "special tokens that are a list", {FILE: encoded(BPE), "special_tokens_map.json": b"[1]"}, None),
    Folder("vocabulary-list", "a vocabulary that is a list", {"vocab.json": b"[1]", "merges.txt": b"a b\n"}),
    Folder("vocabulary-ids", "ids that are texts", {"vocab.json": encoded({END: "0"}), "merges.txt": b""}),
    Folder("vocabulary-large-ids", "ids beyond 32 bits", {"vocab.json": encoded({END: 0, "a": 2**40}), "merges.txt": b""}),
    Folder("merges-unknown", "merges of entries that do not exist", {"vocab.json": encoded({END: 0}), "merges.txt": b"a b\n"}),
    Folder("merges-missing", "no merges", {"vocab.json": encoded({END: 0})}),
    Folder("words-repeated", "an entry of BERT's twice", {"vocab.txt": b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n"}),
    Folder("words-bytes", "entries that are not UTF-8", {"vocab.txt": b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n\xff\n"}),
    spiece("spiece-empty", "an empty SentencePiece model", b""),
    spiece("spiece-cut", "a field longer than the file", T5_MODEL + b"\x0a\xff\xff\xff\xff\x0f"),
    spiece("spiece-number", "a number of more than 64 bits", T5_MODEL + b"\x08" + b"\xff" * 30),
    spiece("spiece-nan", "a probability that is not a number", T5_MODEL + entry(b"b", float("nan"))),
    spiece("spiece-infinite", "an infinite probability", T5_MODEL + entry(b"b", float("inf"))),
    spiece("spiece-long", "an entry of a million characters", T5_MODEL + entry(b"a" * 10**6)),
    spiece("spiece-repeated", "an entry twice", T5_MODEL + entry(b"a")),
    spiece("spiece-bytes", "an entry that is not UTF-8", T5_MODEL + entry(b"\xff")),
    spiece(
        "spiece-charsmap",
        "a damaged normalization table, at which the library aborts",
        T5_MODEL + field(3, field(2, b"\xff" * 64)),
    ),
    spiece(
        "spiece-charsmap-far",
        "a normalization table with children beyond its end",
        T5_MODEL + field(3, field(2, struct.pack("<I", 1024) + FAR * 256 + b"abc\0")),
    ),
    spiece("spiece-kind", "fields of other kinds than they have", T5_MODEL + b"\x10\x01\x18\x01"),
    spiece("spiece-empty-entry", "an entry without characters", T5_MODEL + entry(b""), None),
]
ORDINARY = [
    case("ordinary-bpe", "GPT-2's rules", BPE, False),
    case("ordinary-t5", "T5's rules", T5, False),
    case("ordinary-bert", "BERT's rules", BERT, False),
    case(
        "ordinary-pattern",
        "the pattern of Llama 3",
        BPE,
        False,
        pre_tokenizer=split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
    ),
    case(
        "ordinary-normalizer",
        "a sequence of normalizers",
        T5,
        False,
        normalizer=sequence({"type": "NFKC"}, replace({"Regex": " {2,}"}, " "), {"type": "Lowercase"}),
    ),
    case("ordinary-template", "BERT's template", BERT, False, post_processor=BERT_TEMPLATE),
    spiece("ordinary-spiece", "a SentencePiece model of T5's rules", T5_MODEL, False),
]
TOKENIZERS = (*NORMALIZERS, *PATTERNS, *MODELS, *ADDED, *AROUND, *FILES, *ORDINARY)
"""All of them."""
