"""XLNet's unigram models (Yang et al. 2019, section 3.1; zihangdai/xlnet, `prepro_utils.py` and the options in its README).

The rules of words are T5's (`train.tokenizers.unigram`); accents are dropped and the quotes of LaTeX replaced before.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import AddedToken, normalizers, processors

from train.tokenizers import sentencepiece_proto, unigram
from train.tokenizers.special_tokens import XLNET
from train.tokenizers.unigram import Entries
from zoo.errors import BadInput

QUOTES = ("``", "''")
"""Quotes of LaTeX, which are replaced by a straight one."""
KINDS = (*unigram.KINDS, sentencepiece_proto.USER_DEFINED)
APART = (".", "(", ")", '"', "-", "\u2013", "\u00a3", "\u20ac")
"""Characters that are separate entries and part of no other entry."""
COVERED = 0.99995
"""Character coverage of a trained vocabulary."""
LOST = 100.0
"""Amount by which the log probability of an entry that must never be chosen is lowered."""
SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
"""A normalization step in published files that has no effect, because words are split at any number of spaces."""


def xlnet_tokenizer_json(
    entries: Entries, charsmap: bytes, *, lowercase: bool = False, keep_accents: bool = False
) -> dict[str, Any]:
    """Return a tokenizer.json of XLNet's rules.

    The template in it is for other programs; this one adds special tokens itself.

    Args:
        entries: all entries, special tokens included.
        charsmap: the normalization of characters, the last step before splitting, as SentencePiece compiles it into its models.
        lowercase: whether to drop case.
        keep_accents: whether to skip decomposing characters and dropping accents.
    """
    names = [entry for entry, _ in entries]
    sep, cls, mask = XLNET["sep"], XLNET["cls"], XLNET["mask"]
    return unigram.space_divided_content(
        entries,
        unknown=XLNET["unk"],
        normalizer=normalizers.Sequence(
            [
                *_before(lowercase=lowercase, keep_accents=keep_accents),
                *([normalizers.Precompiled(charsmap)] if charsmap else []),
            ]
        ),
        # The mask absorbs the space before it (`lstrip`).
        special=[AddedToken(name, lstrip=name == mask, special=True, normalized=False) for name in XLNET.values()],
        template=processors.TemplateProcessing(
            single=f"$A:0 {sep}:0 {cls}:2",
            pair=f"$A:0 {sep}:0 $B:1 {sep}:1 {cls}:2",
            special_tokens=[(sep, names.index(sep)), (cls, names.index(cls))],
        ),
    )


def is_normalizer(steps: Mapping[str, Any] | None) -> bool:
    """Return whether the normalizer of a tokenizer.json is one that `xlnet_tokenizer_json` makes."""
    if steps is None or steps["type"] != "Sequence":
        return False
    other_steps = [step for step in steps["normalizers"] if step != SPACES]
    quotes = [{"type": "Replace", "pattern": {"String": quote}, "content": '"'} for quote in QUOTES]
    allowed = ("NFKD", "StripAccents", "Lowercase", "Precompiled")
    return other_steps[:2] == quotes and all(step["type"] in allowed for step in other_steps[2:])


def has_xlnet_names(names: Iterable[str]) -> bool:
    """Return whether entries are XLNet's rather than T5's, which lacks both <cls> and <sep>."""
    return not {XLNET["cls"], XLNET["sep"]}.isdisjoint(names)


def convert_xlnet_unigram(
    proto: sentencepiece_proto.Model, *, lowercase: bool = False, keep_accents: bool = False
) -> dict[str, Any]:
    """Return a tokenizer.json of a spiece.model.

    Raises:
        BadInput: the model has rules that are not XLNet's, or lacks a special token.
    """
    unigram.check_unigram(proto, "XLNet", KINDS)
    entries = [(entry.name, entry.score - LOST * _ends_number(entry.name)) for entry in proto.entries]
    if missing := set(XLNET.values()).difference(name for name, _ in entries):
        lacks = " and no ".join(name for name in XLNET.values() if name in missing)
        raise BadInput(f"it has no {lacks}, and XLNet needs {', '.join(XLNET.values())}; give one of XLNet's kind")
    return xlnet_tokenizer_json(entries, proto.charsmap, lowercase=lowercase, keep_accents=keep_accents)


def train_xlnet_tokenizer(texts: Iterable[str], vocab: int) -> dict[str, Any]:
    """Train a cased tokenizer.json of up to `vocab` entries: special tokens, `APART`, then pieces, most likely first.

    Raises:
        BadInput: the vocabulary is too small for the characters of the texts, or there is no text.
    """
    with unigram.training_errors(vocab):
        return convert_xlnet_unigram(sentencepiece_proto.parse_spiece_model(train_xlnet_model(texts, vocab)))


def train_xlnet_model(texts: Iterable[str], vocab: int) -> bytes:
    """Train a spiece.model of up to `vocab` entries.

    Raises:
        RuntimeError: the library cannot train a model.
    """
    # Trained on normalized text, as it will be encoded, so that no entry has an accent.
    steps = normalizers.Sequence(_before(lowercase=False, keep_accents=False))
    normalized = [steps.normalize_str(line) for line in unigram.training_lines(texts)]
    return unigram.train_spiece_model(
        normalized,
        vocab,
        coverage=COVERED,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        unk_piece=XLNET["unk"],
        bos_piece=XLNET["bos"],
        eos_piece=XLNET["eos"],
        # Padding is one of the control symbols, so that its id is fixed by their order.
        pad_id=-1,
        control_symbols=[*XLNET.values()][3:],
        user_defined_symbols=list(APART),
    )


def _before(*, lowercase: bool, keep_accents: bool) -> list[normalizers.Normalizer]:
    """Return the normalization steps before that of SentencePiece."""
    return [
        *(normalizers.Replace(quote, '"') for quote in QUOTES),
        *([] if keep_accents else [normalizers.NFKD(), normalizers.StripAccents()]),
        *([normalizers.Lowercase()] if lowercase else []),
    ]


def _ends_number(entry: str) -> bool:
    """Return whether an entry ends in a digit and a comma, which must stay separate tokens.

    XLNet's own program splits such an entry again; its published tokenizer.json lowers its score, with the same ids.
    """
    return len(entry) > 1 and entry[-1] == "," and entry[-2].isdigit()
