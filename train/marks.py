"""An encoder's special tokens: their names, their ids, and how they stand around one text or two."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32, Integer

from zoo.errors import BadInput

BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""Names in BERT's released vocabularies; a vocabulary trained here has the ids 0 to 4 in this order."""
ROBERTA = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
"""Names in RoBERTa's. Here as there, the first four have the ids 0 to 3, and the mask has the last id."""


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
