"""What an objective needs to be told, in numbers and names: part of a run, validated where it is made. Nothing here imports numpy."""

from dataclasses import dataclass
from typing import Literal

from zoo.errors import require

ClassWeights = Literal["none", "balanced"]
Encoding = Literal["utf-8", "latin-1"]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """How labelled files are read and become rows (classification, tagging, span, choice)."""

    text: str = ""
    """Column of the text. None: text (tagging: tokens), or the first one of a file whose columns are numbered."""
    pair: str = ""
    """Column of a second text, for pairs. None: there is none."""
    label: str = ""
    """Column of the label. None: label (tagging: tags), or the last one of a file whose columns are numbered."""
    header: bool = True
    """Whether the first line of a .tsv or .csv names its columns. Otherwise they are numbered: 1, 2, ..., as those of .conll are."""
    encoding: Encoding = "utf-8"
    """Of the files of text."""
    coarse: bool = False
    """Of a label like LOC:city keep what is before the colon."""
    regression: bool = False
    """Labels are numbers, and the model learns to give them."""
    class_weights: ClassWeights = "none"
    """balanced: an example counts n / (classes * n of its class) in the loss that is trained on, so that every class counts alike."""
    truncate: bool = False
    """Cut what does not fit into a row, the longer text of a pair first. Otherwise it is refused."""
    stride: int = 128
    """Tokens of a context by which each of its windows begins after the one before (span); at most those a window has room for."""

    def __post_init__(self) -> None:
        require(self.stride >= 1, "labelled.stride", self.stride, "choose 1 or more tokens")
        require(
            not self.pair or self.pair not in (self.text, self.label),
            "labelled.pair",
            self.pair,
            "it is the column of --labelled.text or --labelled.label; name another",
        )
        require(
            not self.regression or (self.class_weights == "none" and not self.coarse),
            "labelled.regression",
            self.regression,
            "numbers have neither classes to weigh nor a coarse part; leave out --labelled.class-weights and --labelled.coarse",
        )
