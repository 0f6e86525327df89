"""Tokenizers whose library panics, aborts or never ends, and chat templates that compute for ever or lead out of the sandbox."""

from collections.abc import Callable
from typing import Any

from tests.hostile.case_types import READ_RUN, READ_TEMPLATE, READ_TOKENIZER, Case, Place, edit, edited, replace
from tests.hostile.code_cases import MODELS

REGEX = {"Regex": "(a+)+$|(.|\\s)*?x"}
DOUBLING = {"type": "Sequence", "normalizers": 30 * [{"type": "Replace", "pattern": {"String": "h"}, "content": "hh"}]}


def change(**changes: Any) -> Callable[[Place], None]:
    """Return a function that changes the tokenizer.json of a folder, which a run has in a folder of its own."""

    def write(place: Place) -> None:
        inner = place.folder / "tokenizer"
        edit((inner if inner.is_dir() else place.folder) / "tokenizer.json", **changes)

    return write


def nested(kind: str, key: str, depth: int) -> dict[str, Any]:
    """Return a sequence of sequences."""
    value: dict[str, Any] = {"type": "NFC"} if key == "normalizers" else {"type": "Whitespace"}
    for _ in range(depth):
        value = {"type": kind, key: [value]}
    return value


TOKENIZERS: dict[str, dict[str, Any]] = {
    "normalizer that doubles a text 30 times": {"normalizer": DOUBLING},
    "normalizer that backtracks": {"normalizer": {"type": "Replace", "pattern": REGEX, "content": ""}},
    "normalizer with an invalid pattern": {"normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}},
    "normalizer with an empty pattern": {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": 1000 * "x"}},
    "normalizer with a broken map of characters": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
    "normalizer with an empty map of characters": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "normalizer 120 sequences deep": {"normalizer": nested("Sequence", "normalizers", 120)},
    "normalizer that prepends 10 MB": {"normalizer": {"type": "Prepend", "prepend": 10_000_000 * "x"}},
    "pre-tokenizer that backtracks": {
        "pre_tokenizer": {"type": "Split", "pattern": REGEX, "behavior": "Isolated", "invert": False}
    },
    "pre-tokenizer that is unknown": {"pre_tokenizer": {"type": "evil"}},
    "pre-tokenizer that removes everything": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Removed", "invert": False}
    },
    "truncation with a stride beyond its length": {
        "truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5}
    },
    "padding to 2**40 tokens": {
        "padding": {
            **{"strategy": {"Fixed": 1 << 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0},
            **{"pad_type_id": 0, "pad_token": "x"},
        }
    },
    "merges of absent entries": {"model__merges": [["absent", "entries"]]},
    "merges that are numbers": {"model__merges": [[1, 2]]},
    "no entries": {"model__vocab": {}, "model__merges": []},
    "id of 2**31": {"model__vocab": lambda vocab: {**vocab, "evil": 1 << 31}},
    "id that is negative": {"model__vocab": lambda vocab: {**vocab, "evil": -1}},
    "id twice": {"model__vocab": lambda vocab: {**vocab, "evil": 5}},
    "dropout of 2": {"model__dropout": 2.0},
    "model that is unigram without entries": {"model": {"type": "Unigram", "unk_id": 7, "vocab": []}},
    "model that is unigram with NaN": {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", "NaN"]]}},
    "model that is word level without unknown": {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "absent"}},
    "model that is unknown": {"model": {"type": "evil"}},
    "added token of 2**32": {
        "added_tokens": lambda tokens: [*tokens, {**tokens[0], "id": 1 << 32, "content": "evil"}] if tokens else []
    },
    "added token without text": {"added_tokens": lambda tokens: [{**token, "content": ""} for token in tokens]},
    "post-processor with absent tokens": {
        "post_processor": {
            **{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "absent", "type_id": 0}}], "pair": []},
            "special_tokens": {},
        }
    },
    "decoder that backtracks": {"decoder": {"type": "Replace", "pattern": REGEX, "content": ""}},
}
SETTINGS: dict[str, Any] = {
    "class that is a module": {"tokenizer_class": "os.system"},
    "extra_ids of 10**9": {"tokenizer_class": "T5Tokenizer", "extra_ids": 10**9},
    "sentinels of ByT5, 10**9": {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 10**9},
    "added tokens with large ids": {"added_tokens_decoder": {"99999999999": {"content": "evil", "special": True}}},
    "added tokens of wrong types": {"added_tokens_decoder": [1, 2]},
    "token that is an object": {"eos_token": {"content": ["a"]}},
    "chat template that is a number": {"chat_template": 5},
    "longest text of 10**400": {"model_max_length": 10**400},
}
TEMPLATES = {
    "nested loops": 3 * "{% for a in range(99999) %}" + 3 * "{% endfor %}",
    "power": "{{ 10 ** 10000000 }}",
    "power of a power": "{{ 9 ** 9 ** 9 }}",
    "text of 1 GB": "{{ 'a' * 1000000000 }}",
    "text of 100 GB": "{{ 'a' * 100000000000 }}",
    "text that doubles": "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "2,000 parentheses": "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}",
    "100,000 brackets": "{{ " + "[" * 100_000,
    "5,000 blocks": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "list of a range": "{{ range(99999) | list | length }}{{ (range(99999) | list) * 100000 }}",
    "filter that centres": "{{ 'a' | center(10000000000) }}",
    "filter that indents": "{{ ('a\n' * 1000) | indent(10000000) }}",
    "format of 10**10 characters": "{{ '%10000000000d' % 5 }}",
    "format of attributes": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "classes": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "classes by attr": "{{ messages | attr('__class__') }}",
    "globals of a function": "{{ raise_exception.__globals__['os'].system('touch ~/code-ran') }}",
    "globals of cycler": "{{ cycler.__init__.__globals__.os.popen('touch ~/code-ran').read() }}",
    "globals of lipsum": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "self": "{{ self.__init__.__globals__ }}",
    "include": "{% include '../../home/.ssh/id_rsa' %}",
    "import": "{% import 'os' as os %}{{ os.system('touch ~/code-ran') }}",
    "extends": "{% extends '/etc/passwd' %}",
    "message with escapes": "{{ raise_exception('\x1b]0;owned\x07\x1b[2J') }}",
    "text with escapes": "{{ '\\x1b]0;owned\\x07' }}{{ eos_token }}",
    "long message": "{{ raise_exception('x' * 1000000) }}",
    "time of 100 MB": "{{ strftime_now('%Y' * 10000000) }}",
    "unknown filter": "{{ 1 | evil }}",
    "invalid syntax": "{% for",
}


def template(text: str) -> Callable[[Place], None]:
    """Return a function that replaces the chat template."""
    return lambda place: replace(place.folder / "chat_template.jinja", text)


def _template_in_settings(place: Place) -> None:
    (place.folder / "chat_template.jinja").unlink()
    edit(place.folder / "tokenizer_config.json", chat_template=TEMPLATES["globals of cycler"])


READERS = (*READ_RUN, "* --tokenizer.path")
HARMLESS = (
    "truncation with a stride beyond its length",
    "padding to 2**40 tokens",
    "dropout of 2",
    "decoder that backtracks",
    "added token of 2**32",
    "id twice",
    "class that is a module",
    "longest text of 10**400",
)
"""Those that may be read: what they set is not used."""
CASES = [
    *(
        Case(f"tokenizer: {name}", "limits", ("tokenizer", "run"), change(**values), () if name in HARMLESS else READERS)
        for name, values in TOKENIZERS.items()
    ),
    *(
        Case(
            f"tokenizer_config.json: {name}",
            "formats",
            ("model",),
            edited("tokenizer_config.json", **values),
            () if name in HARMLESS else READ_TOKENIZER,
        )
        for name, values in SETTINGS.items()
    ),
    *(Case(f"template: {name}", "limits", ("chat",), template(text), READ_TEMPLATE) for name, text in TEMPLATES.items()),
    Case("template in tokenizer_config.json", "code", ("chat",), _template_in_settings, READ_TEMPLATE),
    Case("entry with a line end", "formats", MODELS, change(model__vocab=lambda vocab: {**vocab, "a\nb": len(vocab)}), ()),
]
