"""XLNet's unigram models (Yang et al. 2019, section 3.1; zihangdai/xlnet, `prepro_utils.py` and the options in its README).

T5's rules of words (`train.tokenizers.unigram`), on a text of which accents and the quotes of LaTeX are gone.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import AddedToken, normalizers, processors

from train.tokenizers import sentencepiece_proto, unigram
from train.tokenizers.special_tokens import XLNET
from train.tokenizers.unigram import Entries
from zoo.errors import BadInput

QUOTES = ("``", "''")
"""Quotes as LaTeX writes them: a straight one stands in their place."""
KINDS = (*unigram.KINDS, sentencepiece_proto.USER_DEFINED)
APART = (".", "(", ")", '"', "-", "\u2013", "\u00a3", "\u20ac")
"""Characters that are entries of their own and part of no other."""
COVERED = 0.99995
"""Share of a text's characters that a trained vocabulary knows."""
LOST = 100.0
"""What the logarithm of a probability is lowered by where an entry shall never win."""
SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
"""A step of normalization in published files, which changes nothing: words are divided at any number of spaces."""


def content(entries: Entries, charsmap: bytes, *, lowercase: bool = False, keep_accents: bool = False) -> dict[str, Any]:
    """A tokenizer.json of XLNet's rules. The template in it is for other programs: ours add marks themselves.

    Args:
        entries: the marks among them, by their names.
        charsmap: what is made of each character after the rest; SentencePiece compiles it into its models.
        lowercase: drop case.
        keep_accents: neither decompose characters nor drop their accents.
    """
    names = [entry for entry, _ in entries]
    sep, cls, mask = XLNET["sep"], XLNET["cls"], XLNET["mask"]
    return unigram.divided(
        entries,
        unknown=XLNET["unk"],
        normalizer=normalizers.Sequence(
            [
                *_before(lowercase=lowercase, keep_accents=keep_accents),
                *([normalizers.Precompiled(charsmap)] if charsmap else []),
            ]
        ),
        # The mask takes the space before it.
        special=[AddedToken(name, lstrip=name == mask, special=True, normalized=False) for name in XLNET.values()],
        template=processors.TemplateProcessing(
            single=f"$A:0 {sep}:0 {cls}:2",
            pair=f"$A:0 {sep}:0 $B:1 {sep}:1 {cls}:2",
            special_tokens=[(sep, names.index(sep)), (cls, names.index(cls))],
        ),
    )


def is_normalizer(steps: Mapping[str, Any] | None) -> bool:
    """Whether the normalizer of a tokenizer.json is one of those of `content`."""
    if steps is None or steps["type"] != "Sequence":
        return False
    found = [step for step in steps["normalizers"] if step != SPACES]
    quotes = [{"type": "Replace", "pattern": {"String": each}, "content": '"'} for each in QUOTES]
    known = ("NFKD", "StripAccents", "Lowercase", "Precompiled")
    return found[:2] == quotes and all(step["type"] in known for step in found[2:])


def owns(names: Iterable[str]) -> bool:
    """Whether entries are XLNet's rather than T5's, which has neither of two of its marks."""
    return not {XLNET["cls"], XLNET["sep"]}.isdisjoint(names)


def read(found: sentencepiece_proto.Model, *, lowercase: bool = False, keep_accents: bool = False) -> dict[str, Any]:
    """A tokenizer.json of a spiece.model.

    Raises:
        BadInput: it has rules that are not XLNet's, or lacks a mark.
    """
    unigram.check(found, "XLNet", KINDS)
    entries = [(entry.name, entry.score - LOST * _ends_number(entry.name)) for entry in found.entries]
    if missing := set(XLNET.values()).difference(name for name, _ in entries):
        lacks = " and no ".join(name for name in XLNET.values() if name in missing)
        raise BadInput(f"it has no {lacks}, and XLNet needs {', '.join(XLNET.values())}; give one of XLNet's kind")
    return content(entries, found.charsmap, lowercase=lowercase, keep_accents=keep_accents)


def train(texts: Iterable[str], vocab: int) -> dict[str, Any]:
    """A tokenizer.json of up to `vocab` entries: the marks, `APART`, then pieces, the most likely first. Case is kept.

    Raises:
        BadInput: a vocabulary too small for the characters of the texts, or no text.
    """
    with unigram.explained(vocab):
        return read(sentencepiece_proto.parse(model(texts, vocab)))


def model(texts: Iterable[str], vocab: int) -> bytes:
    """A spiece.model of up to `vocab` entries.

    Raises:
        RuntimeError: the library cannot make one.
    """
    # Trained on what is going to be encoded, so that no entry has an accent.
    steps = normalizers.Sequence(_before(lowercase=False, keep_accents=False))
    given = [steps.normalize_str(line) for line in unigram.lines(texts)]
    return unigram.trained(
        given,
        vocab,
        coverage=COVERED,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        unk_piece=XLNET["unk"],
        bos_piece=XLNET["bos"],
        eos_piece=XLNET["eos"],
        # Padding is one of the symbols: its id is not the library's to choose.
        pad_id=-1,
        control_symbols=[*XLNET.values()][3:],
        user_defined_symbols=list(APART),
    )


def _before(*, lowercase: bool, keep_accents: bool) -> list[normalizers.Normalizer]:
    """The steps of normalization before SentencePiece's own."""
    return [
        *(normalizers.Replace(quote, '"') for quote in QUOTES),
        *([] if keep_accents else [normalizers.NFKD(), normalizers.StripAccents()]),
        *([normalizers.Lowercase()] if lowercase else []),
    ]


def _ends_number(entry: str) -> bool:
    """Whether an entry is a digit and the comma after it. The comma stays apart: XLNet's own program divides such an entry once
    more, and its published tokenizer.json keeps it from winning, with the same ids."""
    return len(entry) > 1 and entry[-1] == "," and entry[-2].isdigit()
