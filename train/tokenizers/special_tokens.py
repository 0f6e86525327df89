"""Special tokens: an encoder's, how they stand around one text or two, and those of text to text."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int32, Integer

from zoo.errors import BadInput

BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""Names in BERT's released vocabularies; a vocabulary trained here has the ids 0 to 4 in this order."""
ROBERTA = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
"""Names in RoBERTa's. Here as there, the first four have the ids 0 to 3, and the mask has the last id."""
XLNET = {
    **{"unk": "<unk>", "bos": "<s>", "eos": "</s>", "cls": "<cls>", "sep": "<sep>"},
    **{"pad": "<pad>", "mask": "<mask>", "eod": "<eod>", "eop": "<eop>"},
}
"""Names in XLNet's, which has the ids 0 to 8 in this order; a vocabulary trained here too."""

TEXT = {"pad": "<pad>", "end": "</s>", "unk": "<unk>"}
"""Names in T5's vocabulary, which has the ids 0 to 2 in this order; a vocabulary trained here too."""
SENTINELS = 100
"""How many T5's has, after all other entries."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marks:
    """Ids of an encoder's special tokens."""

    pad: int
    unk: int
    cls: int
    """Stands for the whole input: begins it, or, XLNet's, ends it."""
    sep: int
    """Ends every text."""
    mask: int
    between: int = 1
    """Separators between the two texts of a pair: RoBERTa 2, the others 1."""
    cls_last: bool = False
    """Whether `cls` ends every input (XLNet; Yang et al. 2019, section 2.5)."""
    bos: int | None = None
    """This one and the next are XLNet's, and in no template."""
    eos: int | None = None
    eod: int | None = None
    """XLNet's end of a document."""
    eop: int | None = None
    """XLNet's end of a paragraph, which nothing here writes: as in its own programs unless asked for."""

    @property
    def special(self) -> tuple[int, ...]:
        """All of them, in ascending order."""
        every = (self.pad, self.unk, self.cls, self.sep, self.mask, self.bos, self.eos, self.eod, self.eop)
        return tuple(sorted(mark for mark in every if mark is not None))

    @property
    def end(self) -> int:
        """What ends a document: `sep`; XLNet's data have `eod` there (zihangdai/xlnet, `data_utils.py`)."""
        return self.sep if self.eod is None else self.eod

    @property
    def types(self) -> int:
        """Token types of a pair. RoBERTa, which sets its texts apart by two separators, has one; XLNet's `cls` has its own."""
        return 3 if self.cls_last else 2 if self.between == 1 else 1

    @property
    def before(self) -> int:
        """Marks before the first text."""
        return 0 if self.cls_last else 1

    def summary(self, size: int) -> int:
        """Where `cls` is in an input of `size` ids, marks included."""
        return size - 1 if self.cls_last else 0

    def single(self, ids: Integer[np.ndarray, " a"]) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
        """`cls A sep` (Devlin et al. 2019, section 4), in XLNet `A sep cls`, and its token types."""
        return self._framed([(ids, 0), ([self.sep], 0)])

    def pair(
        self, first: Integer[np.ndarray, " a"], second: Integer[np.ndarray, " b"]
    ) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
        """`cls A sep B sep`, in RoBERTa `cls A sep sep B sep`, in XLNet `A sep B sep cls`, and its token types: `B sep` has type
        1, save in RoBERTa, and XLNet's `cls` type 2."""
        other = min(1, self.types - 1)
        return self._framed([(first, 0), ([self.sep] * self.between, 0), (second, other), ([self.sep], other)])

    def _framed(self, parts: list[tuple[Any, int]]) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
        """The parts, each with its token type, and `cls`."""
        parts = [*parts, ([self.cls], self.types - 1)] if self.cls_last else [([self.cls], 0), *parts]
        ids = np.concatenate([np.asarray(part, np.int32) for part, _ in parts])
        return ids, np.repeat(np.array([kind for _, kind in parts], np.int32), [len(part) for part, _ in parts])


def named(ids: Mapping[str, int]) -> Marks | None:
    """The marks of a vocabulary, by their names: those it has more of, BERT's, RoBERTa's or XLNet's. None: it has none of them.

    Raises:
        BadInput: it has some of them, not all.
    """
    # RoBERTa's names are XLNet's too: of as many the first are taken.
    names = max((BERT, ROBERTA, XLNET), key=lambda names: len(ids.keys() & set(names.values())))
    missing = [name for name in names.values() if name not in ids]
    if len(missing) == len(names):
        return None
    if missing:
        raise BadInput(f"it has no {' and no '.join(missing)}, and an encoder needs {', '.join(names.values())}; add them")
    return Marks(
        **{role: ids[name] for role, name in names.items()}, between=2 if names is ROBERTA else 1, cls_last=names is XLNET
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextMarks:
    """Ids of the special tokens of text to text."""

    pad: int
    """It also begins what a decoder is given."""
    end: int
    """Ends every text."""
    unk: int
    sentinels: tuple[int, ...]
    """What stands for the spans left out of a text: <extra_id_0> for the first one, <extra_id_1> for the second, ..."""

    @property
    def special(self) -> tuple[int, ...]:
        """All of them, in ascending order."""
        return tuple(sorted((self.pad, self.end, self.unk, *self.sentinels)))


def sentinel(number: int) -> str:
    """The name of a sentinel, counted from 0."""
    return f"<extra_id_{number}>"


def text_marks(ids: Mapping[str, int]) -> TextMarks:
    """The marks of a vocabulary of text to text, by their names; its sentinels as far as they are numbered without a gap.

    Raises:
        BadInput: it lacks one that is no sentinel.
    """
    if missing := [name for name in TEXT.values() if name not in ids]:
        raise BadInput(f"it has no {' and no '.join(missing)}, and a text needs {', '.join(TEXT.values())}; add them")
    sentinels = itertools.takewhile(lambda number: sentinel(number) in ids, itertools.count())
    return TextMarks(
        **{role: ids[name] for role, name in TEXT.items()}, sentinels=tuple(ids[sentinel(number)] for number in sentinels)
    )
