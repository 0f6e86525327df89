"""Checks of the content of a tokenizer.json before the tokenizers library reads it.

The library is native code, in which damaged rules do not only raise an exception: texts that grow without limit and damaged
tables abort the process, and a very long entry overflows its stack. The check allows the types of steps that are known, with
limits.
"""

import base64
import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from train.untrusted import regex_check
from zoo.errors import BadInput

STEPS = {
    "normalizer": "BertNormalizer ByteLevel Lowercase NFC NFD NFKC NFKD Nmt Precompiled Prepend Replace Strip StripAccents",
    "pre_tokenizer": (
        "BertPreTokenizer ByteLevel CharDelimiterSplit Digits FixedLength Metaspace Punctuation Split UnicodeScripts Whitespace "
        "WhitespaceSplit"
    ),
    "post_processor": "BertProcessing ByteLevel RobertaProcessing TemplateProcessing",
    "decoder": "BPEDecoder ByteFallback ByteLevel CTC Fuse Metaspace Replace Strip WordPiece",
}
"""Types of steps in each part of a tokenizer.json, besides `Sequence`."""
PARTS_OF_SEQUENCE = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
MOST_STEPS, DEEPEST = 64, 8
"""Largest number of steps of a part, and of sequences in each other."""
LARGEST_GROWTH = 64
"""Largest number of characters that all steps of a part may make of one."""
LONGEST_ENTRY = 1000
"""Characters of an entry of a unigram model, whose tree of characters the library deletes recursively; and of an added token."""
MOST_ADDED, MOST_ENTRIES = 100_000, 1 << 20
LONGEST_WORD = 1000
"""Largest `max_input_chars_per_word` of WordPiece, whose time grows with its square."""
MOST_PIECES = 64
"""Largest number of tokens that a post-processor adds."""
LONGEST_REPLACEMENT = 256
"""Bytes that a normalization table may write for one character; NFKC needs 33."""


def check_content(content: Any, known_patterns: Sequence[str] = ()) -> None:
    """Check that the content of a tokenizer.json cannot abort this process or use unlimited time and memory.

    Args:
        known_patterns: regular expressions that need no check.

    Raises:
        BadInput: it can, or it has a type of step that is not known.
    """
    if not isinstance(content, dict):
        raise BadInput("not a tokenizer (not an object); write it with the tokenizers library")
    for part in STEPS:
        steps: list[dict[str, Any]] = []
        _flatten(content.get(part), part, 0, steps)
        if part == "post_processor" and sum(step["type"] != "ByteLevel" for step in steps) > 1:
            # A second one gets the parts that the first makes, and the library panics at more than two.
            raise _refusal(part, "adds special tokens in more than one step")
        growth = math.prod(_check_step(step, part, known_patterns) for step in steps)
        if growth > LARGEST_GROWTH:
            raise _refusal(part, f"can make {growth:,} characters of one, and at most {LARGEST_GROWTH} are allowed")
    _check_entries(content)


@contextlib.contextmanager
def library_errors(what: str = "the tokenizer fails on a text", fix: str = "use that of the model's publisher") -> Iterator[None]:
    """Raise `BadInput` for an error of the library, which panics on some files with an exception that is not an `Exception`.

    Raises:
        BadInput: the library raised an error in the block.
    """
    try:
        yield
    except BaseException as error:
        # Its other errors are of this class itself; subclasses are errors of the caller.
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        # The library may quote a table of 300 kB.
        why = " ".join(str(error).split())
        why = why if len(why) <= 300 else f"{why[:150]} ... {why[-100:]}"
        raise BadInput(f"{what} ({why}); {fix}") from None


def check_charsmap(charsmap: bytes) -> None:
    """Check the table of a `Precompiled` normalizer, which SentencePiece compiles: a double array of 32-bit units, then texts.

    A unit is a node, with the offset of its children, or the index of a text, which the highest bit says.

    Raises:
        BadInput: the library would read beyond the array or the texts, or write a very long text.
    """
    size = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) < 4 or size % 4 or not 0 < size <= len(charsmap) - 4:
        raise BadInput("its normalization table is damaged; download it again")
    units = np.frombuffer(charsmap, "<u4", size // 4, 4)
    texts = np.frombuffer(charsmap, np.uint8, offset=4 + size)
    nodes = np.flatnonzero(units >> 31 == 0).astype(np.uint32)
    offsets = (units[nodes] >> 10) << ((units[nodes] & 0x200) >> 6)
    # The child for a byte is at this index with its lowest eight bits changed.
    children = nodes ^ offsets
    is_valid = bool((children | 0xFF < len(units)).all()) and len(texts) > 0 and texts[-1] == 0
    if is_valid:
        # A node at which a key ends has the index of its text there.
        starts = units[children[units[nodes] & 0x100 != 0]] & 0x7FFFFFFF
        ends = np.flatnonzero(texts == 0)
        is_valid = bool((starts < len(texts)).all())
        is_valid = is_valid and bool((ends[np.searchsorted(ends, starts)] - starts <= LONGEST_REPLACEMENT).all())
        is_valid = is_valid and not ((texts[starts] & 0xC0) == 0x80).any() and _is_utf8(texts.tobytes())
    if not is_valid:
        raise BadInput("its normalization table is damaged; download it again")


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def check_entry(entry: Any) -> None:
    """Check the length of an entry of a unigram model, or of an added token.

    Raises:
        BadInput: it is too long.
    """
    if isinstance(entry, str) and len(entry) > LONGEST_ENTRY:
        raise BadInput(f"an entry has {len(entry):,} characters, and at most {LONGEST_ENTRY:,} are allowed; remove it")


def _flatten(step: Any, part: str, depth: int, steps: list[dict[str, Any]]) -> None:
    """Append the steps of a part, which may be sequences in each other, to a list."""
    if step is None and not depth:
        return
    if not isinstance(step, dict) or not isinstance(step.get("type"), str):
        raise _refusal(part, "has a step that is not an object with a type")
    if step["type"] == "Sequence":
        inner = step.get(PARTS_OF_SEQUENCE[part])
        if not isinstance(inner, list):
            raise _refusal(part, f"is a sequence without a list {PARTS_OF_SEQUENCE[part]}")
        if depth >= DEEPEST:
            raise _refusal(part, f"has more than {DEEPEST} sequences in each other")
        for inner_step in inner:
            _flatten(inner_step, part, depth + 1, steps)
    elif step["type"] not in STEPS[part].split():
        raise _refusal(part, f"has a step of the type {step['type'][:40]!r}, and not one of {', '.join(STEPS[part].split())}")
    else:
        steps.append(step)
    if len(steps) > MOST_STEPS:
        raise _refusal(part, f"has more than {MOST_STEPS} steps")


def _check_step(step: dict[str, Any], part: str, known_patterns: Sequence[str]) -> int:
    """Check the fields of a step, and return how many characters it can make of one."""
    kind = step["type"]
    if kind in ("Replace", "Split"):
        return _check_pattern_step(step, part, known_patterns)
    if kind == "Precompiled":
        try:
            check_charsmap(base64.b64decode(str(step.get("precompiled_charsmap")), validate=True))
        except (BadInput, ValueError):
            raise _refusal(part, "has a damaged normalization table") from None
        return 2
    limits: dict[str, tuple[str, Callable[[Any], bool], str]] = {
        "Prepend": ("prepend", lambda text: len(text) <= LARGEST_GROWTH, f"a text of at most {LARGEST_GROWTH} characters"),
        "FixedLength": ("length", lambda length: length >= 1, "at least 1"),
        # The library reads before the beginning of a shorter text.
        "Strip": ("stop", lambda stop: stop == 0, "0"),
    }
    if kind in limits and (part != "normalizer" or kind == "Prepend"):
        field, is_allowed, allowed = limits[kind]
        try:
            passes = is_allowed(step.get(field, 0))
        except TypeError:
            passes = False
        if not passes:
            raise _refusal(part, f"has a step {kind} whose {field} is not {allowed}")
    if kind == "TemplateProcessing":
        _check_template(step, part)
    return 2 if kind == "ByteLevel" and part in ("normalizer", "pre_tokenizer") else 1


def _check_pattern_step(step: dict[str, Any], part: str, known_patterns: Sequence[str]) -> int:
    pattern, replaces, text = step.get("pattern"), step["type"] == "Replace", step.get("content", "")
    if not isinstance(pattern, dict) or len(pattern) != 1 or not isinstance(text, str):
        raise _refusal(part, f"has a step {step['type']} without a pattern and a text")
    ((form, source),) = pattern.items()
    if form not in ("String", "Regex") or not isinstance(source, str):
        raise _refusal(part, f"has a step {step['type']} whose pattern is neither a String nor a Regex")
    if replaces and not source:
        raise _refusal(part, "replaces an empty text")
    if form == "Regex" and source not in known_patterns:
        try:
            regex_check.check_pattern(source, replaces=replaces)
        except BadInput as error:
            raise _refusal(part, str(error)) from None
    if not replaces:
        return 1
    # A regular expression may match a single character.
    return max(1, math.ceil(len(text) / (len(source) if form == "String" else 1)))


def _check_template(step: dict[str, Any], part: str) -> None:
    """Check that a template has each text at most once, and few tokens beside it."""
    tokens = step.get("special_tokens")
    tokens = tokens if isinstance(tokens, dict) else {}
    sizes = [len(token["ids"]) for token in tokens.values() if isinstance(token, dict) and isinstance(token.get("ids"), list)]
    if max(sizes, default=0) > MOST_PIECES:
        raise _refusal(part, f"has a template whose special token is more than {MOST_PIECES} ids")
    for name, texts in (("single", ["A"]), ("pair", ["A", "B"])):
        pieces = step.get(name)
        if not isinstance(pieces, list) or len(pieces) > MOST_PIECES:
            raise _refusal(part, f"has a template without a list {name} of at most {MOST_PIECES} tokens")
        remaining = [*texts]
        for piece in pieces:
            ((kind, value),) = piece.items() if isinstance(piece, dict) and len(piece) == 1 else [("", None)]
            identifier = value.get("id") if isinstance(value, dict) else None
            if kind == "Sequence" and identifier in remaining:
                remaining.remove(identifier)
            elif kind != "SpecialToken" or not isinstance(identifier, str) or identifier not in tokens:
                problem = f"has a template {name} of other parts than {' and '.join(texts)}, once each, and its special tokens"
                raise _refusal(part, problem)


def _check_entries(content: dict[str, Any]) -> None:
    model, added = content.get("model"), content.get("added_tokens")
    if isinstance(added, list):
        if len(added) > MOST_ADDED:
            raise _refusal("added_tokens", f"has {len(added):,} tokens, and at most {MOST_ADDED:,} are allowed")
        for token in added:
            check_entry(token.get("content") if isinstance(token, dict) else None)
    if not isinstance(model, dict):
        return
    entries = model.get("vocab")
    if isinstance(entries, list | dict) and len(entries) > MOST_ENTRIES:
        raise _refusal("vocabulary", f"has {len(entries):,} entries, and at most {MOST_ENTRIES:,} are allowed")
    if isinstance(entries, list):
        for entry in entries:
            check_entry(entry[0] if isinstance(entry, list) and entry else None)
    longest = model.get("max_input_chars_per_word")
    if isinstance(longest, int) and longest > LONGEST_WORD:
        raise _refusal("model", f"has max_input_chars_per_word {longest}, and at most {LONGEST_WORD} is allowed")


def _refusal(part: str, what: str) -> BadInput:
    return BadInput(f"not a tokenizer (its {part} {what}); use the tokenizer of the model's publisher")
