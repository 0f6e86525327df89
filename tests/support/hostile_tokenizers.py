"""Files of tokenizers that attack the program which reads them, and ordinary ones that it must read."""

import struct

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
    HostileTokenizer,
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

A, FAR = {"String": "a"}, b"\xff\xff\xff\x7f"
NORMALIZERS = [
    case(
        "replace-empty", "replacement of an empty text, at which the library panics", BPE, normalizer=replace({"String": ""}, "x")
    ),
    case("replace-empty-regex", "replacement of an empty match", BPE, normalizer=replace({"Regex": ""}, "x")),
    case("replace-star", "replacement of matches that may be empty", BPE, normalizer=replace({"Regex": "a*"}, "x")),
    case("replace-lookahead", "replacement of a place before a letter", BPE, normalizer=replace({"Regex": "(?=a)"}, "x")),
    case("replace-invalid", "an invalid regular expression", BPE, normalizer=replace({"Regex": "("}, "x")),
    case("replace-doubling", "forty replacements that double a text", BPE, normalizer=sequence(*[replace(A, "aa")] * 40)),
    case(
        "replace-rare",
        "forty replacements that double a rare character",
        BPE,
        normalizer=sequence(*[replace({"String": "\u2603"}, "\u2603\u2603")] * 40),
    ),
    case("replace-long", "a replacement of a million characters", BPE, normalizer=replace(A, "b" * 10**6)),
    case(
        "replace-long-regex", "a replacement of any character by a million", BPE, normalizer=replace({"Regex": "."}, "b" * 10**6)
    ),
    case("prepend-long", "a million characters before each text", BPE, normalizer={"type": "Prepend", "prepend": "a" * 10**6}),
    case(
        "prepend-many",
        "many texts before each text",
        BPE,
        normalizer=sequence(*[{"type": "Prepend", "prepend": "a" * 60}] * 1000),
    ),
    case("bytes-doubling", "fifty times the bytes of bytes", BPE, normalizer=sequence(*[{"type": "ByteLevel"}] * 50)),
    case("nested", "sixty sequences in each other", BPE, normalizer=nested(60, {"type": "NFC"})),
    case("nested-deep", "500 sequences in each other", BPE, normalizer=nested(300, {"type": "NFC"})),
    case("many-steps", "100,000 normalizers", BPE, normalizer=sequence(*[{"type": "NFC"}] * 100_000)),
    case("unknown-normalizer", "a type that does not exist", BPE, normalizer={"type": "Execute", "command": "id"}),
    case("untyped", "a step without a type", BPE, normalizer={"lowercase": True}),
    case("regex-slow-replace", "a replacement whose time is exponential", BPE, normalizer=replace({"Regex": "(a+)+$"}, "x")),
    case("charsmap-empty", "an empty normalization table", T5, normalizer={"type": "Precompiled", "precompiled_charsmap": ""}),
    case(
        "charsmap-null",
        "a normalization table that is null",
        T5,
        normalizer={"type": "Precompiled", "precompiled_charsmap": None},
    ),
    case(
        "charsmap-text",
        "a normalization table that is not base64",
        T5,
        normalizer={"type": "Precompiled", "precompiled_charsmap": "\u2603"},
    ),
    case("charsmap-short", "a table of three bytes", T5, normalizer={"type": "Precompiled", "precompiled_charsmap": "YWJj"}),
    case(
        "charsmap-size",
        "a table of 4 GB according to its first bytes, at which the library aborts",
        T5,
        normalizer=charsmap(b"\xff" * 64, b"", 0xFFFFFFFF),
    ),
    case("charsmap-zero", "a table without units", T5, normalizer=charsmap(b"", b"abc\0")),
    case("charsmap-far", "children beyond the end of the array", T5, normalizer=charsmap(FAR * 256, b"abc\0")),
    case("charsmap-few", "an array of four units", T5, normalizer=charsmap(b"\x41\x02\0\0" * 4, b"abc\0")),
    case(
        "charsmap-leaf",
        "a text beyond the end of the texts",
        T5,
        normalizer=charsmap(b"\0\x05\0\0" * 256, b"abc\0"),
    ),
    case("charsmap-texts", "texts that are not UTF-8", T5, normalizer=charsmap(b"\0\0\0\0" * 256, b"\xff\xfe\0")),
    case(
        "charsmap-long",
        "a text of a million characters for one character",
        T5,
        normalizer=charsmap(b"\0\x01\0\0" + b"\0\0\0\x80" * 255, b"a" * 10**6 + b"\0"),
    ),
]
PATTERNS = [
    case("regex-plus", "repeated repetitions, whose time is exponential", BPE, pre_tokenizer=split("(a+)+$")),
    case("regex-alternatives", "alternatives that match the same text", BPE, pre_tokenizer=split("(a|aa)+$")),
    case("regex-any", "repeated repetitions of any character", BPE, None, pre_tokenizer=split(r"(.+)+\x00")),
    case("regex-own", "repeated repetitions of a rare character", BPE, pre_tokenizer=split("(\u26c4+)+$")),
    case("regex-cubic", "three repetitions of the same letters", BPE, pre_tokenizer=split("a*a*a*$")),
    case("regex-recursive", "an expression that calls itself", BPE, pre_tokenizer=split("(?<x>a\\g<x>?b?)+c")),
    case("regex-deep", "5,000 parentheses in a regular expression", BPE, pre_tokenizer=split("(" * 5000 + "a" + ")" * 5000)),
    case("regex-long", "a regular expression of a million characters", BPE, pre_tokenizer=split("ab|" * 333_333)),
    case(
        "regex-counts",
        "repetitions of repetitions, a million million times",
        BPE,
        None,
        pre_tokenizer=split("((a{10000}){10000}){10000}"),
    ),
    case("regex-backreference", "a reference to a group", BPE, None, pre_tokenizer=split("(a*)*\\1b")),
    case("regex-invalid", "an invalid regular expression", BPE, pre_tokenizer=split("[")),
    case("split-empty", "a division at empty matches", BPE, None, pre_tokenizer=split("")),
    case(
        "pattern-both",
        "a pattern that is a text and an expression",
        BPE,
        pre_tokenizer=split("", pattern={"String": "a", "Regex": "b"}),
    ),
    case("pattern-type", "a pattern that is a number", BPE, pre_tokenizer=split("", pattern={"Regex": 1})),
    case(
        "bytes-words",
        "fifty times the bytes of bytes, as words",
        BPE,
        pre_tokenizer=sequence(*[BYTE_LEVEL] * 50, key="pretokenizers"),
    ),
    case("length-zero", "words of no characters", BPE, pre_tokenizer={"type": "FixedLength", "length": 0}),
    case("metaspace-empty", "a sign of a space without characters", T5, pre_tokenizer=METASPACE | {"replacement": ""}),
]
MODELS = [
    case(
        "unigram-long",
        "an entry of a million characters, whose tree overflows the stack",
        T5,
        model={"vocab": [*T5["model"]["vocab"], ["a" * 10**6, -1.0]]},
    ),
    case("unigram-nan", "a probability that is not a number", T5, model={"vocab": [*T5["model"]["vocab"], ["ab", float("nan")]]}),
    case("unigram-infinite", "an infinite probability", T5, model={"vocab": [*T5["model"]["vocab"], ["ab", float("inf")]]}),
    case(
        "unigram-large",
        "the largest probability",
        T5,
        None,
        model={"vocab": [*T5["model"]["vocab"], ["ab", 1.7e308], ["abc", 1.7e308]]},
    ),
    case("unigram-null", "a probability that is null", T5, model={"vocab": [*T5["model"]["vocab"], ["ab", None]]}),
    case("unigram-unknown-outside", "an unknown token beyond the vocabulary", T5, model={"unk_id": 99}),
    case("unigram-unknown-none", "no unknown token", T5, None, model={"unk_id": None}),
    case("unigram-empty", "no entries", T5, model={"vocab": []}),
    case("unigram-empty-entry", "an entry without characters", T5, None, model={"vocab": [*T5["model"]["vocab"], ["", -1.0]]}),
    case("unigram-repeated", "an entry twice", T5, model={"vocab": [*T5["model"]["vocab"], ["a", -1.0]]}),
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
    case("wordpiece-negative", "a negative id", BERT, model={"vocab": BERT["model"]["vocab"] | {"x": -1}}),
    case("wordpiece-large-id", "the id 2^32 - 1", BERT, model={"vocab": BERT["model"]["vocab"] | {"x": 2**32 - 1}}),
    case("wordpiece-overflow", "the id 2^32", BERT, model={"vocab": BERT["model"]["vocab"] | {"x": 2**32}}),
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
    HostileTokenizer("model-list", "a model that is a list", {FILE: encoded(BPE | {"model": [1]})}),
    HostileTokenizer("model-none", "no model", {FILE: encoded({key: value for key, value in BPE.items() if key != "model"})}),
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
        padding={
            "strategy": {"Fixed": 10**12},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": END,
        },
    ),
    case(
        "padding-multiple",
        "texts padded to multiples of 10^12",
        BPE,
        None,
        padding={
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_to_multiple_of": 10**12,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": END,
        },
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
            single=[{"SpecialToken": {"id": "x", "type_id": 0}}, *template()["single"]],
            special_tokens={"x": {"id": "x", "ids": [2**32 - 1] * 10**6, "tokens": ["x"] * 10**6}},
        ),
    ),
    case(
        "template-missing",
        "a special token that is not defined",
        BPE,
        post_processor=template(single=[{"SpecialToken": {"id": "x", "type_id": 0}}]),
    ),
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
    HostileTokenizer("json-deep", "100,000 objects in each other", {FILE: b'{"a":' * 100_000 + b"1" + b"}" * 100_000}),
    HostileTokenizer("json-lists", "100,000 lists in each other", {FILE: b"[" * 100_000 + b"]" * 100_000}),
    HostileTokenizer("json-cut", "half of a file", {FILE: encoded(BPE)[:2000]}),
    HostileTokenizer("json-bytes", "bytes that are not UTF-8", {FILE: b"\xff\xfe" + encoded(BPE)}),
    HostileTokenizer("json-surrogate", "half of a character", {FILE: encoded(BPE).replace(b'"th"', b'"\\ud800"')}),
    HostileTokenizer(
        "json-number", "a number of 10,000 digits", {FILE: encoded(BPE).replace(b'"th": 257', b'"th": ' + b"9" * 10_000)}
    ),
    HostileTokenizer("json-empty", "an empty file", {FILE: b""}),
    HostileTokenizer("settings-list", "settings that are a list", {FILE: encoded(BPE), "tokenizer_config.json": b"[1]"}),
    HostileTokenizer(
        "settings-deep",
        "settings of 100,000 lists in each other",
        {FILE: encoded(BPE), "tokenizer_config.json": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"},
    ),
    HostileTokenizer(
        "settings-class",
        "a class that names code",
        {
            FILE: encoded(BPE),
            "tokenizer_config.json": encoded(
                {"tokenizer_class": "payload.Tokenizer", "auto_map": {"AutoTokenizer": ["payload.Tokenizer", None]}}
            ),
        },
        None,
    ),
    HostileTokenizer(
        "special-list", "special tokens that are a list", {FILE: encoded(BPE), "special_tokens_map.json": b"[1]"}, None
    ),
    HostileTokenizer("vocabulary-list", "a vocabulary that is a list", {"vocab.json": b"[1]", "merges.txt": b"a b\n"}),
    HostileTokenizer("vocabulary-ids", "ids that are texts", {"vocab.json": encoded({END: "0"}), "merges.txt": b""}),
    HostileTokenizer(
        "vocabulary-large-ids", "ids beyond 32 bits", {"vocab.json": encoded({END: 0, "a": 2**40}), "merges.txt": b""}
    ),
    HostileTokenizer(
        "merges-unknown", "merges of entries that do not exist", {"vocab.json": encoded({END: 0}), "merges.txt": b"a b\n"}
    ),
    HostileTokenizer("merges-missing", "no merges", {"vocab.json": encoded({END: 0})}),
    HostileTokenizer("words-repeated", "an entry of BERT's twice", {"vocab.txt": b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n"}),
    HostileTokenizer("words-bytes", "entries that are not UTF-8", {"vocab.txt": b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n\xff\n"}),
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
