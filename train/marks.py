"""Special tokens: an encoder's, how they stand around one text or two, and those of text to text."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32, Integer

from zoo.errors import BadInput

BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""Names in BERT's released vocabularies; a vocabulary trained here has the ids 0 to 4 in this order."""
ROBERTA = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
"""Names in RoBERTa's. Here as there, the first four have the ids 0 to 3, and the mask has the last id."""

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
    """Begins every input."""
    sep: int
    """Ends every text."""
    mask: int
    between: int = 1
    """Separators between the two texts of a pair: BERT 1, RoBERTa 2."""

    @property
    def special(self) -> tuple[int, ...]:
        """All of them, in ascending order."""
        return tuple(sorted((self.pad, self.unk, self.cls, self.sep, self.mask)))

    @property
    def types(self) -> int:
        """Token types that a pair has: RoBERTa, which sets its texts apart by two separators, has one."""
        return 2 if self.between == 1 else 1

    def single(self, ids: Integer[np.ndarray, " a"]) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
        """`cls A sep` (Devlin et al. 2019, section 4), and its token types."""
        whole = np.concatenate([[self.cls], ids, [self.sep]]).astype(np.int32)
        return whole, np.zeros_like(whole)

    def pair(
        self, first: Integer[np.ndarray, " a"], second: Integer[np.ndarray, " b"]
    ) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
        """`cls A sep B sep`, in RoBERTa `cls A sep sep B sep`, and its token types: BERT's `B sep` has type 1."""
        whole = np.concatenate([[self.cls], first, [self.sep] * self.between, second, [self.sep]]).astype(np.int32)
        types = np.zeros_like(whole)
        types[len(whole) - len(second) - 1 :] = self.types - 1
        return whole, types


def named(ids: Mapping[str, int]) -> Marks | None:
    """The marks of a vocabulary, by their names: those it has more of, BERT's or RoBERTa's. None: it has not one of them.

    Raises:
        BadInput: it has some of them, not all.
    """
    names = max((BERT, ROBERTA), key=lambda names: len(ids.keys() & set(names.values())))
    missing = [name for name in names.values() if name not in ids]
    if len(missing) == len(names):
        return None
    if missing:
        raise BadInput(f"it has no {' and no '.join(missing)}, and an encoder needs {', '.join(names.values())}; add them")
    return Marks(**{role: ids[name] for role, name in names.items()}, between=1 if names is BERT else 2)


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
