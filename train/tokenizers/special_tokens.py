"""Special tokens: ends of documents, those of encoders, their templates around one text or two, and those of text to text."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int32, Integer
from tokenizers import decoders, models

from zoo.errors import BadInput

END_OF_TEXT = "<|endoftext|>"
LLAMA_BEGIN = "<|begin_of_text|>"
"""The token before every text of Llama 3, whose template adds it."""
ENDS = (END_OF_TEXT, "<|end_of_text|>", "<|bos|>")
"""Names of the token after a document: that of GPT-2, Qwen3, SmolLM2 and gpt-oss, that of Llama 3 and SmolLM3, and that of
nanochat, which is before each document."""
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|return|>", "<|assistant_end|>")
"""Tokens that end an answer in a conversation; models that were fine-tuned on conversations have them as `eos_token`."""
BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""Names in BERT's and ModernBERT's released vocabularies; in those trained here they have the ids 0 to 4 in this order."""
ROBERTA = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
"""Names in RoBERTa's vocabulary; there and in one trained here, the first four have the ids 0 to 3, and the mask the last id."""
XLNET = {
    **{"unk": "<unk>", "bos": "<s>", "eos": "</s>", "cls": "<cls>", "sep": "<sep>"},
    **{"pad": "<pad>", "mask": "<mask>", "eod": "<eod>", "eop": "<eop>"},
}
"""Names in XLNet's vocabulary. In that vocabulary and in those trained here, they have the ids 0 to 8 in this order."""

TEXT = {"pad": "<pad>", "end": "</s>", "unk": "<unk>"}
"""Names in T5's vocabulary; there and in one trained here, they have the ids 0 to 2 in this order."""
SENTINELS = 100
"""Number of sentinels in T5's vocabulary, after all other entries."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids of an encoder's special tokens."""

    pad: int
    unk: int
    cls: int
    """Represents the whole input: its first token, or in XLNet its last."""
    sep: int
    """Ends every text."""
    mask: int
    between: int = 1
    """Separators between the two texts of a pair: RoBERTa 2, the others 1."""
    typed: bool = True
    """False if the texts of a pair have the same token type (RoBERTa, ModernBERT)."""
    cls_last: bool = False
    """True if `cls` ends every input (XLNet; Yang et al. 2019, section 2.5)."""
    bos: int | None = None
    """XLNet's `bos` and `eos` are in no template."""
    eos: int | None = None
    eod: int | None = None
    """XLNet's end of a document."""
    eop: int | None = None
    """XLNet's end of a paragraph, which is not used here, nor by default in XLNet's own programs."""

    @property
    def special(self) -> tuple[int, ...]:
        """The ids of all special tokens, ascending."""
        ids = (self.pad, self.unk, self.cls, self.sep, self.mask, self.bos, self.eos, self.eod, self.eop)
        return tuple(sorted(mark for mark in ids if mark is not None))

    @property
    def end(self) -> int:
        """The id that ends a document: `sep`, or `eod` in XLNet's data (zihangdai/xlnet, `data_utils.py`)."""
        return self.sep if self.eod is None else self.eod

    @property
    def types(self) -> int:
        """Number of token types of a pair: 1 in ModernBERT, and in RoBERTa with its two separators; 3 in XLNet, also of `cls`."""
        return 3 if self.cls_last else 2 if self.typed else 1

    @property
    def before(self) -> int:
        """Number of special tokens before the first text."""
        return 0 if self.cls_last else 1

    def summary(self, size: int) -> int:
        """Return the position of `cls` in an input of `size` ids, special tokens included."""
        return size - 1 if self.cls_last else 0

    def single(self, ids: Integer[np.ndarray, " a"]) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
        """Return `cls A sep` (Devlin et al. 2019, section 4), in XLNet `A sep cls`, and its token types."""
        return self._framed([(ids, 0), ([self.sep], 0)])

    def pair(
        self, first: Integer[np.ndarray, " a"], second: Integer[np.ndarray, " b"]
    ) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
        """Return the ids `cls A sep B sep` (RoBERTa: `cls A sep sep B sep`; XLNet: `A sep B sep cls`) and their token types.

        `B sep` has type 1, except in RoBERTa and ModernBERT, and XLNet's `cls` has type 2.
        """
        second_type = min(1, self.types - 1)
        return self._framed([(first, 0), ([self.sep] * self.between, 0), (second, second_type), ([self.sep], second_type)])

    def _framed(self, parts: list[tuple[Any, int]]) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
        """Concatenate parts and `cls`; return the ids and the token type of each."""
        parts = [*parts, ([self.cls], self.types - 1)] if self.cls_last else [([self.cls], 0), *parts]
        ids = np.concatenate([np.asarray(part, np.int32) for part, _ in parts])
        return ids, np.repeat(np.array([kind for _, kind in parts], np.int32), [len(part) for part, _ in parts])


def encoder_special_tokens(ids: Mapping[str, int]) -> SpecialTokens | None:
    """Return the special tokens of BERT, RoBERTa or XLNet, whichever has the most names in the vocabulary; None if it has none.

    Raises:
        BadInput: the vocabulary has some of them, but not all.
    """
    # RoBERTa's names are XLNet's too; `max` returns the first of equal ones.
    names = max((BERT, ROBERTA, XLNET), key=lambda names: len(ids.keys() & set(names.values())))
    missing = [name for name in names.values() if name not in ids]
    if len(missing) == len(names):
        return None
    if missing:
        raise BadInput(f"it has no {' and no '.join(missing)}, and an encoder needs {', '.join(names.values())}; add them")
    return SpecialTokens(
        **{role: ids[name] for role, name in names.items()},
        between=2 if names is ROBERTA else 1,
        typed=names is not ROBERTA,
        cls_last=names is XLNET,
    )


def special_tokens_of(core: tokenizers.Tokenizer, ids: Mapping[str, int]) -> SpecialTokens | None:
    """Return the special tokens of an encoder.

    RoBERTa's vocabulary has GPT-2's end of text too, as an ordinary entry, and ModernBERT's as an added token beside BERT's.
    """
    added = {token.content for token in core.get_added_tokens_decoder().values()}
    if added.intersection(ENDS) and not added.issuperset(BERT.values()):
        return None
    special = encoder_special_tokens(ids)
    if special is None:
        return None
    unk_token = core.model.unk_token if isinstance(core.model, models.WordPiece) else None
    if special.cls_last:
        fits, expected = isinstance(core.model, models.Unigram), "a unigram model"
    elif special.between == 2:
        fits, expected = isinstance(core.model, models.BPE | models.Unigram), "byte-level BPE or a unigram model"
    elif isinstance(core.model, models.BPE) and isinstance(core.decoder, decoders.ByteLevel):
        return dataclasses.replace(special, typed=False)
    else:
        fits, expected = unk_token == BERT["unk"], f"WordPiece, with {BERT['unk']} for the unknown"
    if not fits:
        raise BadInput(f"its special tokens are those of {expected}, but its model is of another kind; use a file of one kind")
    return special


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSpecialTokens:
    """Ids of the special tokens of text to text."""

    pad: int
    """Padding, which is also the first input of a decoder."""
    end: int
    """Ends every text."""
    unk: int
    sentinels: tuple[int, ...]
    """Replacements of the spans left out of a text: <extra_id_0> for the first one, <extra_id_1> for the second, ..."""

    @property
    def special(self) -> tuple[int, ...]:
        """The ids of all special tokens, ascending."""
        return tuple(sorted((self.pad, self.end, self.unk, *self.sentinels)))


def sentinel_name(number: int) -> str:
    """Return the name of sentinel `number`, counted from 0."""
    return f"<extra_id_{number}>"


def text_special_tokens(ids: Mapping[str, int]) -> TextSpecialTokens:
    """Return the special tokens of a text-to-text vocabulary; sentinels count up to the first gap in their numbers.

    mT5's names of sentinels begin with U+2581, the sign of a space.

    Raises:
        BadInput: the vocabulary lacks one that is not a sentinel.
    """
    if missing := [name for name in TEXT.values() if name not in ids]:
        raise BadInput(f"it has no {' and no '.join(missing)}, and a text needs {', '.join(TEXT.values())}; add them")
    space = "" if sentinel_name(0) in ids else "\u2581"
    names = itertools.takewhile(ids.__contains__, (space + sentinel_name(number) for number in itertools.count()))
    return TextSpecialTokens(**{role: ids[name] for role, name in TEXT.items()}, sentinels=tuple(ids[name] for name in names))
